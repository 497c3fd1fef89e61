//! A configuration as it may be shown: what its schema describes as a plain value, of the type that it describes.
//! Anything else may be a secret and is hidden, and so is what nobody can tell in some steps.

use std::collections::HashSet;

use flexcore_domain::plugin_configuration::MASK;
use serde_json::{Map, Value};

/// Most parts of a schema that are looked at for one configuration. 100,000: a large schema for each of many values.
const STEPS_MAX: usize = 100_000;

/// Keywords whose value is a schema for the same value.
const SAME: [&str; 2] = ["then", "else"];

/// Keywords whose value is a schema for the same value, which need not fit it.
const UNSURE: [&str; 2] = ["if", "not"];

/// Keywords whose value is a list of schemas for the same value.
const SAME_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// Keywords whose value has schemas for the same value, by the names of members; `dependencies` in older drafts.
const DEPENDENT: [&str; 2] = ["dependentSchemas", "dependencies"];

/// Keywords whose value describes elements of a list, nobody looks which.
const UNSURE_ELEMENTS: [&str; 3] = ["additionalItems", "contains", "unevaluatedItems"];

/// Keywords of a schema for objects that does not say so.
const OF_OBJECTS: [&str; 3] = ["properties", "additionalProperties", "patternProperties"];

/// Keywords of a schema for lists that does not say so.
const OF_LISTS: [&str; 2] = ["items", "prefixItems"];

/// The configuration with [`MASK`] in place of what may be a secret: what is one (`"writeOnly": true`), and what the
/// schema does not describe, or describes as something else.
pub(super) fn masked(schema: &Value, configuration: &Value) -> Value {
    let part = Part { schema, describes: true };
    Masking { root: schema, steps_left: STEPS_MAX }.mask(configuration, vec![part])
}

/// A part of a schema that is about some value.
#[derive(Clone, Copy)]
struct Part<'s> {
    schema: &'s Value,
    /// It describes that value. Else it may still say that it is a secret.
    describes: bool,
}

impl<'s> Part<'s> {
    /// Another part, about the same value or a part of it.
    fn with(self, schema: &'s Value, is_sure: bool) -> Self {
        Self { schema, describes: self.describes && is_sure }
    }
}

struct Masking<'s> {
    root: &'s Value,
    steps_left: usize,
}

impl<'s> Masking<'s> {
    /// A value, which these parts are about. It is as deep as a configuration may be.
    fn mask(&mut self, value: &Value, parts: Vec<Part<'s>>) -> Value {
        let hidden = || Value::from(MASK);
        let Some(all) = self.all(parts) else { return hidden() };
        let is_secret = all.iter().any(|part| is_secret(part.schema));
        if is_secret || !all.iter().any(|part| part.describes && describes(part.schema, value)) {
            return hidden();
        }
        match value {
            Value::Object(members) => {
                let mask = |(name, value): (&String, &Value)| {
                    let below = self.below(&all, |part| of_member(part, name));
                    (name.clone(), self.mask(value, below))
                };
                Value::Object(members.iter().map(mask).collect::<Map<_, _>>())
            }
            Value::Array(elements) => {
                let mask = |(index, value): (usize, &Value)| {
                    let below = self.below(&all, |part| of_element(part, index));
                    self.mask(value, below)
                };
                elements.iter().enumerate().map(mask).collect()
            }
            simple => simple.clone(),
        }
    }

