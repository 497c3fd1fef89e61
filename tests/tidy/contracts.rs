//! Contracts and metrics stand in more than one place: in code, and in a file or a document.

use std::{collections::BTreeSet, path::Path};

use crate::{none, sources};

#[test]
fn every_contract_is_used() {
    let sources = sources();
    let code: String = sources
        .iter()
        .filter(|source| source.is("rs"))
        .map(|source| source.text.as_str())
        .collect();
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.below(&["schemas", "tests/golden"])) {
        let path = Path::new(&source.path);
        let name = path.file_name().unwrap().to_string_lossy();
        let folder = path.parent().unwrap().to_string_lossy();
        // An application or a folder of migrations is read whole, by its folder's name.
        let folder = folder.strip_suffix("/tests").unwrap_or(&folder);
        let whole = folder.contains('/') && code.contains(folder) || source.is("md");
        if !whole && !code.contains(name.as_ref()) {
            findings.push(format!(
                "{}: no test reads it; hold it to the code or delete it",
                source.path
            ));
        }
    }
    none(findings);
}

/// A metric stands in three places: where it is set, in the list with its help, and in the document.
#[test]
fn every_metric_is_listed_and_documented() {
    const LIST: &str = "src/telemetry/prometheus.rs";
    const DOCUMENT: &str = "deploy/README.md";
    let sources = sources();
    let text = |path: &str| &sources.iter().find(|source| source.path == path).unwrap().text;
    let list = text(LIST).split("#[cfg(test)]").next().unwrap();
    let code = sources.iter().filter(|source| source.is("rs") && source.below(&["src", "workers"]));
    let set = code
        .flat_map(|source| source.text.split("!(").skip(1))
        .filter_map(|after| after.trim_start().strip_prefix('"')?.split('"').next());
    let is_name = |text: &&str| {
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        text.starts_with("flexcore_") && text.chars().all(plain)
    };
    let listed = list.split('"');
    let mut findings = BTreeSet::new();
    for name in set.chain(listed).filter(is_name) {
        if !list.contains(&format!("\"{name}\"")) {
            findings.insert(format!("{name} is not in {LIST}: say what it tells"));
        }
        if !text(DOCUMENT).contains(&format!("\n| `{name}` |")) {
            findings.insert(format!("{name} is not in {DOCUMENT}: add it to the table of metrics"));
        }
    }
    none(findings.into_iter().collect());
}
