//! W3C trace context, as it travels in HTTP headers, NATS headers and stored events.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A checked `traceparent` of version 00: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceParent(Arc<str>);

/// Not a `traceparent` of version 00; the caller starts a new trace then, as W3C asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct InvalidTraceParent;

impl TraceParent {
    /// The header's value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trace id, 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let bytes = text.as_bytes();
        let shaped = bytes.len() == 55
            && text.is_ascii()
            && &text[..3] == "00-"
            && bytes[35] == b'-'
            && bytes[52] == b'-'
            && hex(&text[3..35])
            && hex(&text[36..52])
            && hex(&text[53..])
            && text[3..35].bytes().any(|b| b != b'0')
            && text[36..52].bytes().any(|b| b != b'0');
        if shaped { Ok(Self(text.into())) } else { Err(InvalidTraceParent) }
    }
}

impl TryFrom<String> for TraceParent {
    type Error = InvalidTraceParent;
    fn try_from(text: String) -> Result<Self, InvalidTraceParent> {
        text.parse()
    }
}

impl From<TraceParent> for String {
    fn from(parent: TraceParent) -> Self {
        parent.0.as_ref().to_owned()
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
