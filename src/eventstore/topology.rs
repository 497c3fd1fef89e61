//! The streams: what they keep, and the check that an existing one keeps it.

use std::time::Duration;

use async_nats::jetstream::{
    self, ErrorCode,
    context::{CreateStreamError, CreateStreamErrorKind},
    stream::{
        Config, DiscardPolicy, PersistenceMode, RetentionPolicy, Source, StorageType,
        SubjectTransform,
    },
};
use flexcore_broker::{
    monitoring::varz,
    stream::{check, found, narrowed},
};
use flexcore_domain::limits::{COMMIT_BYTES_MAX, QUEUED_BYTES_MAX};

use crate::{COMMIT_HEADERS_BYTES, Error, Profile, Settings, identity, subjects, unavailable};

/// Commits, for ever.
pub const EVENTS: &str = "FLEX_EVENTS";
/// Asynchronous commands, until they are processed.
pub const COMMANDS: &str = "FLEX_COMMANDS";
/// Messages that could not be processed.
pub const DEAD: &str = "FLEX_DEAD";
/// All that lies in [`DEAD`].
pub const DEAD_SUBJECTS: &str = "dead.>";
/// Outcomes of asynchronous commands that left nothing in the log, for later questions.
pub const OUTCOMES: &str = "FLEX_OUTCOMES";
/// All that lies in [`OUTCOMES`].
pub(crate) const OUTCOMES_SUBJECTS: &str = "outcome.>";
/// Progress of the commands of each slot, laid out as a KV bucket named `flex_queue`.
pub const PROGRESS: &str = "KV_flex_queue";
/// The secret that gateways and workers share, laid out as a KV bucket named `flex_secrets`. Nothing else
/// lies in it: the other streams can be deleted or given to read without it.
pub const SECRETS: &str = "KV_flex_secrets";
/// Snapshots of aggregates, laid out as a KV bucket named `flex_snapshots`.
pub const SNAPSHOTS: &str = "KV_flex_snapshots";
/// Configurations of plugins, sealed, laid out as a KV bucket named `flex_plugin_configurations`. A tenant has
/// one at most of each plugin, and all of a plugin's go when it is removed, so what is installed bounds its part.
pub const PLUGIN_CONFIGURATIONS: &str = "KV_flex_plugin_configurations";
/// Files of plugins, laid out as an object store named [`FILES_BUCKET`]. It is made when the first one is
/// stored, since the broker reserves what it may take.
pub const FILES: &str = "OBJ_flex_plugins";
/// Its name as an object store.
pub const FILES_BUCKET: &str = "flex_plugins";

/// Most bytes of commands that wait. More are refused with an error to the publisher.
const COMMANDS_BYTES_MAX: i64 = 1 << 30;
/// Most bytes of dead messages; then the oldest go.
const DEAD_BYTES_MAX: i64 = 256 << 20;
/// Most bytes of outcomes; then the oldest go.
const OUTCOMES_BYTES_MAX: i64 = 256 << 20;
/// Most bytes of plugins' files: sixteen of the largest, and many more of usual ones. A plugin that was installed
/// in two versions has two. More are refused.
pub const FILES_BYTES_MAX: i64 = 4 << 30;
/// Time for which an outcome that is not in the log can be asked for.
const OUTCOMES_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Shortest window that the broker takes, for streams that only we write to, without `Nats-Msg-Id`.
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);
/// The declared source of FLEX_COMMANDS, besides its publishers: nothing is ever published there. A
/// stream with a source has no duplicate window, and in no other way does the broker go without
/// one. It would span all aggregates and tenants: a command that shares its `Nats-Msg-Id` with
/// another's was acknowledged, and not stored.
const NO_SOURCE: (&str, &str) = (DEAD, "dead.none");

