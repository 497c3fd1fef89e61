//! Looks for a stream, and checks of one that is there against the settings that are wanted.

use async_nats::jetstream::{
    self, ErrorCode,
    context::GetStreamErrorKind,
    stream::{Config, DiscardPolicy, Info, PersistenceMode},
};

use crate::{Error, unavailable};

/// A stream as it is now; `None`: there is none of this name. Fails with [`Error::Unavailable`].
#[boxed::async_recursion]
pub async fn found(jetstream: &jetstream::Context, name: &str) -> Result<Option<Info>, Error> {
    let error = match jetstream.get_stream(name).await {
        Ok(stream) => return Ok(Some(stream.cached_info().clone())),
        Err(error) => error,
    };
    match error.kind() {
        GetStreamErrorKind::JetStream(cause)
            if cause.error_code() == ErrorCode::STREAM_NOT_FOUND =>
        {
            Ok(None)
        }
        _ => Err(unavailable(format!("looking for stream {name}: {error}"))),
    }
}

/// A setting, the required and the found value.
pub type Contradiction = (&'static str, String, String);

/// Fails with the first setting in which a stream would lose or refuse what the wanted one keeps.
pub fn check(wanted: &Config, found: &Config) -> Result<(), Contradiction> {
    fn same<T: PartialEq + std::fmt::Debug>(
        what: &'static str,
        wanted: &T,
        found: &T,
    ) -> Result<(), Contradiction> {
        if wanted == found {
            return Ok(());
        }
        Err((what, format!("{wanted:?}"), format!("{found:?}")))
    }
    let mode = |config: &Config| config.persist_mode == Some(PersistenceMode::Async);
    same("subjects", &wanted.subjects, &found.subjects)?;
    same("storage", &wanted.storage, &found.storage)?;
    same("replicas", &wanted.num_replicas, &found.num_replicas)?;
    same("retention", &wanted.retention, &found.retention)?;
    same("deny_delete", &wanted.deny_delete, &found.deny_delete)?;
    same("deny_purge", &wanted.deny_purge, &found.deny_purge)?;
    same("max_age", &wanted.max_age, &found.max_age)?;
    same("subject transform", &wanted.subject_transform, &found.subject_transform)?;
    same("discard policy", &wanted.discard, &found.discard)?;
    same("duplicate_window", &wanted.duplicate_window, &found.duplicate_window)?;
    let sources = |config: &Config| {
        let sources = config.sources.iter().flatten();
        sources.map(|it| (it.name.clone(), it.filter_subject.clone())).collect::<Vec<_>>()
    };
    same("sources", &sources(wanted), &sources(found))?;
    // Beyond it a subject's oldest message goes, whatever the discard policy.
    let per_subject = |config: &Config| limit_text(config.max_messages_per_subject);
    same("max_msgs_per_subject", &per_subject(wanted), &per_subject(found))?;
    // A smaller message size refuses for good what may be stored.
    let message_size = |config: &Config| i64::from(config.max_message_size);
    at_least("max_msg_size", message_size(wanted), message_size(found))?;
    if wanted.discard == DiscardPolicy::Old {
        at_least("max_msgs", wanted.max_messages, found.max_messages)?;
        at_least("max_bytes", wanted.max_bytes, found.max_bytes)?;
    }
    same("allow_direct", &wanted.allow_direct, &found.allow_direct)?;
    same("allow_atomic", &wanted.allow_atomic_publish, &found.allow_atomic_publish)?;
    same("asynchronous persist_mode", &mode(wanted), &mode(found))
}

/// A limit that is lower than ours loses what is to be kept. Zero and less are none.
fn at_least(what: &'static str, wanted: i64, found: i64) -> Result<(), Contradiction> {
    let most = |limit| if limit > 0 { limit } else { i64::MAX };
    if most(found) >= most(wanted) {
        return Ok(());
    }
    Err((what, limit_text(wanted), limit_text(found)))
}

fn limit_text(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "without a limit".to_owned() }
}

/// The settings of a stream that was made before its messages had a largest size, with that size.
#[must_use]
pub fn narrowed(wanted: &Config, found: &Config) -> Option<Config> {
    let limited = wanted.max_message_size > 0;
    let wide = found.max_message_size <= 0 || found.max_message_size > wanted.max_message_size;
    (limited && wide).then(|| Config { max_message_size: wanted.max_message_size, ..found.clone() })
}
