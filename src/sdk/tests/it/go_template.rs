//! Plugins in Go: a new one as `template` writes it, and one for tests, built with Debian's packages
//! and run on the real host. A machine without Go says so.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use flexcore_plugin::{Cookie, Error, contract, limits};
use flexcore_sdk::{
    Refused,
    template::go,
    testing::{Context, Kit, Level},
};
use serde_json::{Value, json};

use crate::LAB;

/// Where the module, the template and the plugin for tests are.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/go");

/// Exit status of our scripts where something is missing on this machine.
const MISSING: i32 = 3;

/// Long enough for a busy machine.
const LONG: Duration = Duration::from_secs(20);

/// A folder of a new plugin.
fn written(name: &str) -> PathBuf {
    let folder = in_target(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    for file in go(name).unwrap() {
        let path = folder.join(file.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file.text).unwrap();
    }
    folder
}

pub(crate) fn in_target(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("go").join(name)
}

/// Runs a script; the error is what is missing on this machine for it.
///
/// # Panics
/// If the script fails for another reason: then our sources are wrong.
fn script(command: &mut Command) -> Result<(), String> {
    // One after the other: what one of them builds the next one has.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let done = command.stdin(Stdio::null()).output().unwrap();
    let [printed, said] = [&done.stdout, &done.stderr].map(|text| String::from_utf8_lossy(text));
    match done.status.code() {
        Some(0) => Ok(()),
        Some(MISSING) => Err(said.trim().to_owned()),
        _ => panic!("{command:?} ended with {}: {printed}{said}", done.status),
    }
}

/// What Go builds is kept for the next time.
fn build(folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("build.sh").current_dir(folder).env("GOCACHE", in_target("cache"));
    command
}

/// The plugin for tests, in the place of what a new one does.
fn written_lab(name: &str) -> PathBuf {
    let folder = written(name);
    for file in ["main.go", "main_test.go"] {
        fs::copy(Path::new(HERE).join("lab").join(file), folder.join(file)).unwrap();
    }
    folder
}

/// The plugin for tests; without Go the test says so and is skipped.
fn lab() -> Option<&'static Path> {
    static BUILT: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let folder = written_lab("lab");
        script(&mut build(&folder)).map(|()| folder.join("build/lab"))
    });
    match &*BUILT {
        Ok(built) => Some(built),
        Err(reason) => {
            skipped(&format!("no plugin in Go: {reason}"));
            None
        }
    }
}

/// Any executable of the SDK is a guard.
fn kit(plugin: &Path) -> Kit {
    Kit::new(plugin).guard(LAB)
}

/// The machine that decides about a change has to have what a test takes.
pub(crate) fn skipped(lacks: &str) {
    let told = format!("SKIPPED, {lacks}");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{told}");
    let test = std::thread::current();
    let line = format!("{}: {told}\n", test.name().unwrap_or("a test"));
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The executable that the kit of authors starts: it is built with the whole workspace.
pub(crate) fn flexcore() -> Option<PathBuf> {
    let flexcore = Path::new(LAB).with_file_name("flexcore");
    let mut command = Command::new(&flexcore);
    let done = command.args(["plugin", "try", "--help"]).stdin(Stdio::null()).output();
    let is_there = done.is_ok_and(|done| done.status.success());
    if !is_there {
        skipped("no executable flexcore beside the SDK's: cargo test --workspace builds it");
    }
    is_there.then_some(flexcore)
}

/// Builds a plugin and runs its own tests, in Go.
fn tested(folder: &Path) {
    let Some(flexcore) = flexcore() else { return };
    let done = script(build(folder).arg("test").env("FLEXCORE", flexcore));
    done.unwrap_or_else(|reason| skipped(&format!("no plugin in Go: {reason}")));
}

#[test]
fn the_tests_of_a_new_plugin_pass() {
    tested(&written("hello"));
}

#[test]
fn what_the_kit_of_authors_says_is_so() {
    tested(&written_lab("lab-of-authors"));
}

#[tokio::test]
async fn it_does_what_every_plugin_has_to_do() {
    let Some(lab) = lab() else { return };
    kit(lab).conforms().await;
}

#[tokio::test]
async fn calls_have_a_caller_a_key_and_a_deadline() {
    let Some(lab) = lab() else { return };
    let plugin = kit(lab).start().await;
    let context = Context {
        tenant: "acme".to_owned(),
        actor: "ada".to_owned(),
        idempotency_key: "k-1".to_owned(),
        traceparent: "00-1-2-01".to_owned(),
        ..Context::default()
    };
    let about = plugin.call_as(context.clone(), "about", &Value::Null, LONG).await.unwrap();
    let about: Value = serde_json::from_slice(&about.unwrap()).unwrap();
    let left = about["remaining_ms"].as_u64().unwrap();
    assert!((1_000..=20_000).contains(&left), "{left}");
    for (name, value) in
        [("tenant", "acme"), ("actor", "ada"), ("key", "k-1"), ("trace", "00-1-2-01")]
    {
        assert_eq!(about[name], value);
    }
    let short = Duration::from_millis(200);
    let late = plugin.call_as(context, "sleep", &json!(60_000), short).await;
    assert!(matches!(late, Err(Error::Late { .. } | Error::Status { .. })), "{late:?}");
    let line = plugin.until_logged("sleep has ended").await;
    assert_eq!(line.level, Level::Info);
    assert_eq!(line.fields["tenant"], "acme");
    plugin.stop().await;
}

#[tokio::test]
async fn failures_and_panics_are_answers() {
    let Some(lab) = lab() else { return };
    let plugin = kit(lab).start().await;
    let failure = plugin.call("fail", json!({ "code": "busy", "pause_ms": 1_500 })).await;
    let failure = failure.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary, failure.retry_after_ms), ("busy", true, 1_500));
    assert_eq!(failure.details, r#"{"why":"a test"}"#);
    for (function, input, code) in [
        ("fail", json!({ "code": "Not A Code" }), "broken_answer"),
        ("raw", Value::Null, "broken_answer"),
        ("large", json!(limits::OUTPUT_BYTES_MAX), "broken_answer"),
        ("error", Value::Null, "internal"),
        ("panic", Value::Null, "panicked"),
        ("nothing", Value::Null, "unknown_function"),
        ("sleep", json!("no number"), "invalid_input"),
    ] {
        let failure = plugin.call(function, input).await.unwrap_err();
        assert_eq!((&*failure.code, failure.temporary), (code, false), "{function}");
        assert!(!failure.message.contains("s3cr3t"), "{failure}");
    }
    let line = plugin.until_logged("as asked").await;
    assert_eq!((line.level, &line.fields["function"]), (Level::Error, &json!("panic")));
    assert_eq!(
        plugin.call("large", json!(5_000_000)).await.unwrap().as_str().unwrap().len(),
        5_000_000
    );
    plugin.stop().await;
}

