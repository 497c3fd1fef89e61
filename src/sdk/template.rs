//! A new plugin in Rust that runs, and whose tests pass: the files in `template`, which are built
//! and tested with this crate as they are, under another name.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The name of the plugin in the template. No other word there has it in it.
const NAME: &str = "greeter";

/// Where the manifest says where the SDK is.
const SDK: &str = "{{sdk}}";

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 40;

/// Paths in a new plugin's folder, and what stands there.
const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.txt")),
    (".gitignore", include_str!("template/gitignore.txt")),
    ("README.md", include_str!("template/README.md")),
    ("plugin.yaml", include_str!("template/plugin.yaml")),
    ("src/main.rs", include_str!("template/src/main.rs")),
    ("tests/plugin.rs", include_str!("template/tests/plugin.rs")),
];

/// A file of a new plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Its path in the plugin's folder.
    pub path: &'static str,
    /// What it says.
    pub text: String,
}

/// Where a new plugin takes this SDK from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sdk {
    /// A registry, in the version of this one.
    Registry,
    /// A folder, by its absolute path.
    Folder(PathBuf),
}

/// A name that no plugin can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName(String);

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.0;
        write!(f, "{name:?} is no name of a plugin: small letters, digits and `-`, and 40 at most")
    }
}

impl std::error::Error for InvalidName {}

/// The files of a new plugin of this name. Fails where it is no name: it begins with a small letter
/// and has small letters, digits and `-`, 40 at most.
pub fn rust(name: &str, sdk: &Sdk) -> Result<Vec<NewFile>, InvalidName> {
    let is_inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(is_inside)
        && !name.ends_with('-')
        && name.len() <= NAME_BYTES_MAX;
    if !is_name {
        return Err(InvalidName(name.chars().take(2 * NAME_BYTES_MAX).collect()));
    }
    let sdk = match sdk {
        Sdk::Registry => concat!("version = \"", env!("CARGO_PKG_VERSION"), "\"").to_owned(),
        Sdk::Folder(folder) => format!("path = {}", quoted(folder)),
    };
    let file = |(path, text): (&'static str, &str)| {
        let text = text.replace(NAME, name).replace(SDK, &sdk);
        NewFile { path, text }
    };
    Ok(FILES.into_iter().map(file).collect())
}

/// As a basic string of TOML, which a string of JSON is.
fn quoted(folder: &Path) -> String {
    serde_json::Value::from(folder.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(files: &'a [NewFile], path: &str) -> &'a str {
        &files.iter().find(|file| file.path == path).unwrap().text
    }

    #[test]
    fn a_new_plugin_has_its_name_everywhere() {
        let files = rust("my-plugin-2", &Sdk::Registry).unwrap();
        for NewFile { path, text } in &files {
            assert!(!text.contains(NAME) && !text.contains("{{"), "{path}: {text}");
        }
        assert!(text(&files, "Cargo.toml").contains("name = \"my-plugin-2\""));
        assert!(text(&files, "tests/plugin.rs").contains("CARGO_BIN_EXE_my-plugin-2"));
        assert!(text(&files, "plugin.yaml").contains("name: my-plugin-2"));
        let sdk = format!("flexcore-sdk = {{ version = \"{}\" }}", env!("CARGO_PKG_VERSION"));
        assert!(text(&files, "Cargo.toml").contains(&sdk));
    }

    #[test]
    fn the_sdk_may_be_in_a_folder() {
        let files = rust("x", &Sdk::Folder("/a \"b\"/sdk".into())).unwrap();
        let manifest = text(&files, "Cargo.toml");
        assert!(manifest.contains(r#"flexcore-sdk = { path = "/a \"b\"/sdk" }"#), "{manifest}");
        assert!(manifest.contains(r#"/sdk", features = ["testing"] }"#), "{manifest}");
    }

    #[test]
    fn names_are_those_of_crates() {
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for name in ["", "A", "1a", "-a", "a-", "a_b", "a/b", "../a", "a b", "é", long.as_str()] {
            rust(name, &Sdk::Registry).unwrap_err();
        }
        rust(&long[1..], &Sdk::Registry).unwrap();
    }
}
