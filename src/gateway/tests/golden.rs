//! The contracts of the example application, as they stand in `schemas/`: a change of one shows in
//! review.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use std::{fs, path::Path};

use flexcore_definition::{Application, Catalog, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit, Event,
    EventName, Name, Provenance, Tenant,
};
use serde_json::{Value, value::to_raw_value};

/// The repository's folder of contracts.
fn schemas() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas")
}

/// The catalog once `schemas/flights` is deployed.
fn catalog() -> Catalog {
    let folder = schemas().join("flights");
    let files = ["flight.yaml", "queries.yaml", "read_models.yaml"].map(|path| SourceFile {
        path: path.to_owned(),
        text: fs::read_to_string(folder.join(path)).unwrap(),
    });
    let application = Application::read(Name::parse("flights").unwrap(), files.into()).unwrap();
    Catalog::default().with(application).unwrap()
}

/// Compares with the file, or writes it when `FLEXCORE_BLESS` is set.
fn check(name: &str, text: &str) {
    let path = schemas().join(name);
    if std::env::var_os("FLEXCORE_BLESS").is_some() {
        return fs::write(&path, text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).position(|(kept, made)| kept != made);
    let line = differs.unwrap_or_else(|| kept.lines().count().min(text.lines().count())) + 1;
    assert!(
        kept == text,
        "{name} is not what is generated now, from line {line} on. If the change is wanted: \
         FLEXCORE_BLESS=1 cargo test -p flexcore-gateway --test golden"
    );
}

#[test]
fn openapi_is_as_it_was() {
    check("openapi.json", &flexcore_gateway::openapi(&catalog()));
}

#[test]
fn asyncapi_is_as_it_was() {
    check("asyncapi.json", &flexcore_gateway::asyncapi(&catalog()));
}

#[test]
fn an_event_is_as_it_was_and_as_asyncapi_says() {
    let data = serde_json::json!({
        "carrier": "UA", "number": 1, "tailnum": null, "origin": "EWR", "destination": "IAH",
        "scheduled_departure": "2013-01-01T05:15:00Z", "scheduled_arrival": null,
        "distance_miles": 1400,
    });
    let event = Event {
        event: EventName::parse("scheduled").unwrap(),
        version: 1,
        schema_version: 1,
        data: to_raw_value(&data).unwrap(),
    };
    let id = |text: &str| CommandId::parse(text).unwrap();
    let commit = Commit {
        key: AggregateKey::new(
            Tenant::parse("demo").unwrap(),
            AggregateName::parse("flight").unwrap(),
            AggregateId::parse("UA1-20130101-EWR").unwrap(),
        ),
        command_id: id("c-1"),
        command_hash: CommandHash::of("schedule", &data.to_string()),
        provenance: Provenance {
            actor: ActorName::parse("alice").unwrap(),
            correlation_id: Some(id("import-7")),
            causation_id: Some(id("file-3")),
            traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok(),
        },
        time_ms: 1_357_017_300_000,
        events: vec![event],
    };
    let event: Value = serde_json::from_str(&commit.cloud_event(&commit.events[0])).unwrap();
    check("event.json", &format!("{event:#}\n"));
    let document: Value = serde_json::from_str(&flexcore_gateway::asyncapi(&catalog())).unwrap();
    let payload = &document["components"]["messages"]["flight_event_scheduled"]["payload"];
    let required = payload["required"].as_array().unwrap();
    assert!(required.len() > 10);
    let payload = jsonschema::validator_for(payload).unwrap();
    assert!(payload.is_valid(&event), "{:?}", payload.iter_errors(&event).next());
}