#[tokio::test]
async fn streams_go_on_beside_each_other() {
    let Some(lab) = lab() else { return };
    let plugin = kit(lab).tls(false).start().await;
    let inputs: Vec<_> = (0..3_000).map(Value::from).collect();
    let outputs = plugin.stream("echo", &inputs).await;
    assert_eq!(outputs.into_iter().map(Result::unwrap).collect::<Vec<_>>(), inputs);
    let most = plugin.stream("busy", &inputs[..200]).await;
    let most = most.into_iter().map(|most| most.unwrap().as_u64().unwrap()).max();
    assert!(matches!(most, Some(2..=4)), "{most:?}");
    let failed = plugin.stream("panic", &inputs[..3]).await;
    assert!(failed.iter().all(|failed| failed.as_ref().unwrap_err().code == "panicked"));
    plugin.stop().await;
}

#[tokio::test]
async fn a_decider_accepts_rejects_and_fails() {
    let Some(lab) = lab() else { return };
    let plugin = kit(lab).start().await;
    let added = plugin.decide("add", &Value::Null, &json!(3)).await.unwrap();
    assert_eq!(added, [("added".to_owned(), json!({ "by": 3 }))]);
    assert!(plugin.decide("nothing", &json!(1), &Value::Null).await.unwrap().is_empty());
    let refused = plugin.decide("add", &json!(9), &json!(2)).await.unwrap_err();
    assert!(matches!(&refused, Refused::Rejected(why) if why.code == "too_many"), "{refused:?}");
    for (command, state, code) in [
        ("panic", json!(1), "panicked"),
        ("add", json!("x"), "invalid_question"),
        ("remove", json!(1), "unknown_command"),
    ] {
        let refused = plugin.decide(command, &state, &json!(1)).await.unwrap_err();
        assert!(matches!(&refused, Refused::Failed(why) if why.code == code), "{refused:?}");
    }
    plugin.stop().await;
}

#[tokio::test]
async fn each_tenant_has_its_configuration() {
    let Some(lab) = lab() else { return };
    let plugin = kit(lab).start().await;
    let settings = || plugin.call("settings", Value::Null);
    assert_eq!(settings().await.unwrap_err().code, "not_configured");
    plugin.configure(&json!({ "url": "https://a" })).await.unwrap();
    assert_eq!(settings().await.unwrap(), "a");
    let other = Context { tenant: "acme".to_owned(), ..Context::default() };
    let other = plugin.call_as(other, "settings", &Value::Null, LONG).await.unwrap();
    assert_eq!(other.unwrap_err().code, "not_configured");
    let failure = plugin.configure(&json!({ "url": "http://b" })).await.unwrap_err();
    assert_eq!(failure.code, "no_https");
    assert_eq!(settings().await.unwrap_err().code, "no_https");
    let failure = plugin.configure(&json!({ "url": 5, "password": "s3cr3t" })).await.unwrap_err();
    assert_eq!(failure.code, "bad_configuration");
    assert!(!failure.message.contains("s3cr3t"), "{failure}");
    plugin.stop().await;
}

