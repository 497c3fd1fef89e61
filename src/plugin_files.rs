//! A plugin as its author has it: a `plugin.yaml`, and the executable that it names.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use flexcore_definition::{PluginManifest, SourceFile};
use flexcore_operations as operations;

/// The manifest in a plugin's folder.
pub(crate) const MANIFEST: &str = "plugin.yaml";

/// Most of a manifest that is read, in bytes: more than one may have.
const MANIFEST_BYTES_MAX: usize = 512 * 1024;

/// A plugin's manifest, and where its executable is.
pub(crate) struct PluginFiles {
    pub(crate) manifest: PluginManifest,
    pub(crate) file: PathBuf,
}

/// The manifest that is meant: of this folder, or this file itself.
pub(crate) fn manifest_of(place: &Path) -> PathBuf {
    if place.is_dir() { place.join(MANIFEST) } else { place.to_owned() }
}

/// Reads a folder's manifest, or this one, and finds its executable. Fails with all mistakes in the
/// manifest, and where the executable is not there.
pub(crate) fn read(place: &Path) -> anyhow::Result<PluginFiles> {
    let path = manifest_of(place);
    let shown = path.display();
    let is_yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    ensure!(
        is_yaml,
        "{shown} is no manifest: give a .yaml file, or a folder in which there is a {MANIFEST}"
    );
    let reading = || format!("reading {shown}");
    // A named pipe would be waited for, and a device may never end.
    let is_file = fs::metadata(&path).with_context(reading)?.is_file();
    ensure!(is_file, "{shown} is no file");
    let manifest = File::open(&path).with_context(reading)?;
    let mut text = String::new();
    let read = manifest.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_string(&mut text);
    read.with_context(reading)?;
    ensure!(text.len() <= MANIFEST_BYTES_MAX, "{shown} has more than {MANIFEST_BYTES_MAX} bytes");
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let manifest = PluginManifest::read(SourceFile { path: name, text });
    let manifest = manifest.map_err(operations::Error::Refused)?;
    let file = path.parent().unwrap_or(Path::new("")).join(&manifest.file);
    ensure!(
        file.is_file(),
        "{} is not there: build it, or correct `file` in {shown}",
        file.display()
    );
    Ok(PluginFiles { manifest, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETER: &str = "name: greeter\nversion: 0.1.0\nfile: bin/greeter\n";

    fn refused(place: &Path) -> String {
        let error = read(place).map(|found| found.file).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn a_folder_or_its_manifest_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let (manifest, file) = (folder.path().join(MANIFEST), folder.path().join("bin/greeter"));
        fs::write(&manifest, GREETER).unwrap();
        let said = refused(folder.path());
        assert!(said.contains("bin/greeter is not there: build it"), "{said}");
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(&file, "#!/bin/sh\n").unwrap();
        for place in [folder.path(), &manifest] {
            let found = read(place).unwrap();
            assert_eq!((found.manifest.name.as_str(), found.file), ("greeter", file.clone()));
        }
        let said = refused(&file);
        assert!(said.contains("is no manifest: give a .yaml file"), "{said}");
        let said = refused(&folder.path().join("bin"));
        assert!(said.contains("reading ") && said.contains(MANIFEST), "{said}");
    }

    #[test]
    fn only_a_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join(MANIFEST);
        std::os::unix::fs::symlink("/dev/zero", &manifest).unwrap();
        let said = refused(&manifest);
        assert!(said.ends_with("is no file"), "{said}");
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let wrong = "name: Greeter\nversion: 0.1.0\nfile: ../greeter\nfoo: 1\n";
        fs::write(folder.path().join(MANIFEST), wrong).unwrap();
        let said = refused(folder.path());
        for line in ["plugin.yaml:1", "plugin.yaml:3", "plugin.yaml:4"] {
            assert!(said.contains(line), "{line}: {said}");
        }
    }
}
