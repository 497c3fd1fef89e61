//! JSON and messages of a contract that has everything.

use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, MethodDescriptor,
    prost_types::{
        Any, DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
        FileDescriptorProto, MessageOptions, MethodDescriptorProto, OneofDescriptorProto,
        ServiceDescriptorProto,
        field_descriptor_proto::{Label, Type},
    },
};
use serde_json::{Value, json};

use super::{files::Files, json, schema};
use crate::{Error, limits};

fn field(name: &str, number: i32, of: Type) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.into()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(of.into()),
        ..Default::default()
    }
}

fn named(name: &str, number: i32, of: Type, type_name: &str) -> FieldDescriptorProto {
    FieldDescriptorProto { type_name: Some(type_name.into()), ..field(name, number, of) }
}

fn list(field: FieldDescriptorProto) -> FieldDescriptorProto {
    FieldDescriptorProto { label: Some(Label::Repeated.into()), ..field }
}

fn choice(field: FieldDescriptorProto) -> FieldDescriptorProto {
    FieldDescriptorProto { oneof_index: Some(0), ..field }
}

fn message(name: &str, field: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto { name: Some(name.into()), field, ..Default::default() }
}

fn everything() -> DescriptorProto {
    let entry = DescriptorProto {
        options: Some(MessageOptions { map_entry: Some(true), ..Default::default() }),
        ..message(
            "ItemsEntry",
            vec![field("key", 1, Type::String), named("value", 2, Type::Message, ".lab.Item")],
        )
    };
    DescriptorProto {
        nested_type: vec![entry],
        oneof_decl: vec![OneofDescriptorProto { name: Some("choice".into()), options: None }],
        ..message(
            "All",
            vec![
                field("big", 1, Type::Int64),
                field("data", 2, Type::Bytes),
                named("color", 3, Type::Enum, ".lab.Color"),
                list(field("some_numbers", 4, Type::Int32)),
                list(named("items", 5, Type::Message, ".lab.All.ItemsEntry")),
                choice(field("text", 6, Type::String)),
                choice(named("item", 7, Type::Message, ".lab.Item")),
                named("at", 8, Type::Message, ".google.protobuf.Timestamp"),
                named("any", 9, Type::Message, ".google.protobuf.Any"),
                named("tree", 10, Type::Message, ".lab.Tree"),
                named("free", 11, Type::Message, ".google.protobuf.Struct"),
                list(field("flags", 12, Type::Bool)),
            ],
        )
    }
}

fn contract() -> FileDescriptorProto {
    let value = |name: &str, number| EnumValueDescriptorProto {
        name: Some(name.into()),
        number: Some(number),
        options: None,
    };
    let color = EnumDescriptorProto {
        name: Some("Color".into()),
        value: vec![value("NONE", 0), value("RED", 1)],
        ..Default::default()
    };
    let method = |name: &str, streams| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(".lab.All".into()),
        output_type: Some(".lab.All".into()),
        client_streaming: Some(streams),
        server_streaming: Some(streams),
        options: None,
    };
    let imports = ["any", "struct", "timestamp"];
    FileDescriptorProto {
        name: Some("lab.proto".into()),
        package: Some("lab".into()),
        syntax: Some("proto3".into()),
        dependency: imports.iter().map(|name| format!("google/protobuf/{name}.proto")).collect(),
        enum_type: vec![color],
        message_type: vec![
            everything(),
            message("Item", vec![field("name", 1, Type::String), field("ok", 2, Type::Bool)]),
            message(
                "Tree",
                vec![
                    list(named("branches", 1, Type::Message, ".lab.Tree")),
                    field("leaf", 2, Type::String),
                ],
            ),
        ],
        service: vec![ServiceDescriptorProto {
            name: Some("Lab".into()),
            method: vec![method("One", false), method("Many", true)],
            options: None,
        }],
        ..Default::default()
    }
}

fn pool() -> DescriptorPool {
    let mut files = Files::new();
    files.add(&contract().encode_to_vec().into()).unwrap();
    assert_eq!(files.missing(), None);
    files.pool().unwrap()
}

fn method(name: &str) -> MethodDescriptor {
    let service = pool().get_service_by_name("lab.Lab").unwrap();
    service.methods().find(|method| method.name() == name).unwrap()
}

fn round_trip(input: &Value) -> Value {
    let method = method("One");
    let requests = json::requests(&method, input).unwrap();
    json::answer(&method, requests).unwrap()
}

fn refused(input: &Value) -> String {
    json::requests(&method("One"), input).unwrap_err().to_string()
}

fn answered(bytes: Vec<u8>) -> Result<Value, Error> {
    json::answer(&method("One"), vec![bytes.into()])
}

#[test]
fn json_is_that_of_protocol_buffers() {
    let input = json!({
        "big": "9007199254740993",
        "data": "AAEC/w==",
        "color": "RED",
        "someNumbers": [1, -2],
        "items": {"a": {"name": "x", "ok": true}},
        "text": "",
        "at": "2024-02-29T12:00:00Z",
        "any": {"@type": "type.googleapis.com/lab.Item", "name": "y"},
        "tree": {"branches": [{"leaf": "l"}, {}]},
        "free": {"n": 1.5, "list": [null, true]},
    });
    assert_eq!(round_trip(&input), input);
}

