//! What a worker does about a plugin when what is wanted has changed. Pure.

use flexcore_eventstore::plugins::InstalledPlugin;

/// The next step with a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing is to be done.
    Keep,
    /// Nothing runs, and it is to be started.
    Start,
    /// Another version, or another manifest, is to take the place of what runs.
    Upgrade,
    /// The same is to be started anew.
    Restart,
    /// It is not wanted any more.
    Stop,
}

/// The next step, where one installation is in service, and `tried` is the number of the last one that was
/// taken up, whatever came of it (0: none). An installation that could not be taken up is not tried again by
/// itself: the next event may be another one, or a restart of it.
pub(super) fn change(
    in_service: Option<&InstalledPlugin>,
    tried: u32,
    wanted: Option<&InstalledPlugin>,
) -> Change {
    match (in_service, wanted) {
        (_, None) => Change::Stop,
        (_, Some(wanted)) if wanted.number == tried => Change::Keep,
        (None, Some(_)) => Change::Start,
        (Some(now), Some(wanted)) if !is_same(now, wanted) => Change::Upgrade,
        // Several events may come as one.
        (Some(now), Some(wanted)) if wanted.restarts > now.restarts => Change::Restart,
        (Some(_), Some(_)) => Change::Keep,
    }
}

/// True if both are the same file, started in the same way.
fn is_same(one: &InstalledPlugin, other: &InstalledPlugin) -> bool {
    one.sha256 == other.sha256 && one.manifest.source.text == other.manifest.source.text
}

/// An installed plugin, whose version and file are told by a word.
#[cfg(test)]
pub(super) fn plugin(number: u32, restarts: u32, word: &str) -> std::sync::Arc<InstalledPlugin> {
    use flexcore_definition::{PluginManifest, SourceFile};
    let text = format!("name: greeter\nversion: {word}\nfile: greeter\n");
    let source = SourceFile { path: "plugin.yaml".to_owned(), text };
    let Ok(manifest) = PluginManifest::read(source) else { panic!("it is a manifest") };
    let sha256 = format!("{word:0>64}");
    std::sync::Arc::new(InstalledPlugin { manifest, number, restarts, sha256, bytes: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_its_step() {
        let step = |now: Option<(u32, u32, &str)>, tried, wanted: Option<(u32, u32, &str)>| {
            let [now, wanted] = [now, wanted]
                .map(|of| of.map(|(number, restarts, word)| plugin(number, restarts, word)));
            change(now.as_deref(), tried, wanted.as_deref())
        };
        for (now, tried, wanted, expected) in [
            (None, 0, None, Change::Stop),
            (None, 0, Some((1, 0, "a")), Change::Start),
            (Some((1, 0, "a")), 1, Some((1, 0, "a")), Change::Keep),
            (Some((1, 0, "a")), 1, Some((2, 0, "b")), Change::Upgrade),
            (Some((1, 0, "a")), 1, Some((2, 2, "a")), Change::Restart),
            (Some((1, 0, "a")), 1, None, Change::Stop),
            // Installed again as it was.
            (Some((1, 0, "a")), 1, Some((2, 0, "a")), Change::Keep),
            // An upgrade and a restart that come as one.
            (Some((1, 0, "a")), 1, Some((3, 3, "b")), Change::Upgrade),
            // It could not be taken up, and stays so until something is new.
            (None, 1, Some((1, 0, "a")), Change::Keep),
            (None, 1, Some((2, 2, "a")), Change::Start),
            (Some((1, 0, "a")), 2, Some((2, 0, "b")), Change::Keep),
            (Some((1, 0, "a")), 2, Some((3, 3, "b")), Change::Upgrade),
            // Back to what is in service.
            (Some((1, 0, "a")), 2, Some((3, 0, "a")), Change::Keep),
        ] {
            assert_eq!(step(now, tried, wanted), expected, "{now:?} {tried} {wanted:?}");
        }
    }
}
