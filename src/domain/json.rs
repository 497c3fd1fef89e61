//! Reading JSON that strangers sent.

mod canonical;
mod exact;

use std::{borrow::Cow, collections::HashSet, fmt, sync::Arc};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

use crate::limits::{INTEGER_EXACT_MAX, JSON_DEPTH_MAX, PAYLOAD_BYTES_MAX};

use canonical::Writer;

pub use exact::beyond_exact;

/// Keys of an object that are compared one by one; beyond, a hash set keeps hostile objects linear.
const KEYS_COMPARED_MAX: usize = 16;

/// Violations that are listed: a person mends the first few and sends again.
pub const VIOLATIONS_MAX: usize = 16;

/// Start of the keys that serde_json gives a meaning of its own when it reads such an object, so
/// that the schema would see another value than the decider.
pub const PRIVATE_KEY: &str = "$serde_json::private::";

/// The payload of a command: JSON text that [`check`] accepts, so nobody further in checks it again.
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload(Arc<str>);

impl Payload {
    /// Reads a payload. Fails as [`check`] does.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<Violation>> {
        check(bytes).map(|text| Self(text.into()))
    }

    /// As [`Self::parse`]. Returns its canonical text (RFC 8785), too, which is the same for all ways of
    /// writing a value.
    pub fn parse_canonical(bytes: &[u8]) -> Result<(Self, String), Vec<Violation>> {
        let text = trimmed(bytes, PAYLOAD_BYTES_MAX)?;
        let canonical = walk(text, Writer::with_room_for(text.len()))?;
        Ok((Self(text.into()), canonical))
    }

    /// The text as it was sent, without white space around it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One field that does not match its schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// JSON pointer to the field; empty for the whole payload.
    pub field: String,
    /// Why, in words.
    pub reason: String,
}

/// Checks a payload: one JSON value and nothing behind it, within [`PAYLOAD_BYTES_MAX`] and
/// [`JSON_DEPTH_MAX`], no key twice in an object, every number within the range of a double, and none
/// that JavaScript would take for another integer ([`INTEGER_EXACT_MAX`]). Returns its text without white
/// space around it. Fails with what is wrong, and where.
pub fn check(bytes: &[u8]) -> Result<&str, Vec<Violation>> {
    check_within(bytes, PAYLOAD_BYTES_MAX)
}

/// As [`check`], but for what may have so many bytes.
pub fn check_within(bytes: &[u8], bytes_max: usize) -> Result<&str, Vec<Violation>> {
    let text = trimmed(bytes, bytes_max)?;
    walk(text, Writer::none())?;
    Ok(text)
}

/// The text, if it is not too long.
fn trimmed(bytes: &[u8], bytes_max: usize) -> Result<&str, Vec<Violation>> {
    if bytes.len() > bytes_max {
        let size = bytes.len();
        return Err(whole(format!("{size} bytes; at most {bytes_max} are accepted")));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| whole(format!("not UTF-8 at byte {}", error.valid_up_to())))?;
    let trimmed = text.trim_ascii();
    if trimmed.is_empty() {
        return Err(whole("empty; send {} when there is nothing to say".to_owned()));
    }
    Ok(trimmed)
}

fn whole(reason: String) -> Vec<Violation> {
    vec![Violation { field: String::new(), reason }]
}

/// Reads a value once: checks it, and writes its canonical text. Returns that text.
fn walk(text: &str, canonical: Writer) -> Result<String, Vec<Violation>> {
    let (members, frames, found) = Default::default();
    let mut walk = Walk { members, frames, found, numbers: exact::Numbers::of(text), canonical };
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = Node(&mut walk).deserialize(&mut reader).and_then(|()| reader.end());
    match read {
        _ if !walk.found.is_empty() => Err(walk.found),
        Err(error) => Err(whole(format!("not valid JSON: {error}"))),
        Ok(()) => Ok(walk.canonical.written()),
    }
}

/// Where the reader is, and what it found. One stack of members for all open objects.
struct Walk<'de> {
    members: Vec<Member<'de>>,
    frames: Vec<Frame>,
    found: Vec<Violation>,
    numbers: exact::Numbers<'de>,
    canonical: Writer,
}

/// A member of an open object.
struct Member<'de> {
    key: Cow<'de, str>,
    /// Where it begins in the canonical text.
    at: usize,
}

