//! The functions of a plugin, as it describes them, with the schemas of their inputs compiled.

use std::{collections::HashMap, sync::Arc, time::Duration};

use flexcore_plugin::contract::Description;
use flexcore_script::clock::processor_time;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

/// Reasons that are told of one input.
const REASONS_MAX: usize = 5;

/// Longest reason, in characters: it may quote the input.
const REASON_CHARS_MAX: usize = 200;

/// Most pairs of a part of a schema and a value in an input, for an input whose reasons are told. 100,000: each
/// pair may be a reason, of some hundred bytes, and all are found before the first is told.
const PAIRS_MAX: usize = 100_000;

/// Longest decision, in processor time, after which reasons are looked for: that takes longer. 10 ms: nearly all
/// decisions take some microseconds.
const DECIDED_WITHIN: Duration = Duration::from_millis(10);

/// What is told where no reasons are.
const UNFIT: &str = "it does not fit the schema";

/// Names of functions that are told where there is none such. 10: a line or two.
const TOLD_MAX: usize = 10;

/// All functions of a plugin, by their names.
pub(super) struct Functions(HashMap<String, Takes>);

/// What a function takes.
#[derive(Clone, Debug)]
pub(super) enum Takes {
    /// Any JSON.
    Any,
    /// What fits this schema.
    Fitting(Arc<Schema>),
    /// Nobody knows: its schema is none, for this reason.
    Unclear(String),
}

/// A schema of an input.
#[derive(Debug)]
pub(super) struct Schema {
    validator: Validator,
    /// Its parts, those that references stand for included. `None`: they cannot be counted, or are very many.
    parts: Option<usize>,
}

impl Functions {
    /// Compiles the schemas. It blocks for as long as that takes.
    pub(super) fn of(description: &Description) -> Self {
        let functions = description.functions.iter();
        Self(functions.map(|of| (of.name.clone(), takes(&of.input_schema))).collect())
    }

    /// What the function of this name takes; `None`: there is none such.
    pub(super) fn takes(&self, name: &str) -> Option<&Takes> {
        self.0.get(name)
    }

    /// Those that there are, for whoever has named another: at most [`TOLD_MAX`].
    pub(super) fn told(&self) -> String {
        let mut names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        names.sort_unstable();
        let more = if names.len() > TOLD_MAX { ", …" } else { "" };
        names.truncate(TOLD_MAX);
        if names.is_empty() { "none".to_owned() } else { format!("{}{more}", names.join(", ")) }
    }
}

/// What a schema allows. It blocks for as long as it takes to compile it.
pub(super) fn takes(schema: &str) -> Takes {
    if schema.is_empty() {
        return Takes::Any;
    }
    let built =
        serde_json::from_str::<Value>(schema).map_err(|error| error.to_string()).and_then(|json| {
            let validator = options().build(&json).map_err(|error| short(&error))?;
            Ok(Schema { validator, parts: parts(&json) })
        });
    match built {
        Ok(schema) => Takes::Fitting(Arc::new(schema)),
        Err(reason) => Takes::Unclear(reason),
    }
}

/// As the schemas of commands are read. A schema that refers to another document is none: nothing is fetched.
fn options() -> jsonschema::ValidationOptions<'static> {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        // Patterns that take linear time for every input.
        .with_pattern_options(PatternOptions::regex())
}

/// The parts of a schema, each as often as something refers to it. `None` if there are more than [`PAIRS_MAX`], as
/// in a schema that refers to itself, and if a reference is not read as a place in this document.
fn parts(schema: &Value) -> Option<usize> {
    let (mut open, mut parts) = (vec![(schema, true)], 1_usize);
    while let Some((part, is_root)) = open.pop() {
        let (list, object) = (part.as_array(), part.as_object());
        let mut below: Vec<&Value> = list.into_iter().flatten().collect();
        for (key, value) in object.into_iter().flatten() {
            match (&**key, value.as_str()) {
                ("$ref", Some(place)) => below.push(referred(schema, place)?),
                ("$dynamicRef" | "$recursiveRef", Some(_)) => return None,
                // References in it begin there.
                ("$id", Some(_)) if !is_root => return None,
                _ => below.push(value),
            }
        }
        parts += below.len();
        if parts > PAIRS_MAX {
            return None;
        }
        open.extend(below.into_iter().map(|part| (part, false)));
    }
    Some(parts)
}

