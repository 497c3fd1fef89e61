//! The plugins that an application names: are they there?

use std::collections::BTreeMap;

use flexcore_definition::{Application, FileLine};
use flexcore_domain::{Name, PluginReport};
use flexcore_eventstore::{
    EventStore,
    plugins::{self, InstalledPlugins},
};

use crate::{Error, plugins::reports, transforms};

/// Tenants that a warning lists: a manifest may have a thousand.
const TENANTS_LISTED_MAX: usize = 5;

/// A warning for each plugin that the application names, and that will not do what it is named for, or not for every
/// tenant, as things are: an application may be deployed before its plugins. Fails when the broker is away.
pub(crate) async fn warnings(
    store: &EventStore,
    application: &Application,
) -> Result<Vec<String>, Error> {
    let named = application.plugins();
    if named.is_empty() && application.transforms().next().is_none() {
        return Ok(Vec::new());
    }
    let installed = plugins::watch(store).await?.borrow().clone();
    let reports = reports(store).await?;
    let mut all = transforms::found(application, &installed);
    all.append(&mut transforms::lacking(application, &reports));
    all.append(&mut found(&named, &installed, &reports));
    Ok(all)
}

fn found(
    named: &BTreeMap<&Name, &FileLine>,
    installed: &InstalledPlugins,
    reports: &[PluginReport],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (plugin, place) in named {
        let decides = format!("{place}: plugin {plugin} decides");
        let Some(of) = installed.installed.get(*plugin) else {
            warnings.push(format!(
                "{decides}, and is not installed: its commands are answered 503 until it is \
                 (`flexcore plugin install`)"
            ));
            continue;
        };
        if let Some(tenants) = &of.manifest.tenants {
            let mut listed: Vec<&str> =
                tenants.iter().take(TENANTS_LISTED_MAX).map(|tenant| tenant.as_str()).collect();
            if tenants.len() > TENANTS_LISTED_MAX {
                listed.push("…");
            }
            let listed = listed.join(", ");
            warnings.push(format!("{decides}, for these tenants alone: {listed}"));
        }
        let mut all = reports.iter().flat_map(|report| &report.plugins);
        let says_no = all.any(|status| {
            let described = status.description.as_ref();
            status.name == **plugin && described.is_some_and(|described| !described.decides)
        });
        if says_no {
            warnings.push(format!(
                "{decides}, and says of itself that it does not: its commands are answered 503"
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flexcore_definition::{PluginManifest, SourceFile};
    use flexcore_domain::{PluginDescription, PluginStatus};
    use flexcore_eventstore::plugins::InstalledPlugin;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn application(application: &str, plugin: &str) -> Application {
        let text = format!(
            "aggregate: {application}\ncommands:\n  ask: {{ decide: {{ plugin: {plugin} }} }}\n\
             events:\n  asked: {{ evolve: (state) => state }}\n"
        );
        let file = SourceFile { path: "a.yaml".to_owned(), text };
        Application::read(name(application), vec![file]).unwrap()
    }

    fn installed(plugin: &str, more: &str) -> InstalledPlugins {
        let text = format!("name: {plugin}\nversion: 0.1.0\nfile: it\n{more}");
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        let manifest = PluginManifest::read(source).unwrap();
        let (sha256, bytes) = ("ab".repeat(32), 9);
        let one = InstalledPlugin { manifest, number: 1, restarts: 0, sha256, bytes };
        let installed = [(name(plugin), Arc::new(one))].into();
        InstalledPlugins { installed, ..InstalledPlugins::default() }
    }

    fn report(plugin: &str, decides: Option<bool>) -> PluginReport {
        let description = decides.map(|decides| PluginDescription { decides, ..description() });
        let status = PluginStatus {
            name: name(plugin),
            number: 1,
            version: "0.1.0".to_owned(),
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

    fn description() -> PluginDescription {
        serde_json::from_str(r#"{"functions":[],"decides":false}"#).unwrap()
    }

    #[test]
    fn an_application_is_warned_of_deciders_that_will_not_decide() {
        let quotes = application("quotes", "pricing");
        let warned = |installed: &InstalledPlugins, reports: &[PluginReport]| {
            found(&quotes.plugins(), installed, reports)
        };
        let missing = warned(&InstalledPlugins::default(), &[]);
        assert_eq!(missing.len(), 1);
        assert!(missing[0].starts_with("a.yaml:3: plugin pricing decides, and is not installed"));
        assert_eq!(warned(&installed("other", ""), &[report("pricing", Some(true))]).len(), 1);
        let there = installed("pricing", "");
        for said in [None, Some(true)] {
            let none: [&str; 0] = [];
            assert_eq!(warned(&there, &[report("pricing", said)]), none, "{said:?}");
        }
        let reports = [report("other", Some(false)), report("pricing", Some(false))];
        let refuses = warned(&there, &reports);
        assert_eq!(refuses.len(), 1);
        assert!(refuses[0].contains("says of itself that it does not"), "{refuses:?}");
        let few = warned(&installed("pricing", "tenants: [a, b, c, d, e, f]\n"), &[]);
        assert!(few[0].ends_with("for these tenants alone: a, b, c, d, e, …"), "{few:?}");
    }
}
