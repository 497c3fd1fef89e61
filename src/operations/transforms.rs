//! The plugins that events go through on their way to rows: are they there, in the versions that are meant?

use std::collections::BTreeSet;

use flexcore_definition::{Application, Transform};
use flexcore_eventstore::plugins::InstalledPlugins;

/// A warning for each transformation whose read model will wait as things are, and for each whose plugin is not for
/// every tenant: an application may be deployed before its plugins.
pub(crate) fn found(application: &Application, installed: &InstalledPlugins) -> Vec<String> {
    let all: BTreeSet<String> =
        application.transforms().filter_map(|transform| trouble(transform, installed)).collect();
    all.into_iter().collect()
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
    use flexcore_domain::Name;
    use flexcore_eventstore::plugins::InstalledPlugin;

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
}