fn referred<'s>(schema: &'s Value, place: &str) -> Option<&'s Value> {
    schema.pointer(place.strip_prefix('#').filter(|pointer| !pointer.contains('%'))?)
}

/// An input's values, itself included.
fn values(input: &Value) -> usize {
    let below: usize = match input {
        Value::Array(list) => list.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum(),
        _ => 0,
    };
    1_usize.saturating_add(below)
}

/// Fails with what does not fit, in words: each reason where these are few enough to be looked for. It may take
/// long, as the schema is the plugin's, and not much memory.
pub(super) fn fits(schema: &Schema, input: &Value) -> Result<(), String> {
    fits_told(schema, input, short)
}

/// As [`fits`], but what does not fit is not quoted: it may be a secret.
pub(super) fn fits_unquoted(schema: &Schema, value: &Value) -> Result<(), String> {
    fits_told(schema, value, |error| cut(&error.masked().to_string()))
}

fn fits_told(
    schema: &Schema,
    input: &Value,
    tell: impl Fn(&jsonschema::ValidationError<'_>) -> String,
) -> Result<(), String> {
    // Deciding is much faster than explaining, and nearly all inputs are good.
    let began = processor_time();
    if schema.validator.is_valid(input) {
        return Ok(());
    }
    let is_fast = processor_time().saturating_sub(began) <= DECIDED_WITHIN;
    // Reasons are found along all branches at once, and kept with those of the branches below them.
    let pairs = schema.parts.map(|parts| parts.saturating_mul(values(input)));
    if !is_fast || pairs.is_none_or(|pairs| pairs > PAIRS_MAX) {
        return Err(UNFIT.to_owned());
    }
    let errors = schema.validator.iter_errors(input).take(REASONS_MAX);
    let reasons: Vec<String> = errors
        .map(|error| match error.instance_path().to_string() {
            place if place.is_empty() => tell(&error),
            place => format!("{place}: {}", tell(&error)),
        })
        .collect();
    Err(reasons.join("; "))
}

fn short(error: &jsonschema::ValidationError<'_>) -> String {
    cut(&error.to_string())
}

fn cut(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::Function;
    use serde_json::json;

    use super::*;

    fn functions(schemas: &[(&str, &str)]) -> Functions {
        let function = |(name, schema): &(&str, &str)| Function {
            name: (*name).to_owned(),
            input_schema: (*schema).to_owned(),
            ..Function::default()
        };
        let functions = schemas.iter().map(function).collect();
        Functions::of(&Description { functions, ..Description::default() })
    }

    #[test]
    fn whoever_names_another_function_is_told_those_there_are() {
        assert_eq!(functions(&[]).told(), "none");
        assert_eq!(functions(&[("greet", ""), ("echo", "")]).told(), "echo, greet");
        let names: Vec<String> = (0..=TOLD_MAX).map(|number| format!("f{number:02}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "")).collect();
        let told = functions(&many).told();
        assert!(told.starts_with("f00, f01, ") && told.ends_with("f09, …"), "{told}");
    }

    #[test]
    fn inputs_are_held_to_their_schemas() {
        let schema = json!({
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        });
        let functions = functions(&[("greet", &schema.to_string()), ("any", "")]);
        assert!(matches!(functions.takes("any"), Some(Takes::Any)));
        assert!(functions.takes("other").is_none());
        let Some(Takes::Fitting(schema)) = functions.takes("greet") else { panic!("a schema") };
        fits(schema, &json!({"name": "Ann"})).unwrap();
        assert!(fits(schema, &json!({})).unwrap_err().contains("name"));
        let wrong = fits(schema, &json!({"name": 7})).unwrap_err();
        assert!(wrong.starts_with("/name: "), "{wrong}");
        let long = fits(schema, &json!("x".repeat(10_000))).unwrap_err();
        assert!(long.chars().count() <= REASON_CHARS_MAX, "{long}");
    }

    #[test]
    fn a_reason_need_not_quote_what_does_not_fit() {
        let schema =
            json!({"properties": {"port": {"type": "integer"}, "key": {"minLength": 100}}});
        let Takes::Fitting(schema) = takes(&schema.to_string()) else { panic!("a schema") };
        let value = json!({"port": "s3cret", "key": "s3cret"});
        let reasons = fits_unquoted(&schema, &value).unwrap_err();
        assert!(reasons.contains("/port: ") && !reasons.contains("s3cret"), "{reasons}");
        assert!(fits(&schema, &value).unwrap_err().contains("s3cret"));
    }

    #[test]
    fn what_is_no_schema_is_said_of_its_function_alone() {
        let functions = functions(&[
            ("typo", r#"{"type": "strin"}"#),
            ("far", r#"{"$ref": "https://example.com/x.json"}"#),
            ("torn", "{"),
            ("good", "{}"),
        ]);
        for name in ["typo", "far", "torn"] {
            assert!(matches!(functions.takes(name), Some(Takes::Unclear(_))), "{name}");
        }
        assert!(matches!(functions.takes("good"), Some(Takes::Fitting(_))));
    }

    /// 131 bytes took four seconds and 649 MB.
    #[test]
    fn an_input_of_a_schema_that_refers_to_itself_is_decided_and_not_explained() {
        let next =
            |kind: &str| json!({"properties": {"next": {"$ref": "#"}, "kind": {"const": kind}}});
        let schema = json!({"type": "object", "oneOf": [next("a"), next("b"), next("c")]});
        let functions = functions(&[("f", &schema.to_string())]);
        let Some(Takes::Fitting(schema)) = functions.takes("f") else { panic!("a schema") };
        let deep = |levels| (0..levels).fold(json!(1), |below, _| json!({"next": below}));
        for levels in [16, 31] {
            assert_eq!(fits(schema, &deep(levels)), Err(UNFIT.to_owned()), "{levels}");
        }
    }

    #[test]
    fn reasons_are_looked_for_only_where_they_can_be_few() {
        let counted = |schema: Value| parts(&schema);
        assert_eq!(counted(json!({"type": "object"})), Some(2));
        let twice = json!({"$defs": {"a": {"type": "string"}}, "allOf": [{"$ref": "#/$defs/a"}]});
        // The root, `$defs`, what is in it, `allOf`, and what is in that, with `a` once more.
        assert_eq!(counted(twice), Some(8));
        let to = |at: usize| json!({"$ref": format!("#/$defs/a{at}")});
        let doubled = |at: usize| json!({"anyOf": [to(at + 1), to(at + 1)]});
        let mut defs: serde_json::Map<_, _> =
            (0..40).map(|at| (format!("a{at}"), doubled(at))).collect();
        defs.insert("a40".to_owned(), json!(true));
        assert_eq!(counted(json!({"$defs": defs, "$ref": "#/$defs/a0"})), None);
        for unclear in [
            json!({"properties": {"next": {"$ref": "#"}}}),
            json!({"$ref": "#/$defs/none"}),
            json!({"$ref": "#anchor"}),
            json!({"$dynamicRef": "#a"}),
            json!({"$defs": {"a": {"$id": "a"}}}),
        ] {
            assert_eq!(counted(unclear.clone()), None, "{unclear}");
        }
        let schema = json!({"items": {"type": "string"}}).to_string();
        let functions = functions(&[("f", &schema)]);
        let Some(Takes::Fitting(schema)) = functions.takes("f") else { panic!("a schema") };
        assert!(fits(schema, &json!([1])).unwrap_err().starts_with("/0: "));
        assert_eq!(fits(schema, &json!(vec![1; PAIRS_MAX])), Err(UNFIT.to_owned()));
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        for schema in [
            r##"{"$ref": "#"}"##,
            r##"{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}"##,
            r##"{"properties": {"next": {"$ref": "#"}}}"##,
        ] {
            let functions = functions(&[("f", schema)]);
            if let Some(Takes::Fitting(schema)) = functions.takes("f") {
                let _ = fits(schema, &json!({"next": {"next": 1}}));
            }
        }
    }
}
