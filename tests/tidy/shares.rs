//! The tables in SHARES.md of what tenants share: each limit that a row names has its value in that row.

use std::fs;

use crate::root;

/// Limits whose value is said in words: name, value in the code, and words.
const IN_WORDS: &[(&str, &str, &str)] = &[
    ("FULL", "2", "half full"),
    ("FULL", "(3, 4)", "three quarters"),
    ("SHARES", "16", "a sixteenth"),
    ("PART", "16", "a sixteenth"),
    // Of the 16 connections one part in two.
    ("QUERIES_BESIDE", "2", "8 are shared"),
    ("KEPT_BYTES_MAX", "576", "576 bytes"),
    ("RESTART_MS", "10000", "10 s"),
    ("GONE_MS", "60000", "60 s"),
];

/// The value of a limit as its file has it.
fn value(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("const {name}:"))?;
    let (_, value) = rest.split_once(';')?.0.split_once('=')?;
    Some(value.trim().replace('_', ""))
}

/// A value as the document writes it.
fn written(name: &str, value: &str) -> Option<String> {
    let known = IN_WORDS.iter().find(|(limit, of, _)| *limit == name && *of == value);
    if let Some((_, _, words)) = known {
        return Some((*words).to_owned());
    }
    for (unit, of) in [("s", "Duration::fromsecs("), ("ms", "Duration::frommillis(")] {
        if let Some(time) = value.strip_prefix(of).and_then(|rest| rest.strip_suffix(')')) {
            return Some(format!("{time} {unit}"));
        }
    }
    let number: u64 = match value.split_once(" << ") {
        Some((base, shift)) => base.parse::<u64>().ok()? << shift.parse::<u32>().ok()?,
        None => value.parse().ok()?,
    };
    Some(match number {
        _ if name.ends_with("_TIMES") => format!("times {number}"),
        _ if !name.contains("BYTES") => grouped(number),
        _ if number >= 1 << 20 => format!("{} MiB", number >> 20),
        _ => format!("{} KiB", number >> 10),
    })
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    match number / 1_000 {
        0 => number.to_string(),
        thousands => format!("{},{:03}", grouped(thousands), number % 1_000),
    }
}

/// A row without its punctuation, so that whole words can be looked for.
fn plain(row: &str) -> String {
    format!(" {} ", row.replace([';', '.', ':', '(', ')', '|'], " ").replace(", ", " "))
}

/// The faults of one row, and the number of limits that it names.
fn look(row: &str) -> (usize, Vec<String>) {
    let (mut limits, mut faults) = (0, Vec::new());
    let (said, held_by) = row.trim_end_matches([' ', '|']).rsplit_once('|').unwrap();
    let (said, mut text) = (plain(said), None);
    for named in held_by.split('`').skip(1).step_by(2) {
        if named.ends_with(".rs") {
            let folder = if named.starts_with("workers/") { "" } else { "src/" };
            text = fs::read_to_string(root().join(format!("{folder}{named}"))).ok();
            if text.is_none() {
                faults.push(format!("there is no {named}: {row}"));
            }
        } else if named.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            limits += 1;
            let value = text.as_deref().and_then(|text| value(text, named));
            let written = value.as_deref().and_then(|value| written(named, value));
            let is_said =
                written.as_ref().is_some_and(|written| said.contains(&format!(" {written} ")));
            if !is_said {
                faults.push(format!("{named} is {value:?}, {written:?}: {row}"));
            }
        }
    }
    if text.is_none() {
        faults.push(format!("names no file: {row}"));
    }
    (limits, faults)
}

#[test]
fn what_the_document_says_of_shares_is_what_the_code_says() {
    let document = include_str!("../../SHARES.md");
    let (mut limits, mut faults) = (0, Vec::new());
    let titles = ["| what |", "| --- |"];
    let is_row = |line: &&str| line.starts_with('|') && !titles.iter().any(|t| line.starts_with(t));
    for row in document.lines().filter(is_row) {
        let (of_row, found) = look(row);
        limits += of_row;
        faults.extend(found);
    }
    assert!(limits > 30, "{limits}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_figure_that_is_not_the_codes_is_found() {
    let row =
        |said: &str| format!("| streams | {said} | 503 | `gateway/limits.rs`: `STREAMS_MAX` |");
    assert_eq!(look(&row("256, a half each")), (1, Vec::new()));
    assert_eq!(look(&row("1,256, a half each")).1.len(), 1);
    assert_eq!(look("| streams | 256 | 503 | `gateway/none.rs`: `STREAMS_MAX` |").1.len(), 3);
}
