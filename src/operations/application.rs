//! An application's folder: the YAML files at its top level. Folders deeper in it, its tests and
//! samples, are not deployed.

use std::{fs, io, path::Path};

use flexcore_definition::{Application, Problem, SourceFile};
use flexcore_domain::Name;
use flexcore_eventstore::catalog;

use crate::Error;

/// Most files of one kind in a folder: more is another folder, named by mistake.
const FILES_MAX: usize = 1_000;
/// Largest file, in bytes: it is read whole, and people write them.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads and checks an application; its name is that of the folder. `check` is for its functions: the
/// engine that runs them is nothing that a gateway should bring along. Fails with all problems that
/// were found.
pub fn read(
    folder: &Path,
    check: impl Fn(&Application) -> Result<(), Vec<Problem>>,
) -> Result<Application, Error> {
    let files = files(folder)?;
    if files.is_empty() {
        return Err(Error::Folder(format!("{} has no .yaml files", folder.display())));
    }
    // The spelling of the path does not matter: `.` has a name, too.
    let whole = folder.canonicalize().map_err(unread(folder))?;
    let name = whole.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name =
        Name::parse(name).map_err(|source| Error::FolderName { name: name.to_owned(), source })?;
    let application = Application::read(name, files).map_err(Error::Refused)?;
    let is_taken = |name: &&str| application.aggregates.contains_key(*name);
    let mut taken = catalog::RESERVED.into_iter().filter(is_taken);
    if let Some(name) = taken.next() {
        return Err(Error::Reserved(name));
    }
    check(&application).map_err(Error::Refused)?;
    Ok(application)
}

/// The YAML files of a folder, by name, without those of folders in it.
pub fn files(folder: &Path) -> Result<Vec<SourceFile>, Error> {
    let entries = fs::read_dir(folder).map_err(unread(folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unread(folder))?.path();
        if is_yaml(&path) && path.is_file() {
            paths.push(path);
        }
        if paths.len() > FILES_MAX {
            let more = format!("{} has more than {FILES_MAX} .yaml files", folder.display());
            return Err(Error::Folder(more));
        }
    }
    paths.sort();
    paths.iter().map(|path| file(path)).collect()
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn file(path: &Path) -> Result<SourceFile, Error> {
    let shown = path.display();
    let size = fs::metadata(path).map_err(unread(path))?.len();
    if size > FILE_BYTES_MAX {
        let large = format!("{shown} has {size} bytes; at most {FILE_BYTES_MAX} are read");
        return Err(Error::Folder(large));
    }
    let text = fs::read_to_string(path).map_err(unread(path))?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::Folder(format!("{shown}: the name is not UTF-8")))?;
    Ok(SourceFile { path: name.to_owned(), text })
}

/// The error of a file or folder that cannot be read.
fn unread(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::File { path: path.display().to_string(), source }
}
