use flexcore_definition::SourceFile;

use super::*;

fn manifest(name: &str, more: &str) -> PluginManifest {
    let text = format!("name: {name}\nversion: 0.1.0\nfile: it\n{more}");
    PluginManifest::read(SourceFile { path: "plugin.yaml".to_owned(), text }).unwrap()
}

fn installed(name: &str, more: &str) -> InstalledPlugin {
    InstalledPlugin {
        manifest: manifest(name, more),
        number: 3,
        restarts: 0,
        sha256: "ab".repeat(32),
        bytes: 9,
    }
}

fn status(name: &str, number: u32, state: &str, ready: usize) -> PluginStatus {
    PluginStatus {
        name: Name::parse(name).unwrap(),
        number,
        version: "0.1.0".to_owned(),
        state: state.to_owned(),
        instances: 1,
        ready,
        restarts: 0,
        calls: 0,
        errors: 0,
        under_way: 0,
        p50_ms: 0.0,
        p99_ms: 0.0,
        memory_bytes: 0,
        reason: None,
        description: None,
        sandbox: Vec::new(),
    }
}

fn report(member: &str, plugins: Vec<PluginStatus>) -> PluginReport {
    PluginReport { member: member.to_owned(), plugins }
}

#[test]
fn what_is_installed_is_shown_with_the_workers_that_have_it() {
    let all = [("greeter", "tenants: [acme]\n"), ("lonely", "summary: Nobody runs it.\n")];
    let of = |(name, more)| (Name::parse(name).unwrap(), Arc::new(installed(name, more)));
    let all = InstalledPlugins { installed: all.map(of).into(), ..InstalledPlugins::default() };
    let reports = [
        report("a", vec![status("greeter", 3, "ready", 1), status("removed", 1, "draining", 0)]),
        report("b", vec![status("greeter", 2, "starting", 0)]),
    ];
    let views = merged(&all, &reports);
    let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
    assert_eq!(names, ["greeter", "lonely"], "what is removed is not shown");
    let members: Vec<&str> = views[0].workers.iter().map(|of| of.member.as_str()).collect();
    assert_eq!(members, ["a", "b"]);
    assert!(views[1].workers.is_empty());
    let acme = Tenant::parse("acme").unwrap();
    assert_eq!(views[0].tenants, Some(BTreeSet::from([acme])));
    let json = serde_json::to_value(&views).unwrap();
    assert_eq!(json[0]["workers"][0]["member"], "a");
    assert_eq!(json[0]["workers"][0]["state"], "ready");
    assert_eq!(json[1]["summary"], "Nobody runs it.");
    assert_eq!(json[0].get("tenants"), None, "it is no tenant's business who else may");
}

#[test]
fn an_installation_is_taken_up_when_a_worker_says_so() {
    let name = Name::parse("greeter").unwrap();
    let look = |statuses: Vec<PluginStatus>| found(&[report("a", statuses)], &name, 3);
    assert_eq!(look(vec![]), None);
    assert_eq!(look(vec![status("other", 9, "ready", 1)]), None);
    assert_eq!(look(vec![status("greeter", 2, "ready", 1)]), None, "the one before");
    let starts = look(vec![status("greeter", 3, "starting", 0)]).unwrap();
    assert_eq!(starts, Found { is_final: false, trouble: None });
    let runs = look(vec![status("greeter", 3, "failed", 0), status("greeter", 4, "ready", 1)]);
    assert_eq!(runs.unwrap(), Found { is_final: true, trouble: None });
    let reason = Some("its file is not there".to_owned());
    let failed = PluginStatus { reason: reason.clone(), ..status("greeter", 3, "failed", 0) };
    let failed = look(vec![failed]).unwrap();
    assert_eq!(failed, Found { is_final: true, trouble: reason.clone() });
    let former = PluginStatus { reason: reason.clone(), ..status("greeter", 3, "ready", 1) };
    let former = look(vec![former]).unwrap();
    assert!(former.is_final, "the one before runs on");
    // Else nobody would learn before the next start of a worker.
    assert_eq!(former.trouble, reason.map(|reason| format!("{reason}; {FORMER_RUNS}")));
}

/// Who installed the same again, as the advice was, mended nothing: workers had given up.
#[test]
fn the_same_is_started_anew_where_a_worker_does_not_run_it() {
    let name = Name::parse("greeter").unwrap();
    let is_troubled = |statuses: Vec<PluginStatus>| {
        let well = report("a", vec![status("greeter", 3, "ready", 1)]);
        is_troubled(&[well, report("b", statuses)], &name, 3)
    };
    assert!(!is_troubled(vec![]), "it has not heard of it yet");
    assert!(!is_troubled(vec![status("greeter", 3, "starting", 0)]));
    assert!(is_troubled(vec![status("greeter", 3, "failed", 0)]));
    assert!(!is_troubled(vec![status("greeter", 2, "failed", 0)]), "the one before");
    assert!(!is_troubled(vec![status("other", 3, "failed", 0)]));
    let reason = Some("version 2 does not start".to_owned());
    assert!(is_troubled(vec![PluginStatus { reason, ..status("greeter", 3, "ready", 1) }]));
}

#[test]
fn the_same_file_with_the_same_manifest_is_no_new_installation() {
    let plugin = installed("greeter", "");
    assert!(is_same(&plugin, &manifest("greeter", ""), &plugin.sha256));
    assert!(!is_same(&plugin, &manifest("greeter", "tls: false\n"), &plugin.sha256));
    assert!(!is_same(&plugin, &manifest("greeter", ""), &"cd".repeat(32)));
}

#[test]
fn a_file_is_measured_and_left_at_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it");
    fs::write(&path, "abc").unwrap();
    let Measured { mut file, sha256, bytes } = measured(&path).unwrap();
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!((sha256.as_str(), bytes), (known, 3));
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abc");
    assert!(matches!(measured(folder.path()), Err(Error::PluginFile(_))));
    assert!(matches!(measured(&path.join("none")), Err(Error::File { .. })));
    let large = fs::File::create(folder.path().join("large")).unwrap();
    // Without a byte on the disk.
    large.set_len(PLUGIN_FILE_BYTES_MAX + 1).unwrap();
    let refused = measured(&folder.path().join("large"));
    assert!(matches!(refused, Err(Error::PluginFile(_))), "{refused:?}");
}

#[test]
fn another_plugin_under_the_same_version_is_one_of_another_file_or_start() {
    let plugin = installed("greeter", "");
    let is_other = |more: &str, sha256: &str| is_other(&plugin, &manifest("greeter", more), sha256);
    let same = "ab".repeat(32);
    assert!(!is_other("summary: It greets.\ninstances: 2\n", &same));
    assert!(is_other("", &"cd".repeat(32)));
    assert!(is_other("arguments: [de]\n", &same));
    assert!(is_other("environment: {LANGUAGE: de}\n", &same));
}
