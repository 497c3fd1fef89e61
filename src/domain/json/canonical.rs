//! Canonical JSON, RFC 8785: one text for each value, however it was written.
//!
//! The hash of a command is over this text, since clients serialise again when they repeat. Keys
//! stand in the order of their UTF-16 units, escapes are as few as can be, and numbers are what a
//! decider sees: doubles, so that `1.0`, `1e0` and `1` are one number.

use std::{
    borrow::Cow,
    fmt::{Display, Write as _},
};

use super::Member;

/// Digits up to which the shortest text of a double is nearer to it than any other as long.
const DIGITS_EXACT: usize = 15;

/// Writes the canonical text of a value that is being read; or nothing, when nobody wants it.
pub(super) struct Writer(Option<String>);

impl Writer {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn with_room_for(bytes: usize) -> Self {
        Self(Some(String::with_capacity(bytes)))
    }

    pub(super) fn written(self) -> String {
        self.0.unwrap_or_default()
    }

    pub(super) fn token(&mut self, token: &str) {
        if let Some(out) = &mut self.0 {
            out.push_str(token);
        }
    }

    /// No larger than a double counts exactly: another one is refused anyway.
    pub(super) fn integer(&mut self, number: impl Display) {
        if let Some(out) = &mut self.0 {
            let _ = write!(out, "{number}");
        }
    }

    pub(super) fn double(&mut self, number: f64) {
        if let Some(out) = &mut self.0 {
            write_double(number, out);
        }
    }

