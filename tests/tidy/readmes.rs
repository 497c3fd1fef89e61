//! Each crate has a short README.md: its purpose, its limits, and an example.

use std::collections::BTreeMap;

use crate::{none, sources};

/// Most lines: more belongs into the code's own documentation.
const LINES_MAX: usize = 20;

/// Names in the examples: types and calls.
fn names(readme: &str) -> impl Iterator<Item = &str> {
    let examples = readme.split("```rust").skip(1).filter_map(|after| after.split("```").next());
    examples.flat_map(|example| {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let quoted = |at: usize| example[..at].matches('"').count() % 2 == 1;
        let mut found = Vec::new();
        for (at, _) in example.match_indices(is_name) {
            let (before, name) = (&example[..at], &example[at..]);
            let end = name.find(|c| !is_name(c)).unwrap_or(name.len());
            let (name, after) = name.split_at(end);
            let starts = !before.ends_with(is_name) && !quoted(at);
            if starts && (name.starts_with(char::is_uppercase) || after.starts_with('(')) {
                found.push(name);
            }
        }
        found
    })
}

#[test]
fn every_crate_has_a_short_readme_that_names_what_exists() {
    let sources = sources();
    let texts: BTreeMap<_, _> = sources.iter().map(|file| (&*file.path, &*file.text)).collect();
    let roots = texts.keys().filter_map(|path| path.strip_suffix("/lib.rs"));
    let mut findings = Vec::new();
    for folder in roots {
        let path = format!("{folder}/README.md");
        let Some(readme) = texts.get(&*path) else {
            findings
                .push(format!("{path}: write ten lines: what it is, what it is not, an example"));
            continue;
        };
        if readme.lines().count() > LINES_MAX {
            findings.push(format!("{path}: over {LINES_MAX} lines; shorten it"));
        }
        let code: Vec<_> = sources
            .iter()
            .filter(|source| source.is("rs") && source.below(&[folder]))
            .flat_map(|source| source.text.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .collect();
        for name in names(readme).filter(|name| !code.contains(name)) {
            findings.push(format!("{path}: the code has no {name}; mend the example"));
        }
        let files = readme.split('`').skip(1).step_by(2).filter(|quoted| quoted.ends_with(".rs"));
        for file in files.filter(|file| !texts.contains_key(&*format!("{folder}/{file}"))) {
            if !texts.contains_key(file) {
                findings.push(format!("{path}: there is no {file}"));
            }
        }
    }
    none(findings);
}
