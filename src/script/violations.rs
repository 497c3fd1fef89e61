//! What of a value does not match its schema.

use flexcore_domain::{Violation, definition::Schema};
use serde_json::Value;

/// Violations that are listed: a person mends the first few and sends again.
const VIOLATIONS_MAX: usize = 16;

/// Longest reason, in characters: it may quote the value.
const REASON_CHARS_MAX: usize = 200;

/// Checks a value. Fails with the fields that do not match, and why.
pub(crate) fn check(schema: &Schema, value: &Value) -> Result<(), Vec<Violation>> {
    // Deciding is much faster than explaining, and nearly all values are good.
    if schema.validator.is_valid(value) {
        return Ok(());
    }
    let errors = schema.validator.iter_errors(value).take(VIOLATIONS_MAX);
    let violation = |error: jsonschema::ValidationError<'_>| Violation {
        field: error.instance_path().to_string(),
        reason: error.to_string().chars().take(REASON_CHARS_MAX).collect(),
    };
    Err(errors.map(violation).collect())
}
