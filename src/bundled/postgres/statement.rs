//! A caller's statement as it is sent: prepared by itself, which the database refuses for more than one
//! statement and for all but queries, and executed with its parameters as texts, which the database
//! reads as whatever the statement needs.

use std::time::Duration;

use flexcore_sdk::Failure;
use serde_json::value::RawValue;

/// Longest statement, in bytes. 64 KiB: what is longer has data in it.
pub(super) const SQL_BYTES_MAX: usize = 64 * 1024;
/// Most parameters. 1,000: a hundred rows of ten columns; for more there are lists in JSON.
pub(super) const PARAMETERS_MAX: usize = 1_000;
/// Longest time that the database is told, in milliseconds. 1 hour: what a call may take at most.
const TIMEOUT_MS_MAX: u128 = 3_600_000;

/// The statement's name in the session.
const NAME: &str = "flexcore_call";

/// Begins the transaction, which ends by itself in time.
pub(super) fn begin(writes: bool, within: Duration) -> String {
    let mode = if writes { "read write" } else { "read only" };
    let ms = within.as_millis().clamp(1, TIMEOUT_MS_MAX);
    format!("begin {mode}; set local statement_timeout = {ms}")
}

/// Has the database prepare it.
pub(super) fn prepare(sql: &str) -> Result<String, Failure> {
    if sql.len() > SQL_BYTES_MAX {
        let message = format!("a statement has {SQL_BYTES_MAX} bytes at most");
        return Err(Failure::new("invalid_input", message));
    }
    if sql.contains('\0') {
        return Err(Failure::new("invalid_input", "a statement has no NUL in it"));
    }
    Ok(format!("prepare {NAME} as {sql}"))
}

/// Executes it.
pub(super) fn execute(parameters: &[Box<RawValue>]) -> Result<String, Failure> {
    if parameters.len() > PARAMETERS_MAX {
        let message = format!("a statement has {PARAMETERS_MAX} parameters at most");
        return Err(Failure::new("invalid_input", message));
    }
    let literals = parameters.iter().map(|value| literal(value)).collect::<Result<Vec<_>, _>>()?;
    if literals.is_empty() {
        return Ok(format!("execute {NAME}"));
    }
    Ok(format!("execute {NAME} ({})", literals.join(", ")))
}

/// Numbers keep all their digits. A text with `E` in front is read the same whatever the session says
/// of backslashes.
fn literal(value: &RawValue) -> Result<String, Failure> {
    let json = value.get();
    if json == "null" {
        return Ok(json.to_owned());
    }
    let text: String = if json.starts_with('"') {
        let bad = |error: serde_json::Error| {
            Failure::new("invalid_input", format!("a parameter is no text: {error}"))
        };
        serde_json::from_str(json).map_err(bad)?
    } else {
        json.to_owned()
    };
    if text.contains('\0') {
        return Err(Failure::new("invalid_input", "a text of Postgres has no NUL in it"));
    }
    Ok(format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<String, Failure> {
        execute(&serde_json::from_str::<Vec<Box<RawValue>>>(json).unwrap())
    }

    #[test]
    fn parameters_are_texts_and_nothing_else() {
        for (json, sent) in [
            ("[]", "execute flexcore_call"),
            ("[null, true, 5]", "execute flexcore_call (null, E'true', E'5')"),
            (
                "[1.10, 12345678901234567890]",
                "execute flexcore_call (E'1.10', E'12345678901234567890')",
            ),
            (r#"["a'b"]"#, r"execute flexcore_call (E'a''b')"),
            (r#"["\\'; drop table x; --"]"#, r"execute flexcore_call (E'\\''; drop table x; --')"),
            (r#"["é\n"]"#, "execute flexcore_call (E'é\n')"),
            (r#"[{"a": "b'\\"}]"#, r#"execute flexcore_call (E'{"a": "b''\\\\"}')"#),
        ] {
            assert_eq!(of(json).unwrap(), sent, "{json}");
        }
        assert_eq!(of(r#"["\u0000"]"#).unwrap_err().code, "invalid_input");
        assert_eq!(of(r#"["\ud800"]"#).unwrap_err().code, "invalid_input");
        assert!(of(&format!("[0{}]", ", 0".repeat(PARAMETERS_MAX))).is_err());
    }

    #[test]
    fn a_statement_has_a_size_and_a_time() {
        assert_eq!(prepare("select 1").unwrap(), "prepare flexcore_call as select 1");
        assert!(prepare("\0").is_err());
        assert!(prepare(&" ".repeat(SQL_BYTES_MAX + 1)).is_err());
        let begun = begin(false, Duration::ZERO);
        assert_eq!(begun, "begin read only; set local statement_timeout = 1");
        let begun = begin(true, Duration::MAX);
        assert_eq!(begun, "begin read write; set local statement_timeout = 3600000");
    }
}