/// What an older one gives is thrown away.
#[tokio::test]
async fn the_last_configuration_holds_though_an_older_one_is_made_later() {
    let Some(lab) = lab() else { return };
    let plugin = kit(lab).start().await;
    let configure = async |settings: Value| {
        let settings = settings.to_string().into();
        plugin.client().configure("test", settings, LONG).await.unwrap()
    };
    let settings = || plugin.call("settings", Value::Null);
    let slow = configure(json!({ "url": "https://old", "wait_ms": 1_000 }));
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        configure(json!({ "url": "https://new" })).await.unwrap();
        settings().await.unwrap()
    };
    let (late, now) = tokio::join!(slow, meanwhile);
    assert_eq!((&*late.unwrap_err().code, now), ("overtaken", json!("new")));
    assert_eq!(settings().await.unwrap(), "new");
    plugin.stop().await;
}

/// go-plugin 1.0 sends what is printed into a pipe that nobody reads: then the plugin would stop.
#[tokio::test]
async fn printing_does_not_stop_it() {
    let Some(lab) = lab() else { return };
    let plugin = kit(lab).start().await;
    for _ in 0..2 {
        plugin.call("print", Value::Null).await.unwrap();
    }
    plugin.until_logged("printed by the plugin").await;
    plugin.stop().await;
}

#[test]
fn its_messages_are_those_of_the_contract() {
    let made = tempfile::tempdir().unwrap();
    let done = script(Command::new(Path::new(HERE).join("messages.sh")).arg(made.path()));
    if let Err(reason) = done {
        return skipped(&format!("no messages in Go: {reason}"));
    }
    let name = "plugin.pb.go";
    let committed = Path::new(HERE).join("flexcoreplugin/pluginv1").join(name);
    let [made, committed] = [made.path().join(name), committed].map(|path| fs::read(path).unwrap());
    assert!(made == committed, "run src/sdk/go/messages.sh");
}

/// `a = 4 << 20`, `a = 65_536`.
fn limit(line: &str) -> Option<(&str, usize)> {
    let (name, value) = line.trim().split_once(" = ")?;
    let number = |text: &str| text.replace('_', "").parse::<usize>().ok();
    let value = match value.split_once(" << ") {
        Some((value, shift)) => number(value)? << number(shift)?,
        None => number(value)?,
    };
    Some((name, value))
}

#[test]
fn its_limits_and_its_cookie_are_those_of_the_host() {
    let read = |file: &str| fs::read_to_string(Path::new(HERE).join("flexcoreplugin").join(file));
    let text = read("limits.go").unwrap();
    let of_contract = text.split(")\n").next().unwrap();
    let known: Vec<_> = of_contract.lines().filter_map(limit).collect();
    let expected = [
        ("contractVersion", usize::try_from(contract::VERSION).unwrap()),
        ("wordBytesMax", limits::WORD_BYTES_MAX),
        ("functionsMax", limits::FUNCTIONS_MAX),
        ("descriptionBytesMax", limits::DESCRIPTION_BYTES_MAX),
        ("configurationBytesMax", limits::CONFIGURATION_BYTES_MAX),
        ("inputBytesMax", limits::INPUT_BYTES_MAX),
        ("outputBytesMax", limits::OUTPUT_BYTES_MAX),
        ("batchItemsMax", limits::BATCH_ITEMS_MAX),
        ("envelopeBytesMax", limits::ENVELOPE_BYTES_MAX),
        ("messageBytesMax", limits::FAILURE_MESSAGE_BYTES_MAX),
        ("detailsBytesMax", limits::DETAILS_BYTES_MAX),
        ("eventsMax", limits::EVENTS_MAX),
        ("eventNameBytesMax", limits::EVENT_NAME_BYTES_MAX),
    ];
    assert_eq!(known, expected);
    // One limit stands for two each in Go.
    assert_eq!(limits::BATCH_BYTES_MAX, limits::INPUT_BYTES_MAX);
    assert_eq!(limits::RESULTS_BYTES_MAX, limits::OUTPUT_BYTES_MAX);
    assert_eq!(limits::CALL_WAIT_MAX.as_secs(), 3_600);
    assert!(of_contract.contains("callWaitMax = time.Hour\n"));
    let drain =
        format!("drainWait = {} * time.Millisecond\n", limits::SERVE_DRAIN_WAIT.as_millis());
    assert!(text.contains(&drain), "{drain}");
    let Cookie { key, value } = Cookie::flexcore();
    let run = read("run.go").unwrap();
    assert!(run.contains(&format!("MagicCookieKey:   \"{key}\"")));
    assert!(run.contains(&format!("MagicCookieValue: \"{value}\"")));
}
