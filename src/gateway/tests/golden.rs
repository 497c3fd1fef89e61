//! The contracts of the example application, as they stand in `schemas/`: whoever changes one sees
//! it in review.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use std::{fs, path::Path};

#[path = "../fixture.rs"]
mod fixture;

/// Compares with the file, or writes it when `FLEXCORE_BLESS` is set.
fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("FLEXCORE_BLESS").is_some() {
        return fs::write(&path, text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).position(|(kept, made)| kept != made);
    let line = differs.unwrap_or_else(|| kept.lines().count().min(text.lines().count())) + 1;
    assert!(
        kept == text,
        "{name} is not what is generated now, from line {line} on. If the change is wanted: \
         FLEXCORE_BLESS=1 cargo test -p flexcore-gateway --test golden"
    );
}

#[test]
fn openapi_is_as_it_was() {
    check("openapi.json", &flexcore_gateway::openapi(&fixture::catalog()));
}

#[test]
fn asyncapi_is_as_it_was() {
    check("asyncapi.json", &flexcore_gateway::asyncapi(&fixture::catalog()));
}