/// An open array or object.
#[derive(Clone, Copy)]
enum Frame {
    /// Index of the element that is being read.
    Array(usize),
    /// Where its members begin on the stack.
    Object(usize),
}

impl Walk<'_> {
    fn open<E: serde::de::Error>(&mut self, frame: Frame) -> Result<(), E> {
        if self.frames.len() == JSON_DEPTH_MAX {
            self.report(format!("nested deeper than {JSON_DEPTH_MAX} levels"));
            return Err(E::custom("too deep"));
        }
        self.frames.push(frame);
        Ok(())
    }

    fn report(&mut self, reason: String) {
        if self.found.len() < VIOLATIONS_MAX {
            self.found.push(Violation { field: self.pointer(), reason });
        }
    }

    /// JSON pointer to what is being read.
    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for (depth, frame) in self.frames.iter().enumerate() {
            pointer.push('/');
            match *frame {
                Frame::Array(index) => pointer.push_str(&index.to_string()),
                Frame::Object(_) => {
                    let end = self.frames[depth + 1..].iter().find_map(|inner| match inner {
                        Frame::Object(start) => Some(*start),
                        Frame::Array(_) => None,
                    });
                    let member = &self.members[end.unwrap_or(self.members.len()) - 1];
                    pointer.push_str(&member.key.replace('~', "~0").replace('/', "~1"));
                }
            }
        }
        pointer
    }
}

/// One value, whatever it is.
struct Node<'a, 'de>(&'a mut Walk<'de>);

impl<'de> DeserializeSeed<'de> for Node<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, is: bool) -> Result<(), E> {
        self.0.canonical.token(if is { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.0.numbers.next();
        if number.unsigned_abs() > INTEGER_EXACT_MAX {
            self.0.report(exact::reason(&number));
        }
        self.0.canonical.integer(number);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.0.numbers.next();
        if number > INTEGER_EXACT_MAX {
            self.0.report(exact::reason(&number));
        }
        self.0.canonical.integer(number);
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        let place = self.0.numbers.next();
        if self.0.numbers.is_changed(place, number) {
            self.0.report(exact::reason(&number));
        }
        self.0.canonical.double(number);
        Ok(())
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        self.0.canonical.plain_text(text);
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.canonical.text(text);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.canonical.token("null");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        let walk = self.0;
        walk.open(Frame::Array(0))?;
        walk.canonical.token("[");
        while array.next_element_seed(Element(walk))?.is_some() {
            if let Some(Frame::Array(index)) = walk.frames.last_mut() {
                *index += 1;
            }
        }
        walk.canonical.token("]");
        walk.frames.pop();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let walk = self.0;
        let start = walk.members.len();
        let mut many: Option<HashSet<Cow<'de, str>>> = None;
        // The members stay on the stack: the deepest object's last one is the one being read.
        walk.open(Frame::Object(start))?;
        walk.canonical.token("{");
        while let Some(key) = object.next_key_seed(Key)? {
            let members = &walk.members[start..];
            let seen = match &mut many {
                Some(set) => !set.insert(key.clone()),
                None => members.iter().any(|member| member.key == key),
            };
            if many.is_none() && members.len() == KEYS_COMPARED_MAX {
                let keys = members.iter().map(|member| member.key.clone());
                many = Some(keys.chain([key.clone()]).collect());
            }
            let private = key.starts_with(PRIVATE_KEY);
            let at = walk.canonical.key(&key, members.is_empty());
            walk.members.push(Member { key, at });
            if seen {
                walk.report("this key stands twice in its object".to_owned());
            }
            if private {
                walk.report(format!("keys that begin with {PRIVATE_KEY} are not accepted"));
                return Err(A::Error::custom("private key"));
            }
            object.next_value_seed(Node(walk))?;
        }
        walk.canonical.end_object(&walk.members[start..]);
        walk.frames.pop();
        walk.members.truncate(start);
        Ok(())
    }
}

/// An element of an array, whose place in it is on top of the frames.
struct Element<'a, 'de>(&'a mut Walk<'de>);

impl<'de> DeserializeSeed<'de> for Element<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        if !matches!(self.0.frames.last(), Some(Frame::Array(0))) {
            self.0.canonical.token(",");
        }
        reader.deserialize_any(Node(self.0))
    }
}

