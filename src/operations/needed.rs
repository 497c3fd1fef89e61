//! The applications that need a plugin: it decides their commands, or their events go through it.

use flexcore_definition::{Application, Catalog};
use flexcore_domain::Name;
use flexcore_eventstore::{EventStore, catalog};

use crate::Error;

/// The applications in force that name this plugin, each with the first place that does. Fails when the
/// broker is away.
pub(crate) async fn by(store: &EventStore, plugin: &Name) -> Result<Vec<String>, Error> {
    let catalog = catalog::watch(store).await?.borrow().clone();
    Ok(named_by(&catalog, plugin))
}

fn named_by(catalog: &Catalog, plugin: &Name) -> Vec<String> {
    let named = |application: &Application| {
        let mut transforms = application.transforms().filter(|it| it.plugin == *plugin);
        let decides = application.plugins().get(plugin).map(ToString::to_string);
        let place = decides.or_else(|| transforms.next().map(|it| it.place.to_string()))?;
        Some(format!("{} ({place})", application.name))
    };
    catalog.applications.values().filter_map(|application| named(application)).collect()
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
        assert_eq!(by("pricing"), ["orders (a.yaml:3)", "quotes (a.yaml:3)"]);
        assert_eq!(by("counting"), ["stock (a.yaml:3)"]);
        assert_eq!(by("geo"), ["maps (a.yaml:12)"]);
        assert!(by("price").is_empty());
    }
}
