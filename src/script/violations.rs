//! The parts of a value that do not match its schema.

use flexcore_definition::Schema;
use flexcore_domain::{Violation, json::VIOLATIONS_MAX};
use serde_json::Value;

use crate::{
    clock::processor_time,
    limits::{DECIDE_MAX, OVERRUN_MAX},
    threads::mark,
};

/// Longest reason, in characters: it may quote the value.
const REASON_CHARS_MAX: usize = 200;

/// Checks a value. Fails with the fields that do not match, and why. Nothing can stop a check that
/// takes long (branches that double with each level, a pattern of thousands of states), so that it is
/// left behind like a function.
pub(crate) fn check(schema: &Schema, value: &Value) -> Result<(), Vec<Violation>> {
    let marked = mark::begin(DECIDE_MAX, &schema.place, "check against the schema");
    let deadline = processor_time() + DECIDE_MAX;
    let checked = find(schema, value);
    if processor_time() > deadline + OVERRUN_MAX {
        marked.overran();
    }
    checked
}

fn find(schema: &Schema, value: &Value) -> Result<(), Vec<Violation>> {
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
