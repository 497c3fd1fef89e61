//! Everything that there is to see of an installation at rest, as one story for the checker.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};

use crate::{
    checker::{self, Story, stored::Outcome},
    cluster::TENANTS,
    evidence::{self, Log, Rows},
    history::{Call, History, Told},
    listener::{self, Listener},
    talk::{self, Place, Talk},
};

/// Longest time for a listener to notice that it was cut off, and to catch up.
const LISTENER_WAIT: Duration = Duration::from_secs(40);
/// Questions for outcomes at a time, how long each may take, and how often each is asked.
const OUTCOMES_AT_ONCE: usize = 8;
const OUTCOME_WAIT: Duration = Duration::from_secs(10);
const OUTCOME_TRIES: usize = 5;
/// Of the stored commands that the log has, each so many is asked for, too.
const OUTCOME_OF_EACH: usize = 10;

/// The story, but for what only the harness of the processes can give.
pub(crate) async fn story(
    place: &Place,
    history: &History,
    listener: &Listener,
) -> Result<Story, String> {
    let client = talk::connect(&place.nats).await;
    let log = evidence::log(&client).await?;
    let calls = history.calls();
    Ok(Story {
        outcomes: outcomes(place, &calls, &log).await,
        calls,
        reads: history.reads(),
        begun_ms: history.begun_ms,
        heard: heard(listener, &log).await,
        log,
        rows: rows(place).await?,
        ..Story::default()
    })
}

/// Every row.
pub(crate) async fn rows(place: &Place) -> Result<Rows, String> {
    let mut postgres = evidence::postgres(&place.postgres).await?;
    evidence::rows(&mut postgres).await.map_err(|error| error.to_string())
}

/// Work that is not done yet; `None`: nothing.
pub(crate) async fn waiting(
    place: &Place,
    client: &async_nats::Client,
) -> Result<Option<String>, String> {
    let jetstream = async_nats::jetstream::new(client.clone());
    let queue = jetstream.get_stream("FLEX_COMMANDS").await.map_err(|e| e.to_string())?;
    // Settled commands are purged every few seconds.
    let left = queue.cached_info().state.messages;
    if left > 0 {
        return Ok(Some(format!("{left} queued commands wait")));
    }
    let log = evidence::log(client).await?;
    if checker::rows::fold(&log.commits) == rows(place).await? {
        return Ok(None);
    }
    Ok(Some("the rows are not the fold of the log yet".to_owned()))
}

/// Asks for stored commands: all that left no event, and some of the others.
async fn outcomes(
    place: &Place,
    calls: &[Call],
    log: &Log,
) -> BTreeMap<(String, String, String), Outcome> {
    let mut recorded = BTreeSet::new();
    for commit in &log.commits {
        let tag = commit.changes.first().map_or("", |change| &change.tag);
        recorded.insert((commit.tenant.as_str(), commit.key.as_str(), tag));
    }
    let stored = calls.iter().filter(|call| call.told == Told::Queued);
    let asked: BTreeSet<(&str, &str, &str)> = stored
        .enumerate()
        .filter(|(number, call)| {
            let known = recorded.contains(&(call.tenant, &call.key, &call.tag));
            !known || number.is_multiple_of(OUTCOME_OF_EACH)
        })
        .map(|(_, call)| (call.tenant, call.account.as_str(), call.key.as_str()))
        .collect();
    let talk = Talk::new(place).await;
    let asking = asked.into_iter().map(|(tenant, account, key)| {
        let talk = &talk;
        async move {
            let outcome = outcome(talk, tenant, account, key).await;
            ((tenant.to_owned(), account.to_owned(), key.to_owned()), outcome)
        }
    });
    stream::iter(asking).buffer_unordered(OUTCOMES_AT_ONCE).collect().await
}

async fn outcome(talk: &Talk, tenant: &str, account: &str, key: &str) -> Outcome {
    let tenant = TENANTS.iter().position(|name| *name == tenant).unwrap();
    let mut tries = 1;
    loop {
        let gateway = tries % talk.gateways() + 1;
        let outcome = talk.outcome(gateway, tenant, (account, key), OUTCOME_WAIT).await;
        if !matches!(outcome, Outcome::Strange(_)) || tries >= OUTCOME_TRIES {
            return outcome;
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The listener's events, once it has heard of the log's end or had the time for it.
async fn heard(listener: &Listener, log: &Log) -> Vec<listener::Heard> {
    let of_tenant = log.commits.iter().filter(|commit| commit.tenant == listener::TENANT);
    let last = of_tenant.map(|commit| commit.sequence).max();
    let start = Instant::now();
    while listener.last() < last && start.elapsed() < LISTENER_WAIT {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    listener.heard()
}
