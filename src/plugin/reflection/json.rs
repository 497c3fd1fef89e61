//! JSON to messages and back, by the mapping of Protocol Buffers: whole numbers of 64 bits are
//! strings, bytes are base64, values of an enumeration stand by name.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{
    DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage as _, Value as Field,
};
use serde_json::{Map, Value};

use super::bounds::{self, Budget};
use crate::{Error, limits};

/// The message that holds any other, with its type's name.
const ANY: &str = "google.protobuf.Any";

/// Messages to send: one for the value, or one for each of its items where the method takes a
/// stream. Fails where something does not fit, and names the place.
pub(super) fn requests(method: &MethodDescriptor, input: &Value) -> Result<Vec<Bytes>, Error> {
    let of = method.input();
    if !method.is_client_streaming() {
        return Ok(vec![encode(&of, input, "input".to_owned())?]);
    }
    let Value::Array(inputs) = input else {
        let name = method.full_name();
        return Err(Error::Contract(format!("{name} takes a stream: the input is a list")));
    };
    Error::at_most("number of messages", inputs.len(), limits::JSON_MESSAGES_MAX)?;
    let numbered = inputs.iter().enumerate();
    numbered.map(|(index, input)| encode(&of, input, format!("input[{index}]"))).collect()
}

/// What a method answered: a message, or a list where it answers with a stream. Fails where it is
/// not what the plugin described, and where it would take too much memory.
pub(super) fn answer(method: &MethodDescriptor, answers: Vec<Bytes>) -> Result<Value, Error> {
    let of = method.output();
    let mut budget = Budget::new(limits::JSON_VALUES_MAX);
    let decoded = answers.into_iter().map(|bytes| decode(&of, bytes, &mut budget));
    let mut decoded = decoded.collect::<Result<Vec<Value>, Error>>()?;
    if method.is_server_streaming() {
        return Ok(Value::Array(decoded));
    }
    match (decoded.pop(), decoded.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => {
            Err(Error::Contract(format!("{} did not answer with one message", method.full_name())))
        }
    }
}

fn encode(of: &MessageDescriptor, input: &Value, at: String) -> Result<Bytes, Error> {
    match DynamicMessage::deserialize(of.clone(), input) {
        Ok(message) => Ok(message.encode_to_vec().into()),
        Err(error) => Err(Error::Contract(format!("{}: {error}", place(of, input, at)))),
    }
}

/// The place of what does not fit. Each part is tried on its own, down to the smallest that fails.
fn place(of: &MessageDescriptor, input: &Value, at: String) -> String {
    let (Value::Object(members), false) = (input, is_mapped(of)) else { return at };
    for (key, value) in members {
        let inside = format!("{at}.{key}");
        let named = of.get_field_by_json_name(key).or_else(|| of.get_field_by_name(key));
        let Some(field) = named else { return inside };
        let fails = |value: &Value| {
            let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
            DynamicMessage::deserialize(of.clone(), &alone).is_err()
        };
        if !fails(value) {
            continue;
        }
        let mut parts: Vec<(String, &Value, Value)> = match value {
            Value::Array(items) if field.is_list() => items
                .iter()
                .enumerate()
                .map(|(i, item)| (format!("{inside}[{i}]"), item, Value::Array(vec![item.clone()])))
                .collect(),
            Value::Object(entries) if field.is_map() => entries
                .iter()
                .map(|(k, item)| {
                    let alone = Map::from_iter([(k.clone(), item.clone())]);
                    (format!("{inside}.{k}"), item, Value::Object(alone))
                })
                .collect(),
            _ => vec![(inside.clone(), value, value.clone())],
        };
        parts.retain(|(_, _, alone)| fails(alone));
        let Some((inside, part, _)) = parts.into_iter().next() else { return inside };
        let kind = match field.kind() {
            kind if field.is_map() => kind.as_message().map(|e| e.map_entry_value_field().kind()),
            kind => Some(kind),
        };
        return match kind.as_ref().and_then(prost_reflect::Kind::as_message) {
            Some(message) => place(message, part, inside),
            None => inside,
        };
    }
    // Each is right, but not all of them together: two of a oneof.
    at
}

/// True for types that JSON has a form of its own for.
pub(super) fn is_mapped(of: &MessageDescriptor) -> bool {
    of.full_name().strip_prefix("google.protobuf.").is_some_and(|name| {
        let values = name.strip_suffix("Value");
        let is_wrapper = |of: &str| {
            matches!(
                of,
                "" | "List"
                    | "Float"
                    | "Double"
                    | "Int32"
                    | "Int64"
                    | "UInt32"
                    | "UInt64"
                    | "Bool"
                    | "String"
                    | "Bytes"
            )
        };
        matches!(name, "Any" | "Timestamp" | "Duration" | "Struct" | "FieldMask" | "Empty")
            || values.is_some_and(is_wrapper)
    })
}

fn decode(of: &MessageDescriptor, bytes: Bytes, budget: &mut Budget) -> Result<Value, Error> {
    budget.message(&bytes, of)?;
    let message = DynamicMessage::decode(of.clone(), bytes).map_err(|error| unfit(of, error))?;
    any_in(&message, 1, budget)?;
    serde_json::to_value(&message).map_err(|error| unfit(of, error))
}

/// Counts what is packed in `Any`s, since JSON unpacks it: bytes that hold bytes that hold bytes…
fn any_in(message: &DynamicMessage, depth: usize, budget: &mut Budget) -> Result<(), Error> {
    if depth > limits::JSON_DEPTH_MAX {
        return Err(bounds::too_deep(depth));
    }
    if message.descriptor().full_name() == ANY {
        let packed = unpacked(message, budget)?;
        return any_in(&packed, depth + 1, budget);
    }
    message.fields().try_for_each(|(_, field)| match field {
        Field::Message(inner) => any_in(inner, depth + 1, budget),
        Field::List(items) => {
            let mut inner = items.iter().filter_map(Field::as_message);
            inner.try_for_each(|inner| any_in(inner, depth + 1, budget))
        }
        Field::Map(entries) => {
            let mut inner = entries.values().filter_map(Field::as_message);
            inner.try_for_each(|inner| any_in(inner, depth + 1, budget))
        }
        _ => Ok(()),
    })
}

fn unpacked(any: &DynamicMessage, budget: &mut Budget) -> Result<DynamicMessage, Error> {
    let url = any.get_field_by_name("type_url");
    let url = url.as_ref().and_then(|url| url.as_str()).unwrap_or_default();
    let name = url.rsplit_once('/').map(|(_, name)| name).unwrap_or_default();
    let of = any.descriptor().parent_pool().get_message_by_name(name).ok_or_else(|| {
        let quoted: String = url.chars().take(limits::DESCRIPTOR_NAME_BYTES_MAX).collect();
        Error::Contract(format!("an Any holds a type that the plugin does not tell: {quoted:?}"))
    })?;
    let value = any.get_field_by_name("value");
    let bytes = value.as_ref().and_then(|value| value.as_bytes()).cloned().unwrap_or_default();
    budget.message(&bytes, &of)?;
    DynamicMessage::decode(of.clone(), bytes).map_err(|error| unfit(&of, error))
}

fn unfit(of: &MessageDescriptor, error: impl std::error::Error) -> Error {
    Error::Contract(format!("the answer is no {}: {error}", of.full_name()))
}
