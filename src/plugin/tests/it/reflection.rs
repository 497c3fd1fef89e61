//! Calls with JSON to plugins that tell their contract themselves.

use std::time::Duration;

use flexcore_plugin::{Error, Method, Reflection};
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    base::run,
    fixtures::{self, Program},
    harness::{How, Started, start, within},
};

const NAME: &str = "flexcore.lab.v1.Transform";
const APPLY: &str = "flexcore.lab.v1.Transform/Apply";
const APPLY_STREAM: &str = "flexcore.lab.v1.Transform/ApplyStream";

async fn loaded(program: &Program) -> (Started, Reflection) {
    let started = start(program, How::default()).await.unwrap();
    let reflection = within(PATIENCE, Reflection::load(started.plugin.connection())).await;
    (started, reflection.unwrap())
}

fn told(reflection: &Reflection) {
    assert_eq!(reflection.services(), [NAME]);
    let method = |name: &str, stream| Method {
        name: name.to_owned(),
        input: "flexcore.lab.v1.TransformRequest".to_owned(),
        output: "flexcore.lab.v1.TransformResponse".to_owned(),
        takes_stream: stream,
        answers_stream: stream,
    };
    let expected = [method(APPLY, false), method(APPLY_STREAM, true)];
    assert_eq!(reflection.methods(NAME).unwrap(), expected);
    let schema = reflection.input_schema(APPLY).unwrap().to_string();
    for field in ["id", "payload", "callback"] {
        assert!(schema.contains(field), "{schema}");
    }
}

async fn called(started: &Started, reflection: &Reflection) {
    let connection = started.plugin.connection();
    let call = |method: &'static str, input: Value| {
        within(PATIENCE, reflection.call(connection, method, input, PATIENCE))
    };
    // `hello` and `HELLO` in base64.
    let one = call(APPLY, json!({ "id": "a", "payload": "aGVsbG8=" })).await.unwrap();
    assert_eq!((&one["id"], &one["payload"]), (&json!("a"), &json!("SEVMTE8=")));
    let many = json!([{ "id": "1", "payload": "YQ==" }, { "id": "2", "payload": "Yg==" }]);
    let many = call(APPLY_STREAM, many).await.unwrap();
    let many: Vec<_> =
        many.as_array().unwrap().iter().map(|one| (&one["id"], &one["payload"])).collect();
    assert_eq!(many, [(&json!("1"), &json!("QQ==")), (&json!("2"), &json!("Qg=="))]);
    for wrong in [json!({ "idd": "a" }), json!({ "callback_id": "many" }), json!("text")] {
        let error = call(APPLY, wrong).await.expect_err("it does not fit");
        assert!(matches!(error, Error::Contract(_)), "{error:?}");
    }
    for missing in ["flexcore.lab.v1.Transform/Undo", "flexcore.lab.v2.Transform/Apply", "Apply"] {
        let error = call(missing, json!({})).await.expect_err("there is none");
        assert!(matches!(error, Error::Contract(_)), "{error:?}");
    }
    let soon = Duration::from_millis(300);
    let hang = reflection.call(connection, APPLY, json!({ "id": "hang" }), soon);
    let error = within(PATIENCE, hang).await.expect_err("it never answers");
    let is_late = matches!(&error, Error::Late { .. })
        || matches!(&error, Error::Status { status, .. }
            if status.code() == tonic::Code::DeadlineExceeded);
    assert!(is_late, "{error:?}");
}

#[test]
fn a_rust_plugin_is_called_with_json() {
    run(async {
        let (started, reflection) = loaded(&fixtures::rust()).await;
        told(&reflection);
        called(&started, &reflection).await;
        within(PATIENCE, started.plugin.stop()).await;
    });
}

/// grpcio has the older reflection alone.
#[test]
fn a_python_plugin_is_called_with_json() {
    run(async {
        let Some(python) = fixtures::python() else { return };
        let (started, reflection) = loaded(&python).await;
        told(&reflection);
        called(&started, &reflection).await;
        within(PATIENCE, started.plugin.stop()).await;
    });
}

#[test]
fn a_plugin_without_reflection_is_told() {
    run(async {
        let Some(go) = fixtures::go() else { return };
        let started = start(&go, How::default()).await.unwrap();
        let load = within(PATIENCE, Reflection::load(started.plugin.connection())).await;
        let error = load.expect_err("go-plugin 1.0.1 has none");
        assert!(matches!(error, Error::Contract(_) | Error::Status { .. }), "{error:?}");
        within(PATIENCE, started.plugin.check()).await.unwrap();
        within(PATIENCE, started.plugin.stop()).await;
    });
}
