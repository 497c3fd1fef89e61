//! What `template` writes. That it runs, and that its tests pass, is tested with this crate: it is
//! among its executables and tests. Here it has another name, and a folder of its own.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::Command,
};

use flexcore_sdk::template::{Sdk, rust};
use tempfile::TempDir;

const NAME: &str = "my-plugin";

fn written() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let sdk = Sdk::Folder(env!("CARGO_MANIFEST_DIR").into());
    for file in rust(NAME, &sdk).unwrap() {
        let path = folder.path().join(file.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file.text).unwrap();
    }
    folder
}

fn cargo(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).arg("--offline").current_dir(folder);
    command.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-plugin"));
    // Nobody looks into what is built, nor builds it once more.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "cargo {arguments:?}: {said}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn it_is_a_package_of_its_own() {
    let folder = written();
    let metadata = cargo(folder.path(), &["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), 1);
    assert_eq!(packages[0]["name"], NAME);
    let uses = packages[0]["dependencies"].as_array().unwrap();
    let sdk: Vec<_> = uses.iter().filter(|used| used["name"] == "flexcore-sdk").collect();
    assert_eq!(sdk.len(), 2, "for itself, and for its tests");
    assert!(sdk.iter().all(|used| used["path"] == env!("CARGO_MANIFEST_DIR")), "{sdk:?}");
}

/// It takes minutes, since all is built anew: with `FLEXCORE_NEW_PLUGIN=1`. The template itself is a
/// member of the workspace, and its tests run with the others.
#[test]
fn its_tests_pass_where_it_is_written() {
    if std::env::var_os("FLEXCORE_NEW_PLUGIN").is_none() {
        // Also on CI: its own tests run with the workspace's.
        let told = b"SKIPPED, a new plugin in Rust is not built without FLEXCORE_NEW_PLUGIN=1\n";
        io::stderr().write_all(told).unwrap();
        return;
    }
    let folder = written();
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    fs::copy(lock, folder.path().join("Cargo.lock")).unwrap();
    cargo(folder.path(), &["test"]);
}
