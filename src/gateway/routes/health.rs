//! Health: alive without looking at anything, ready while the broker answers, started when everything
//! needed was there once.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use axum::extract::State;
use flexcore_definition::Catalog;
use flexcore_domain::log::ADVICE;
use flexcore_eventstore as eventstore;
use flexcore_http::{
    Response,
    health::{self, Missing},
};
use flexcore_readmodel::{self as readmodel, Serving};

use crate::{
    error::Problem,
    limits::{READINESS_AGE, READINESS_TIMEOUT},
    problems,
    shared::Shared,
};

/// Between two looks at what is needed when nobody asks.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Most read models in trouble that are named; of others their number is told. 20: who needs more asks
/// `flexcore cluster`.
const TROUBLES_NAMED_MAX: usize = 20;

const POSTGRES: &str = "postgres";
const READ_MODELS: &str = "read models";
const HELD: &str = "the log is broken in an aggregate, whose events are held back from there on";
const DEPLOYMENTS: &str = "deployments";
const STORAGE: &str = "storage";
const MEMORY: &str = "memory";
const NEAR: &str =
    "a nats-server nears the limit of its memory: give the servers more before one is killed";
/// Without these a gateway is of use: one that a balancer leaves does nothing at all.
const DEGRADES: [&str; 5] = [POSTGRES, READ_MODELS, DEPLOYMENTS, STORAGE, MEMORY];

/// Looks at what is needed until the gateway drains, whether anybody asks for it or not.
pub(crate) async fn watch(shared: Arc<Shared>) {
    while shared.shutdown.run_until_cancelled(tokio::time::sleep(WATCH_EVERY)).await.is_some() {
        look(&shared).await;
    }
}

/// `GET /livez`
pub(crate) async fn live() -> Response<String> {
    health::live()
}

/// `GET /readyz`
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Response<String> {
    readiness(shared).await
}

/// Says that the gateway can do its work, or what is missing. It is of use without Postgres: a
/// balancer that left every gateway for it would take the commands down as well.
pub(crate) async fn readiness(shared: Arc<Shared>) -> Response<String> {
    let missing = missing(&shared).await;
    health::ready(&missing, missing.iter().all(|missing| DEGRADES.contains(&missing.what)))
}

/// `GET /startupz`: everything needed was there once.
pub(crate) async fn started(State(shared): State<Arc<Shared>>) -> Response<String> {
    let has_started = || shared.readiness.started.load(Ordering::Relaxed);
    if has_started() {
        return health::started();
    }
    let missing = missing(&shared).await;
    if has_started() { health::started() } else { health::not_ready(&missing) }
}

/// `GET /metrics`
pub(crate) async fn metrics(
    State(shared): State<Arc<Shared>>,
) -> Result<Response<String>, Problem> {
    if shared.metrics_apart {
        let detail = "metrics are on a port of their own";
        return Err(Problem::new(&problems::NOT_FOUND, detail));
    }
    Ok(health::metrics(&shared.metrics))
}

async fn missing(shared: &Shared) -> Arc<[Missing]> {
    if shared.is_draining() {
        return Arc::from([Missing { what: "gateway", why: "it is stopping".into() }]);
    }
    look(shared).await
}

/// Asks what is needed, unless it was asked just now. One look at a time, whoever asks.
async fn look(shared: &Shared) -> Arc<[Missing]> {
    let mut found = shared.readiness.found.lock().await;
    if let Some((at, missing)) = &*found
        && at.elapsed() < READINESS_AGE
    {
        return missing.clone();
    }
    let log = check("nats", async {
        shared.store.last_sequence().await.map_err(|error| error.to_string())
    });
    let rows = check(POSTGRES, async {
        shared.read_models.ping().await.map_err(|error| error.to_string())
    });
    let (log, rows, told) = tokio::join!(log, rows, read_models(shared));
    let told = told.filter(|_| rows.is_none());
    let unread = (!shared.catalog().unreadable.is_empty()).then_some(Missing {
        what: DEPLOYMENTS,
        why:
            "the last version of an application cannot be read here; the one before it is in force"
                .into(),
    });
    let full = shared.store.check_room().err();
    let full = full.map(|error| Missing { what: STORAGE, why: error.to_string().into() });
    let near = shared.store.broker_memory_is_near();
    let near = near.then_some(Missing { what: MEMORY, why: NEAR.into() });
    let missing = log.into_iter().chain(rows).chain(told).chain(unread).chain(full).chain(near);
    let missing: Arc<[Missing]> = missing.collect();
    // All that degrades but Postgres, without which nothing can be asked for.
    let starts = |missing: &Missing| missing.what != POSTGRES && DEGRADES.contains(&missing.what);
    if missing.iter().all(starts) {
        shared.readiness.started.store(true, Ordering::Relaxed);
    }
    *found = Some((Instant::now(), missing.clone()));
    missing
}

/// The first read model that serves by a former declaration and has not read the whole log: it may stand
/// before an event that is newer than that, until its successor is built.
fn behind(catalog: &Catalog, serving: &[Serving], last: u64) -> Option<String> {
    let is_former = |version: &&Serving| {
        let declared = catalog.read_model(version.read_model.as_str());
        declared.is_some_and(|declared| declared.fingerprint != version.fingerprint)
    };
    let mut former = serving.iter().filter(is_former);
    let late = former.find(|version| version.position_max < last)?;
    let behind = last - late.position_max;
    Some(format!(
        "{} is being built anew; until then the version that serves may stand still, now {behind} \
         commits behind",
        late.read_model
    ))
}

