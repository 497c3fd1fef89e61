//! Configurations of plugins, one of each tenant: the words in which tools and gateways have a worker look at one.
//! Outside of a plugin, of the worker that gives it, and of whoever sets it, a configuration is sealed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::names::Name;

/// Largest configuration, in bytes of JSON: settings and secrets, no data.
pub const CONFIGURATION_BYTES_MAX: usize = 64 * 1024;

/// Longest time of a worker's look at a configuration. Whoever asks waits longer, so that a worker says it. 5 s: a
/// schema may be large, and somebody waits.
pub const LOOK_MAX: Duration = Duration::from_secs(5);

/// What a secret is shown as.
pub const MASK: &str = "***";

/// How the subjects of questions about a configuration begin.
const LOOKS: &str = "plugc.";

/// The subject of the question for a look at a configuration, with the tenant in a header
/// ([`crate::plugin::header::TENANT`]). Its body is the sealed configuration, or empty: then only the schema is
/// wanted. A worker on which the plugin runs, in the group [`QUEUE_GROUP`](crate::plugin::QUEUE_GROUP), opens it,
/// holds it to the plugin's schema, and answers with a [`PluginReply`](crate::plugin::PluginReply) whose output is a
/// [`ConfigurationLook`].
#[must_use]
pub fn look_subject(plugin: &Name) -> String {
    format!("{LOOKS}{plugin}")
}

/// The plugin in the subject of such a question; `None`: it is no such subject.
#[must_use]
pub fn plugin_of_look(subject: &str) -> Option<Name> {
    Name::parse(subject.strip_prefix(LOOKS)?).ok()
}

/// What a worker says of a configuration that fits its plugin's schema.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigurationLook {
    /// The JSON Schema of the plugin's configuration; `None`: the plugin takes none, or the schema is too large.
    pub schema: Option<Box<RawValue>>,
    /// The schema is too large to be shown.
    #[serde(default)]
    pub schema_too_large: bool,
    /// The configuration, with [`MASK`] in place of what may be a secret; `None`: none was given, or it does not open.
    pub configuration: Option<Box<RawValue>>,
    /// Why the plugin is not given this configuration: it does not fit the schema, or does not open.
    #[serde(default)]
    pub unfit: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_names_its_plugin() {
        let name = Name::parse("greeter").unwrap();
        assert_eq!(plugin_of_look(&look_subject(&name)), Some(name));
        for other in ["plugc.", "plugc.a.b", "plug.greeter", "plugc.Greeter"] {
            assert_eq!(plugin_of_look(other), None, "{other}");
        }
    }
}