    /// What these say of a part of their value; nothing once there were too many steps.
    fn below(&self, all: &[Part<'s>], of: impl Fn(Part<'s>) -> Vec<Part<'s>>) -> Vec<Part<'s>> {
        if self.steps_left == 0 {
            return Vec::new();
        }
        all.iter().flat_map(|part| of(*part)).collect()
    }

    /// These parts, and all that they refer to for the same value. `None`: nobody knows, or there are too many.
    fn all(&mut self, parts: Vec<Part<'s>>) -> Option<Vec<Part<'s>>> {
        let (mut open, mut all, mut known) = (parts, Vec::new(), HashSet::new());
        while let Some(part) = open.pop() {
            self.steps_left = self.steps_left.checked_sub(1)?;
            let schema = part.schema;
            let is_new = known.insert((std::ptr::from_ref(schema), part.describes));
            if !is_new || *schema == Value::Bool(false) {
                continue;
            }
            all.push(part);
            let is_root = std::ptr::eq(schema, self.root);
            let unclear = ["$dynamicRef", "$recursiveRef"].iter().any(|key| has(schema, key));
            // References in it begin there; `id` in an older draft.
            let is_base = has(schema, "$id") || schema.get("id").is_some_and(Value::is_string);
            if unclear || (is_base && !is_root) {
                return None;
            }
            if let Some(reference) = schema.get("$ref") {
                open.push(part.with(self.referred(reference.as_str()?)?, true));
            }
            let same = SAME.iter().filter_map(|key| schema.get(key));
            let lists = SAME_LISTS.iter().filter_map(|key| schema.get(key)?.as_array());
            let dependent = DEPENDENT.iter().filter_map(|key| schema.get(key)?.as_object());
            let dependent = dependent.flatten().map(|(_, schema)| schema);
            let sure = same.chain(lists.flatten()).chain(dependent);
            open.extend(sure.map(|schema| part.with(schema, true)));
            let unsure = UNSURE.iter().filter_map(|key| schema.get(key));
            open.extend(unsure.map(|schema| part.with(schema, false)));
        }
        Some(all)
    }

    fn referred(&self, place: &str) -> Option<&'s Value> {
        let pointer = place.strip_prefix('#').filter(|pointer| !pointer.contains('%'))?;
        self.root.pointer(pointer)
    }
}

fn has(schema: &Value, key: &str) -> bool {
    schema.get(key).is_some()
}

/// True unless it says nothing of it, or that it is none.
fn is_secret(schema: &Value) -> bool {
    schema.get("writeOnly").is_some_and(|said| *said != Value::Bool(false))
}

/// Whether a schema says what this value is: a schema of another type does not, and one without a type does not, unless
/// it has the value itself. Members and elements are looked at by themselves.
fn describes(schema: &Value, value: &Value) -> bool {
    match (schema.get("type"), value) {
        (Some(Value::Array(types)), _) => types.iter().any(|of| is_of(value, of)),
        (Some(of), _) => is_of(value, of),
        (None, Value::Object(_)) => OF_OBJECTS.iter().any(|key| has(schema, key)),
        (None, Value::Array(_)) => OF_LISTS.iter().any(|key| has(schema, key)),
        (None, simple) => {
            let listed = schema.get("enum").and_then(Value::as_array);
            schema.get("const") == Some(simple) || listed.is_some_and(|all| all.contains(simple))
        }
    }
}

/// Whether a value is of this type.
fn is_of(value: &Value, of: &Value) -> bool {
    match of.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

/// What one part says of the member of this name. Nobody looks whether a pattern fits: it is about all members, and
/// describes none.
fn of_member<'s>(part: Part<'s>, name: &str) -> Vec<Part<'s>> {
    let schema = part.schema;
    let named = schema.get("properties").and_then(|all| all.get(name));
    let patterns = schema.get("patternProperties").and_then(Value::as_object);
    let mut below: Vec<Part<'s>> =
        named.map(|schema| part.with(schema, true)).into_iter().collect();
    below.extend(patterns.into_iter().flatten().map(|(_, schema)| part.with(schema, false)));
    if named.is_none() {
        let others = schema.get("additionalProperties");
        below.extend(others.map(|schema| part.with(schema, patterns.is_none())));
        let unevaluated = schema.get("unevaluatedProperties");
        below.extend(unevaluated.map(|schema| part.with(schema, false)));
    }
    below
}