/// What is wrong with the read models: their tables were dropped, they are of another log, they hold
/// back an aggregate that is broken in the log, one of them cannot be managed, stands still, or is old. When
/// Postgres or the broker is away, nobody can tell. No word of theirs is passed on, but the name of a plugin that
/// rows wait for: Postgres names objects of others, which strangers need not know.
async fn read_models(shared: &Shared) -> Option<Missing> {
    let compared = async {
        let marks = shared.read_models.marks().await?;
        let recognised = shared.store.recognise(&marks).await;
        let is_other = matches!(recognised, Err(eventstore::Error::OtherLog(_)));
        if is_other || recognised.is_ok() {
            shared.readiness.other_log.store(is_other, Ordering::Relaxed);
        }
        if is_other {
            return Ok(Some(format!(
                "they are of another log, as `flexcore verify` says. {ADVICE}"
            )));
        }
        if shared.read_models.held_in_all().await? > 0 {
            return Ok(Some(HELD.to_owned()));
        }
        let troubles = shared.read_models.troubles().await?;
        if !troubles.is_empty() {
            return Ok(Some(in_trouble(&troubles)));
        }
        let serving = shared.read_models.serving().await?;
        Ok(recognised.ok().and_then(|end| behind(&shared.catalog(), &serving, end.last_sequence)))
    };
    let why = match tokio::time::timeout(READINESS_TIMEOUT, compared).await {
        Ok(Ok(why)) => why?,
        Ok(Err(readmodel::Error::Gone(_))) => {
            "their tables were dropped; a projection worker makes them anew".to_owned()
        }
        _ => return None,
    };
    Some(Missing { what: READ_MODELS, why: why.into() })
}

/// The troubles of read models, as strangers are told them.
fn in_trouble(troubles: &BTreeMap<String, String>) -> String {
    let told = |(name, what): (&String, &String)| match readmodel::plugin_waited_for(what) {
        Some(plugin) => format!("{name} waits for plugin {plugin}"),
        None => format!("{name} is in trouble"),
    };
    let named: Vec<String> = troubles.iter().take(TROUBLES_NAMED_MAX).map(told).collect();
    let more = match troubles.len() - named.len() {
        0 => String::new(),
        others => format!(", and so are {others} more"),
    };
    format!("{}{more}: `flexcore cluster` says why", named.join(", "))
}

/// The cause goes to the log: it may name hosts, which strangers need not know.
async fn check<T>(
    what: &'static str,
    asked: impl Future<Output = Result<T, String>>,
) -> Option<Missing> {
    let why = match tokio::time::timeout(READINESS_TIMEOUT, asked).await {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => {
            tracing::warn!(what, %error, "not ready");
            "it answers with an error"
        }
        Err(_) => "it does not answer",
    };
    Some(Missing { what, why: why.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_trouble_strangers_learn_the_plugin_that_is_missing_and_no_more() {
        let of_sums = |what: &str| in_trouble(&[("sums".to_owned(), what.to_owned())].into());
        let geo = format!("{}plugin geo (function locate): secret words", readmodel::WAITS_FOR);
        assert!(of_sums(&geo).starts_with("sums waits for plugin geo: "));
        for what in ["relation secret is locked", "plugin geo (function locate): secret words"] {
            assert!(of_sums(what).starts_with("sums is in trouble: "));
        }
        assert!(!of_sums(&geo).contains("secret"));
    }

    /// Of several that stood still only the first was named.
    #[test]
    fn every_read_model_in_trouble_is_named_up_to_a_limit() {
        let geo = format!("{}plugin geo (function locate): why", readmodel::WAITS_FOR);
        let two = [("sums".to_owned(), geo), ("flights".to_owned(), "locked".to_owned())];
        let said = in_trouble(&two.into());
        assert_eq!(
            said,
            "flights is in trouble, sums waits for plugin geo: `flexcore cluster` says why"
        );
        let many = |count: usize| {
            let all = (0..count).map(|number| (format!("m{number:03}"), "locked".to_owned()));
            in_trouble(&all.collect())
        };
        let said = many(TROUBLES_NAMED_MAX);
        assert_eq!(said.matches("is in trouble").count(), TROUBLES_NAMED_MAX);
        assert!(!said.contains("more"), "{said}");
        let said = many(TROUBLES_NAMED_MAX + 3);
        let end = "m019 is in trouble, and so are 3 more: `flexcore cluster` says why";
        assert!(said.ends_with(end), "{said}");
    }

    #[test]
    fn a_former_version_that_stands_still_is_told_until_its_successor_serves() {
        let catalog = crate::fixture::catalog();
        let model = catalog.read_model("flights").expect("the fixture has it");
        let serving = |fingerprint: &str, position_max| Serving {
            read_model: model.name.clone(),
            fingerprint: fingerprint.to_owned(),
            position_max,
        };
        let told = |serving| behind(&catalog, &[serving], 10);
        let said = told(serving("former", 7)).unwrap_or_default();
        assert!(said.starts_with("flights is being built anew") && said.contains("3 commits"));
        assert_eq!(told(serving("former", 10)), None, "it has read all");
        assert_eq!(told(serving(&model.fingerprint, 7)), None, "it reads on");
        assert_eq!(behind(&Catalog::default(), &[serving("former", 7)], 10), None, "removed");
    }
}
