//! A new plugin that runs, and whose tests pass. In Rust: the files in `template`, which are built
//! and tested with this crate as they are, under another name. In Python: the files in
//! `python/template`, with the package beside them; in Go those in `go/template`, with the module.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The name of the plugin in the templates. No other word there has it in it.
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

/// Of one in Python.
const PYTHON: [(&str, &str); 7] = [
    (".gitignore", include_str!("python/template/gitignore.txt")),
    ("README.md", include_str!("python/template/README.md")),
    ("build.py", include_str!("python/template/build.py")),
    ("functions.py", include_str!("python/template/functions.py")),
    ("plugin.yaml", include_str!("python/template/plugin.yaml")),
    ("requirements.txt", include_str!("python/template/requirements.txt")),
    ("test_functions.py", include_str!("python/template/test_functions.py")),
];

/// A file of the package for plugins in Python, which each has as it is.
macro_rules! of_package {
    ($file:literal) => {
        (
            concat!("flexcore_plugin/", $file),
            include_str!(concat!("python/flexcore_plugin/", $file)),
        )
    };
}

/// The package for plugins in Python.
const PACKAGE: [(&str, &str); 16] = [
    of_package!("__init__.py"),
    of_package!("_configured.py"),
    of_package!("_contract.py"),
    of_package!("_descriptors.py"),
    of_package!("_go_plugin.py"),
    of_package!("_identity.py"),
    of_package!("_json.py"),
    of_package!("_limits.py"),
    of_package!("_logs.py"),
    of_package!("_run.py"),
    of_package!("_served.py"),
    of_package!("call.py"),
    of_package!("decider.py"),
    of_package!("failure.py"),
    of_package!("plugin.py"),
    of_package!("testing.py"),
];

/// Of one in Go.
const GO: [(&str, &str); 7] = [
    (".gitignore", include_str!("go/template/gitignore.txt")),
    ("README.md", include_str!("go/template/README.md")),
    ("build.sh", include_str!("go/template/build.sh")),
    ("go.mod", include_str!("go/template/go.mod")),
    ("main.go", include_str!("go/template/main.go")),
    ("main_test.go", include_str!("go/template/main_test.go")),
    ("plugin.yaml", include_str!("go/template/plugin.yaml")),
];

/// A file of the module for plugins in Go, which each has as it is.
macro_rules! of_module {
    ($file:literal) => {
        (concat!("flexcoreplugin/", $file), include_str!(concat!("go/flexcoreplugin/", $file)))
    };
}