/// What one part says of the element at this place. All that it says of any element is about it; what it says of this
/// one describes it.
fn of_element<'s>(part: Part<'s>, index: usize) -> Vec<Part<'s>> {
    let schema = part.schema;
    let first = schema.get("prefixItems").and_then(Value::as_array);
    let by_place = |(place, schema): (usize, &'s Value)| part.with(schema, place == index);
    let mut below: Vec<Part<'s>> = first.into_iter().flatten().enumerate().map(by_place).collect();
    match schema.get("items") {
        // As older drafts have it.
        Some(Value::Array(list)) => below.extend(list.iter().enumerate().map(by_place)),
        Some(items) => {
            let is_behind = first.is_none_or(|first| index >= first.len());
            below.push(part.with(items, is_behind));
        }
        None => {}
    }
    let unsure = UNSURE_ELEMENTS.iter().filter_map(|key| schema.get(key));
    below.extend(unsure.map(|schema| part.with(schema, false)));
    below
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_at_any_depth_and_the_rest_is_shown() {
        let schema = json!({
            "$defs": {"secret": {"type": "string", "writeOnly": true}},
            "properties": {
                "host": {"type": "string"},
                "password": {"type": "string", "writeOnly": true},
                "login": {"properties": {
                    "user": {"type": "string"},
                    "token": {"$ref": "#/$defs/secret"},
                }},
                "keys": {"items": {"$ref": "#/$defs/secret"}},
                "hosts": {"items": {"properties": {
                    "name": {"type": "string"},
                    "key": {"$ref": "#/$defs/secret"},
                }}},
                "headers": {"additionalProperties": {"$ref": "#/$defs/secret"}},
                "either": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/secret"}]},
                "all": {"writeOnly": true, "properties": {"a": {"type": "string"}}},
            },
        });
        let configuration = json!({
            "host": "example.com", "password": "s3cret",
            "login": {"user": "ann", "token": "s3cret"},
            "keys": ["s3cret", "s3cret"],
            "hosts": [{"name": "a", "key": "s3cret"}],
            "headers": {"authorization": "s3cret"},
            "either": "s3cret",
            "all": {"a": "s3cret"},
            "of_an_earlier_version": "s3cret",
        });
        assert_eq!(
            masked(&schema, &configuration),
            json!({
                "host": "example.com", "password": MASK,
                "login": {"user": "ann", "token": MASK},
                "keys": [MASK, MASK],
                "hosts": [{"name": "a", "key": MASK}],
                "headers": {"authorization": MASK},
                "either": MASK,
                "all": MASK,
                "of_an_earlier_version": MASK,
            })
        );
    }

    #[test]
    fn what_cannot_be_told_is_not_shown() {
        let value = json!({"a": "s3cret"});
        for schema in [
            json!({"$ref": "#/$defs/none"}),
            json!({"$ref": "https://example.com/schema"}),
            json!({"$dynamicRef": "#a"}),
            json!({"properties": {"a": {"$ref": "#anchor"}}}),
            json!({"properties": {"a": {"$id": "x", "type": "string"}}}),
            json!({"type": "object"}),
            json!({"additionalProperties": false}),
            json!({"additionalProperties": true}),
            json!({"properties": {"a": {}}}),
            json!({"properties": {"a": {"description": "any"}}}),
            json!({"patternProperties": {"^x-": {"type": "string"}}}),
            json!({
                "patternProperties": {"^a": {"type": "number"}},
                "additionalProperties": {"type": "string"},
            }),
            json!({"unevaluatedProperties": {"type": "string"}}),
            json!({"properties": {"a": {"not": {"type": "string"}}}}),
            json!({"properties": {"a": {"if": {"type": "string"}}}}),
            json!({"properties": {"a": {"type": "string", "writeOnly": "yes"}}}),
            json!({"properties": {"a": {"id": "x", "type": "string"}}}),
            json!({"dependencies": {"a": {"properties": {"a": {"type": "string", "writeOnly": true}}}},
                "properties": {"a": {"type": "string"}}}),
            json!(true),
        ] {
            let shown = masked(&schema, &value).to_string();
            assert!(!shown.contains("s3cret"), "{schema}: {shown}");
        }
        let described = json!({"additionalProperties": {"type": "string"}});
        assert_eq!(masked(&described, &value), value);
    }

    /// After an upgrade the former secret was shown: the new schema calls a part of an object secret.
    #[test]
    fn a_value_of_another_type_than_described_is_not_shown() {
        let token = json!({"type": "object", "properties": {"value": {"writeOnly": true}}});
        let schema = json!({"properties": {"token": token, "port": {"type": "integer"}}});
        for token in [json!("s3cret"), json!(["s3cret"]), json!({"value": "s3cret"}), json!(7)] {
            let shown = masked(&schema, &json!({"token": token, "port": 1}));
            let hidden = if token.is_object() { json!({"value": MASK}) } else { json!(MASK) };
            assert_eq!(shown, json!({"token": hidden, "port": 1}));
        }
        let either =
            json!({"properties": {"a": {"type": ["string", "null"]}, "b": {"enum": [1, "c"]}}});
        for value in [json!({"a": "x", "b": 1}), json!({"a": null, "b": "c"})] {
            assert_eq!(masked(&either, &value), value);
        }
        assert_eq!(masked(&either, &json!({"a": 1, "b": 2})), json!({"a": MASK, "b": MASK}));
    }

    #[test]
    fn an_element_is_described_by_what_stands_for_its_place() {
        let text = || json!({"type": "string"});
        let value = json!(["a", "s3cret"]);
        for schema in [json!({"prefixItems": [text()]}), json!({"items": [text()]})] {
            assert_eq!(masked(&schema, &value), json!(["a", MASK]), "{schema}");
        }
        let schema = json!({"prefixItems": [{"type": "null"}], "items": text()});
        assert_eq!(masked(&schema, &value), json!([MASK, "s3cret"]));
        let schema = json!({"items": text(), "contains": {"writeOnly": true}});
        assert_eq!(masked(&schema, &value), json!([MASK, MASK]));
        assert_eq!(masked(&json!({"items": text()}), &value), value);
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"properties": {"next": {"$ref": "#"}, "key": {"writeOnly": true}}});
        let value = json!({"next": {"next": {"key": "s3cret"}}});
        assert_eq!(masked(&schema, &value), json!({"next": {"next": {"key": MASK}}}));
        assert_eq!(masked(&json!({"$ref": "#", "type": "integer"}), &json!(1)), json!(1));
        let wide = vec![json!({"allOf": vec![json!({"type": "string"}); 400]}); 400];
        let many = json!(vec!["s3cret"; 1_000]);
        let shown = masked(&json!({"items": {"allOf": wide}}), &many).to_string();
        assert!(!shown.contains("s3cret"));
    }
}
