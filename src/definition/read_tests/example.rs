//! The example application, read from its real folder.

use std::{fs, path::Path};

use serde_json::json;

use super::*;
use crate::{ColumnType, Expression, Operation};

fn flights() -> Application {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/flights");
    let files = ["flight.yaml", "read_models.yaml", "queries.yaml"].map(|path| SourceFile {
        path: path.to_owned(),
        text: fs::read_to_string(folder.join(path)).unwrap(),
    });
    match Application::read(Name::parse("flights").unwrap(), files.to_vec()) {
        Ok(application) => application,
        Err(problems) => {
            panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>())
        }
    }
}

#[test]
fn the_flight_has_its_commands_and_events() {
    let flights = flights();
    let flight = &flights.aggregates["flight"];
    let commands: Vec<&str> = flight.commands.keys().map(|name| name.as_str()).collect();
    let events: Vec<&str> = flight.events.keys().map(|name| name.as_str()).collect();
    assert_eq!(commands, ["arrive", "cancel", "depart", "divert", "schedule"]);
    assert_eq!(events, ["arrived", "cancelled", "departed", "diverted", "scheduled"]);
    for command in flight.commands.values() {
        let (file, line) = (&command.decide.place().file, command.decide.place().line);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/flights");
        let text = fs::read_to_string(folder.join(&**file)).unwrap();
        let first = command.decide.function().unwrap().source.lines().next().unwrap();
        assert_eq!(text.lines().nth(line - 1).map(str::trim), Some(first), "{file}:{line}");
    }
    assert_eq!((flights.name.as_str(), flights.version, flights.files.len()), ("flights", 0, 3));
}

#[test]
fn the_payloads_of_the_data_set_match_and_others_do_not() {
    let flights = flights();
    let commands = &flights.aggregates["flight"].commands;
    let valid = |command: &str, payload| commands[command].payload.validator.is_valid(&payload);
    let mut schedule = json!({
        "carrier": "UA", "number": 1545, "tailnum": null, "origin": "EWR", "destination": "IAH",
        "scheduled_departure": "2013-01-01T05:15:00Z", "scheduled_arrival": null,
        "distance_miles": 1400
    });
    assert!(valid("schedule", schedule.clone()));
    schedule["scheduled_departure"] = json!("2013-13-01T05:15:00Z");
    assert!(!valid("schedule", schedule), "formats are checked");
    assert!(valid("depart", json!({"departed_at": "2013-01-01T05:17:00Z", "delay_minutes": -2})));
    assert!(!valid("depart", json!({"departed_at": "2013-01-01T05:17:00Z"})));
    assert!(valid("cancel", json!({})) && valid("divert", json!({})));
    assert!(!valid("cancel", json!({"why": "fog"})));
    let arrive = json!({"arrived_at": null, "delay_minutes": 11, "air_time_minutes": null});
    assert!(valid("arrive", arrive));
}

#[test]
fn the_read_models_and_queries_are_there() {
    let flights = flights();
    let models: Vec<&str> = flights.read_models.keys().map(Name::as_str).collect();
    assert_eq!(models, ["carriers", "flights", "routes"]);
    let carriers = &flights.read_models["carriers"];
    assert_eq!(carriers.key, [Name::parse("carrier").unwrap()]);
    assert_eq!((carriers.columns[0].column_type, carriers.columns.len()), (ColumnType::Text, 9));
    assert_eq!(carriers.on.len(), 5);
    let departed = carriers.on.iter().find(|((_, event), _)| event.as_str() == "departed").unwrap();
    assert_eq!(departed.1.key, [Expression::Data(vec!["carrier".to_owned()])]);
    let shown: Vec<_> =
        departed.1.operations.iter().map(|(name, op, _)| (name.as_str(), *op)).collect();
    assert_eq!(
        shown,
        [
            ("departures", Operation::Add),
            ("departure_delay_minutes", Operation::Add),
            ("longest_departure_delay_minutes", Operation::Max),
        ]
    );
    assert_eq!(carriers.fingerprint.len(), 64);
    assert_ne!(carriers.fingerprint, flights.read_models["routes"].fingerprint);
    let delays = &flights.queries["delays_by_carrier"];
    assert_eq!(delays.parameters[0].default, Some(json!(0)));
    assert_eq!(delays.reads, [Name::parse("carriers").unwrap()]);
    assert!(flights.queries.contains_key("flights_by_status"));
}
