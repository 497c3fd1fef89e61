use flexcore_domain::Hash;

use super::*;

const SHA256: &str = "ab";

fn recorded(id: &str, event: &str, data: &str) -> Recorded {
    let key = AggregateKey::new(tenant(), aggregate(), AggregateId::parse(id).unwrap());
    let commit = Commit {
        key,
        command_id: CommandId::parse("c-1").unwrap(),
        command_hash: CommandHash::of(event, data),
        provenance: Provenance::of(ActorName::parse("test").unwrap()),
        time_ms: 0,
        events: vec![Event {
            event: EventName::parse(event).unwrap(),
            version: 1,
            schema_version: 1,
            data: serde_json::value::RawValue::from_string(data.to_owned()).unwrap(),
        }],
    };
    Recorded { sequence: 1, hash: Hash::ZERO, body: bytes::Bytes::new(), commit }
}

fn installation(name: &str, number: u32, restarts: u32) -> String {
    let text = format!("name: {name}\nversion: a\nfile: f\n");
    let manifest = SourceFile { path: "plugin.yaml".to_owned(), text };
    let (sha256, former_sha256) = (SHA256.to_owned(), None);
    let installation = Installation { number, restarts, manifest, sha256, bytes: 7, former_sha256 };
    serde_json::to_string(&installation).unwrap()
}

/// What is known of plugin `a` after an event.
fn before(data: &str, former: Option<&str>) -> PluginBefore {
    let LastEvent { number, installed, .. } = read(&recorded("a", INSTALLED, data)).unwrap();
    PluginBefore {
        installed,
        former_sha256: former.map(str::to_owned),
        number,
        expected: Expected::default(),
        time_ms: 0,
    }
}

/// A second version that starts nowhere had the file of the first one deleted, which still ran.
#[test]
fn the_file_before_is_kept_until_another_one_is_installed() {
    let first = before(&installation("a", 1, 0), None);
    assert_eq!(first.former_after("cd").as_deref(), Some(SHA256));
    assert_eq!(first.former_after(SHA256), None, "the same file with another manifest");
    let second = before(&installation("a", 2, 0), Some("cd"));
    assert_eq!(second.former_after(SHA256).as_deref(), Some("cd"));
    assert_eq!(second.former_after("cd").as_deref(), Some(SHA256), "back to the one before");
    let removed = PluginBefore { installed: None, former_sha256: None, ..second };
    assert_eq!(removed.former_after("cd"), None);
}

/// A worker that was away while the same was removed and installed again kept its process, which had the tenants'
/// former configurations.
#[test]
fn what_comes_after_a_removal_is_started_anew() {
    let running = before(&installation("a", 2, 1), None);
    assert_eq!(running.restarts_after(), 1);
    let removed = PluginBefore { installed: None, number: 3, ..running };
    assert_eq!(removed.restarts_after(), 4);
    let never = PluginBefore { number: 0, ..removed };
    assert_eq!(never.restarts_after(), 0);
}

#[test]
fn the_file_before_is_known_until_the_plugin_is_removed() {
    let (name, mut plugins) = (Name::parse("a").unwrap(), InstalledPlugins::default());
    let with = |number, former: &str| {
        let text = installation("a", number, 0);
        text.replacen('{', &format!("{{\"former_sha256\":\"{former}\","), 1)
    };
    put(&mut plugins, &recorded("a", INSTALLED, &with(2, "cd")));
    assert_eq!(plugins.former.get(&name).map(String::as_str), Some("cd"));
    put(&mut plugins, &recorded("a", INSTALLED, &with(3, "ef")));
    assert_eq!(plugins.former.get(&name).map(String::as_str), Some("ef"));
    put(&mut plugins, &recorded("a", REMOVED, r#"{"number":4}"#));
    assert!(plugins.former.is_empty());
}

#[test]
fn the_last_event_says_all_that_counts() {
    let name = Name::parse("a").unwrap();
    let mut plugins = InstalledPlugins::default();
    put(&mut plugins, &recorded("a", RESTARTED, &installation("a", 3, 3)));
    let plugin = &plugins.installed[&name];
    assert_eq!((plugin.number, plugin.restarts, plugin.bytes), (3, 3, 7));
    put(&mut plugins, &recorded("a", INSTALLED, &installation("a", 4, 3)));
    assert_eq!((plugins.installed[&name].number, plugins.installed.len()), (4, 1));
    put(&mut plugins, &recorded("a", REMOVED, r#"{"number":5}"#));
    assert!(plugins.installed.is_empty() && plugins.unreadable.is_empty());
}

#[test]
fn what_cannot_be_read_leaves_the_one_before_in_force_until_something_can() {
    let name = Name::parse("a").unwrap();
    let mut plugins = InstalledPlugins::default();
    put(&mut plugins, &recorded("a", INSTALLED, &installation("a", 1, 0)));
    for (event, data) in [
        (INSTALLED, "{}".to_owned()),
        (INSTALLED, installation("b", 2, 0)),
        (INSTALLED, installation("a", 2, 0).replace("file", "pile")),
        (REMOVED, "[]".to_owned()),
        ("moved", "{}".to_owned()),
    ] {
        put(&mut plugins, &recorded("a", event, &data));
        assert!(plugins.unreadable.contains_key(&name), "{event} {data}");
        assert_eq!(plugins.installed[&name].number, 1, "{event} {data}");
    }
    put(&mut plugins, &recorded("a", INSTALLED, &installation("a", 3, 0)));
    assert_eq!((plugins.installed[&name].number, plugins.unreadable.len()), (3, 0));
    put(&mut plugins, &recorded("Not-A-Name", INSTALLED, &installation("a", 4, 0)));
    assert_eq!(plugins.installed.len(), 1);
}
