//! Reading a transformation: the plugin's function that an event's data go through before its row changes.

use flexcore_domain::{Name, plugin::call_subject};

use super::{Transform, fields::Fields, notes::Notes, plugin, yaml::Node};

pub(super) fn read(node: &Node, notes: &mut Notes) -> Option<Transform> {
    let fields = Fields::of(node, "`transform`", &["plugin", "function", "version"], notes)?;
    let named = fields.required("plugin", notes).and_then(|node| {
        let text = notes.text(node, "a plugin's name")?;
        Some((notes.name(Name::parse, text, node.line)?, notes.place(node.line)))
    });
    let function = fields.required("function", notes).and_then(|node| {
        let text = notes.text(node, "a function's name")?;
        if named.as_ref().is_some_and(|(plugin, _)| call_subject(plugin, text).is_none()) {
            let message =
                format!("`{text}` is no function's name: that has letters, digits and `_-/.`");
            return notes.add(node.line, message);
        }
        Some(text.to_owned())
    });
    let version = fields.required("version", notes).and_then(|node| plugin::version(node, notes));
    let (plugin, place) = named?;
    Some(Transform { plugin, function: function?, version: version?.to_owned(), place })
}
