//! A method's input as JSON Schema, for whoever is to write it.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

use super::json::is_mapped;
use crate::{Error, limits};

/// A method's input: a message, or a list of them where it takes a stream. Every type stands once,
/// under its full name in `$defs`, so that those that hold themselves end. Fails above
/// [`limits::SCHEMA_TYPES_MAX`] types.
pub(super) fn input(method: &MethodDescriptor) -> Result<Value, Error> {
    let mut types = Types::default();
    let one = types.schema(&Kind::Message(method.input()));
    let root =
        if method.is_client_streaming() { json!({"type": "array", "items": one}) } else { one };
    let members = match root {
        Value::Object(members) => members,
        other => return Ok(other),
    };
    let mut schema = Map::new();
    schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    schema.extend(members);
    let definitions = types.all()?;
    if !definitions.is_empty() {
        schema.insert("$defs".into(), definitions.into());
    }
    Ok(schema.into())
}

#[derive(Default)]
struct Types {
    definitions: Map<String, Value>,
    /// Named in a reference, and not written yet.
    pending: Vec<Kind>,
}

impl Types {
    fn all(mut self) -> Result<Map<String, Value>, Error> {
        while let Some(kind) = self.pending.pop() {
            let types = self.definitions.len();
            Error::at_most("number of types of an input", types, limits::SCHEMA_TYPES_MAX)?;
            let (name, schema) = match &kind {
                Kind::Message(of) => (of.full_name(), self.message(of)),
                Kind::Enum(of) => {
                    let names: Vec<Value> = of.values().map(|value| value.name().into()).collect();
                    (of.full_name(), json!({"enum": names}))
                }
                _ => continue,
            };
            self.definitions.insert(name.to_owned(), schema);
        }
        Ok(self.definitions)
    }

    fn message(&mut self, of: &MessageDescriptor) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in of.fields() {
            if field.is_required() {
                required.push(Value::from(field.json_name()));
            }
            properties.insert(field.json_name().to_owned(), self.field(&field));
        }
        let mut schema = Map::new();
        schema.insert("type".into(), "object".into());
        let choices: Vec<String> = of
            .oneofs()
            .filter(|oneof| !oneof.is_synthetic())
            .map(|oneof| {
                let names: Vec<String> =
                    oneof.fields().map(|field| field.json_name().to_owned()).collect();
                format!("At most one of {}.", names.join(", "))
            })
            .collect();
        if !choices.is_empty() {
            schema.insert("description".into(), choices.join(" ").into());
        }
        schema.insert("properties".into(), properties.into());
        if !required.is_empty() {
            schema.insert("required".into(), required.into());
        }
        schema.insert("additionalProperties".into(), false.into());
        schema.into()
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let value = self.schema(&entry.map_entry_value_field().kind());
                json!({"type": "object", "additionalProperties": value})
            }
            kind if field.is_list() => json!({"type": "array", "items": self.schema(&kind)}),
            kind => self.schema(&kind),
        }
    }

    fn schema(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Double | Kind::Float => json!({"type": "number"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({"type": "integer", "minimum": i32::MIN, "maximum": i32::MAX})
            }
            Kind::Uint32 | Kind::Fixed32 => {
                json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({"type": ["string", "integer"], "pattern": "^-?[0-9]+$"})
            }
            Kind::Uint64 | Kind::Fixed64 => {
                json!({"type": ["string", "integer"], "pattern": "^[0-9]+$", "minimum": 0})
            }
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Message(of) if is_mapped(of) => self.mapped(of),
            Kind::Enum(of) if of.full_name() == "google.protobuf.NullValue" => {
                json!({"type": "null"})
            }
            Kind::Message(of) => self.reference(of.full_name(), kind),
            Kind::Enum(of) => self.reference(of.full_name(), kind),
        }
    }

    fn reference(&mut self, name: &str, kind: &Kind) -> Value {
        if !self.definitions.contains_key(name) {
            self.definitions.insert(name.to_owned(), Value::Null);
            self.pending.push(kind.clone());
        }
        json!({"$ref": format!("#/$defs/{name}")})
    }

    /// Types that JSON has a form of its own for.
    fn mapped(&mut self, of: &MessageDescriptor) -> Value {
        match of.name() {
            "Any" => json!({
                "type": "object",
                "properties": {"@type": {"type": "string"}},
                "required": ["@type"],
            }),
            "Timestamp" => json!({"type": "string", "format": "date-time"}),
            "Duration" => json!({"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{1,9})?s$"}),
            "FieldMask" => json!({"type": "string"}),
            "Struct" => json!({"type": "object"}),
            "ListValue" => json!({"type": "array"}),
            "Value" => json!({}),
            "Empty" => json!({"type": "object", "additionalProperties": false}),
            // The others wrap a single value.
            _ => match of.get_field_by_name("value") {
                Some(value) => self.schema(&value.kind()),
                None => json!({}),
            },
        }
    }
}
