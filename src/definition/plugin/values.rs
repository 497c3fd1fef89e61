//! The values of a manifest, each read within its limits. Where one is wrong a note says what it may be.

use std::{ops::RangeInclusive, time::Duration};

use serde_json::Value;

use crate::{
    notes::Notes,
    yaml::{Data, Node},
};

/// Units by name, in order, and how many of the smallest amount each is.
type Units = &'static [(&'static str, u64)];

/// Times, in milliseconds.
const TIMES: Units = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
/// Sizes, in bytes.
const SIZES: Units = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// A number with a unit, and its limits as people write them.
pub(super) struct Amount {
    units: Units,
    limits: (&'static str, &'static str),
}

/// A limit of memory. With less than 16 MiB no program starts, and no machine has more than the most.
pub(super) const MEMORY: Amount = Amount { units: SIZES, limits: ("16MiB", "16TiB") };
/// A limit of processor time: a week, or a plugin is not limited.
pub(super) const PROCESSOR: Amount = Amount { units: TIMES, limits: ("1s", "168h") };

/// How many of the smallest amount a text with a unit is; `None`: it is none.
fn with_unit(text: &str, units: Units) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, of) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*of)
}

/// An amount, in bytes or milliseconds.
pub(super) fn amount(node: &Node, what: &str, of: &Amount, notes: &mut Notes) -> Option<u64> {
    let (least, most) = of.limits;
    let limit = |text| with_unit(text, of.units).expect("BUG: a limit has its unit");
    let read = match &node.data {
        Data::Scalar(Value::String(text)) => with_unit(text, of.units),
        _ => None,
    };
    match read.filter(|read| (limit(least)..=limit(most)).contains(read)) {
        Some(read) => Some(read),
        None => {
            let units: Vec<_> = of.units.iter().map(|(name, _)| *name).collect();
            let units = units.join(", ");
            let message = format!("{what} is a whole number with its unit ({units})");
            notes.add(node.line, format!("{message}, {least} to {most}"))
        }
    }
}

/// A time within these limits.
pub(super) fn time(
    node: &Node,
    what: &str,
    limits: (&'static str, &'static str),
    notes: &mut Notes,
) -> Option<Duration> {
    amount(node, what, &Amount { units: TIMES, limits }, notes).map(Duration::from_millis)
}

/// A whole number within these limits.
pub(super) fn whole(
    node: &Node,
    what: &str,
    limits: RangeInclusive<u64>,
    notes: &mut Notes,
) -> Option<u64> {
    let number = match &node.data {
        Data::Scalar(Value::Number(number)) => number.as_u64(),
        _ => None,
    };
    match number.filter(|number| limits.contains(number)) {
        Some(number) => Some(number),
        None => {
            let (least, most) = (limits.start(), limits.end());
            notes.add(node.line, format!("{what} is a whole number, {least} to {most}"))
        }
    }
}

/// A number from 1 on.
pub(super) fn count(node: &Node, what: &str, most: usize, notes: &mut Notes) -> Option<usize> {
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    whole(node, what, 1..=most, notes).and_then(|number| usize::try_from(number).ok())
}

/// True or false.
pub(super) fn yes_or_no(node: &Node, what: &str, notes: &mut Notes) -> Option<bool> {
    match &node.data {
        Data::Scalar(Value::Bool(value)) => Some(*value),
        _ => notes.add(node.line, format!("{what} is true or false, and here {}", node.describe())),
    }
}

/// A text of one line that is not empty, of so many characters at most.
pub(super) fn line<'n>(
    node: &'n Node,
    what: &str,
    characters_max: usize,
    notes: &mut Notes,
) -> Option<&'n str> {
    let text = notes.text(node, what)?;
    let characters = text.chars().count();
    if !(1..=characters_max).contains(&characters) || text.chars().any(is_hidden) {
        let rule = format!("{what} has 1 to {characters_max} printable characters");
        return notes.add(node.line, rule);
    }
    Some(text)
}

/// Nothing that is seen: control characters, and those that change the direction of what stands around them.
fn is_hidden(sign: char) -> bool {
    sign.is_control() || matches!(sign, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text without NUL, of so many bytes at most; it may be empty.
pub(super) fn bytes<'n>(
    node: &'n Node,
    what: &str,
    bytes_max: usize,
    notes: &mut Notes,
) -> Option<&'n str> {
    let text = notes.text(node, what)?;
    if text.len() > bytes_max || text.contains('\0') {
        let rule = format!("{what} has at most {bytes_max} bytes, none of them NUL");
        return notes.add(node.line, rule);
    }
    Some(text)
}

/// One of a few words.
pub(super) fn word<T: Copy>(
    node: &Node,
    what: &str,
    known: &[(&str, T)],
    notes: &mut Notes,
) -> Option<T> {
    let text = match &node.data {
        Data::Scalar(Value::String(text)) => text.as_str(),
        _ => "",
    };
    match known.iter().find(|(name, _)| *name == text) {
        Some((_, value)) => Some(*value),
        None => {
            let names: Vec<_> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
            notes.add(node.line, format!("{what} is {}", names.join(" or ")))
        }
    }
}

/// A list of so many values.
pub(super) fn list<'n>(
    node: &'n Node,
    what: &str,
    counts: RangeInclusive<usize>,
    notes: &mut Notes,
) -> Option<&'n [Node]> {
    match &node.data {
        Data::List(nodes) if counts.contains(&nodes.len()) => Some(nodes),
        _ => {
            let (least, most) = (counts.start(), counts.end());
            notes.add(node.line, format!("{what} is a list of {least} to {most} values"))
        }
    }
}
