//! The .proto file, its listing `schemas/proto/contract.json`, and the messages of this crate say the
//! same, and nothing that the listing has ever goes away.
//!
//! The listing is made from the .proto file by `protoc`; with `FLEXCORE_BLESS=1` what is new in the
//! file goes into it.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value as Told,
    prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, OneofDescriptorProto,
        field_descriptor_proto::{Label, Type},
    },
};
use serde_json::{Map, Value};

use super::messages::*;

const FILE: &str = "flexcore/plugin/v1/plugin.proto";
const PACKAGE: &str = "flexcore.plugin.v1";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/proto")
}

fn listing() -> PathBuf {
    folder().join("contract.json")
}

fn read_listing() -> Value {
    serde_json::from_str(&fs::read_to_string(listing()).unwrap()).unwrap()
}

#[test]
fn the_proto_file_is_as_listed_and_breaks_nothing() {
    let Some(pool) = compiled() else { return };
    let made = list(&pool);
    let kept = fs::read_to_string(listing()).unwrap_or_else(|_| "{}".to_owned());
    let (old, new) = (serde_json::from_str(&kept).unwrap(), serde_json::from_str(&made).unwrap());
    let mut broken = Vec::new();
    gone(&old, &new, "", &mut broken);
    assert!(
        broken.is_empty(),
        "{FILE} breaks plugins that exist: {broken:#?}. What was published stays as it was: add \
         fields and methods under new numbers, or a package flexcore.plugin.v2."
    );
    if std::env::var_os("FLEXCORE_BLESS").is_some() {
        return fs::write(listing(), made).unwrap();
    }
    assert!(
        kept == made,
        "{FILE} has more than contract.json lists. If it is wanted: FLEXCORE_BLESS=1 cargo test -p \
         flexcore-plugin --lib proto_tests"
    );
}

/// The .proto file through `protoc`. A machine that lacks it says so, past the test's captured
/// output; the one that decides about a change has to have it.
fn compiled() -> Option<DescriptorPool> {
    let made = tempfile::tempdir().unwrap();
    let set = made.path().join("set");
    let done = Command::new("protoc")
        .arg("--proto_path")
        .arg(folder())
        .arg("--descriptor_set_out")
        .arg(&set)
        .arg(FILE)
        .output();
    let done = match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let told = "SKIPPED, no protoc for the .proto file of plugins";
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{told}");
            io::Write::write_all(&mut io::stderr(), format!("{told}\n").as_bytes()).unwrap();
            return None;
        }
        done => done.unwrap(),
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(DescriptorPool::decode(&*fs::read(set).unwrap()).unwrap())
}

/// Every message with its fields, every service with its methods, one on a line.
fn list(pool: &DescriptorPool) -> String {
    let mut text = format!("{{\n  \"package\": \"{PACKAGE}\",\n  \"messages\": {{\n");
    let mut messages: Vec<_> = pool.all_messages().collect();
    messages.sort_by_key(|message| message.name().to_owned());
    let messages = messages.iter().map(|message| {
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        let field = |field: FieldDescriptor| {
            let (number, name, label) = (field.number(), field.name(), label(&field));
            let of = type_of(&field.kind());
            let said = format!("\"name\": \"{name}\", \"type\": \"{of}\", \"label\": \"{label}\"");
            (number.to_string(), said)
        };
        block(message.name(), fields.into_iter().map(field))
    });
    write!(text, "{}\n  }},\n  \"services\": {{\n", messages.collect::<Vec<_>>().join(",\n"))
        .unwrap();
    let services = pool.services().map(|service| {
        let mut methods: Vec<_> = service.methods().collect();
        methods.sort_by_key(|method| method.name().to_owned());
        let methods = methods.into_iter().map(|method| {
            let stream = |is: bool| if is { "stream " } else { "" };
            let takes =
                format!("{}{}", stream(method.is_client_streaming()), method.input().name());
            let returns =
                format!("{}{}", stream(method.is_server_streaming()), method.output().name());
            let said = format!("\"takes\": \"{takes}\", \"returns\": \"{returns}\"");
            (method.name().to_owned(), said)
        });
        block(service.name(), methods)
    });
    write!(text, "{}\n  }}\n}}\n", services.collect::<Vec<_>>().join(",\n")).unwrap();
    text
}

fn block(name: &str, entries: impl Iterator<Item = (String, String)>) -> String {
    let lines: Vec<_> = entries.map(|(key, said)| format!("      \"{key}\": {{{said}}}")).collect();
    if lines.is_empty() {
        return format!("    \"{name}\": {{}}");
    }
    format!("    \"{name}\": {{\n{}\n    }}", lines.join(",\n"))
}

