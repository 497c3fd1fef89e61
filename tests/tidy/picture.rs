//! The picture of the layers in ARCHITECTURE.md shows the arrows that the crates have, and no others.

use std::{collections::BTreeMap, fs};

use cargo_metadata::DependencyKind;

use crate::{edges::EDGES, metadata, none, root};

const DOCUMENT: &str = "ARCHITECTURE.md";
const BEGIN: &str = "```mermaid\nflowchart TD\n";

/// Most arrows on a line, so that it stays short.
const ARROWS_MAX: usize = 8;

/// Lines for each crate that uses others: `gateway --> auth & domain`.
fn drawn() -> String {
    let mut lines = BTreeMap::new();
    for package in metadata().workspace_packages() {
        let used = package.dependencies.iter().filter(|used| used.kind == DependencyKind::Normal);
        let mut used: Vec<_> =
            used.filter_map(|used| used.name.strip_prefix("flexcore-")).collect();
        used.sort_unstable();
        let name = package.name.strip_prefix("flexcore-").unwrap_or(&package.name).to_owned();
        let arrows = used.chunks(ARROWS_MAX);
        let drawn = arrows.map(|some| format!("    {name} --> {}\n", some.join(" & "))).collect();
        lines.insert(name.clone(), drawn);
    }
    lines.into_values().collect::<Vec<String>>().concat()
}

#[test]
fn the_picture_of_the_layers_shows_the_arrows_of_the_code() {
    let text = fs::read_to_string(root().join(DOCUMENT)).unwrap();
    let picture = text.split(BEGIN).nth(1).and_then(|after| after.split("```").next());
    let drawn = drawn();
    if picture != Some(&*drawn) {
        none(vec![format!("{DOCUMENT}: put this below {BEGIN:?}:\n{drawn}")]);
    }
}

#[test]
fn every_arrow_that_is_allowed_is_used() {
    let drawn = drawn();
    let uses = |name: &str, used: &str| {
        let lines =
            drawn.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix(" --> "));
        lines.flat_map(|all| all.split(" & ")).any(|one| one == used)
    };
    let allowed =
        EDGES.iter().flat_map(|(name, may, _)| may.iter().map(move |used| (*name, *used)));
    let unused = allowed.filter(|(name, used)| !uses(name, used));
    none(
        unused
            .map(|(name, used)| format!("{name} → {used}: not used; take it off EDGES"))
            .collect(),
    );
}