/// A key of an object, borrowed where it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Vec<(String, String)> {
        let violations = check(text.as_bytes()).expect_err(text);
        violations.into_iter().map(|violation| (violation.field, violation.reason)).collect()
    }

    #[test]
    fn good_payloads_are_kept_as_they_were_sent() {
        let odd =
            r#"{"a":[1,-2.5e3,null,true,"\u00fc\ud83d\ude00"],"b":{"a":{}},"":"","é":"\u0000"}"#;
        for text in [odd, "{}", "[]", "null", "7", r#""text""#, "1e21", "-9007199254740991"] {
            assert_eq!(check(text.as_bytes()).unwrap(), text);
        }
        assert_eq!(check(b" \r\n{\"a\" : 1}\t").unwrap(), r#"{"a" : 1}"#);
    }

    #[test]
    fn an_empty_payload_says_what_to_send() {
        for text in ["", " \n"] {
            assert!(refused(text)[0].1.contains("send {}"));
        }
    }

    #[test]
    fn malformed_payloads_are_refused() {
        let bad = [
            "{",
            "}",
            "{]",
            "[1,]",
            r#"{"a":1,}"#,
            "{a:1}",
            "{'a':1}",
            "01",
            "+1",
            ".5",
            "1.",
            "NaN",
            "Infinity",
            "-",
            "1e999",
            "tru",
            "// x\n1",
            r#""\ud800""#,
            r#""\x""#,
            "\"\n\"",
            "{} {}",
            "{}x",
            "\u{feff}{}",
            "\0",
            "{}\0",
            r#"{"a"}"#,
            r#"{1:2}"#,
        ];
        for text in bad {
            assert!(refused(text)[0].1.starts_with("not valid JSON: "), "{text:?}");
        }
        assert!(check(b"\"\xff\"").unwrap_err()[0].reason.contains("UTF-8 at byte 1"));
        assert!(check(b"\"\xc0\x80\"").is_err(), "an overlong NUL");
    }

    #[test]
    fn size_and_depth_are_limited() {
        let text = |length: usize| format!("\"{}\"", "a".repeat(length - 2));
        assert!(check(text(PAYLOAD_BYTES_MAX).as_bytes()).is_ok());
        assert!(refused(&text(PAYLOAD_BYTES_MAX + 1))[0].1.contains("at most 262144"));
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(check(nested(JSON_DEPTH_MAX).as_bytes()).is_ok());
        let (field, reason) = refused(&nested(JSON_DEPTH_MAX + 1)).remove(0);
        assert_eq!(field, "/0".repeat(JSON_DEPTH_MAX));
        assert_eq!(reason, "nested deeper than 32 levels");
        let objects = r#"{"a":"#.repeat(JSON_DEPTH_MAX + 1);
        assert_eq!(refused(&objects)[0].0, "/a".repeat(JSON_DEPTH_MAX));
        assert!(refused(&"[".repeat(PAYLOAD_BYTES_MAX))[0].1.contains("nested"));
    }

    #[test]
    fn duplicate_keys_are_all_found_with_their_pointers() {
        let twice = r#"{"a":1,"b":[0,{"x/y~":1,"x\/y~":{"c":1,"c":2}}],"\u0061":3,"a":4}"#;
        let fields: Vec<String> = refused(twice).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["/b/1/x~1y~0", "/b/1/x~1y~0/c", "/a", "/a"]);
        let same_in_siblings = r#"{"a":{"a":[{"a":1},{"a":1}]},"b":{"a":1}}"#;
        assert!(check(same_in_siblings.as_bytes()).is_ok());
    }

    #[test]
    fn wide_objects_are_checked_in_linear_time() {
        let mut wide = String::from("{");
        for number in 0..20_000 {
            wide.push_str(&format!("\"k{number}\":1,"));
        }
        assert!(check(format!("{wide}\"last\":1}}").as_bytes()).is_ok());
        for twice in ["k0", "k15", "k16", "k17", "k19999"] {
            assert_eq!(refused(&format!("{wide}\"{twice}\":1}}"))[0].0, format!("/{twice}"));
        }
        let mut hostile = String::from("{");
        for _ in 0..40_000 {
            hostile.push_str("\"a\":1,");
        }
        assert_eq!(refused(&format!("{hostile}\"a\":1}}")).len(), VIOLATIONS_MAX);
    }

    #[test]
    fn keys_that_the_reader_would_interpret_are_refused() {
        let smuggled = r#"{"a":{"$serde_json::private::RawValue":"{\"b\":1}"}}"#;
        assert_eq!(refused(smuggled)[0].0, "/a/$serde_json::private::RawValue");
    }
}
