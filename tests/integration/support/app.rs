//! Applications: the bank that the tests work with, and folders of files to deploy.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    Dev,
    process::{folder, wait_until},
};

/// The files of an application, by path in its folder.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    name: String,
    files: Vec<(String, String)>,
}

/// Accounts with deposits and withdrawals, the read models `accounts` and `teams`, the query
/// `richest`.
pub(crate) fn bank() -> Files {
    let files = [
        ("account.yaml", include_str!("../bank/account.yaml")),
        ("read_models.yaml", include_str!("../bank/read_models.yaml")),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
    Files { name: "bank".to_owned(), files: files.into() }
}

impl Files {
    /// An application of one file, `main.yaml`.
    pub(crate) fn one(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), files: vec![("main.yaml".to_owned(), text.to_owned())] }
    }

    /// The same with one text in place of another, which must be there.
    pub(crate) fn with(mut self, old: &str, new: &str) -> Self {
        let found = self.files.iter_mut().find(|(_, text)| text.contains(old));
        let (_, text) = found.unwrap_or_else(|| panic!("no file has {old:?}"));
        *text = text.replacen(old, new, 1);
        self
    }

    /// `file:line` of the first line that has this text.
    pub(crate) fn place(&self, text: &str) -> String {
        let places = self.files.iter().find_map(|(path, all)| {
            let line = all.lines().position(|line| line.contains(text))?;
            Some(format!("{path}:{}", line + 1))
        });
        places.unwrap_or_else(|| panic!("no file has {text:?}"))
    }

    /// Written to a folder, which is removed in the end; the path is that of the application.
    pub(crate) fn write(&self) -> (TempDir, String) {
        let above = folder();
        let path = above.path().join(&self.name);
        fs::create_dir(&path).unwrap();
        for (file, text) in &self.files {
            fs::write(path.join(file), text).unwrap();
        }
        let path = path.to_str().unwrap().to_owned();
        (above, path)
    }
}

/// Deploys it; returns what `apply --json` says.
pub(crate) fn deploy(dev: &Dev, files: &Files) -> Value {
    let (_folder, path) = files.write();
    dev.json(&["apply", &path, "--json"])
}

/// Deploys the bank and waits until its read models serve.
pub(crate) fn deploy_bank(dev: &Dev) {
    deploy(dev, &bank());
    for read_model in ["accounts", "teams"] {
        wait_until("read models to serve", || {
            dev.run(&["query", read_model, "--tenant", "nobody"]).status.success()
        });
    }
}

/// Tries to deploy it; returns what `apply` says when it refuses.
pub(crate) fn refused(dev: &Dev, files: &Files) -> String {
    let (_folder, path) = files.write();
    let output = dev.run(&["apply", &path]);
    let (out, err) = super::process::texts(&output);
    assert!(!output.status.success(), "it was deployed: {out}");
    assert!(!err.contains("panicked"), "{err}");
    err
}

/// The folder of the example application.
pub(crate) fn flights() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/flights");
    path.to_str().unwrap().to_owned()
}
