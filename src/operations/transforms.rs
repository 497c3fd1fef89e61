//! The plugins that events go through on their way to rows: are they there, in the versions that are meant?

use std::collections::BTreeSet;

use flexcore_definition::{Application, Transform};
use flexcore_domain::{PluginDescription, PluginReport};
use flexcore_eventstore::plugins::InstalledPlugins;

/// A warning for each transformation whose read model will wait as things are, and for each whose plugin is not for
/// every tenant: an application may be deployed before its plugins.
pub(crate) fn found(application: &Application, installed: &InstalledPlugins) -> Vec<String> {
    let all: BTreeSet<String> =
        application.transforms().filter_map(|transform| trouble(transform, installed)).collect();
    all.into_iter().collect()
}

/// A warning for each transformation whose function the plugin does not have, as its workers say. Without a worker that
/// has the version, and of a plugin of another contract, nothing is known.
pub(crate) fn lacking(application: &Application, reports: &[PluginReport]) -> Vec<String> {
    let lacks = |transform: &&Transform| {
        let all = reports.iter().flat_map(|report| &report.plugins);
        let mut same = all.filter(|status| {
            status.name == transform.plugin && status.version.trim() == transform.version.trim()
        });
        same.any(|status| {
            let described = status.description.as_ref();
            let has = |described: &PluginDescription| {
                described.functions.iter().any(|function| function.name == transform.function)
            };
            described.is_some_and(|described| !has(described))
        })
    };
    let all: BTreeSet<String> = application.transforms().filter(lacks).map(unknown).collect();
    all.into_iter().collect()
}

fn unknown(transform: &Transform) -> String {
    let Transform { plugin, function, version, place } = transform;
    format!(
        "{place}: events go through function {function} of plugin {plugin}, and version {version} has \
         none of that name: the read model waits for ever; name another function"
    )
}

fn trouble(transform: &Transform, installed: &InstalledPlugins) -> Option<String> {
    let Transform { plugin, version, place, .. } = transform;
    let goes = format!("{place}: events go through version {version} of plugin {plugin}");
    let Some(of) = installed.installed.get(plugin) else {
        return Some(format!(
            "{goes}, which is not installed: the read model waits until it is \
             (`flexcore plugin install`)"
        ));
    };
    let is = &of.manifest.version;
    if is.trim() != version.trim() {
        return Some(format!(
            "{goes}, and version {is} is installed: the read model waits until the other one is"
        ));
    }
    of.manifest
        .tenants
        .as_ref()
        .map(|_| format!("{goes}, which is for some tenants alone: events of others are parked"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flexcore_definition::{PluginManifest, SourceFile};
    use flexcore_domain::{Name, PluginStatus};
    use flexcore_eventstore::plugins::InstalledPlugin;
    use serde_json::{Value, json};

    use super::*;

    fn application(transform: &str) -> Application {
        let text = format!(
            "aggregate: flight\ncommands:\n  depart: {{ decide: '() => []' }}\n\
             events:\n  departed: {{ evolve: (state) => state }}\n---\n\
             read_model: flights\ncolumns: {{ id: text }}\nkey: [id]\non:\n  flight.departed:\n    \
             {transform}key: {{ id: $id }}\n"
        );
        let file = SourceFile { path: "a.yaml".to_owned(), text };
        Application::read(Name::parse("air").unwrap(), vec![file]).unwrap()
    }

    fn installed(version: &str, more: &str) -> InstalledPlugins {
        let text = format!("name: geo\nversion: {version}\nfile: it\n{more}");
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        let manifest = PluginManifest::read(source).unwrap();
        let (sha256, bytes) = ("ab".repeat(32), 9);
        let one = InstalledPlugin { manifest, number: 1, restarts: 0, sha256, bytes };
        let installed = [(Name::parse("geo").unwrap(), Arc::new(one))].into();
        InstalledPlugins { installed, ..InstalledPlugins::default() }
    }

    #[test]
    fn an_author_learns_that_rows_will_wait() {
        let by = application("transform: { plugin: geo, function: locate, version: 1.2.0 }\n    ");
        let said = |installed: &InstalledPlugins| found(&by, installed).join("\n");
        let none = said(&InstalledPlugins::default());
        assert!(none.starts_with("a.yaml:12: ") && none.contains("is not installed"), "{none}");
        let other = said(&installed("1.3.0", ""));
        assert!(other.contains("version 1.3.0 is installed"), "{other}");
        let few = said(&installed("1.2.0", "tenants: [acme]\n"));
        assert!(few.contains("for some tenants alone"), "{few}");
        assert_eq!(said(&installed("1.2.0", "")), "");
        assert!(found(&application(""), &InstalledPlugins::default()).is_empty());
    }

    /// What a worker says that has this version, with these functions.
    fn report(version: &str, functions: Option<&[&str]>) -> PluginReport {
        let function = |name: &&str| json!({"name": name, "summary": "", "idempotent": true});
        let description = functions.map(|names| {
            let functions: Vec<Value> = names.iter().map(function).collect();
            let text = json!({"functions": functions, "decides": false}).to_string();
            serde_json::from_str(&text).unwrap()
        });
        let status = PluginStatus {
            name: Name::parse("geo").unwrap(),
            number: 1,
            version: version.to_owned(),
            state: "ready".to_owned(),
            instances: 1,
            ready: 1,
            restarts: 0,
            calls: 0,
            errors: 0,
            under_way: 0,
            p50_ms: 0.0,
            p99_ms: 0.0,
            memory_bytes: 0,
            reason: None,
            description,
            sandbox: Vec::new(),
        };
        PluginReport { member: "a".to_owned(), plugins: vec![status] }
    }

    /// The read model waited for ever, and `apply` had not said so.
    #[test]
    fn an_author_learns_that_there_is_no_such_function() {
        let by = application("transform: { plugin: geo, function: locate, version: 1.2.0 }\n    ");
        let said = |reports: &[PluginReport]| lacking(&by, reports).join("\n");
        let without = [report("1.2.0", None), report("1.2.0", Some(&["find"]))];
        let why = said(&without);
        assert!(why.starts_with("a.yaml:12: ") && why.contains("function locate"), "{why}");
        for well in [
            vec![],
            vec![report("1.2.0", None)],
            vec![report("1.2.0", Some(&["find", "locate"]))],
            // That another version is installed is said in any case.
            vec![report("1.3.0", Some(&["find"]))],
        ] {
            assert_eq!(said(&well), "", "{well:?}");
        }
    }
}
