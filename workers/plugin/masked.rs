//! A configuration as it may be shown: without what its schema says is a secret. What the schema does not describe is
//! not shown either, and neither is what nobody can tell in some steps.

use std::collections::HashSet;

use flexcore_domain::plugin_configuration::MASK;
use serde_json::{Map, Value};

/// Most parts of a schema that are looked at for one configuration. 100,000: a large schema for each of many values.
const STEPS_MAX: usize = 100_000;

/// Keywords whose value is a schema for the same value.
const SAME: [&str; 4] = ["if", "then", "else", "not"];

/// Keywords whose value is a list of schemas for the same value.
const SAME_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// Keywords whose value describes the elements of a list.
const ELEMENTS: [&str; 4] = ["items", "additionalItems", "contains", "unevaluatedItems"];

/// Keywords whose value describes members that no other keyword names.
const OTHERS: [&str; 2] = ["additionalProperties", "unevaluatedProperties"];

/// The configuration with [`MASK`] in place of each secret (`"writeOnly": true`).
pub(super) fn masked(schema: &Value, configuration: &Value) -> Value {
    Masking { root: schema, steps_left: STEPS_MAX }.mask(configuration, vec![schema])
}

struct Masking<'s> {
    root: &'s Value,
    steps_left: usize,
}

impl<'s> Masking<'s> {
    /// A value, which these schemas describe. It is as deep as a configuration may be.
    fn mask(&mut self, value: &Value, schemas: Vec<&'s Value>) -> Value {
        let hidden = || Value::from(MASK);
        let Some(all) = self.all(schemas) else { return hidden() };
        if all.is_empty() || all.iter().any(|schema| schema["writeOnly"] == true) {
            return hidden();
        }
        match value {
            Value::Object(members) => {
                let mask = |(name, value): (&String, &Value)| {
                    let below = all.iter().flat_map(|schema| of_member(schema, name)).collect();
                    (name.clone(), self.mask(value, below))
                };
                Value::Object(members.iter().map(mask).collect::<Map<_, _>>())
            }
            Value::Array(elements) => {
                let below: Vec<&Value> =
                    all.iter().flat_map(|schema| of_elements(schema)).collect();
                elements.iter().map(|value| self.mask(value, below.clone())).collect()
            }
            simple => simple.clone(),
        }
    }

    /// These schemas, and all that they refer to for the same value. `None`: nobody knows, or there are too many.
    fn all(&mut self, schemas: Vec<&'s Value>) -> Option<Vec<&'s Value>> {
        let (mut open, mut all, mut known) = (schemas, Vec::new(), HashSet::new());
        while let Some(schema) = open.pop() {
            self.steps_left = self.steps_left.checked_sub(1)?;
            if !known.insert(std::ptr::from_ref(schema)) || *schema == Value::Bool(false) {
                continue;
            }
            all.push(schema);
            let is_root = std::ptr::eq(schema, self.root);
            let unclear = ["$dynamicRef", "$recursiveRef"].iter().any(|key| has(schema, key));
            // References in it begin there.
            if unclear || (has(schema, "$id") && !is_root) {
                return None;
            }
            if let Some(reference) = schema.get("$ref") {
                open.push(self.referred(reference.as_str()?)?);
            }
            open.extend(SAME.iter().filter_map(|key| schema.get(key)));
            let lists = SAME_LISTS.iter().filter_map(|key| schema.get(key)?.as_array());
            open.extend(lists.flatten());
            let dependent = schema.get("dependentSchemas").and_then(Value::as_object);
            open.extend(dependent.into_iter().flatten().map(|(_, schema)| schema));
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

/// What one schema says of the member of this name. Patterns are taken to fit.
fn of_member<'s>(schema: &'s Value, name: &str) -> Vec<&'s Value> {
    let named = schema.get("properties").and_then(|all| all.get(name));
    let patterns = schema.get("patternProperties").and_then(Value::as_object);
    let fitting = patterns.into_iter().flatten().map(|(_, schema)| schema);
    let others = OTHERS.iter().filter_map(|key| schema.get(key)).filter(|_| named.is_none());
    named.into_iter().chain(fitting).chain(others).collect()
}

/// What one schema says of any element.
fn of_elements(schema: &Value) -> Vec<&Value> {
    let first = schema.get("prefixItems").and_then(Value::as_array);
    let mut below: Vec<&Value> = first.into_iter().flatten().collect();
    for described in ELEMENTS.iter().filter_map(|key| schema.get(key)) {
        match described.as_array() {
            // As older drafts have it.
            Some(list) => below.extend(list),
            None => below.push(described),
        }
    }
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
                "hosts": {"items": {"properties": {"name": {}, "key": {"$ref": "#/$defs/secret"}}}},
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
        ] {
            let shown = masked(&schema, &value).to_string();
            assert!(!shown.contains("s3cret"), "{schema}: {shown}");
        }
        assert_eq!(masked(&json!({"additionalProperties": true}), &value), value);
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"properties": {"next": {"$ref": "#"}, "key": {"writeOnly": true}}});
        let value = json!({"next": {"next": {"key": "s3cret"}}});
        assert_eq!(masked(&schema, &value), json!({"next": {"next": {"key": MASK}}}));
        assert_eq!(masked(&json!({"$ref": "#"}), &json!(1)), json!(1));
        let wide = vec![json!({"allOf": vec![json!({}); 400]}); 400];
        let many = json!(vec!["s3cret"; 1_000]);
        let shown = masked(&json!({"items": {"allOf": wide}}), &many).to_string();
        assert!(!shown.contains("s3cret"));
    }
}