/// The streams of an installation, as they are made.
pub(crate) fn streams(settings: &Settings) -> [Config; 8] {
    let base = Config {
        num_replicas: settings.replicas,
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    };
    [
        Config {
            name: EVENTS.to_owned(),
            subjects: vec![subjects::ALL.to_owned()],
            discard: DiscardPolicy::New,
            deny_delete: true,
            deny_purge: true,
            allow_direct: true,
            allow_atomic_publish: true,
            ..base.clone()
        },
        // Before the stream that names it as its source.
        Config {
            name: DEAD.to_owned(),
            subjects: vec![DEAD_SUBJECTS.to_owned()],
            max_bytes: DEAD_BYTES_MAX,
            allow_direct: true,
            ..base.clone()
        },
        commands(&base),
        Config {
            name: OUTCOMES.to_owned(),
            subjects: vec![OUTCOMES_SUBJECTS.to_owned()],
            max_bytes: OUTCOMES_BYTES_MAX,
            max_age: OUTCOMES_AGE_MAX,
            max_messages_per_subject: 1,
            allow_direct: true,
            ..base.clone()
        },
        Config {
            name: PROGRESS.to_owned(),
            subjects: vec!["$KV.flex_queue.*".to_owned()],
            max_messages_per_subject: 1,
            allow_rollup: true,
            allow_direct: true,
            ..base.clone()
        },
        // Asked of its leader alone.
        Config {
            name: SECRETS.to_owned(),
            subjects: vec!["$KV.flex_secrets.*".to_owned()],
            max_messages_per_subject: 1,
            ..base.clone()
        },
        configurations(&base),
        Config {
            name: SNAPSHOTS.to_owned(),
            subjects: vec!["$KV.flex_snapshots.>".to_owned()],
            max_messages_per_subject: 1,
            allow_rollup: true,
            allow_direct: true,
            // A lost snapshot costs a longer load, so none waits for the disk; replicated streams
            // refuse this mode, and need it less, since Raft groups their syncs.
            persist_mode: (settings.replicas == 1).then_some(PersistenceMode::Async),
            ..base
        },
    ]
}

/// Asked of its leader alone.
fn configurations(base: &Config) -> Config {
    Config {
        name: PLUGIN_CONFIGURATIONS.to_owned(),
        subjects: vec!["$KV.flex_plugin_configurations.>".to_owned()],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        ..base.clone()
    }
}

fn commands(base: &Config) -> Config {
    let commands = SubjectTransform {
        source: subjects::PUBLISHED.to_owned(),
        destination: subjects::stored_of_published(),
    };
    Config {
        name: COMMANDS.to_owned(),
        subjects: vec![subjects::PUBLISHED.to_owned()],
        subject_transform: Some(commands),
        discard: DiscardPolicy::New,
        max_bytes: COMMANDS_BYTES_MAX,
        // A larger message can only be put aside: its publisher learns it at once.
        max_message_size: i32::try_from(QUEUED_BYTES_MAX).unwrap_or(i32::MAX),
        allow_atomic_publish: true,
        duplicate_window: Duration::ZERO,
        sources: Some(vec![Source {
            name: NO_SOURCE.0.to_owned(),
            filter_subject: Some(NO_SOURCE.1.to_owned()),
            ..Source::default()
        }]),
        ..base.clone()
    }
}

/// Creates what is missing and checks what is there. Every stream names the log that it belongs to:
/// snapshots, outcomes and progress of another one would be taken for this one's.
pub(crate) async fn create(
    jetstream: &jetstream::Context,
    settings: &Settings,
) -> Result<(), Error> {
    let mut log: Option<String> = None;
    for wanted in streams(settings) {
        let kept = format!("the profile {} needs", settings.profile);
        log = Some(create_one(jetstream, wanted, log, &kept).await?);
    }
    Ok(())
}

/// Creates the stream of plugins' files, or checks the one that is there. It has as many replicas as the log:
/// tools do not know how many these are. Fails with [`Error::NoRoom`] where the broker cannot reserve what it
/// may take.
pub(crate) async fn create_files(jetstream: &jetstream::Context) -> Result<(), Error> {
    let log = found(jetstream, EVENTS).await?;
    let log = log.ok_or_else(|| unavailable(format!("there is no stream {EVENTS}")))?;
    let wanted = files(log.config.num_replicas);
    create_one(jetstream, wanted, Some(identity::of_log(&log)), "is needed:").await.map(drop)
}

fn files(num_replicas: usize) -> Config {
    Config {
        name: FILES.to_owned(),
        subjects: ["C", "M"].map(|part| format!("$O.{FILES_BUCKET}.{part}.>")).to_vec(),
        num_replicas,
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        duplicate_window: DUPLICATE_WINDOW,
        discard: DiscardPolicy::New,
        max_bytes: FILES_BYTES_MAX,
        allow_rollup: true,
        allow_direct: true,
        ..Config::default()
    }
}

