//! The manifests of the plugins that come with FlexCore.

use std::{collections::BTreeSet, fs, path::Path};

use flexcore_definition::{PluginManifest, SourceFile};

#[test]
fn each_bundled_plugin_has_a_manifest_that_starts_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bundled/manifests");
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let manifest = PluginManifest::read(SourceFile { path: "plugin.yaml".to_owned(), text });
        let manifest = manifest.unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        assert_eq!(manifest.name.to_string(), name);
        assert_eq!(manifest.arguments, [name.as_str()], "nothing is permitted unless somebody says so");
        assert_eq!(manifest.file, "flexcore-plugins");
        names.insert(name);
    }
    let all = ["csv", "http", "mail", "postgres"].map(str::to_owned);
    assert_eq!(names, BTreeSet::from(all));
}
