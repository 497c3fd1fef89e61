//! An application's folder: the YAML files at its top level. Folders deeper in it, its tests and
//! samples, are not deployed.

use std::{fs, path::Path};

use anyhow::{Context, bail, ensure};
use flexcore_definition::{Application, Problem, SourceFile};
use flexcore_domain::Name;
use flexcore_eventstore::catalog;

/// Most files of one kind in a folder: more is another folder, named by mistake.
const FILES_MAX: usize = 1_000;
/// Largest file, in bytes: it is read whole, and people write them.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads and checks an application; its name is that of the folder. `check` is for its functions: the
/// engine that runs them is nothing that a gateway should bring along. Fails with all problems that
/// were found, one a line.
pub fn read(
    folder: &Path,
    check: impl Fn(&Application) -> Result<(), Vec<Problem>>,
) -> anyhow::Result<Application> {
    let files = files(folder)?;
    ensure!(!files.is_empty(), "{} has no .yaml files", folder.display());
    // The spelling of the path does not matter: `.` has a name, too.
    let whole = folder.canonicalize().with_context(|| folder.display().to_string())?;
    let name = whole.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = Name::parse(name)
        .with_context(|| format!("the folder's name, {name:?}, is the application's"))?;
    let application = Application::read(name, files).map_err(refused)?;
    if application.aggregates.keys().any(|name| name.as_str() == catalog::AGGREGATE) {
        bail!("aggregate `{}` is the platform's own: choose another name", catalog::AGGREGATE);
    }
    check(&application).map_err(refused)?;
    Ok(application)
}

/// The YAML files of a folder, by name, without those of folders in it.
pub fn files(folder: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if is_yaml(&path) && path.is_file() {
            paths.push(path);
        }
        if paths.len() > FILES_MAX {
            bail!("{} has more than {FILES_MAX} .yaml files", folder.display());
        }
    }
    paths.sort();
    paths.iter().map(|path| file(path)).collect()
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn file(path: &Path) -> anyhow::Result<SourceFile> {
    let shown = path.display();
    let size = fs::metadata(path).with_context(|| shown.to_string())?.len();
    ensure!(size <= FILE_BYTES_MAX, "{shown} has {size} bytes; at most {FILE_BYTES_MAX} are read");
    let text = fs::read_to_string(path).with_context(|| shown.to_string())?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{shown}: the name is not UTF-8"))?;
    Ok(SourceFile { path: name.to_owned(), text })
}

/// The error that lists these problems, one a line.
pub fn refused(problems: Vec<Problem>) -> anyhow::Error {
    anyhow::anyhow!(listed(&problems))
}

/// Problems, one a line.
pub(crate) fn listed(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
