//! House rules as a test: crate edges, banned calls and words, sizes, leftovers. Each failure says
//! where, and what to do instead.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

#[path = "tidy/banned.rs"]
mod banned;
#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/contracts.rs"]
mod contracts;
#[path = "tidy/edges.rs"]
mod edges;
#[path = "tidy/futures.rs"]
mod futures;
#[path = "tidy/labels.rs"]
mod labels;
#[path = "tidy/loops.rs"]
mod loops;
#[path = "tidy/meanings.rs"]
mod meanings;
#[path = "tidy/named.rs"]
mod named;
#[path = "tidy/paths.rs"]
mod paths;
#[path = "tidy/picture.rs"]
mod picture;
#[path = "tidy/readmes.rs"]
mod readmes;
#[path = "tidy/shares.rs"]
mod shares;
#[path = "tidy/writes.rs"]
mod writes;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cargo_metadata::{Metadata, MetadataCommand};

/// Dependencies that a crate of ours must never get, even through others.
const KEPT_OUT: &[(&str, &[&str], &str)] = &[(
    // It uses the domain, which is kept as clean by that.
    "flexcore-definition",
    &["tokio", "sqlx", "async-nats", "axum"],
    "domain and definition are pure and synchronous: move what waits or talks to another crate",
)];

/// Crates that nobody may bring in.
const REFUSED: &[(&str, &str)] = &[
    ("ring", "aws-lc-rs is the one crypto stack: turn the feature off that brings it"),
    ("openssl-sys", "rustls with aws-lc-rs is the one TLS stack"),
    ("native-tls", "rustls with aws-lc-rs is the one TLS stack"),
    ("sqlx-macros", "macros run in the compiler: a second tokio, TLS and sqlx are built for it"),
    ("icu_properties", "25 crates for host names; cargo update -p idna_adapter --precise 1.1.0"),
];

/// Features that our own code stands on: named by us, since a dependency may stop wanting them.
const FEATURES: &[(&str, &str, &str)] = &[
    ("serde_json", "float_roundtrip", "numbers are recorded, folded and compared to the last bit"),
    ("serde_json", "preserve_order", "documents and states keep the order of their keys"),
];

/// Words that say nothing about what a type is.
const EMPTY_WORDS: &[&str] = &[
    "Manager",
    "Service",
    "Helper",
    "Helpers",
    "Util",
    "Utils",
    "Orchestrator",
    "Processor",
    "Bus",
    "Repository",
    "Dto",
    "DTO",
];

/// Longest file, in lines: beyond that it holds more than one concept.
const FILE_LINES_MAX: usize = 500;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[("tests/chaos/RESULTS.md", "the record of the last runs")];

/// Longest line, in characters: what two windows side by side can show.
const LINE_CHARS_MAX: usize = 120;

/// Folders that are not ours to tidy.
const SKIPPED: &[&str] = &[".git", "target", ".flexcore", "node_modules"];

/// Where one person's machine shows. Spelled in two parts, so that this file passes.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// A text file of the project.
struct Source {
    /// From the project's folder, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    /// Lines with their numbers, without comments; on demand with tests.
    fn code(&self, with_tests: bool) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.path.contains("tests/") || self.path.ends_with("tests.rs");
        // The last thing in a file. `mod name;` for tests stands above what is code.
        let tests = self.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let end = match (with_tests, is_test) {
            (true, _) => self.text.len(),
            (false, true) => 0,
            (false, false) => tests,
        };
        let lines = (1..).zip(self.text[..end].lines());
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn below(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(&format!("{folder}/")))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file, with a path relative to the project's folder.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    const TEXT: &[&str] =
        &["rs", "toml", "md", "yaml", "yml", "json", "js", "sql", "conf", "sh", "csv", ""];
    let is_text = |path: &Path| {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        TEXT.contains(&extension.as_str())
    };
    let read = |path: PathBuf| {
        // A file that goes away while it is read is another test's temporary file.
        let text = fs::read_to_string(root().join(&path)).ok()?;
        Some(Source { path: path.to_string_lossy().into_owned(), text })
    };
    files().into_iter().filter(|path| is_text(path)).filter_map(read).collect()
}

/// Fails with every finding at once.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{} finding(s):\n{}\n", findings.len(), findings.join("\n"));
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata works on what was just built")
}

#[test]
fn the_features_that_code_stands_on_are_named() {
    let metadata = metadata();
    let mut findings = Vec::new();
    for (name, feature, reason) in FEATURES {
        for package in metadata.workspace_packages() {
            let uses = package.dependencies.iter().filter(|dependency| dependency.name == *name);
            for dependency in uses {
                if !dependency.features.iter().any(|named| named == feature) {
                    let package = &package.name;
                    findings.push(format!("{package}: {name} without {feature}: {reason}"));
                }
            }
        }
    }
    none(findings);
}

/// Names of what is linked into a crate. From `cargo tree`: the metadata's graph also has crates
/// that only switched-off features would bring.
fn linked_into(package: &str) -> BTreeSet<String> {
    let options = ["--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--package", package])
        .args(options)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_dependency_graph_keeps_out_what_it_must() {
    let linked = linked_into("flexcore");
    assert!(linked.contains("tokio"), "the graph was read");
    let refused = REFUSED.iter().filter(|(name, _)| linked.contains(*name));
    let mut findings: Vec<_> =
        refused.map(|(name, advice)| format!("{name} is linked: {advice}")).collect();
    for (package, out, advice) in KEPT_OUT {
        let linked = linked_into(package);
        for name in out.iter().filter(|name| linked.contains(**name)) {
            findings.push(format!("{package} brings in {name}: {advice}"));
        }
    }
    none(findings);
}

