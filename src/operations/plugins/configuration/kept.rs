//! A configuration that was shown with masks, and comes back with them: the stored values stay in these places.

use flexcore_domain::plugin_configuration::MASK;
use serde_json::Value;

/// True if [`MASK`] is a value anywhere in it.
pub(super) fn has_masks(value: &Value) -> bool {
    match value {
        Value::String(text) => text == MASK,
        Value::Array(elements) => elements.iter().any(has_masks),
        Value::Object(members) => members.values().any(has_masks),
        _ => false,
    }
}

/// A value as it is stored, and as it is shown; `None`: there is none.
#[derive(Clone, Copy)]
pub(super) struct Former<'v> {
    stored: Option<&'v Value>,
    shown: Option<&'v Value>,
}

impl<'v> Former<'v> {
    pub(super) fn new(stored: Option<&'v Value>, shown: Option<&'v Value>) -> Self {
        Self { stored, shown }
    }

    /// What is stored, if it is shown as a mask.
    fn masked(self) -> Option<&'v Value> {
        let is_masked = self.shown.and_then(Value::as_str) == Some(MASK);
        self.stored.filter(|_| is_masked)
    }

    fn member(self, name: &str) -> Self {
        let of = |value: Option<&'v Value>| value.and_then(|value| value.get(name));
        Self { stored: of(self.stored), shown: of(self.shown) }
    }

    /// Of an element that is still what was shown, in a list that is as long: else nobody knows which one it was, and
    /// a secret might go to where it does not belong.
    fn element(self, index: usize, new: &Value, count: usize) -> Self {
        let of = |value: Option<&'v Value>| {
            value.and_then(Value::as_array).filter(|list| list.len() == count)?.get(index)
        };
        let shown = of(self.shown).filter(|shown| *shown == new);
        Self { stored: of(self.stored).filter(|_| shown.is_some()), shown }
    }
}

/// The configuration with the stored value in place of each [`MASK`]. Fails with the places where none is masked.
pub(super) fn filled(new: &Value, former: Former<'_>) -> Result<Value, Vec<String>> {
    let mut missing = Vec::new();
    let filled = fill(new, former, "", &mut missing);
    if missing.is_empty() { Ok(filled) } else { Err(missing) }
}

/// It is as deep as a configuration may be.
fn fill(new: &Value, former: Former<'_>, place: &str, missing: &mut Vec<String>) -> Value {
    match new {
        Value::String(text) if text == MASK => former.masked().cloned().unwrap_or_else(|| {
            let place = if place.is_empty() { "/" } else { place };
            missing.push(place.to_owned());
            Value::Null
        }),
        Value::Object(members) => {
            let fill = |(name, value): (&String, &Value)| {
                let place = format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"));
                (name.clone(), fill(value, former.member(name), &place, missing))
            };
            Value::Object(members.iter().map(fill).collect())
        }
        Value::Array(elements) => {
            let fill = |(index, value): (usize, &Value)| {
                let former = former.element(index, value, elements.len());
                fill(value, former, &format!("{place}/{index}"), missing)
            };
            elements.iter().enumerate().map(fill).collect()
        }
        simple => simple.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Whoever changed what was shown stored the masks, and they were sent.
    #[test]
    fn what_was_masked_stays_where_the_mask_comes_back() {
        let stored = json!({
            "host": "a", "key": "s1", "login": {"user": "u", "token": {"v": 1}},
            "sent": [{"to": "x", "with": "s2"}, {"to": "y", "with": "s3"}],
        });
        let shown = json!({
            "host": "a", "key": MASK, "login": {"user": "u", "token": MASK},
            "sent": [{"to": "x", "with": MASK}, {"to": "y", "with": MASK}],
        });
        let former = Former::new(Some(&stored), Some(&shown));
        assert_eq!(filled(&shown, former).unwrap(), stored);
        let mut changed = shown.clone();
        changed["host"] = json!("b");
        changed["key"] = json!("s4");
        changed["sent"][0] = json!({"to": "z", "with": "s5"});
        let now = filled(&changed, former).unwrap();
        assert_eq!((&now["host"], &now["key"]), (&json!("b"), &json!("s4")));
        assert_eq!(now["login"], stored["login"]);
        assert_eq!(now["sent"], json!([{"to": "z", "with": "s5"}, {"to": "y", "with": "s3"}]));
    }

    #[test]
    fn a_mask_where_nothing_is_masked_is_refused_with_its_place() {
        let (stored, shown) =
            (json!({"a/b": "plain", "k": "s"}), json!({"a/b": "plain", "k": MASK}));
        let former = Former::new(Some(&stored), Some(&shown));
        let new = json!({"a/b": MASK, "k": MASK, "new": {"x": MASK}});
        assert_eq!(filled(&new, former).unwrap_err(), ["/a~1b", "/new/x"]);
        assert_eq!(filled(&json!(MASK), Former::new(None, None)).unwrap_err(), ["/"]);
        assert!(has_masks(&new) && !has_masks(&json!({MASK: ["x", "****"]})));
    }

    /// The secret of one host would go to another.
    #[test]
    fn in_a_list_that_was_changed_nobody_knows_which_secret_is_meant() {
        let stored = json!([{"to": "x", "with": "s1"}, {"to": "y", "with": "s2"}]);
        let shown = json!([{"to": "x", "with": MASK}, {"to": "y", "with": MASK}]);
        let former = Former::new(Some(&stored), Some(&shown));
        for (new, place) in [
            (json!([{"to": "y", "with": MASK}]), "/0/with"),
            (json!([{"to": "z", "with": MASK}, {"to": "y", "with": MASK}]), "/0/with"),
        ] {
            assert_eq!(filled(&new, former).unwrap_err(), [place], "{new}");
        }
    }
}
