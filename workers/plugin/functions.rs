//! The functions of a plugin, as it describes them, with the schemas of their inputs compiled.

use std::{collections::HashMap, sync::Arc};

use flexcore_plugin::contract::Description;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

/// Reasons that are told of one input.
const REASONS_MAX: usize = 5;

/// Longest reason, in characters: it may quote the input.
const REASON_CHARS_MAX: usize = 200;

/// All functions of a plugin, by their names.
pub(super) struct Functions(HashMap<String, Takes>);

/// What a function takes.
#[derive(Clone, Debug)]
pub(super) enum Takes {
    /// Any JSON.
    Any,
    /// What fits this schema.
    Fitting(Arc<Validator>),
    /// Nobody knows: its schema is none, for this reason.
    Unclear(String),
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
}

fn takes(schema: &str) -> Takes {
    if schema.is_empty() {
        return Takes::Any;
    }
    let built = serde_json::from_str::<Value>(schema)
        .map_err(|error| error.to_string())
        .and_then(|json| options().build(&json).map_err(|error| short(&error)));
    match built {
        Ok(validator) => Takes::Fitting(Arc::new(validator)),
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

/// Fails with what does not fit, in words. It may take long, as the schema is the plugin's.
pub(super) fn fits(schema: &Validator, input: &Value) -> Result<(), String> {
    // Deciding is much faster than explaining, and nearly all inputs are good.
    if schema.is_valid(input) {
        return Ok(());
    }
    let errors = schema.iter_errors(input).take(REASONS_MAX);
    let reasons: Vec<String> = errors
        .map(|error| match error.instance_path().to_string() {
            place if place.is_empty() => short(&error),
            place => format!("{place}: {}", short(&error)),
        })
        .collect();
    Err(reasons.join("; "))
}

fn short(error: &jsonschema::ValidationError<'_>) -> String {
    error.to_string().chars().take(REASON_CHARS_MAX).collect()
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