    /// Text that was sent without a backslash is canonical: JSON has no control characters in it.
    pub(super) fn plain_text(&mut self, text: &str) {
        if let Some(out) = &mut self.0 {
            out.push('"');
            out.push_str(text);
            out.push('"');
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        if let Some(out) = &mut self.0 {
            out.push_str(&serde_json::to_string(text).expect("BUG: a text is JSON"));
        }
    }

    /// Returns where the member begins.
    #[expect(clippy::ptr_arg, reason = "a key that was borrowed has no escapes")]
    pub(super) fn key(&mut self, key: &Cow<'_, str>, is_first: bool) -> usize {
        if !is_first {
            self.token(",");
        }
        let at = self.0.as_ref().map_or(0, String::len);
        match key {
            Cow::Borrowed(plain) => self.plain_text(plain),
            Cow::Owned(key) => self.text(key),
        }
        self.token(":");
        at
    }

    /// Ends an object; its members then stand in the order of their keys.
    pub(super) fn end_object(&mut self, members: &[Member<'_>]) {
        let Some(out) = &mut self.0 else { return };
        if !members.is_sorted_by(|one, next| units(&one.key).le(units(&next.key))) {
            let begin = members[0].at;
            let written = out.split_off(begin);
            let end =
                |nth: usize| members.get(nth + 1).map_or(written.len(), |next| next.at - 1 - begin);
            let mut order: Vec<_> = (0..members.len()).collect();
            order.sort_unstable_by(|one, other| {
                units(&members[*one].key).cmp(units(&members[*other].key))
            });
            for (place, nth) in order.into_iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                out.push_str(&written[members[nth].at - begin..end(nth)]);
            }
        }
        out.push('}');
    }
}

fn units(key: &str) -> impl Iterator<Item = u16> {
    key.encode_utf16()
}

/// Writes a double as JavaScript does, which RFC 8785 takes over: the fewest digits that mean it.
fn write_double(value: f64, out: &mut String) {
    if value == 0.0 {
        return out.push('0');
    }
    if value < 0.0 {
        out.push('-');
    }
    let text = format!("{:e}", value.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits = even(value.abs(), mantissa.replace('.', ""));
    // Where the decimal point is, counted in digits.
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    match point {
        1..=21 if count <= point => out.push_str(&(digits + &zeros(point - count))),
        1..=21 => {
            let (whole, rest) = digits.split_at(usize::try_from(point).unwrap_or(0));
            out.push_str(&format!("{whole}.{rest}"));
        }
        -5..=0 => out.push_str(&format!("0.{}{digits}", zeros(-point))),
        _ => {
            let (first, rest) = digits.split_at(1);
            let rest = if rest.is_empty() { String::new() } else { format!(".{rest}") };
            out.push_str(&format!("{first}{rest}e{:+}", point - 1));
        }
    }
}

/// Of two texts that are as short and as near, the one with an even last digit.
fn even(value: f64, digits: String) -> String {
    // Shorter ones are nearer than any other of their length.
    if digits.len() <= DIGITS_EXACT {
        return digits;
    }
    let exact = format!("{value:.40e}").replace('.', "");
    let (lower, rest) = exact.split_at(digits.len());
    let between = rest
        .split('e')
        .next()
        .is_some_and(|rest| rest.starts_with('5') && rest[1..].bytes().all(|digit| digit == b'0'));
    let lower_is_even = lower.bytes().next_back().is_some_and(|digit| digit % 2 == 0);
    if between && lower_is_even { lower.to_owned() } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hash::CommandHash, json::Payload};

    fn of(text: &str) -> String {
        let read = Payload::parse_canonical(text.as_bytes());
        read.unwrap_or_else(|wrong| panic!("{text}: {wrong:?}")).1
    }

    #[test]
    fn the_same_value_has_the_same_text_however_it_was_written() {
        let ways: [&[&str]; 9] = [
            &[r#"{"a":1,"b":[2,"x"]}"#, " {\n\t\"b\" : [ 2 , \"x\" ] ,\r\"a\" : 1 } "],
            &[r#"{"a":"A"}"#, r#"{"\u0061":"\u0041"}"#],
            &["1", "1.0", "1e0", "1E+0", "10e-1", "0.1e1"],
            &["0", "-0", "0.0", "-0e9", "1e-400"],
            &["100", "1e2", "100.000"],
            &["1e30", "1E30", "10.0e29"],
            &["-1.5", "-15e-1"],
            &[r#""\u00e9\/\ud83d\ude00\b\f\n\r\t""#, r#""é/😀\u0008\u000C\u000a\u000d\u0009""#],
            &[r#"{"":{},"x":[[],{}]}"#, r#"{ "x":[ [ ],{ } ] , "":{ } }"#],
        ];
        for ways in ways {
            for way in ways {
                assert_eq!(of(way), of(ways[0]), "{way}");
            }
        }
        let others = ["1", "\"1\"", "[1]", "true", "null", "{}", "[]", "\"\"", "1.5", "{\"1\":1}"];
        let texts: std::collections::BTreeSet<String> = others.map(of).into();
        assert_eq!(texts.len(), others.len());
    }

    /// They are in logs, and a command that is repeated is compared with them.
    #[test]
    fn the_hash_of_a_command_is_as_it_was() {
        let every_kind = r#"{
          "\u20ac": -0.0, "\u00f6": { }, "b": "\u00e9\/\ud83d\ude00\u0008\u0001\u000a",
          "a": [ 100.00, -15e-1, 1E30, 2e-3, 9007199254740991, null, true, false ]
        }"#;
        for (name, payload, hash) in [
            ("add", "{}", "8cd3d75d37b27583f190cfc6386ab624"),
            ("deposit", r#"{ "amount": 1.0 }"#, "016f1879ad40425e206cca1c7dcca1d4"),
            ("add", every_kind, "d0c9b2fedfdf989b576181f6dbaa98e2"),
        ] {
            assert_eq!(CommandHash::of(name, &of(payload)).to_string(), hash, "{payload}");
        }
    }

    /// The samples of RFC 8785, 3.2.2 and 3.2.3; of its numbers those that are exact.
    #[test]
    fn the_samples_of_the_standard_come_out_as_it_says() {
        let sample = r#"{
          "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
          "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
          "literals": [null, true, false]
        }"#;
        assert_eq!(
            of(sample),
            "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
             \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
        let keys = r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#;
        assert_eq!(
            of(keys),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"
        );
    }

    /// Appendix B of RFC 8785, and where JavaScript changes to exponents.
    #[test]
    fn doubles_are_written_as_javascript_writes_them() {
        for (bits, text) in [
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            let mut out = String::new();
            write_double(f64::from_bits(bits), &mut out);
            assert_eq!(out, text, "{bits:x}");
        }
    }

    #[test]
    fn a_canonical_text_is_its_own_and_means_the_same_value() {
        let deep = format!("{}1{}", r#"{"b":[0,"#.repeat(16), "]}".repeat(16));
        let mut wide = String::from("{");
        for number in (0..10_000).rev() {
            wide.push_str(&format!("\"k{number}\":{number}.50,"));
        }
        wide.push_str("\"last\":{\"b\":[],\"a\":-0.0}}");
        for text in [deep.as_str(), &wide, r#"["\u0000\u001f\u007f","\\u0061"]"#, "[1e-7,-2E-9]"] {
            let canonical = of(text);
            assert_eq!(of(&canonical), canonical);
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(floats(value(&canonical)), floats(value(text)));
        }
    }

    /// The value with all its numbers as doubles.
    fn floats(value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::Number(number) => Value::from(number.as_f64().unwrap() + 0.0),
            Value::Array(all) => all.into_iter().map(floats).collect(),
            Value::Object(all) => {
                Value::Object(all.into_iter().map(|(key, value)| (key, floats(value))).collect())
            }
            other => other,
        }
    }
}