#[test]
fn what_other_writers_write_is_taken() {
    let input = json!({"big": 5, "data": "_-8", "color": 1, "some_numbers": ["7"], "text": null});
    let output = json!({"big": "5", "data": "/+8=", "color": "RED", "someNumbers": [7]});
    assert_eq!(round_trip(&input), output);
}

#[test]
fn the_place_of_what_does_not_fit_is_told() {
    for (input, place) in [
        (json!({"bigg": 1}), "input.bigg: "),
        (json!({"big": "x"}), "input.big: "),
        (json!({"data": "?"}), "input.data: "),
        (json!({"color": "BLUE"}), "input.color: "),
        (json!({"someNumbers": [1, 2.5]}), "input.someNumbers[1]: "),
        (json!({"items": {"a": {}, "b": {"size": 1}}}), "input.items.b.size: "),
        (
            json!({"tree": {"branches": [{}, {"branches": [{"leaf": 1}]}]}}),
            "input.tree.branches[1].branches[0].leaf: ",
        ),
        (json!({"at": "today"}), "input.at: "),
        (json!({"text": "a", "item": {}}), "input: "),
        (json!([]), "input: "),
    ] {
        let error = refused(&input);
        assert!(error.starts_with(place), "{error}");
    }
    let many = json::requests(&method("Many"), &json!([{}, {"bigg": 1}])).unwrap_err().to_string();
    assert!(many.starts_with("input[1].bigg: "), "{many}");
    assert!(json::requests(&method("Many"), &json!({})).is_err());
}

#[test]
fn a_stream_is_a_list() {
    let method = method("Many");
    let input = json!([{"big": "1"}, {}, {"text": "x"}]);
    let requests = json::requests(&method, &input).unwrap();
    assert_eq!(requests.len(), 3);
    assert_eq!(json::answer(&method, requests).unwrap(), input);
    assert_eq!(json::answer(&method, vec![]).unwrap(), json!([]));
    let none: Vec<Bytes> = Vec::new();
    assert!(json::answer(&self::method("One"), none).is_err());
}

#[test]
fn an_answer_that_grows_is_refused_before_it_does() {
    // Packed booleans: a byte each on the wire.
    let mut bytes = vec![0x62];
    let length = limits::JSON_VALUES_MAX;
    prost::encoding::encode_varint(length as u64, &mut bytes);
    bytes.resize(bytes.len() + length, 1);
    let began = Instant::now();
    let grown = answered(bytes);
    assert!(matches!(grown, Err(Error::TooLarge { .. })), "{grown:?}");
    assert!(began.elapsed().as_secs() < 5);
}

#[test]
fn an_any_in_an_any_ends() {
    let nested = |levels: usize| {
        let empty = Any { type_url: "t/lab.Item".into(), value: Vec::new() };
        let any = (0..levels).fold(empty, |inner, _| Any {
            type_url: "t/google.protobuf.Any".into(),
            value: inner.encode_to_vec(),
        });
        let mut bytes = vec![0x4a];
        prost::encoding::encode_varint(any.encoded_len() as u64, &mut bytes);
        bytes.extend(any.encode_to_vec());
        bytes
    };
    assert!(answered(nested(20)).is_ok());
    assert!(matches!(answered(nested(2_000)), Err(Error::TooLarge { .. })));
}

#[test]
fn an_answer_that_is_none_is_refused() {
    for bytes in [
        vec![0xff],
        vec![0x12, 5, 1],
        // A field of another type.
        vec![0x0a, 1, 1],
        // An Any of a type that is nowhere.
        vec![0x4a, 5, 0x0a, 3, b't', b'/', b'X'],
        // A text that is no text.
        vec![0x32, 1, 0xff],
        // A time after the year 9999.
        vec![0x42, 7, 0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ] {
        assert!(answered(bytes.clone()).is_err(), "{bytes:?}");
    }
}

#[test]
fn what_the_plugin_does_not_describe_is_left_out() {
    // Field 99, a number.
    assert_eq!(answered(vec![0x98, 0x06, 1]).unwrap(), json!({}));
}

#[test]
fn a_schema_tells_how_to_write_an_input() {
    let schema = schema::input(&method("One")).unwrap();
    assert_eq!(schema["$ref"], "#/$defs/lab.All");
    let all = &schema["$defs"]["lab.All"];
    assert_eq!(all["additionalProperties"], false);
    assert_eq!(all["description"], "At most one of text, item.");
    let properties = &all["properties"];
    assert_eq!(properties["big"]["type"], json!(["string", "integer"]));
    assert_eq!(properties["data"]["contentEncoding"], "base64");
    assert_eq!(properties["someNumbers"]["items"]["type"], "integer");
    assert_eq!(properties["items"]["additionalProperties"]["$ref"], "#/$defs/lab.Item");
    assert_eq!(properties["at"]["format"], "date-time");
    assert_eq!(schema["$defs"]["lab.Color"], json!({"enum": ["NONE", "RED"]}));
    // It holds itself.
    let branches = &schema["$defs"]["lab.Tree"]["properties"]["branches"];
    assert_eq!(branches["items"]["$ref"], "#/$defs/lab.Tree");
    let many = schema::input(&method("Many")).unwrap();
    assert_eq!(many["items"]["$ref"], "#/$defs/lab.All");
}