/// The module for plugins in Go.
const MODULE: [(&str, &str); 19] = [
    of_module!("call.go"),
    of_module!("configured.go"),
    of_module!("decider.go"),
    of_module!("described.go"),
    of_module!("failure.go"),
    of_module!("flexcoreplugintest/conforms.go"),
    of_module!("flexcoreplugintest/flexcore.go"),
    of_module!("flexcoreplugintest/messages.go"),
    of_module!("flexcoreplugintest/running.go"),
    of_module!("go.mod"),
    of_module!("limits.go"),
    of_module!("log.go"),
    of_module!("panics.go"),
    of_module!("plugin.go"),
    of_module!("pluginv1/plugin.pb.go"),
    of_module!("run.go"),
    of_module!("served.go"),
    of_module!("streamed.go"),
    of_module!("values.go"),
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

/// The files of a new plugin of this name in Rust. Fails where it is no name: it begins with a small
/// letter and has small letters, digits and `-`, 40 at most.
pub fn rust(name: &str, sdk: &Sdk) -> Result<Vec<NewFile>, InvalidName> {
    check(name)?;
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

/// The files of a new plugin of this name in Python, the package among them. Fails as [`rust`] does.
pub fn python(name: &str) -> Result<Vec<NewFile>, InvalidName> {
    with_package(name, &PYTHON, &PACKAGE)
}

/// The files of a new plugin of this name in Go, the module among them. Fails as [`rust`] does.
pub fn go(name: &str) -> Result<Vec<NewFile>, InvalidName> {
    with_package(name, &GO, &MODULE)
}

/// What an author does next with these files of a new plugin of this name, which are in this folder: the lines
/// for a shell that README.md has, without their comments.
#[must_use]
pub fn steps(files: &[NewFile], name: &str, folder: &Path) -> Vec<String> {
    let readme = files.iter().find(|file| file.path == "README.md").map(|file| &*file.text);
    let lines = readme.and_then(|text| text.split("```\n").nth(1)).unwrap_or_default().lines();
    let folder = word_of_a_shell(folder);
    let step = |line: &str| {
        let step = line.split(" # ").next().unwrap_or(line).trim_end();
        match step.strip_suffix(name) {
            Some(before @ ("cd " | "flexcore plugin install ")) => format!("{before}{folder}"),
            _ => step.to_owned(),
        }
    };
    lines.map(step).collect()
}

fn word_of_a_shell(folder: &Path) -> String {
    let text = folder.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if text.bytes().all(is_plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn with_package(
    name: &str,
    own: &[(&'static str, &str)],
    package: &[(&'static str, &str)],
) -> Result<Vec<NewFile>, InvalidName> {
    check(name)?;
    let own = own.iter().map(|&(path, text)| {
        // A comment in front of the heading is for whoever changes the template.
        let text = text.split_once("\n-->\n\n").map_or(text, |(_, text)| text);
        NewFile { path, text: text.replace(NAME, name) }
    });
    let package = package.iter().map(|&(path, text)| NewFile { path, text: text.to_owned() });
    Ok(own.chain(package).collect())
}

fn check(name: &str) -> Result<(), InvalidName> {
    let is_inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(is_inside)
        && !name.ends_with('-')
        && name.len() <= NAME_BYTES_MAX;
    if !is_name {
        return Err(InvalidName(name.chars().take(2 * NAME_BYTES_MAX).collect()));
    }
    Ok(())
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

    fn folder_has(files: &[NewFile], folder: &Path, before: &str) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{before}{}", name.replace("gitignore.txt", ".gitignore"));
            if name == "__pycache__" {
                continue;
            }
            if entry.path().is_dir() {
                folder_has(files, &entry.path(), &format!("{path}/"));
            } else {
                assert!(files.iter().any(|file| file.path == path), "there is no {path}");
            }
        }
    }

    #[test]
    fn plugins_in_other_languages_have_their_name_and_a_whole_package() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (files, language, package) in [
            (python("hello").unwrap(), "python", "flexcore_plugin"),
            (go("hello").unwrap(), "go", "flexcoreplugin"),
        ] {
            let before = format!("{package}/");
            for NewFile { path, text } in files.iter().filter(|it| !it.path.starts_with(&before)) {
                assert!(!text.contains(NAME), "{path}: {text}");
            }
            assert!(text(&files, "plugin.yaml").contains("name: hello\n"));
            assert!(text(&files, "README.md").starts_with("# hello\n"));
            folder_has(&files, &here.join(language).join("template"), "");
            folder_has(&files, &here.join(language).join(package), &before);
        }
        let files = python("hello").unwrap();
        assert!(text(&files, "build.py").contains("\"hello.pyz\""));
        assert!(text(&files, "functions.py").contains("Plugin(\"hello\", "));
        assert!(text(&files, "flexcore_plugin/__init__.py").contains(NAME), "it is as it was");
        python("Hello").unwrap_err();
    }

    #[test]
    fn the_steps_are_those_of_the_readme_for_its_folder() {
        let path = Path::new("plugins/it's");
        for files in [rust("hello", &Sdk::Registry), python("hello"), go("hello")] {
            let files = files.unwrap();
            let here = steps(&files, "hello", Path::new("hello"));
            for step in &here {
                assert!(text(&files, "README.md").contains(&format!("\n{step}")), "{step}");
            }
            let there = steps(&files, "hello", path);
            assert_eq!((&*here[0], &*there[0]), ("cd hello", r"cd 'plugins/it'\''s'"));
            let call = r#"flexcore plugin call hello greet '{"name": "Ada"}'"#;
            let install = r"flexcore plugin install 'plugins/it'\''s'";
            let check = "flexcore plugin check .";
            let last = [check, "cd -", install, call].map(str::to_owned);
            assert!(there.ends_with(&last), "{there:?}");
        }
        assert!(steps(&[], "hello", path).is_empty());
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
