//! `flexcore plugin new`: the folder of a new plugin in Rust.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use flexcore_sdk::template::{Sdk, rust};

/// Write the folder of a new plugin in Rust, which runs, and whose tests pass
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin new greeter
  flexcore plugin new greeter --folder plugins/greeter --sdk ../flexcore/src/sdk

Its README.md says how to go on.")]
pub(crate) struct NewPlugin {
    /// The plugin's name: small letters and digits, a letter first, 40 at most
    #[arg(value_parser = plugin_name)]
    name: String,
    /// Where it is written [default: a new folder of its name]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The folder of flexcore-sdk, which is src/sdk in FlexCore's sources
    #[arg(long, value_name = "DIR", default_value = "src/sdk")]
    sdk: PathBuf,
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
    let sdk = std::path::absolute(&args.sdk).context("finding the SDK")?;
    ensure!(
        sdk.join("Cargo.toml").is_file(),
        "{} is not flexcore-sdk: give --sdk, the folder src/sdk of FlexCore's sources",
        args.sdk.display()
    );
    let files = rust(&args.name, &Sdk::Folder(sdk)).context("the plugin's name")?;
    ensure!(!has_anything(&folder), "{} is there already", folder.display());
    for file in files {
        let path = folder.join(file.path);
        let writing = || format!("writing {}", path.display());
        let above = path.parent().unwrap_or(&folder);
        fs::create_dir_all(above)
            .and_then(|()| fs::write(&path, file.text))
            .with_context(writing)?;
    }
    let (name, shown) = (&args.name, folder.display());
    writeln!(out, "{name} is in {shown}. Next, there:\n  cargo test\n  cargo build --release")?;
    writeln!(out, "  flexcore plugin install .")?;
    Ok(true)
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
        let args = NewPlugin { name: "hello".to_owned(), folder: Some(folder.clone()), sdk };
        let mut said = Vec::new();
        assert!(run(&args, &mut said).unwrap());
        assert!(String::from_utf8(said).unwrap().contains("flexcore plugin install ."));
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
    fn its_name_is_one_of_a_plugin_and_of_a_crate() {
        let long = "a".repeat(41);
        for name in ["", "A", "1a", "a-b", "a_b", "../a", long.as_str()] {
            assert!(plugin_name(name).is_err(), "{name:?}");
        }
        assert_eq!(plugin_name("a2").as_deref(), Ok("a2"));
    }
}
