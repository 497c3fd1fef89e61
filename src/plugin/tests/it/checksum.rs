//! The file that was checked is the file that runs, whatever happens to it in between.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use flexcore_plugin::{Checked, Error};
use sha2::{Digest as _, Sha256};

use crate::{
    PATIENCE,
    base::run,
    contract::Transform,
    fixtures::{self, Program},
    harness::{How, Started, refused, start_checked, within},
};

fn sum(path: &Path) -> [u8; 32] {
    Sha256::digest(fs::read(path).unwrap()).into()
}

/// A copy of a plugin that a test may change, and the sum that it was installed with.
struct Installed {
    folder: tempfile::TempDir,
    program: Program,
    sum: [u8; 32],
}

impl Installed {
    fn new(of: Program) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plugin");
        fs::copy(&of.file, &file).unwrap();
        let sum = sum(&file);
        Self { folder, sum, program: Program { file, ..of } }
    }

    fn open(&self) -> Result<Checked, Error> {
        Checked::open(&self.program.file, Some(self.sum))
    }

    fn witness(&self) -> PathBuf {
        self.folder.path().join("witness")
    }

    /// Another program, which leaves a trace where it runs.
    fn other(&self) -> String {
        format!("#!/bin/sh\n: > '{}'\n", self.witness().display())
    }
}

async fn works(started: Started) {
    let answer = within(PATIENCE, Transform::of(&started.plugin).apply("a", "x")).await.unwrap();
    assert_eq!(answer.payload, "X");
    within(PATIENCE, started.plugin.stop()).await;
}

#[test]
fn a_changed_file_is_refused() {
    run(async {
        let installed = Installed::new(fixtures::rust());
        fs::write(&installed.program.file, installed.other()).unwrap();
        let error = installed.open().expect_err("it is another file");
        assert!(matches!(error, Error::Checksum { .. }), "{error}");
        let sum = sum(&installed.program.file);
        assert!(error.to_string().contains(&fixtures::hex(&sum)), "{error}");
        assert!(!installed.witness().exists());
    });
}

#[test]
fn a_file_that_is_replaced_after_the_check_does_not_run() {
    run(async {
        for program in [fixtures::rust(), fixtures::around("flood.sh", &["10"])] {
            let installed = Installed::new(program);
            let checked = installed.open().unwrap();
            let other = installed.folder.path().join("other");
            fs::write(&other, installed.other()).unwrap();
            fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(&other, &installed.program.file).unwrap();
            let started = start_checked(checked, &installed.program, How::default()).await;
            works(started.unwrap()).await;
            assert!(!installed.witness().exists());
        }
    });
}

#[test]
fn a_file_that_is_overwritten_after_the_check_does_not_run() {
    run(async {
        for program in [fixtures::rust(), fixtures::around("flood.sh", &["10"])] {
            let installed = Installed::new(program);
            let checked = installed.open().unwrap();
            // The same inode: whoever holds the file open sees the new content.
            fs::write(&installed.program.file, installed.other()).unwrap();
            let started = start_checked(checked, &installed.program, How::default()).await;
            works(started.unwrap()).await;
            assert!(!installed.witness().exists());
        }
    });
}

#[test]
fn one_check_serves_several_starts() {
    run(async {
        let installed = Installed::new(fixtures::rust());
        let checked = installed.open().unwrap();
        fs::remove_file(&installed.program.file).unwrap();
        for _ in 0..3 {
            let start = start_checked(checked.clone(), &installed.program, How::default());
            works(start.await.unwrap()).await;
        }
    });
}

#[test]
fn a_python_plugin_runs_from_its_checked_copy() {
    run(async {
        let Some(python) = fixtures::python() else { return };
        let checked = Checked::open(&python.file, Some(sum(&python.file))).unwrap();
        works(start_checked(checked, &python, How::tls()).await.unwrap()).await;
    });
}

#[test]
fn what_cannot_be_executed_is_told_with_its_path() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let [missing, text, damaged] =
            ["missing", "text", "damaged"].map(|name| folder.path().join(name));
        fs::write(&text, "no program").unwrap();
        fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&damaged, [0x7f, b'E', b'L', b'F', 0, 1, 2, 3]).unwrap();
        fs::set_permissions(&damaged, fs::Permissions::from_mode(0o755)).unwrap();
        for file in [missing, folder.path().to_owned(), text, damaged] {
            let program = Program { file: file.clone(), ..fixtures::rust() };
            let error = refused(&program, How::default(), PATIENCE).await;
            assert!(matches!(error, Error::File { .. }), "{}: {error:?}", file.display());
            assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        }
    });
}
