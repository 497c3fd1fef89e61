//! Bodies, as JSON has them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use flexcore_sdk::Failure;
use hyper::{HeaderMap, header};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::depth::{DEPTH_MAX, depth};

/// Longest text of an answer, in bytes of JSON. 860 KiB: the largest body has them in base64, and a text
/// with more is shorter so.
const TEXT_BYTES_MAX: usize = 860 * 1024;

/// What an answer's body is: one of the three.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Content {
    /// As it came: numbers are not read, and so lose nothing.
    Json(Box<RawValue>),
    Text(String),
    Base64(String),
}

impl Content {
    /// JSON where the answer says so and it is, else text where it is and JSON does not make it too long,
    /// else bytes.
    pub(super) fn of(headers: &HeaderMap, bytes: &Bytes) -> Self {
        let Ok(text) = str::from_utf8(bytes) else {
            return Self::Base64(STANDARD.encode(bytes));
        };
        if says_json(headers) && depth(text) <= DEPTH_MAX {
            // Fails for what is no JSON, and for two of them.
            if let Ok(json) = serde_json::from_str(text) {
                return Self::Json(json);
            }
        }
        if length_as_json(text) > TEXT_BYTES_MAX {
            return Self::Base64(STANDARD.encode(bytes));
        }
        Self::Text(text.to_owned())
    }
}

/// Bytes of a text as JSON has it, within its quotes.
fn length_as_json(text: &str) -> usize {
    let length = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | b'\x08' | b'\x0c' => 2,
        byte if byte < b' ' => 6,
        _ => 1,
    };
    text.bytes().map(length).sum()
}

/// `application/json`, and whatever ends with `+json`.
fn says_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    let media_type = media_type.trim().to_ascii_lowercase();
    media_type == "application/json" || media_type.ends_with("+json")
}

/// The bytes of a request's body, and their media type; no body has none.
pub(super) fn sent(
    json: Option<&RawValue>,
    text: Option<&str>,
    base64: Option<&str>,
) -> Result<(Bytes, Option<&'static str>), Failure> {
    match (json, text, base64) {
        (None, None, None) => Ok((Bytes::new(), None)),
        (Some(json), None, None) => Ok((json.get().to_owned().into(), Some("application/json"))),
        (None, Some(text), None) => Ok((text.to_owned().into(), Some("text/plain; charset=utf-8"))),
        (None, None, Some(base64)) => {
            let bytes = STANDARD.decode(base64).map_err(|error| {
                Failure::new("invalid_input", format!("`base64` is none: {error}"))
            })?;
            Ok((bytes.into(), Some("application/octet-stream")))
        }
        _ => Err(Failure::new("invalid_input", "one of `json`, `text` and `base64` at most")),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    fn content(media_type: &'static str, bytes: &'static [u8]) -> Value {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        serde_json::to_value(Content::of(&headers, &Bytes::from_static(bytes))).unwrap()
    }

    #[test]
    fn a_body_is_json_or_text_or_bytes() {
        assert_eq!(content("Application/JSON; x", b"[1]"), json!({"json": [1]}));
        assert_eq!(content("application/problem+json", b"{}"), json!({"json": {}}));
        assert_eq!(content("application/json", b"[1"), json!({"text": "[1"}));
        assert_eq!(content("application/json", b"1 2"), json!({"text": "1 2"}));
        assert_eq!(content("text/plain", b"[1]"), json!({"text": "[1]"}));
        assert_eq!(content("application/json", b"\xff"), json!({"base64": "/w=="}));
        assert_eq!(content("application/json", b""), json!({"text": ""}));
    }

    #[test]
    fn json_keeps_its_numbers_and_may_not_be_deep() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let exact = Bytes::from_static(b"[123456789012345678901234567890.10]");
        let told = serde_json::to_string(&Content::of(&headers, &exact)).unwrap();
        assert_eq!(told, r#"{"json":[123456789012345678901234567890.10]}"#);
        for (deep, is_json) in [(DEPTH_MAX, true), (DEPTH_MAX + 1, false), (100_000, false)] {
            let text = format!("{}{}", "[".repeat(deep), "]".repeat(deep));
            let content = Content::of(&headers, &text.into());
            assert_eq!(matches!(content, Content::Json(_)), is_json, "{deep}");
        }
    }

    #[test]
    fn a_text_that_json_makes_too_long_is_bytes() {
        for sign in ["\"", "\u{1}", "\n", "\u{7f}", "é", "\u{2028}"] {
            let text = sign.repeat(640 * 1024 / sign.len());
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(length_as_json(&text), json.len() - 2, "{sign:?}");
            let content = Content::of(&HeaderMap::new(), &text.into());
            let is_text = matches!(content, Content::Text(_));
            assert_eq!(is_text, json.len() <= TEXT_BYTES_MAX, "{sign:?}");
            assert!(serde_json::to_string(&content).unwrap().len() < TEXT_BYTES_MAX, "{sign:?}");
        }
    }

    #[test]
    fn there_is_one_body_at_most() {
        assert_eq!(sent(None, Some("é"), None).unwrap().0, "é");
        assert_eq!(sent(None, None, Some("/w==")).unwrap().0.as_ref(), b"\xff");
        assert_eq!(sent(None, None, None).unwrap().1, None);
        assert_eq!(sent(None, Some("a"), Some("")).unwrap_err().code, "invalid_input");
        assert_eq!(sent(None, None, Some("?")).unwrap_err().code, "invalid_input");
    }
}
