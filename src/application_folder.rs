//! An application's folder on disk.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use flexcore_domain::{
    Application, Name,
    definition::{Problem, SourceFile},
};

/// Most files of one application: its definitions are deployed in one message.
const FILES_MAX: usize = 256;

/// Reads every `*.yaml` and `*.yml` directly in the folder; the folder's name is the application's.
/// Fails with every problem there is, one on a line.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Application> {
    let absolute = fs::canonicalize(folder)
        .with_context(|| format!("no application at {}", folder.display()))?;
    let name = absolute.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = Name::parse(name).context("an application is named like its folder")?;
    let mut files = Vec::new();
    for entry in fs::read_dir(&absolute)? {
        let path = entry?.path();
        let yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        if !yaml || !path.is_file() {
            continue;
        }
        if files.len() == FILES_MAX {
            bail!("{} has more than {FILES_MAX} YAML files", folder.display());
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let path = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        files.push(SourceFile { path, text });
    }
    if files.is_empty() {
        bail!("{} has no *.yaml file: schemas/flights is an example", folder.display());
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Application::read(name, files).map_err(|problems| anyhow::anyhow!(listed(&problems)))
}

/// Problems, one on a line.
pub(crate) fn listed(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
