//! The applications that need a plugin: it decides their commands, or their events go through it.

use flexcore_definition::{Application, Catalog, PluginManifest};
use flexcore_domain::Name;
use flexcore_eventstore::{EventStore, catalog};

use crate::Error;

/// What applications in force need this plugin for, each with the first place that names it. A read model's version
/// that still serves while its successor is built is not known here. Fails when the broker is away.
pub(crate) async fn by(store: &EventStore, plugin: &Name) -> Result<Vec<String>, Error> {
    let catalog = catalog::watch(store).await?.borrow().clone();
    Ok(named_by(&catalog, plugin))
}

/// A warning for each read model in force whose events go through the former version of a plugin, in whose place this
/// one comes: it stands still until its definition names the version that is installed. Where the version is the same,
/// and the plugin another one (`is_other`), it goes on, with rows that a rebuild may not come to. Fails when the broker
/// is away.
pub(crate) async fn left_behind(
    store: &EventStore,
    manifest: &PluginManifest,
    former: &str,
    is_other: bool,
) -> Result<Vec<String>, Error> {
    let (former, now) = (former.trim(), manifest.version.trim());
    if former == now && !is_other {
        return Ok(Vec::new());
    }
    let catalog = catalog::watch(store).await?.borrow().clone();
    Ok(pinned(&catalog, &manifest.name, (former, now)))
}

fn named_by(catalog: &Catalog, plugin: &Name) -> Vec<String> {
    let named = |application: &Application| {
        let name = &application.name;
        let decides = application.plugins().get(plugin).map(ToString::to_string);
        let mut transforms = application.transforms().filter(|it| it.plugin == *plugin);
        let transforms = transforms.next().map(|it| it.place.to_string());
        let decides = decides.map(|place| format!("it decides commands of {name} ({place})"));
        let transforms =
            transforms.map(|place| format!("events of {name} go through it ({place})"));
        decides.into_iter().chain(transforms)
    };
    catalog.applications.values().flat_map(|application| named(application)).collect()
}

fn pinned(catalog: &Catalog, plugin: &Name, (former, now): (&str, &str)) -> Vec<String> {
    let read_models = catalog.applications.values().flat_map(|it| it.read_models.values());
    let pinned = read_models.filter_map(|read_model| {
        let mut transforms = read_model.on.values().filter_map(|change| change.transform.as_ref());
        let is_former = |version: &str| version.trim() == former;
        let found = transforms.find(|it| it.plugin == *plugin && is_former(&it.version))?;
        let (place, name) = (&found.place, &read_model.name);
        let through = format!(
            "{place}: events of read model {name} go through version {former} of plugin {plugin}"
        );
        Some(if former == now {
            format!(
                "{through}, which is another plugin now: its rows may differ from those of a rebuild. Give \
                 the plugin another version, and name it there; or `flexcore rebuild {name}`"
            )
        } else {
            format!("{through}: it stands still until its definition names version {now}")
        })
    });
    pinned.collect()
}

#[cfg(test)]
mod tests {
    use flexcore_definition::SourceFile;

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

    /// Its events go through the plugin.
    fn mapped(application: &str, plugin: &str) -> Application {
        let text = format!(
            "aggregate: {application}\ncommands:\n  ask: {{ decide: '() => []' }}\n\
             events:\n  asked: {{ evolve: (state) => state }}\n---\n\
             read_model: {application}s\ncolumns: {{ id: text }}\nkey: [id]\non:\n  {application}.asked:\n    \
             transform: {{ plugin: {plugin}, function: f, version: 1.0.0 }}\n    key: {{ id: $id }}\n"
        );
        let file = SourceFile { path: "a.yaml".to_owned(), text };
        Application::read(name(application), vec![file]).unwrap()
    }

    #[test]
    fn the_applications_that_name_a_plugin_are_found() {
        let catalog = Catalog::default();
        let catalog = catalog.with(application("quotes", "pricing")).unwrap();
        let catalog = catalog.with(application("orders", "pricing")).unwrap();
        let catalog = catalog.with(application("stock", "counting")).unwrap();
        let catalog = catalog.with(mapped("maps", "geo")).unwrap();
        let by = |plugin: &str| named_by(&catalog, &name(plugin));
        let decides =
            |application: &str| format!("it decides commands of {application} (a.yaml:3)");
        assert_eq!(by("pricing"), [decides("orders"), decides("quotes")]);
        assert_eq!(by("counting"), [decides("stock")]);
        assert_eq!(by("geo"), ["events of maps go through it (a.yaml:12)"]);
        assert!(by("price").is_empty());
    }

    /// An upgrade said nothing, and rows stood still.
    #[test]
    fn the_read_models_of_the_former_version_are_found() {
        let catalog = Catalog::default();
        let catalog = catalog.with(mapped("maps", "geo")).unwrap();
        let catalog = catalog.with(mapped("charts", "counting")).unwrap();
        let catalog = catalog.with(application("stock", "geo")).unwrap();
        let of = |plugin: &str, former: &str| pinned(&catalog, &name(plugin), (former, "2.0.0"));
        let left = of("geo", "1.0.0");
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].starts_with("a.yaml:12: events of read model mapss "), "{left:?}");
        assert!(left[0].ends_with("until its definition names version 2.0.0"), "{left:?}");
        assert!(of("geo", "0.9.0").is_empty() && of("pricing", "1.0.0").is_empty());
    }

    /// Another file under the same version was installed without a word, and rows were none of a rebuild.
    #[test]
    fn the_read_models_whose_plugin_is_another_under_the_same_version_are_found() {
        let catalog = Catalog::default().with(mapped("maps", "geo")).unwrap();
        let of = |version| pinned(&catalog, &name("geo"), (version, version));
        let told = of("1.0.0");
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("a.yaml:12: events of read model mapss "), "{told:?}");
        assert!(told[0].ends_with("or `flexcore rebuild mapss`"), "{told:?}");
        assert!(of("2.0.0").is_empty());
    }
}
