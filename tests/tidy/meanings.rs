//! Words that have one meaning each: one type has the bare word as its name, and others say whose they
//! are. ARCHITECTURE.md lists them under "Words".

use crate::{none, sources};

/// A word, the file whose type is called so, and what others are to be called. No file: no type is.
const WORDS: &[(&str, Option<&str>, &str)] = &[
    ("State", Some("src/domain/decider.rs"), "an aggregate's state; else say whose: CircuitState"),
    ("Place", Some("src/cluster/plan.rs"), "what a member owns; else say whose: HeldPlace"),
    ("Reader", Some("workers/projection/reader.rs"), "it reads the log; else say of what"),
    ("Answer", Some("src/gateways.rs"), "it comes over HTTP; else say whose: ApiAnswer"),
    ("Kind", None, "say of what: WorkKind, ProblemKind"),
];

/// The name of the type that a line declares.
fn declared(line: &str) -> Option<&str> {
    let mut tokens = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    // Types of a trait stand further in, and have the names that the trait gives.
    let is_outside = !line.starts_with(' ');
    let declares = tokens.any(|token| ["struct", "enum", "trait", "type"].contains(&token));
    if is_outside && declares { tokens.next() } else { None }
}

#[test]
fn a_word_is_the_name_of_one_type() {
    let mut findings = Vec::new();
    let mut found = Vec::new();
    for source in sources() {
        if !source.is("rs") || !source.below(&["src", "workers"]) {
            continue;
        }
        let path = &source.path;
        for (number, line) in source.code(false) {
            let name = declared(line);
            let Some((word, home, what)) = WORDS.iter().find(|(word, ..)| name == Some(*word))
            else {
                continue;
            };
            if *home == Some(path.as_str()) {
                found.push(*word);
            } else {
                findings.push(format!("{path}:{number}: {word}: {what}"));
            }
        }
    }
    let gone = WORDS.iter().filter(|(word, home, _)| home.is_some() && !found.contains(word));
    findings.extend(gone.map(|(word, ..)| format!("{word}: there is no such type any more")));
    none(findings);
}
