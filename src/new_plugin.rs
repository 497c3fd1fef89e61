//! `flexcore plugin new`: the folder of a new plugin in Rust, Python or Go.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use flexcore_sdk::template::{NewFile, Sdk, go, python, rust, steps};

/// Write the folder of a new plugin, which runs, and whose tests pass
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin new greeter --lang python
  flexcore plugin new greeter --lang go --folder plugins/greeter
  flexcore plugin new greeter --sdk ../flexcore/src/sdk

Its README.md says how to go on.")]
pub(crate) struct NewPlugin {
    /// The plugin's name: small letters and digits, a letter first, 40 at most
    #[arg(value_parser = plugin_name)]
    name: String,
    /// What it is written in
    #[arg(long, value_enum, value_name = "LANGUAGE", default_value_t = Language::Rust)]
    lang: Language,
    /// Where it is written [default: a new folder of its name]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// In Rust: the folder of flexcore-sdk, which is src/sdk in FlexCore's sources
    #[arg(long, value_name = "DIR", default_value = "src/sdk")]
    sdk: PathBuf,
}

/// The languages that there are templates in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    Rust,
    Python,
    Go,
}

/// A name both of a plugin, which has no `-`, and of a crate of the template, which has no `_`.
fn plugin_name(text: &str) -> Result<String, String> {
    let is_name = text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && text.len() <= 40;
    if is_name {
        Ok(text.to_owned())
    } else {
        Err("small letters and digits, a letter first, 40 at most".to_owned())
    }
}

pub(crate) fn run(args: &NewPlugin, out: &mut dyn Write) -> anyhow::Result<bool> {
    let folder = args.folder.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let files = files(args)?;
    ensure!(!has_anything(&folder), "{} is there already", folder.display());
    for file in &files {
        let path = folder.join(file.path);
        write(&path, &file.text).with_context(|| format!("writing {}", path.display()))?;
    }
    let (name, shown) = (&args.name, folder.display());
    let next = steps(&files, name, &folder).join("\n  ");
    let head = format!("{name} is in {shown}. Next, with `flexcore dev` running in this folder:");
    writeln!(out, "{head}\n  {next}")?;
    Ok(true)
}

fn files(args: &NewPlugin) -> anyhow::Result<Vec<NewFile>> {
    let files = match args.lang {
        Language::Python => python(&args.name),
        Language::Go => go(&args.name),
        Language::Rust => {
            let sdk = std::path::absolute(&args.sdk).context("finding the SDK")?;
            ensure!(
                sdk.join("Cargo.toml").is_file(),
                "{} is not flexcore-sdk: give --sdk, the folder src/sdk of FlexCore's sources",
                args.sdk.display()
            );
            rust(&args.name, &Sdk::Folder(sdk))
        }
    };
    files.context("the plugin's name")
}

/// Scripts may be run.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)?;
    if text.starts_with("#!") {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// True for a file, and for a folder that is not empty.
fn has_anything(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_plugin_is_written_into_a_folder_of_its_own() {
        let above = tempfile::tempdir().unwrap();
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sdk");
        let folder = above.path().join("deep/hello");
        let (name, lang) = ("hello".to_owned(), Language::Rust);
        let args = NewPlugin { name, lang, folder: Some(folder.clone()), sdk };
        let mut said = Vec::new();
        assert!(run(&args, &mut said).unwrap());
        let said = String::from_utf8(said).unwrap();
        let install = format!("\n  flexcore plugin install {}\n", folder.display());
        assert!(said.contains(&install), "{said}");
        let manifest = fs::read_to_string(folder.join("plugin.yaml")).unwrap();
        assert!(manifest.contains("name: hello"), "{manifest}");
        assert!(folder.join("src/main.rs").is_file());
        let error = run(&args, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("is there already"), "{error}");
        let nowhere = NewPlugin { sdk: above.path().to_owned(), ..args };
        let error = run(&nowhere, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("give --sdk"), "{error}");
    }

    #[test]
    fn each_language_has_its_files_and_needs_no_sources() {
        let above = tempfile::tempdir().unwrap();
        for (lang, script, last) in
            [(Language::Python, "build.py", "functions.py"), (Language::Go, "build.sh", "main.go")]
        {
            let folder = above.path().join(format!("{lang:?}"));
            let (name, sdk) = ("hello".to_owned(), above.path().to_owned());
            let args = NewPlugin { name, lang, folder: Some(folder.clone()), sdk };
            let mut said = Vec::new();
            assert!(run(&args, &mut said).unwrap());
            let said = String::from_utf8(said).unwrap();
            assert!(said.contains(script), "{said}");
            assert!(fs::read_to_string(folder.join(last)).unwrap().contains("hello"));
            let mode = fs::metadata(folder.join(script)).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{script} may be run");
        }
    }

    #[test]
    fn its_name_is_one_of_a_plugin_and_of_a_crate() {
        let long = "a".repeat(41);
        for name in ["", "A", "1a", "a-b", "a_b", "../a", long.as_str()] {
            assert!(plugin_name(name).is_err(), "{name:?}");
        }
        assert_eq!(plugin_name("a2").as_deref(), Ok("a2"));
    }
}
