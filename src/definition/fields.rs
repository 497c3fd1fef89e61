//! A map whose keys are known: takes them out one by one, and names those that nobody asked for.

use super::{
    notes::Notes,
    problem::did_you_mean,
    yaml::{Data, Key, Node},
};

/// The entries of a map with known keys.
pub(super) struct Fields<'n> {
    pub(super) line: usize,
    what: String,
    entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    /// The fields of a node, unknown ones being noted. `None` when it is no map.
    pub(super) fn of(
        node: &'n Node,
        what: impl Into<String>,
        known: &[&str],
        notes: &mut Notes,
    ) -> Option<Self> {
        let what = what.into();
        let entries = entries(node, &what, notes)?;
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                let hint = did_you_mean(&key.text, known.iter().copied());
                let known = known.join(", ");
                let message = format!("{what} has no `{}`{hint}; it has {known}", key.text);
                notes.add::<()>(key.line, message);
            }
        }
        Some(Self { line: node.line, what, entries })
    }

    /// The value of a field, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }

    /// The value of a field; a note when it is missing.
    pub(super) fn required(&self, name: &str, notes: &mut Notes) -> Option<&'n Node> {
        match self.get(name) {
            Some(node) => Some(node),
            None => notes.add(self.line, format!("{} needs `{name}`", self.what)),
        }
    }

    /// The text of a field, empty when it is absent.
    pub(super) fn text_or_empty(&self, name: &str, notes: &mut Notes) -> String {
        let node = self.get(name);
        let text = node.and_then(|node| notes.text(node, &format!("`{name}`")));
        text.unwrap_or_default().trim().to_owned()
    }
}

/// The entries of a map with names of the author's choice.
pub(super) fn entries<'n>(
    node: &'n Node,
    what: &str,
    notes: &mut Notes,
) -> Option<&'n [(Key, Node)]> {
    match &node.data {
        Data::Map(entries) => Some(entries),
        _ => notes.add(node.line, format!("{what} must be a map, and is {}", node.describe())),
    }
}
