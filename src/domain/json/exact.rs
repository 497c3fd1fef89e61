//! Integers that a double cannot tell from their neighbours.

use std::fmt;

use crate::limits::INTEGER_EXACT_MAX;

/// Digits of the shortest integer that is beyond [`INTEGER_EXACT_MAX`].
const DIGITS_SUSPICIOUS: usize = 16;
/// From here on JavaScript writes a double with an exponent: nobody takes it for an exact integer.
const EXPONENT_FROM: f64 = 1e21;

/// Says that a number is one of those, and what to do.
pub(super) fn reason(number: &dyn fmt::Display) -> String {
    format!(
        "{number} is an integer beyond 2^53 - 1 ({INTEGER_EXACT_MAX}), up to which JavaScript counts \
         exactly: send it as a string"
    )
}

/// The first integer in JSON text that is beyond [`INTEGER_EXACT_MAX`], as it is written; `None` when
/// there is none. Numbers that are written with a point or an exponent are none.
#[must_use]
pub fn beyond_exact(text: &str) -> Option<&str> {
    let mut run = 0;
    let suspicious = text.bytes().any(|byte| {
        run = if byte.is_ascii_digit() { run + 1 } else { 0 };
        run == DIGITS_SUSPICIOUS
    });
    if suspicious { tokens(text).find(|token| is_beyond(token)) } else { None }
}

fn is_beyond(token: &str) -> bool {
    let digits = token.strip_prefix('-').unwrap_or(token);
    let whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    // What does not parse has more digits than 64 bits take.
    whole && digits.parse::<u64>().map_or(true, |number| number > INTEGER_EXACT_MAX)
}

/// The numbers of JSON text, in their order.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            let start = at;
            match bytes[at] {
                b'"' => {
                    at += 1;
                    while at < bytes.len() && bytes[at] != b'"' {
                        at += if bytes[at] == b'\\' { 2 } else { 1 };
                    }
                    at += 1;
                }
                b'-' | b'0'..=b'9' => {
                    while at < bytes.len() && is_of_number(bytes[at]) {
                        at += 1;
                    }
                    return Some(&text[start..at]);
                }
                _ => at += 1,
            }
        }
        None
    })
}

fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E')
}

/// Counts a document's numbers as they are read, because the reader does not tell how one is written.
pub(super) struct Numbers<'t> {
    text: &'t str,
    read: usize,
    /// Which of them are integers beyond, in their order; made when it matters.
    beyond: Option<Vec<bool>>,
}

impl<'t> Numbers<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        Self { text, read: 0, beyond: None }
    }

    /// Another one was read. Returns its place.
    pub(super) fn next(&mut self) -> usize {
        self.read += 1;
        self.read - 1
    }

    /// Whether the double that the number at this place was read into stands for an integer that may
    /// have been another one.
    pub(super) fn is_changed(&mut self, place: usize, number: f64) -> bool {
        if number.abs() < EXPONENT_FROM {
            return number.abs() > INTEGER_EXACT_MAX as f64;
        }
        let text = self.text;
        let beyond = self.beyond.get_or_insert_with(|| tokens(text).map(is_beyond).collect());
        beyond.get(place).copied().unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::check;

    fn refused(text: &str) -> Vec<String> {
        let violations = check(text.as_bytes()).err().unwrap_or_default();
        assert!(violations.iter().all(|it| it.reason.contains("send it as a string")), "{text}");
        violations.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn integers_that_javascript_would_change_are_refused_with_their_place() {
        let beyond = [
            "9007199254740992",
            "9007199254740993",
            "-9007199254740993",
            "9007199254740993.0",
            "9007199254740993e0",
            "900719925474099.3e1",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "1000000000000000000001",
            "340282366920938463463374607431768211455",
            "-340282366920938463463374607431768211455",
        ];
        for number in beyond {
            assert_eq!(refused(number), [""], "{number}");
            let text = format!(
                r#"{{"a":[1,"12345678901234567890123",2.5e30,{{"x/y":{number}}}],"b":1e40}}"#
            );
            assert_eq!(refused(&text), ["/a/3/x~1y"], "{number}");
        }
        let fine = [
            "9007199254740991",
            "-9007199254740991",
            "9007199254740991.0",
            "0.1000000000000000055511151231257827",
            "1e21",
            "6.02214076e23",
            "-1.7976931348623157e308",
            r#""9007199254740993""#,
            r#"{"9007199254740993":"\"9007199254740993"}"#,
        ];
        for number in fine {
            assert_eq!(refused(number), Vec::<String>::new(), "{number}");
        }
        assert_eq!(refused("[9007199254740993,1,9007199254740993]"), ["/0", "/2"]);
    }

    #[test]
    fn what_javascript_writes_is_searched_for_integers_beyond() {
        for (text, found) in [
            (r#"{"a":9007199254740992}"#, Some("9007199254740992")),
            (r#"[1,-295147905179352830000]"#, Some("-295147905179352830000")),
            (r#"{"a":"9007199254740992","b":9007199254740991}"#, None),
            (r#"{"\"9007199254740992":1e+21,"b":1.2345678901234567e+30}"#, None),
            ("0.12345678901234567", None),
            ("null", None),
        ] {
            assert_eq!(beyond_exact(text), found, "{text}");
        }
    }

    /// Each asks how it is written; the document is gone through once for all of them.
    #[test]
    fn many_huge_numbers_are_looked_at_in_linear_time() {
        let many = "1e300,".repeat(40_000);
        assert_eq!(refused(&format!("[{many}{}]", "9".repeat(60))), ["/40000"]);
    }
}