#[test]
fn every_dependency_is_used() {
    let metadata = metadata();
    let sources = sources();
    let mut findings = Vec::new();
    let mut used = BTreeSet::new();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.parent().unwrap().strip_prefix(root()).unwrap();
        let mine = |source: &&Source| {
            let in_folder = match folder.as_str() {
                "" => source.path.matches('/').count() <= 1 && source.path.starts_with("src/"),
                folder => source.below(&[folder]),
            };
            source.is("rs") && (in_folder || folder == "" && source.below(&["tests"]))
        };
        let named = sources.iter().filter(mine).map(|source| paths::first_names(&source.text));
        let named: BTreeSet<String> = named.flatten().collect();
        for dependency in &package.dependencies {
            let called = dependency.rename.as_ref().unwrap_or(&dependency.name);
            used.insert(called.clone());
            if !named.contains(&called.replace('-', "_")) {
                let (name, manifest) = (&dependency.name, folder.join("Cargo.toml"));
                findings.push(format!("{manifest}: {name} is not used by the code: remove it"));
            }
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let declared = manifest.split("\n[workspace.dependencies]\n").nth(1).unwrap();
    let declared = declared.split("\n[").next().unwrap();
    for line in declared.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(" = ").next().unwrap_or_default();
        if !name.is_empty() && !used.contains(name) {
            findings
                .push(format!("Cargo.toml: workspace dependency {name} has no user: remove it"));
        }
    }
    none(findings);
}

/// The parts of `HttpServer` are `Http` and `Server`.
fn words(name: &str) -> Vec<&str> {
    let starts = name.char_indices().filter(|(_, c)| c.is_uppercase()).map(|(index, _)| index);
    let ends = starts.clone().skip(1).chain([name.len()]);
    starts.zip(ends).map(|(start, end)| &name[start..end]).collect()
}

#[test]
fn names_say_what_a_thing_is() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs")) {
        let path = &source.path;
        let stem = Path::new(path).file_stem().unwrap().to_string_lossy().to_lowercase();
        if EMPTY_WORDS.iter().any(|word| word.to_lowercase() == stem) {
            findings.push(format!("{path}: name the file after the concept that it holds"));
        }
        for (number, line) in source.code(true) {
            let mut tokens = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let declares = tokens.any(|t| ["struct", "enum", "trait", "type"].contains(&t));
            let name = tokens.next().unwrap_or_default();
            let empty = words(name).into_iter().find(|word| EMPTY_WORDS.contains(word));
            if let (true, Some(word)) =
                (declares, empty.or(EMPTY_WORDS.iter().copied().find(|w| *w == name)))
            {
                findings.push(format!(
                    "{path}:{number}: {name}: {word} says nothing; say what it does"
                ));
            }
        }
    }
    none(findings);
}

#[test]
fn files_are_small_and_clean() {
    let mut findings = Vec::new();
    for source in sources() {
        let path = &source.path;
        let given = ["Cargo.lock", "LICENSE"].contains(&path.as_str());
        if given || source.is("csv") || source.is("json") {
            continue;
        }
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|(long, _)| long == path) {
            findings.push(format!("{path}: {lines} lines; split it at a concept"));
        }
        for (number, line) in (1..).zip(source.text.lines()) {
            let in_table = source.is("md") && line.starts_with('|');
            // A case of an application's tests is read like a row.
            let in_table = in_table || source.below(&["schemas"]) && source.is("yaml");
            // Nor can a line of NDJSON be broken.
            let is_ndjson = source.is("md") && line.starts_with("{\"");
            let cannot_break = in_table || is_ndjson || source.is("toml") || line.contains("://");
            if line.chars().count() > LINE_CHARS_MAX && !cannot_break {
                findings
                    .push(format!("{path}:{number}: over {LINE_CHARS_MAX} characters; break it"));
            }
            if line.ends_with([' ', '\t']) || line.ends_with('\r') {
                findings.push(format!("{path}:{number}: white space at the end; remove it"));
            }
            if let Some(found) = MACHINE_PATHS.iter().find(|found| line.contains(*found)) {
                findings.push(format!(
                    "{path}:{number}: {found}… is one machine's path; make it relative"
                ));
            }
        }
        if !source.text.is_empty() && !source.text.ends_with('\n') {
            findings.push(format!("{path}: no line end at the end; add it"));
        }
    }
    none(findings);
}

#[test]
fn nothing_is_left_over() {
    const LEFTOVERS: &[&str] = &["orig", "bak", "rej", "swp", "tmp", "unfinished"];
    let leftover = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let known = LEFTOVERS.contains(&extension.as_str()) || extension.ends_with('~');
        known.then(|| format!("{}: delete it", path.display()))
    };
    none(files().iter().filter_map(leftover).collect());
}

#[test]
fn exceptions_are_still_needed() {
    let lines: BTreeMap<_, _> =
        sources().into_iter().map(|s| (s.path.clone(), s.text.lines().count())).collect();
    let stale = LONG_FILES
        .iter()
        .filter(|(path, _)| lines.get(*path).is_none_or(|count| *count <= FILE_LINES_MAX));
    none(stale.map(|(path, _)| format!("{path}: short enough; take it off LONG_FILES")).collect());
}
