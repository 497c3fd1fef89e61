//! Manifests as people write them, with every limit from both sides, and hostile ones.

use super::*;

/// The least that a plugin needs.
const LEAST: &str = "name: greeter\nversion: 0.1.0\nfile: target/release/greeter\n";

fn read(text: &str) -> Result<PluginManifest, Vec<String>> {
    let source = SourceFile { path: "plugin.yaml".to_owned(), text: text.to_owned() };
    let read = PluginManifest::read(source);
    read.map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// The least manifest with this behind it.
fn with(more: &str) -> Result<PluginManifest, Vec<String>> {
    read(&format!("{LEAST}{more}"))
}

/// Texts behind the least manifest, and whether they are taken.
fn check(cases: &[(String, bool)]) {
    for (more, is_taken) in cases {
        let found = with(more);
        let shown: String = more.chars().take(80).collect();
        assert_eq!(found.is_ok(), *is_taken, "{shown:?}: {found:?}");
    }
}

/// Around a limit: whether that much is taken.
fn around(least: u64, most: u64) -> [(u64, bool); 6] {
    [
        (least - 1, false),
        (least, true),
        (least + 1, true),
        (most - 1, true),
        (most, true),
        (most + 1, false),
    ]
}

/// A list of so many different words that begin with this.
fn list_of(count: usize, start: &str) -> String {
    let words: Vec<_> = (0..count).map(|number| format!("{start}{number}")).collect();
    format!("[{}]", words.join(", "))
}

#[test]
fn what_is_left_out_has_a_default() {
    let manifest = read(LEAST).unwrap();
    assert_eq!(manifest.name.as_str(), "greeter");
    assert_eq!((manifest.version.as_str(), manifest.summary), ("0.1.0", None));
    assert_eq!(manifest.file, "target/release/greeter");
    assert_eq!(manifest.contract, PluginContract::Flexcore);
    assert_eq!((manifest.arguments.len(), manifest.environment.len()), (0, 0));
    assert_eq!((manifest.cookie, manifest.protocol_versions), (None, vec![1]));
    assert_eq!((manifest.tls, manifest.multiplex), (true, false));
    assert_eq!((manifest.instances, manifest.concurrency), (1, 64));
    assert_eq!(manifest.start, Duration::from_secs(60));
    assert_eq!(manifest.call, Duration::from_secs(30));
    assert_eq!(manifest.tenants, None);
    assert_eq!(manifest.limits, PluginLimits::default());
    assert_eq!(manifest.sandbox, PluginSandbox::default());
    assert_eq!(manifest.source.text, LEAST);
}

#[test]
fn what_is_said_is_read() {
    let manifest = with(
        "summary: Greets people.\n\
         contract: none\n\
         arguments: [--quiet, '', \"two words\"]\n\
         environment: { RUST_LOG: info, _x1: '' }\n\
         cookie: { key: BASIC_PLUGIN, value: hello }\n\
         protocol_versions: [4, 0]\n\
         tls: false\n\
         multiplex: true\n\
         instances: 2\n\
         concurrency: 8\n\
         start: 1500ms\n\
         call: 5m\n\
         tenants: [b, a]\n\
         limits: { memory: 2GiB, processor: 1500ms, files: 256, processes: 64 }\n\
         sandbox: { own_user: demand, network: ask, files: demand }\n",
    )
    .unwrap();
    assert_eq!(manifest.summary.as_deref(), Some("Greets people."));
    assert_eq!(manifest.contract, PluginContract::None);
    assert_eq!(manifest.arguments, ["--quiet", "", "two words"]);
    let environment: Vec<_> = manifest.environment.iter().collect();
    let [quiet, log] = [("_x1", ""), ("RUST_LOG", "info")].map(|(key, value)| {
        let owned = (key.to_owned(), value.to_owned());
        environment.contains(&(&owned.0, &owned.1))
    });
    assert!(quiet && log && environment.len() == 2, "{environment:?}");
    let cookie = manifest.cookie.unwrap();
    assert_eq!((cookie.0.as_str(), cookie.1.as_str()), ("BASIC_PLUGIN", "hello"));
    assert_eq!(manifest.protocol_versions, [4, 0]);
    assert_eq!((manifest.tls, manifest.multiplex), (false, true));
    assert_eq!((manifest.instances, manifest.concurrency), (2, 8));
    assert_eq!(manifest.start, Duration::from_millis(1_500));
    assert_eq!(manifest.call, Duration::from_secs(300));
    let tenants: Vec<_> = manifest.tenants.iter().flatten().map(Tenant::as_str).collect();
    assert_eq!(tenants, ["a", "b"]);
    let limits = PluginLimits {
        memory_bytes: Some(2 << 30),
        cpu_s: Some(2),
        files: Some(256),
        processes: Some(64),
    };
    assert_eq!(manifest.limits, limits);
    let sandbox = PluginSandbox {
        own_user: Some(Wish::Demand),
        network: Some(Wish::Ask),
        files: Some(Wish::Demand),
        processes: None,
    };
    assert_eq!(manifest.sandbox, sandbox);
}

#[test]
fn each_problem_is_told_with_its_line_and_all_at_once() {
    let text = "name: Greeter\nversion: 1.0\ninstance: 2\ninstances: 0\ntls: yes\n\
                limits:\n  memory: 2GB\n  file: 3\nsandbox:\n  network: never\n";
    let problems = read(text).unwrap_err();
    for (line, said) in [
        (1, "`file`"),
        (1, "name must match"),
        (2, "must be a text"),
        (3, "did you mean `instances`?"),
        (4, "`instances` is a whole number, 1 to 16"),
        (5, "true or false"),
        (7, "with its unit (KiB, MiB, GiB, TiB), 16MiB to 16TiB"),
        (8, "did you mean `files`?"),
        (10, "`network` is `ask` or `demand`"),
    ] {
        let place = format!("plugin.yaml:{line}: ");
        let is_said = problems.iter().any(|it| it.starts_with(&place) && it.contains(said));
        assert!(is_said, "{place}{said}: {problems:#?}");
    }
    assert_eq!(problems.len(), 9, "{problems:#?}");
}

#[test]
fn numbers_have_limits() {
    for (key, least, most) in [("instances", 1, 16), ("concurrency", 1, 1_024)] {
        check(&around(least, most).map(|(n, is_taken)| (format!("{key}: {n}\n"), is_taken)));
    }
    for (key, least, most) in [("files", 16, 1_048_576), ("processes", 1, 65_536)] {
        let text = |n| format!("limits: {{ {key}: {n} }}\n");
        check(&around(least, most).map(|(n, is_taken)| (text(n), is_taken)));
    }
    for wrong in ["-1", "1.5", "'2'", "two", "[1]", "~", "true", "18446744073709551615"] {
        check(&[(format!("instances: {wrong}\n"), false)]);
    }
}

#[test]
fn times_and_sizes_have_limits_and_units() {
    for (key, least, most) in [("start", 1_000, 600_000), ("call", 1_000, 300_000)] {
        check(&around(least, most).map(|(n, is_taken)| (format!("{key}: {n}ms\n"), is_taken)));
    }
    let week = 7 * 24 * 3_600_000;
    let processor = |n| format!("limits: {{ processor: {n}ms }}\n");
    check(&around(1_000, week).map(|(n, is_taken)| (processor(n), is_taken)));
    let memory = |n| format!("limits: {{ memory: {n}KiB }}\n");
    check(&around(16 << 10, 16 << 30).map(|(n, is_taken)| (memory(n), is_taken)));
    for wrong in ["60", "60 s", "s", "-1s", "1.5m", "60S", "1d", "999999999999999999h", "''", "~"] {
        check(&[(format!("start: {wrong}\n"), false)]);
    }
    for right in ["1000ms", "1s", "10m"] {
        check(&[(format!("start: {right}\n"), true)]);
    }
    for wrong in ["2GB", "2147483648", "2 GiB", "GiB", "99999999999TiB", "1.5GiB"] {
        check(&[(format!("limits: {{ memory: {wrong} }}\n"), false)]);
    }
}

#[test]
fn texts_have_limits() {
    let x = |count: usize| "x".repeat(count);
    for (most, key) in [(64, "version"), (200, "summary")] {
        for (length, is_taken) in [(0, false), (most - 1, true), (most, true), (most + 1, false)] {
            let text = format!("{key}: '{}'\n", "ü".repeat(length));
            let whole = LEAST.replacen("version: 0.1.0\n", "", 1) + "version: '1'\n";
            let whole = match key {
                "version" => whole.replacen("version: '1'\n", &text, 1),
                _ => whole + &text,
            };
            assert_eq!(read(&whole).is_ok(), is_taken, "{key} of {length}");
        }
    }
    for hidden in ['\u{7}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}'] {
        assert!(read(&format!("{LEAST}summary: 'a{hidden}b'\n")).is_err(), "{hidden:?}");
        assert!(read(&LEAST.replacen("0.1.0", &format!("'1{hidden}0'"), 1)).is_err(), "{hidden:?}");
    }
    for (length, is_taken) in [(4_095, true), (4_096, true), (4_097, false)] {
        check(&[
            (format!("arguments: ['{}']\n", x(length)), is_taken),
            (format!("environment: {{ A: '{}' }}\n", x(length)), is_taken),
            (format!("cookie: {{ key: A, value: '{}' }}\n", x(length)), is_taken),
        ]);
    }
    for (length, is_taken) in [(127, true), (128, true), (129, false)] {
        check(&[
            (format!("environment: {{ {}: a }}\n", x(length)), is_taken),
            (format!("cookie: {{ key: {}, value: a }}\n", x(length)), is_taken),
        ]);
    }
    for (length, is_taken) in [(1_023, true), (1_024, true), (1_025, false)] {
        let text = LEAST.replacen("target/release/greeter", &x(length), 1);
        assert_eq!(read(&text).is_ok(), is_taken, "{length}");
    }
    for (length, is_taken) in [(39, true), (40, true), (41, false)] {
        let text = LEAST.replacen("greeter", &x(length), 1);
        assert_eq!(read(&text).is_ok(), is_taken, "{length}");
    }
    for (bytes, is_taken) in [
        (MANIFEST_BYTES_MAX - 1, true),
        (MANIFEST_BYTES_MAX, true),
        (MANIFEST_BYTES_MAX + 1, false),
    ] {
        let text = format!("{LEAST}#{}\n", x(bytes - LEAST.len() - 2));
        assert_eq!((text.len(), read(&text).is_ok()), (bytes, is_taken));
    }
}

#[test]
fn lists_have_limits() {
    for (count, is_taken) in [(0, true), (63, true), (64, true), (65, false)] {
        let variables: String = (0..count).map(|n| format!("  A{n}: x\n")).collect();
        let environment = if count == 0 { " {}\n".to_owned() } else { format!("\n{variables}") };
        check(&[
            (format!("arguments: {}\n", list_of(count, "a")), is_taken),
            (format!("environment:{environment}"), is_taken),
        ]);
    }
    for (count, is_taken) in [(0, false), (1, true), (15, true), (16, true), (17, false)] {
        check(&[(format!("protocol_versions: {}\n", list_of(count, "")), is_taken)]);
    }
    for (count, is_taken) in [(0, false), (1, true), (999, true), (1_000, true), (1_001, false)] {
        check(&[(format!("tenants: {}\n", list_of(count, "t")), is_taken)]);
    }
    let (most, more) = (u64::from(u32::MAX), u64::from(u32::MAX) + 1);
    check(&[
        (format!("protocol_versions: [{most}]\n"), true),
        (format!("protocol_versions: [{more}]\n"), false),
        ("protocol_versions: [1, 2, 1]\n".to_owned(), false),
        ("protocol_versions: 1\n".to_owned(), false),
        ("tenants: [a, b, a]\n".to_owned(), false),
        ("tenants: ['*']\n".to_owned(), false),
        ("tenants: acme\n".to_owned(), false),
    ]);
}

/// It is opened with the rights of whoever installs it.
#[test]
fn the_file_stays_below_its_folder() {
    for (file, is_taken) in [
        ("greeter", true),
        ("./a/greeter", true),
        ("a..b/..c", true),
        ("/bin/sh", false),
        ("..", false),
        ("../greeter", false),
        ("a/../../greeter", false),
        ("a/..", false),
        (".", false),
        ("./", false),
        ("''", false),
        ("\"a\\0b\"", false),
        ("\"a\\nb\"", false),
        ("[a]", false),
        ("7", false),
    ] {
        let text = LEAST.replacen("target/release/greeter", file, 1);
        assert_eq!(read(&text).is_ok(), is_taken, "{file}");
    }
}

#[test]
fn nothing_reaches_a_process_that_could_mean_something_else_there() {
    for name in ["PLUGIN_CLIENT_CERT", "PLUGIN_", "A=B", "1A", "'A B'", "''", "'A-B'", "Ä"] {
        check(&[
            (format!("environment: {{ {name}: x }}\n"), false),
            (format!("cookie: {{ key: {name}, value: x }}\n"), false),
        ]);
    }
    for more in [
        "environment: { A: \"a\\0b\" }\n",
        "environment: { A: 1 }\n",
        "environment: { A: [x] }\n",
        "environment: [A]\n",
        "arguments: [\"a\\0b\"]\n",
        "arguments: [7]\n",
        "arguments: a\n",
        "cookie: { key: A }\n",
        "cookie: { value: A }\n",
        "cookie: { key: A, value: '' }\n",
        "cookie: { key: A, value: \"a\\nb\" }\n",
        "cookie: K\n",
        "summary: \"a\\e[2Jb\"\n",
        "contract: grpc\n",
        "contract: ~\n",
        "sandbox: { network: absent }\n",
        "sandbox: ask\n",
        "limits: 7\n",
        "environment: { A: x, A: y }\n",
        "name: other\n",
        "---\nname: other\n",
    ] {
        check(&[(more.to_owned(), false)]);
    }
    let deep = "[".repeat(100_000);
    for whole in ["", "# nothing\n", "[]", "7", "name: [", &deep, "a: &x 1\nb: *x\n"] {
        assert!(read(whole).is_err(), "{}", whole.chars().take(20).collect::<String>());
    }
}