/// Creates a stream, or checks the one that is there. Returns the log that it belongs to, which is the one
/// that is given, if one is.
async fn create_one(
    jetstream: &jetstream::Context,
    mut wanted: Config,
    log: Option<String>,
    needs: &str,
) -> Result<String, Error> {
    let name = wanted.name.clone();
    wanted.metadata = identity::metadata(&log.clone().unwrap_or_else(identity::fresh));
    let stream = match jetstream.get_or_create_stream(wanted.clone()).await {
        Ok(stream) => stream,
        // Made by another process meanwhile, with another identity.
        Err(error) => jetstream.get_stream(&name).await.map_err(|_| uncreated(&name, &error))?,
    };
    let info = stream.cached_info();
    let found = &info.config;
    check(&wanted, found).map_err(|(what, wanted, found)| {
        Error::Misconfigured(format!(
            "stream {name} has {what} {found} where {needs} {wanted}; \
             change the stream with `nats stream edit {name}`, or start with an empty store"
        ))
    })?;
    let narrowed = narrowed(&wanted, found);
    if let Some(narrowed) = &narrowed
        && let Err(error) = jetstream.update_stream(narrowed).await
    {
        // A message that is put aside is cut to fit all the same.
        tracing::warn!(stream = name, %error, "the stream takes larger messages than it should");
    }
    let log = log.unwrap_or_else(|| identity::of_log(info));
    match identity::named(found) {
        None => {
            let found = narrowed.unwrap_or_else(|| found.clone());
            identity::write(jetstream, found, &log).await;
        }
        Some(named) if named == log => {}
        Some(named) => return Err(of_another_log(&name, named, &log)),
    }
    Ok(log)
}

fn uncreated(name: &str, error: &CreateStreamError) -> Error {
    let said = format!("creating stream {name}: {error}");
    let full = [ErrorCode::INSUFFICIENT_RESOURCES, ErrorCode::STORAGE_RESOURCES_EXCEEDED];
    match error.kind() {
        CreateStreamErrorKind::JetStream(cause) if full.contains(&cause.error_code()) => {
            Error::NoRoom(said)
        }
        _ => unavailable(said),
    }
}

fn of_another_log(name: &str, named: &str, log: &str) -> Error {
    Error::Misconfigured(format!(
        "stream {name} belongs to the log {named}, and {EVENTS} is the log {log}: one of them was \
         deleted or restored without the other. Restore the two that belong together; or, when what \
         {name} holds may be lost, delete it with `nats stream rm {name}` and start again"
    ))
}

/// Oldest server whose `sync_interval: always` has no known hole.
const SERVER_VERSION_MIN: (i64, i64, i64) = (2, 15, 0);

/// Least `max_payload` of a server: the largest commit, with its headers. Everything else that is stored is
/// smaller, or is cut.
const MAX_PAYLOAD_MIN: usize = COMMIT_BYTES_MAX + COMMIT_HEADERS_BYTES;

/// Checks the server's version, the size of its messages and, for the profile `power-loss`, that it syncs
/// before it acknowledges.
pub(crate) async fn check_profile(
    client: &async_nats::Client,
    settings: &Settings,
) -> Result<(), Error> {
    let (major, minor, patch) = SERVER_VERSION_MIN;
    if !client.is_server_compatible(major, minor, patch) {
        return Err(Error::Misconfigured(format!(
            "nats-server {} is too old: {major}.{minor} or later is needed",
            client.server_info().version
        )));
    }
    takes_messages_of(client.max_payload())?;
    if settings.profile == Profile::Relaxed {
        return Ok(());
    }
    if settings.monitor_urls.is_empty() {
        return Err(Error::Misconfigured(
            "the profile power-loss is checked at the servers' monitoring addresses: \
             give them with --nats-monitor (nats.conf: `http`), or use --profile relaxed"
                .to_owned(),
        ));
    }
    let asked = settings
        .monitor_urls
        .iter()
        .map(|url| async move { (url, varz(url).await.map_err(Error::from)) });
    syncs(futures::future::join_all(asked).await)
}

fn takes_messages_of(max_payload: usize) -> Result<(), Error> {
    if max_payload < MAX_PAYLOAD_MIN {
        return Err(Error::Misconfigured(format!(
            "the server takes messages of {max_payload} bytes at most, and {MAX_PAYLOAD_MIN} are needed: \
             set `max_payload: 1MB` in nats.conf"
        )));
    }
    Ok(())
}

