//! JSON as somebody wrote it, in another layout: numbers and keys stay as they are, which a [`serde_json::Value`]
//! does not keep.

use anyhow::anyhow;
use flexcore_domain::{Violation, json::check_within};
use flexcore_plugin::limits::JSON_BYTES_MAX;
use serde_json::value::RawValue;

/// Spaces of an indentation, as those of [`serde_json`].
const INDENT: usize = 2;

/// The text of JSON that is to be sent. Fails where workers would refuse it: no key stands twice in an object,
/// and each number is one that everybody reads as the same.
pub(crate) fn checked(json: &[u8]) -> anyhow::Result<&str> {
    check_within(json, JSON_BYTES_MAX).map_err(|violations| {
        let reason = |Violation { field, reason }: Violation| match &*field {
            "" => reason,
            field => format!("{field}: {reason}"),
        };
        let reasons: Vec<String> = violations.into_iter().map(reason).collect();
        anyhow!("{}", reasons.join("; "))
    })
}

/// The same on one line.
pub(crate) fn line(json: &RawValue) -> String {
    laid_out(json.get(), None)
}

/// The same with a line for each member.
pub(crate) fn lines(json: &RawValue) -> String {
    laid_out(json.get(), Some(0))
}

/// Writes a JSON text anew; with a depth with a line for each member.
fn laid_out(text: &str, mut depth: Option<usize>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.trim_ascii_start();
    while let Some(sign) = rest.chars().next() {
        let (token, behind) = rest.split_at(token_bytes(rest, sign));
        rest = behind.trim_ascii_start();
        match (sign, &mut depth) {
            ('{' | '[', Some(depth)) if !rest.starts_with(['}', ']']) => {
                *depth += 1;
                out.push_str(token);
                begin_line(&mut out, *depth);
            }
            ('}' | ']', Some(depth)) if !out.ends_with(['{', '[']) => {
                *depth = depth.saturating_sub(1);
                begin_line(&mut out, *depth);
                out.push_str(token);
            }
            (',', Some(depth)) => {
                out.push_str(token);
                begin_line(&mut out, *depth);
            }
            (':', Some(_)) => out.push_str(": "),
            _ => out.push_str(token),
        }
    }
    out
}

/// Bytes of the token that a text begins with, whose first sign this is.
fn token_bytes(text: &str, sign: char) -> usize {
    match sign {
        '"' => text_bytes(text),
        '{' | '}' | '[' | ']' | ',' | ':' => 1,
        _ => text.find(is_outside).unwrap_or(text.len()),
    }
}

/// Bytes of the text in quotes, these included.
fn text_bytes(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    });
    // Both quotes.
    end.map_or(text.len(), |end| end + 2)
}

/// No sign of a number or of a word.
fn is_outside(sign: char) -> bool {
    sign.is_ascii_whitespace() || matches!(sign, '{' | '}' | '[' | ']' | ',' | ':' | '"')
}

fn begin_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', depth * INDENT));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    /// `serde_json` read 2^80 as 1.2089258196146292e+24.
    #[test]
    fn numbers_stay_as_they_are() {
        for number in ["1208925819614629174706176", "0.1000000000000000000001", "-1E5", "1.0"] {
            assert_eq!(line(&raw(number)), number);
            assert_eq!(lines(&raw(number)), number);
        }
        let text = "{ \"a\" : [1208925819614629174706176,\n {}, [ ] ],\t\"a\":\"x \\\" {,\" }";
        assert_eq!(line(&raw(text)), r#"{"a":[1208925819614629174706176,{},[]],"a":"x \" {,"}"#);
    }

    #[test]
    fn lines_are_those_of_serde_json() {
        for text in [
            "null",
            "[]",
            r#""é \\""#,
            r#"["{","[",",",":","\\\"",""]"#,
            r#"{"a":[1,{"b":{}},[[]]],"c d":true,"e":-1.5}"#,
        ] {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(lines(&raw(text)), format!("{value:#}"), "{text}");
            assert_eq!(line(&raw(&format!("{value:#}"))), text);
        }
    }

    #[test]
    fn what_workers_refuse_is_not_sent() {
        assert_eq!(checked(b" {\"a\": 1.50} ").unwrap(), r#"{"a": 1.50}"#);
        for (wrong, said) in [
            ("123456789012345678901234567890", "send it as a string"),
            (r#"{"a":1,"a":2}"#, "/a: this key stands twice"),
            ("{", "not valid JSON"),
            ("", "empty"),
        ] {
            let error = checked(wrong.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }
}
