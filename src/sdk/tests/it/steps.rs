//! The steps that `flexcore plugin new` prints, and that the READMEs of new plugins have, walked by a shell.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use flexcore_sdk::template::{NewFile, go, python, steps};
use tempfile::TempDir;

use crate::go_template::{flexcore, in_target, skipped};

/// The folder in which `flexcore dev` runs, as far as the steps can see.
struct Above {
    folder: TempDir,
    flexcore: PathBuf,
}

impl Above {
    fn with(files: &[NewFile], flexcore: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &Path, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        for file in files {
            write(&Path::new("hello").join(file.path), &file.text);
        }
        write(Path::new(".flexcore/dev.json"), "{}");
        // What takes a running FlexCore is looked at, and not done: the folder is one of a plugin that is built,
        // and FlexCore would be found from where it is called.
        let script = format!(
            "#!/bin/sh\nset -eu\ncase \"$2\" in\n\
             install | call) test -f .flexcore/dev.json || {{ echo nothing runs here >&2; exit 1; }}\nesac\n\
             case \"$2\" in\ninstall) exec '{0}' plugin check \"$3\";;\ncall) ;;\n*) exec '{0}' \"$@\";;\nesac\n",
            flexcore.display()
        );
        let script = write(Path::new("bin/flexcore"), &script);
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, flexcore }
    }

    /// Walks the steps; the error is what a step has said.
    fn walk(&self, files: &[NewFile]) -> Result<(), String> {
        let steps = steps(files, "hello", Path::new("hello"));
        assert!(steps.len() > 4, "{steps:?}");
        let path = std::env::var("PATH").unwrap();
        let bin = self.folder.path().join("bin");
        let done = Command::new("sh")
            .args(["-e", "-c", &steps.join("\n")])
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("FLEXCORE", &self.flexcore)
            .env("GOCACHE", in_target("cache"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let [printed, said] =
            [&done.stdout, &done.stderr].map(|text| String::from_utf8_lossy(text));
        if done.status.success() {
            Ok(())
        } else {
            Err(format!("{}: {printed}{said}", done.status))
        }
    }
}

#[test]
fn those_for_go_work_as_they_are_printed() {
    let Some(flexcore) = flexcore() else { return };
    let files = go("hello").unwrap();
    match Above::with(&files, flexcore).walk(&files) {
        Err(said) if said.starts_with("exit status: 3") => {
            skipped(&format!("no plugin in Go: {said}"));
        }
        done => done.unwrap(),
    }
}

/// With what pip fetches. A machine that has no Python, no venv or no network says so.
#[test]
fn those_for_python_work_as_they_are_printed() {
    const MISSING: [&str; 4] = [
        "python3: not found",
        "ensurepip is not available",
        "No module named venv",
        "No matching distribution found",
    ];
    let Some(flexcore) = flexcore() else { return };
    let files = python("hello").unwrap();
    match Above::with(&files, flexcore).walk(&files) {
        Err(said) if MISSING.iter().any(|missing| said.contains(missing)) => {
            skipped(&format!("no packages for Python: {said}"));
        }
        done => done.unwrap(),
    }
}