fn type_of(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.name().to_owned(),
        Kind::Enum(of) => of.name().to_owned(),
        plain => format!("{plain:?}").to_lowercase(),
    }
}

fn label(field: &FieldDescriptor) -> String {
    match field.containing_oneof() {
        Some(oneof) => format!("oneof {}", oneof.name()),
        None if field.is_list() => "repeated".to_owned(),
        None => "single".to_owned(),
    }
}

/// What the old listing has, and the new one has not, or has otherwise.
fn gone(old: &Value, new: &Value, at: &str, broken: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                gone(value, new.get(key).unwrap_or(&Value::Null), &format!("{at}/{key}"), broken);
            }
        }
        (old, new) if old == new => {}
        (old, new) => broken.push(format!("{at}: was {old}, is {new}")),
    }
}

#[test]
fn what_goes_away_or_changes_is_found_and_what_is_added_is_not() {
    let old = read_listing();
    let found = |change: fn(&mut Value)| {
        let (mut new, mut broken) = (old.clone(), Vec::new());
        change(&mut new);
        gone(&old, &new, "", &mut broken);
        broken
    };
    let none = found(|new| {
        new["messages"]["Event"]["3"] = serde_json::json!({"name": "more"});
        new["messages"]["New"] = Value::Object(Map::new());
        new["services"]["Plugin"]["Undo"] = serde_json::json!({"takes": "New", "returns": "New"});
    });
    assert!(none.is_empty(), "{none:?}");
    let changes: [fn(&mut Value); 4] = [
        |new| drop(new["messages"].as_object_mut().unwrap().remove("Event")),
        |new| new["messages"]["Event"]["2"]["type"] = "string".into(),
        |new| new["messages"]["CallRequest"]["2"]["name"] = "method".into(),
        |new| new["services"]["Plugin"]["Decide"]["takes"] = "DecideRequest".into(),
    ];
    for change in changes {
        let broken = found(change);
        assert_eq!(broken.len(), 1, "{broken:?}");
    }
}

/// The messages as the listing has them.
fn listed() -> DescriptorPool {
    let listing = read_listing();
    let messages = listing["messages"].as_object().unwrap();
    let file = FileDescriptorProto {
        name: Some(FILE.to_owned()),
        package: Some(PACKAGE.to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: messages.iter().map(|(name, fields)| message(name, fields)).collect(),
        ..FileDescriptorProto::default()
    };
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_proto(file).unwrap();
    pool
}

fn message(name: &str, fields: &Value) -> DescriptorProto {
    let mut made = DescriptorProto { name: Some(name.to_owned()), ..DescriptorProto::default() };
    for (number, field) in fields.as_object().unwrap() {
        let text = |key: &str| field[key].as_str().unwrap().to_owned();
        let plain = match text("type").as_str() {
            "string" => Some(Type::String),
            "bytes" => Some(Type::Bytes),
            "bool" => Some(Type::Bool),
            "uint64" => Some(Type::Uint64),
            "int64" => Some(Type::Int64),
            _ => None,
        };
        let label = text("label");
        let oneof_index = label.strip_prefix("oneof ").map(|oneof| {
            if made.oneof_decl.is_empty() {
                let oneof = OneofDescriptorProto { name: Some(oneof.to_owned()), options: None };
                made.oneof_decl.push(oneof);
            }
            0
        });
        let is_list = label == "repeated";
        made.field.push(FieldDescriptorProto {
            name: Some(text("name")),
            number: Some(number.parse().unwrap()),
            label: Some(if is_list { Label::Repeated } else { Label::Optional }.into()),
            r#type: Some(plain.unwrap_or(Type::Message).into()),
            type_name: plain.is_none().then(|| format!(".{PACKAGE}.{}", text("type"))),
            oneof_index,
            ..FieldDescriptorProto::default()
        });
    }
    made
}

/// Each text is the name of its field, bytes are the name and a byte that no text has, numbers are
/// those of their fields, signed ones negative.
#[test]
fn the_messages_are_as_listed() {
    let pool = listed();
    let mut seen = BTreeSet::new();
    for (name, encoded) in samples() {
        let descriptor = pool.get_message_by_name(&format!("{PACKAGE}.{name}")).unwrap();
        look(&DynamicMessage::decode(descriptor, &*encoded).unwrap(), &mut seen);
    }
    let fields = pool.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>());
    let all: BTreeSet<_> = fields.map(|field| field.full_name().to_owned()).collect();
    assert_eq!(seen, all);
}

