//! The contracts of the example application, as they stand in `schemas/`: whoever changes one sees
//! it in review.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use std::{fs, path::Path};

use flexcore_domain::{Application, Catalog, Name, definition::SourceFile};

/// The repository's folder of contracts.
fn schemas() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas")
}

/// What is deployed once `schemas/flights` is.
fn catalog() -> Catalog {
    let folder = schemas().join("flights");
    let files = ["flight.yaml", "queries.yaml", "read_models.yaml"].map(|path| SourceFile {
        path: path.to_owned(),
        text: fs::read_to_string(folder.join(path)).unwrap(),
    });
    let application = Application::read(Name::parse("flights").unwrap(), files.into()).unwrap();
    Catalog::default().with(application).unwrap()
}

/// Compares with the file, or writes it when `FLEXCORE_BLESS` is set.
fn check(name: &str, text: &str) {
    let path = schemas().join(name);
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
    check("openapi.json", &flexcore_gateway::openapi(&catalog()));
}

#[test]
fn asyncapi_is_as_it_was() {
    check("asyncapi.json", &flexcore_gateway::asyncapi(&catalog()));
}
