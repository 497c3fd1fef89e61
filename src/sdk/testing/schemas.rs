//! A plugin's schemas, as the host reads them.

use flexcore_plugin::contract::Description;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

/// Reasons that are told of one value.
const REASONS_MAX: usize = 5;

/// All schemas of a plugin. The host holds inputs and configurations to them; outputs are held to them
/// in tests alone.
#[derive(Debug)]
pub struct Schemas {
    functions: Vec<(String, Option<Validator>, Option<Validator>)>,
    configuration: Option<Validator>,
}

impl Schemas {
    /// Of what a plugin says of itself. Fails where the host could not read one of them: it would
    /// refuse each call of the function, or each configuration.
    pub fn of(description: &Description) -> Result<Self, String> {
        let mut functions = Vec::new();
        for function in &description.functions {
            let name = &function.name;
            let input = compiled(&format!("the input of {name:?}"), &function.input_schema)?;
            let output = compiled(&format!("the output of {name:?}"), &function.output_schema)?;
            functions.push((name.clone(), input, output));
        }
        let configuration = compiled("the configuration", &description.configuration_schema)?;
        Ok(Self { functions, configuration })
    }

    /// Fails, with the reasons, where the host would not hand this input to the function.
    pub fn input(&self, function: &str, input: &Value) -> Result<(), String> {
        let found = self.functions.iter().find(|(name, ..)| name == function);
        found.map_or(Ok(()), |(_, schema, _)| fits(schema.as_ref(), input))
    }

    /// Fails, with the reasons, where the function must not answer with this output.
    pub fn output(&self, function: &str, output: &Value) -> Result<(), String> {
        let found = self.functions.iter().find(|(name, ..)| name == function);
        found.map_or(Ok(()), |(.., schema)| fits(schema.as_ref(), output))
    }

    /// Fails, with the reasons, where the host would not store this configuration.
    pub fn configuration(&self, configuration: &Value) -> Result<(), String> {
        fits(self.configuration.as_ref(), configuration)
    }
}

fn compiled(what: &str, schema: &str) -> Result<Option<Validator>, String> {
    if schema.is_empty() {
        return Ok(None);
    }
    let json: Value = serde_json::from_str(schema)
        .map_err(|error| format!("the schema of {what} is no JSON: {error}"))?;
    let options = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        // Patterns that take linear time: no look-around, no back-references.
        .with_pattern_options(PatternOptions::regex());
    let built = options.build(&json);
    built.map(Some).map_err(|error| format!("the schema of {what} is none: {error}"))
}

fn fits(schema: Option<&Validator>, value: &Value) -> Result<(), String> {
    let Some(schema) = schema else { return Ok(()) };
    let reasons: Vec<_> = schema
        .iter_errors(value)
        .take(REASONS_MAX)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::Function;
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_held_to_their_schemas() {
        let function = Function {
            name: "greet".to_owned(),
            input_schema: json!({"type": "object", "required": ["name"]}).to_string(),
            output_schema: json!({"type": "string"}).to_string(),
            ..Function::default()
        };
        let described = Description { functions: vec![function], ..Default::default() };
        let schemas = Schemas::of(&described).unwrap();
        schemas.input("greet", &json!({"name": 1})).unwrap();
        assert!(schemas.input("greet", &json!({})).unwrap_err().contains("name"));
        schemas.output("greet", &json!("x")).unwrap();
        schemas.output("greet", &json!(1)).unwrap_err();
        schemas.input("other", &json!(1)).unwrap();
        schemas.configuration(&json!(1)).unwrap();
    }

    #[test]
    fn what_is_no_schema_is_told() {
        for (schema, said) in [
            ("{", "is no JSON"),
            (r#"{"type": 5}"#, "is none"),
            (r#"{"type": "strin"}"#, "is none"),
            (r##"{"$ref": "#/$defs/nothing"}"##, "is none"),
            (r#"{"$ref": "https://example.com/schema"}"#, "is none"),
            (r#"{"pattern": "^(?!a)"}"#, "is none"),
            (r#"{"format": "datetime"}"#, "is none"),
        ] {
            let configuration_schema = schema.to_owned();
            let described = Description { configuration_schema, ..Default::default() };
            let why = Schemas::of(&described).unwrap_err();
            assert!(why.contains("the configuration") && why.contains(said), "{why}");
        }
    }
}
