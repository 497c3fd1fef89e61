//! One application with one of everything, for tests.

use std::{collections::BTreeMap, sync::Arc};

use flexcore_definition::{
    AggregateDefinition, Application, Catalog, Column, ColumnType, CommandDefinition, Decide,
    EventDefinition, FileLine, Function, Parameter, QueryDefinition, ReadModelDefinition, Schema,
};
use flexcore_domain::{AggregateName, CommandName, EventName, Name};
use serde_json::{Value, json};

fn schema(json: Value) -> Schema {
    let validator = Arc::new(jsonschema::validator_for(&json).unwrap());
    Schema { json, place: FileLine::default(), validator }
}

/// One application with one of everything.
pub(crate) fn catalog() -> Catalog {
    let function = || Function { source: "() => 0".into(), place: FileLine::default() };
    let name = |text: &str| Name::parse(text).unwrap();
    let flight = AggregateName::parse("flight").unwrap();
    let command = CommandDefinition {
        description: "The flight leaves.".to_owned(),
        payload: schema(json!({"type": "object", "properties": {"at": {"type": "string"}}})),
        decide: Decide::Script(function()),
    };
    let event = EventDefinition {
        version: 1,
        data: schema(json!({"type": "object"})),
        evolve: function(),
        upcast: BTreeMap::new(),
    };
    let aggregate = AggregateDefinition {
        name: flight.clone(),
        description: "A flight.".to_owned(),
        place: FileLine::default(),
        commands: BTreeMap::from([(CommandName::parse("depart").unwrap(), command)]),
        events: BTreeMap::from([(EventName::parse("departed").unwrap(), event)]),
    };
    let columns = [("id", ColumnType::Text), ("delay", ColumnType::Integer)];
    let model = ReadModelDefinition {
        name: name("flights"),
        description: "A row a flight.".to_owned(),
        place: FileLine::default(),
        columns: columns.map(|(text, column_type)| Column { name: name(text), column_type }).into(),
        key: vec![name("id")],
        indexes: Vec::new(),
        on: BTreeMap::new(),
        followed: BTreeMap::new(),
        shared: false,
        fingerprint: String::new(),
    };
    let query = QueryDefinition {
        name: name("delays"),
        description: "Delays.".to_owned(),
        place: FileLine::default(),
        // Some seconds for each `least`, one row at a time.
        sql: "select coalesce(max(n)::text, '') as slept from ( \
                  select generate_series(1, :least * 10000000) as n \
              ) as s"
            .to_owned(),
        sql_line: 1,
        reads: vec![name("flights")],
        fingerprints: vec![String::new()],
        parameters: vec![Parameter {
            name: name("least"),
            column_type: ColumnType::Integer,
            default: Some(json!(0)),
        }],
    };
    let application = Application {
        name: name("flights"),
        version: 1,
        files: Vec::new(),
        aggregates: BTreeMap::from([(flight, Arc::new(aggregate))]),
        read_models: BTreeMap::from([(model.name.clone(), Arc::new(model))]),
        queries: BTreeMap::from([(query.name.clone(), Arc::new(query))]),
    };
    let mut catalog = Catalog::default();
    catalog.put(application);
    catalog
}
