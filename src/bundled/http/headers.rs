//! Headers of requests and answers.

use std::collections::BTreeMap;

use flexcore_sdk::Failure;
use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};

/// Most headers that a caller, or a configuration, gives.
pub(super) const HEADERS_MAX: usize = 64;
/// Longest names and values of these together, in bytes. 16 KiB: many servers take no more.
const BYTES_MAX: usize = 16 * 1024;

/// Headers that are about the connection, which is ours.
const OURS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that go to another host, too, behind a redirect. All others may be meant for one host.
const HARMLESS: [&str; 7] = [
    "accept",
    "accept-language",
    "content-type",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "user-agent",
];

/// A header that somebody gives. Fails where it is none, or about the connection. Nothing of it is
/// quoted: it may be of the configuration, which callers are not to know, and a secret may stand in the
/// wrong place.
pub(super) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    let unfit = |why: &str| Failure::new("invalid_header", format!("a header {why}"));
    let parsed = HeaderName::from_bytes(name.as_bytes());
    let parsed = parsed.map_err(|_| unfit("has a name that there cannot be"))?;
    if OURS.contains(&parsed.as_str()) {
        let message = format!("is {parsed}, which is about the connection, and not yours to set");
        return Err(unfit(&message));
    }
    let value = HeaderValue::from_str(value).ok().filter(|_| value.is_ascii());
    Ok((parsed, value.ok_or_else(|| unfit("has a value that is not visible ASCII"))?))
}

/// All headers that somebody gives. Fails where they are too many or too large, too.
pub(super) fn all(given: &BTreeMap<String, String>) -> Result<HeaderMap, Failure> {
    let bytes: usize = given.iter().map(|(name, value)| name.len() + value.len()).sum();
    if given.len() > HEADERS_MAX || bytes > BYTES_MAX {
        let message = format!("at most {HEADERS_MAX} headers, and {BYTES_MAX} bytes of them");
        return Err(Failure::new("invalid_header", message));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let (name, value) = header(name, value)?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// A caller's headers, and the type of its body where it does not say one.
pub(super) fn given(
    given: &BTreeMap<String, String>,
    media_type: Option<&'static str>,
) -> Result<HeaderMap, Failure> {
    let mut headers = all(given)?;
    if let Some(media_type) = media_type {
        add(&mut headers, header::CONTENT_TYPE, media_type);
    }
    Ok(headers)
}

/// Adds a header where nobody has given one, and where it can be one.
pub(super) fn add(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value)
        && !value.is_empty()
    {
        headers.entry(name).or_insert(value);
    }
}

/// Drops what may be meant for one host alone.
pub(super) fn keep_harmless(headers: &mut HeaderMap) {
    let names: Vec<_> = headers.keys().cloned().collect();
    for name in names {
        if !HARMLESS.contains(&name.as_str()) {
            headers.remove(name);
        }
    }
}

/// Drops what is about a body.
pub(super) fn drop_body(headers: &mut HeaderMap) {
    let of_body = [
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::CONTENT_LOCATION,
    ];
    for name in of_body {
        headers.remove(name);
    }
}

/// An answer's headers, for JSON. What is no text has marks in its place.
pub(super) fn told(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut told = BTreeMap::new();
    for name in headers.keys() {
        // Dates of cookies have commas in them.
        let between = if *name == header::SET_COOKIE { "\n" } else { ", " };
        let values = headers.get_all(name).iter();
        let values: Vec<_> =
            values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        told.insert(name.as_str().to_owned(), values.join(between));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn headers_that_are_ours_or_broken_are_refused() {
        for name in ["Host", "content-length", "Transfer-Encoding", "Keep-Alive", "TE", "", "a b"] {
            assert_eq!(all(&one(name, "x")).unwrap_err().code, "invalid_header", "{name}");
        }
        for value in ["a\r\nb: c", "a\nb", "\0", "é"] {
            let failure = all(&one("x-secret", value)).unwrap_err();
            assert!(!failure.message.contains(value), "{failure}");
        }
        let many = (0..=HEADERS_MAX).map(|n| (format!("x-{n}"), String::new())).collect();
        assert!(all(&many).is_err());
        assert!(all(&one("x", &"v".repeat(BYTES_MAX))).is_err());
        assert_eq!(all(&one("X", &"v".repeat(BYTES_MAX - 1))).unwrap().len(), 1);
    }

    #[test]
    fn a_caller_says_its_own_type() {
        let said = given(&one("Content-Type", "text/csv"), Some("text/plain")).unwrap();
        assert_eq!(said[header::CONTENT_TYPE], "text/csv");
        let added = given(&BTreeMap::new(), Some("text/plain")).unwrap();
        assert_eq!(added[header::CONTENT_TYPE], "text/plain");
    }

    #[test]
    fn another_host_learns_no_secret() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "cookie", "x-api-key", "accept", "idempotency-key"] {
            add(&mut headers, HeaderName::from_static(name), "x");
        }
        keep_harmless(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "idempotency-key"]);
    }

    #[test]
    fn cookies_are_told_in_lines() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("a", "2"), ("set-cookie", "x"), ("set-cookie", "y")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let told = told(&headers);
        assert_eq!((told["a"].as_str(), told["set-cookie"].as_str()), ("1, 2", "x\ny"));
    }
}