/// True if servers that answered at these addresses sync before they acknowledge. One that is away
/// is not in the way of the others' work as long as most of them answer.
fn syncs(answers: Vec<(&String, Result<serde_json::Value, Error>)>) -> Result<(), Error> {
    let (asked, mut well, mut away) = (answers.len(), 0, None);
    for (url, answer) in answers {
        match answer {
            Ok(varz) if varz["jetstream"]["config"]["sync_always"] == true => well += 1,
            Ok(_) => {
                return Err(Error::Misconfigured(format!(
                    "the server at {url} does not sync before it acknowledges, so \
                     the profile power-loss would promise too much: set `jetstream {{ sync_interval: \
                     always }}` in nats.conf, or start with --profile relaxed"
                )));
            }
            Err(error) => away = Some(error),
        }
    }
    match away {
        Some(error) if well * 2 <= asked => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(answers: &[Option<bool>]) -> Result<(), Error> {
        let urls: Vec<String> = (0..answers.len()).map(|n| format!("http://n{n}")).collect();
        let answers = answers.iter().map(|answer| match answer {
            Some(syncs) => Ok(json!({"jetstream": {"config": {"sync_always": syncs}}})),
            None => Err(Error::Unavailable("away".to_owned())),
        });
        syncs(urls.iter().zip(answers).collect())
    }

    #[test]
    fn a_stream_that_would_lose_something_is_refused() {
        let settings =
            Settings { profile: Profile::Relaxed, replicas: 3, monitor_urls: Vec::new() };
        let named =
            |name: &str| streams(&settings).into_iter().find(|stream| stream.name == name).unwrap();
        for wanted in streams(&settings) {
            // As the broker tells limits that were not given.
            let limit = |limit: i64| if limit == 0 { -1 } else { limit };
            let found = Config {
                max_messages_per_subject: limit(wanted.max_messages_per_subject),
                max_messages: -1,
                max_bytes: limit(wanted.max_bytes),
                ..wanted.clone()
            };
            assert_eq!(check(&wanted, &found), Ok(()), "{}", wanted.name);
        }
        type Change = fn(&mut Config);
        let changes: [(&str, &str, Change); 14] = [
            (EVENTS, "max_msgs_per_subject", |c| c.max_messages_per_subject = 100),
            (EVENTS, "max_age", |c| c.max_age = Duration::from_secs(3600)),
            (EVENTS, "discard policy", |c| c.discard = DiscardPolicy::Old),
            (EVENTS, "deny_delete", |c| c.deny_delete = false),
            (EVENTS, "replicas", |c| c.num_replicas = 1),
            (COMMANDS, "duplicate_window", |c| c.duplicate_window = Duration::from_secs(120)),
            (COMMANDS, "sources", |c| c.sources = None),
            (PROGRESS, "max_msgs_per_subject", |c| c.max_messages_per_subject = -1),
            (PROGRESS, "max_msgs", |c| c.max_messages = 10),
            (SECRETS, "max_age", |c| c.max_age = Duration::from_secs(3600)),
            (OUTCOMES, "max_bytes", |c| c.max_bytes = 1 << 20),
            (EVENTS, "max_msg_size", |c| c.max_message_size = 512 << 10),
            (DEAD, "max_msg_size", |c| c.max_message_size = 512 << 10),
            (COMMANDS, "max_msg_size", |c| c.max_message_size -= 1),
        ];
        for (name, what, change) in changes {
            let (wanted, mut found) = (named(name), named(name));
            change(&mut found);
            let said = check(&wanted, &found).map_err(|(what, ..)| what);
            assert_eq!(said, Err(what), "{name}");
        }
    }

    /// Else the broker's own tools would not find them.
    #[test]
    fn plugins_files_lie_as_in_any_object_store() {
        let wanted = files(3);
        assert_eq!(wanted.name, format!("OBJ_{FILES_BUCKET}"));
        assert_eq!(wanted.subjects, ["$O.flex_plugins.C.>", "$O.flex_plugins.M.>"]);
        assert!(wanted.allow_rollup && wanted.allow_direct);
        let said = check(&wanted, &files(1)).map_err(|(what, ..)| what);
        assert_eq!(said, Err("replicas"));
    }

    #[test]
    fn a_queue_without_a_largest_message_gets_one() {
        let settings =
            Settings { profile: Profile::Relaxed, replicas: 1, monitor_urls: Vec::new() };
        for wanted in streams(&settings) {
            let unlimited = Config { max_message_size: -1, ..wanted.clone() };
            let narrowed = narrowed(&wanted, &unlimited).map(|config| config.max_message_size);
            let limit = i32::try_from(QUEUED_BYTES_MAX).unwrap();
            assert_eq!(narrowed, (wanted.name == COMMANDS).then_some(limit), "{}", wanted.name);
            assert_eq!(super::narrowed(&wanted, &wanted), None, "{}", wanted.name);
        }
    }

    #[test]
    fn a_server_that_takes_too_little_is_refused() {
        let least = 960 * 1_024 + 1_024;
        for (bytes, is_taken) in [(least - 1, false), (least, true), (1 << 20, true)] {
            assert_eq!(takes_messages_of(bytes).is_ok(), is_taken, "{bytes}");
        }
    }

    #[test]
    fn most_servers_must_answer_and_all_that_do_must_sync() {
        assert!(checked(&[Some(true)]).is_ok());
        assert!(checked(&[Some(true), None, Some(true)]).is_ok());
        for too_few in [&[None][..], &[Some(true), None], &[Some(true), None, None]] {
            assert!(matches!(checked(too_few), Err(Error::Unavailable(_))), "{too_few:?}");
        }
        let lazy = checked(&[Some(true), Some(true), Some(false)]).unwrap_err().to_string();
        assert!(lazy.contains("http://n2 does not sync"), "{lazy}");
    }
}