fn look(message: &DynamicMessage, seen: &mut BTreeSet<String>) {
    let name = message.descriptor().full_name().to_owned();
    assert_eq!(message.unknown_fields().count(), 0, "{name} has a field that is not listed");
    for (field, value) in message.fields() {
        seen.insert(field.full_name().to_owned());
        for value in value.as_list().unwrap_or(std::slice::from_ref(value)) {
            let (number, name) = (field.number(), field.full_name());
            match value {
                Told::Message(message) => look(message, seen),
                Told::String(text) => assert_eq!(text, field.name(), "{name}"),
                Told::Bytes(bytes) => assert_eq!(*bytes, named(field.name()), "{name}"),
                Told::Bool(is) => assert!(is, "{name}"),
                Told::U64(told) => assert_eq!(*told, u64::from(number), "{name}"),
                Told::I64(told) => assert_eq!(*told, -i64::from(number), "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

fn named(field: &str) -> Bytes {
    Bytes::from([field.as_bytes(), &[0xff]].concat())
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let call_response = |result| CallResponse { result: Some(result) };
    let results = vec![
        call_response(CallResult::Output(named("output"))),
        call_response(CallResult::Failure(failure())),
    ];
    let events = vec![Event { event: "event".into(), data: named("data") }];
    let decisions = [
        DecisionResult::Events(Events { events }),
        DecisionResult::Rejected(failure()),
        DecisionResult::Failure(failure()),
    ];
    let decisions = decisions.map(|result| Decision { result: Some(result) }).into();
    let configured =
        ConfigureRequest { tenant: "tenant".into(), configuration: named("configuration") };
    let call = CallRequest {
        context: Some(context()),
        function: "function".into(),
        input: named("input"),
    };
    let stream = StreamRequest {
        number: 1,
        context: Some(context()),
        function: "function".into(),
        inputs: vec![named("inputs"); 2],
    };
    let questions = vec![question(); 2];
    vec![
        ("DescribeRequest", DescribeRequest {}.encode_to_vec()),
        ("Description", description().encode_to_vec()),
        ("ConfigureRequest", configured.encode_to_vec()),
        ("ConfigureResponse", ConfigureResponse { failure: Some(failure()) }.encode_to_vec()),
        ("CallRequest", call.encode_to_vec()),
        ("StreamRequest", stream.encode_to_vec()),
        ("StreamResponse", StreamResponse { number: 1, results }.encode_to_vec()),
        ("DecideRequest", DecideRequest { number: 1, questions }.encode_to_vec()),
        ("DecideResponse", DecideResponse { number: 1, decisions }.encode_to_vec()),
    ]
}

fn description() -> Description {
    let function = Function {
        name: "name".into(),
        summary: "summary".into(),
        input_schema: "input_schema".into(),
        output_schema: "output_schema".into(),
        idempotent: true,
    };
    Description {
        name: "name".into(),
        version: "version".into(),
        summary: "summary".into(),
        functions: vec![function],
        configuration_schema: "configuration_schema".into(),
        decides: true,
    }
}

fn context() -> Context {
    Context {
        tenant: "tenant".into(),
        actor: "actor".into(),
        idempotency_key: "idempotency_key".into(),
        timeout_ms: 4,
        traceparent: "traceparent".into(),
        tracestate: "tracestate".into(),
    }
}

fn failure() -> Failure {
    Failure {
        code: "code".into(),
        message: "message".into(),
        temporary: true,
        retry_after_ms: 4,
        details: named("details"),
    }
}

fn question() -> Question {
    Question {
        context: Some(context()),
        aggregate: "aggregate".into(),
        id: "id".into(),
        version: 4,
        command: "command".into(),
        command_id: "command_id".into(),
        now_ms: -7,
        state: named("state"),
        payload: named("payload"),
    }
}

#[test]
fn the_methods_are_as_listed() {
    let listing = read_listing();
    let methods = listing["services"]["Plugin"].as_object().unwrap();
    let listed: BTreeSet<_> =
        methods.keys().map(|method| format!("/{PACKAGE}.Plugin/{method}")).collect();
    let known = [DESCRIBE, CONFIGURE, CALL, STREAM, DECIDE].map(str::to_owned);
    assert_eq!(BTreeSet::from(known), listed);
    assert_eq!(SERVICE, format!("{PACKAGE}.Plugin"));
}
