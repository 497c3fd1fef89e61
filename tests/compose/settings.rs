//! The executable understands what the deployment says.

use std::{collections::BTreeSet, fs, path::Path};

/// Every file of the deployment, by path.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("deploy")];
    let mut paths = vec![root.join("docker-compose.yml")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("deploy/secrets") {
                folders.push(path);
            } else if path.is_file() {
                paths.push(path);
            }
        }
    }
    let read = |path: &Path| (path.display().to_string(), fs::read_to_string(path).unwrap());
    paths.iter().map(|path| read(path)).collect()
}

fn variables(text: &str) -> BTreeSet<String> {
    let name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let starts = text.match_indices("FLEXCORE_").map(|(at, _)| at);
    let ends = starts.map(|at| (at, text[at..].find(|c| !name(c)).map_or(text.len(), |n| at + n)));
    ends.map(|(from, to)| text[from..to].to_owned()).collect()
}

#[test]
fn every_setting_of_the_deployment_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Each subcommand's arguments stand in its file.
    let files_of = fs::read_dir(root.join("src")).unwrap().map(|entry| entry.unwrap().path());
    let sources = files_of.filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let known: BTreeSet<String> =
        sources.flat_map(|path| variables(&fs::read_to_string(path).unwrap())).collect();
    let tests = ["FLEXCORE_DOCKER", "FLEXCORE_COMPOSE"];
    for (path, text) in files() {
        for used in variables(&text) {
            let plain = used.strip_suffix("_FILE").unwrap_or(&used);
            assert!(
                known.contains(plain) || tests.contains(&plain),
                "{path}: the executable does not know {used}"
            );
        }
    }
}

/// Docker mounts a `tmpfs` with `noexec` unless its options say otherwise, and a plugin's file that may not be
/// executed is refused.
#[test]
fn files_of_plugins_may_be_executed_where_the_workers_keep_them() {
    let of = files().into_iter().find(|(path, _)| path.ends_with("docker-compose.yml"));
    let (_, text) = of.unwrap();
    let folder = text.lines().find_map(|line| line.trim().strip_prefix("FLEXCORE_CACHE: "));
    let mount = format!("\"{}:", folder.unwrap());
    let (_, options) = text.split_once(&mount).unwrap();
    let (options, _) = options.split_once('"').unwrap();
    assert!(options.split(',').any(|option| option == "exec"), "{mount}{options}");
}

/// `image: NAME` of every manifest.
fn images(under: &str) -> BTreeSet<String> {
    let of = files().into_iter().filter(|(path, _)| path.contains(under));
    let lines = of.flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>());
    let named = lines.filter_map(|line| line.trim().strip_prefix("image: ").map(str::to_owned));
    named.filter(|name| !name.contains("flexcore")).collect()
}

#[test]
fn kubernetes_runs_the_servers_that_the_compose_file_was_tested_with() {
    let (compose, kubernetes) = (images("docker-compose.yml"), images("deploy/kubernetes"));
    assert!(!kubernetes.is_empty());
    assert!(kubernetes.is_subset(&compose), "{kubernetes:?} {compose:?}");
}
