//! Requests of strangers: without a token, with one that is not good, or with a head that is too long for
//! anybody to look for one. All of them together have so many places and a rate, apart from those of tenants.
//! Whoever asks how the gateway is, or for its keys, is none of them.
//!
//! Who is told a refusal at once comes again at once. So whatever a stranger is told counts, and what is
//! beyond the rate or finds no place is told late. Each connection may hold one refusal without a place; one
//! that brings more of them, as HTTP/2 can, is to leave.
//!
//! A token that was good before is found in the memory, whatever strangers do. One that nobody has seen
//! yet has to be checked, and is not refused for the bad ones of others. So that these cannot take the
//! processors, few are checked at once, and a bad one keeps its place for a while. Connections take
//! turns, so a good one waits for one bad one of each of them.

use std::{num::NonZeroU32, sync::Arc};

use flexcore_resilience::Shares;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use crate::{
    Settings,
    admission::shed,
    connections::Connection,
    error::Problem,
    limits::{
        CHECK_PATIENCE, CHECKS_AT_ONCE_MAX, STRANGER_REFUSED_AFTER, UNKNOWN_MAX, WRONG_TOKEN_KEEPS,
    },
    problems,
};

pub(crate) struct Strangers {
    rate: DefaultDirectRateLimiter,
    per_second: NonZeroU32,
    under_way: Arc<Semaphore>,
    /// One late refusal of each connection, beside those places. Here and below by its number.
    refusals: Shares<u64>,
    /// One wait for a check of each connection.
    first: Shares<u64>,
    /// All others.
    unknown: Shares<u64>,
    checks: Shares<u64>,
}

/// A stranger's place, free again when it is dropped.
pub(crate) type StrangerPlace = OwnedSemaphorePermit;

impl Strangers {
    pub(crate) fn new(settings: &Settings) -> Self {
        let per_second = settings.strangers_per_second;
        Self {
            rate: RateLimiter::direct(Quota::per_second(per_second)),
            per_second,
            under_way: Arc::new(Semaphore::new(settings.strangers_max)),
            refusals: Shares::limited(usize::MAX, 1, 1),
            first: Shares::limited(usize::MAX, 1, 1),
            unknown: Shares::new(UNKNOWN_MAX, 1),
            checks: Shares::new(CHECKS_AT_ONCE_MAX, 1),
        }
    }

    /// A place for a stranger's request. Fails when all are taken, and when the rate is used up; either is
    /// told late.
    pub(crate) async fn enter(&self, connection: &Connection) -> Result<StrangerPlace, Problem> {
        let Ok(place) = self.under_way.clone().try_acquire_owned() else {
            shed("strangers");
            match self.refusals.enter(&connection.number()) {
                Some(_place) => sleep(STRANGER_REFUSED_AFTER).await,
                None => connection.leave(),
            }
            let detail = "too many requests without a good token are under way; nothing was done";
            return Err(Problem::new(&problems::OVERLOADED, detail));
        };
        if self.rate.check().is_ok() {
            return Ok(place);
        }
        shed("strangers");
        sleep(STRANGER_REFUSED_AFTER).await;
        let per_second = self.per_second;
        let detail = format!("all who send no good token may send {per_second} requests a second");
        Err(Problem::new(&problems::RATE_LIMITED, detail))
    }

    /// What a stranger is told in place of an answer: this, as far as strangers are let in.
    pub(crate) async fn refuse(&self, connection: &Connection, problem: Problem) -> Problem {
        match self.enter(connection).await {
            // What is overloaded says so: the token may be a good one.
            Err(instead) if !problem.is(&problems::OVERLOADED) => instead,
            _ => problem,
        }
    }

    /// Checks a token that is in no memory, when it is this connection's turn. One of each connection may
    /// wait in any case: over HTTP/2 a few connections can take all places that are shared. Fails when this
    /// one has its share of them, or its turn does not come in time.
    pub(crate) async fn check<T, E>(
        &self,
        connection: &Connection,
        check: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, Problem> {
        let busy = || {
            shed("tokens");
            let detail = "too many tokens wait to be checked; nothing was done";
            Problem::new(&problems::OVERLOADED, detail)
        };
        let number = connection.number();
        let waits = self.first.enter(&number).or_else(|| self.unknown.enter(&number));
        let _waits = waits.ok_or_else(busy)?;
        let turn = timeout(CHECK_PATIENCE, self.checks.wait(&number)).await.map_err(|_| busy())?;
        let checked = check();
        if checked.is_err() {
            // Not here, where who hangs up would cut it short.
            tokio::spawn(async move {
                sleep(WRONG_TOKEN_KEEPS).await;
                drop(turn);
            });
        }
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::time::Instant;

    use super::*;
    use crate::{
        connections::Connections,
        limits::{HTTP2_STREAMS_MAX, STRANGERS_MAX},
    };

    fn strangers(per_second: u32) -> Arc<Strangers> {
        let strangers_per_second = NonZeroU32::new(per_second).unwrap();
        Arc::new(Strangers::new(&Settings { strangers_per_second, ..Settings::default() }))
    }

    fn connections<const N: usize>() -> [Arc<Connection>; N] {
        let all = Connections::new(N);
        std::array::from_fn(|_| all.open().unwrap())
    }

    impl Strangers {
        /// Requests that wait for a check.
        fn waiting(&self) -> usize {
            self.first.taken() + self.unknown.taken()
        }
    }

    /// That many connections send bad ones. The longest wait of another one's good token then.
    fn longest(connections: usize) -> Duration {
        // A timer may be a millisecond late.
        let each = WRONG_TOKEN_KEEPS + Duration::from_millis(1);
        each * u32::try_from(connections / CHECKS_AT_ONCE_MAX + 2).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_their_rate_strangers_are_told_so_late() {
        let (strangers, [one]) = (strangers(5), connections());
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(strangers.enter(&one).await.expect("within the rate"));
        }
        let asked = Instant::now();
        assert_eq!(strangers.enter(&one).await.unwrap_err().status(), 429);
        assert_eq!(asked.elapsed(), STRANGER_REFUSED_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn every_refusal_of_a_stranger_counts_and_what_is_overloaded_says_so() {
        let (strangers, [one]) = (strangers(1), connections());
        let told = async |kind| {
            let asked = Instant::now();
            let told = strangers.refuse(&one, Problem::new(kind, "why")).await;
            (told.status().as_u16(), asked.elapsed())
        };
        assert_eq!(told(&problems::URI_TOO_LONG).await, (414, Duration::ZERO));
        assert_eq!(told(&problems::URI_TOO_LONG).await, (429, STRANGER_REFUSED_AFTER));
        assert_eq!(told(&problems::OVERLOADED).await, (503, STRANGER_REFUSED_AFTER));
    }

    /// The first 1,024 were told late, and all others as fast as they could ask.
    #[tokio::test(start_paused = true)]
    async fn whoever_finds_no_place_is_told_late_and_who_asks_more_often_is_to_leave() {
        let (strangers, [one, other]) = (strangers(100_000), connections());
        let mut held = Vec::new();
        for _ in 0..STRANGERS_MAX {
            held.push(strangers.enter(&one).await.expect("a place is free"));
        }
        let asked = Instant::now();
        let refused = async || {
            assert_eq!(strangers.enter(&other).await.unwrap_err().status(), 503);
            asked.elapsed()
        };
        let (first, second) = tokio::join!(refused(), refused());
        assert_eq!((first, second), (STRANGER_REFUSED_AFTER, Duration::ZERO));
        other.leaves().await;
        let goes_on = timeout(Duration::from_secs(1), one.leaves()).await;
        assert!(goes_on.is_err(), "it was told nothing at once");
        held.pop();
        assert!(strangers.enter(&other).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_token_waits_for_one_bad_one_of_each_connection() {
        const CONNECTIONS: usize = 100;
        const BAD: usize = 2_000;
        let strangers = strangers(1);
        let [calm, flood @ ..] = connections::<{ CONNECTIONS + 1 }>();
        for connection in flood.iter().cycle().take(BAD) {
            let (strangers, connection) = (strangers.clone(), connection.clone());
            tokio::spawn(async move {
                let checked = strangers.check(&connection, || Err::<(), ()>(())).await;
                assert_eq!(checked.expect("it has its turn"), Err(()));
            });
        }
        while strangers.waiting() < BAD - CHECKS_AT_ONCE_MAX {
            tokio::task::yield_now().await;
        }
        let asked = Instant::now();
        let checked = strangers.check(&calm, || Ok::<(), ()>(())).await;
        assert_eq!(checked.expect("its turn comes"), Ok(()));
        assert!(asked.elapsed() <= longest(CONNECTIONS), "{:?}", asked.elapsed());
    }

    /// Forty connections of HTTP/2 once took all places, and everybody's new token was refused.
    #[tokio::test(start_paused = true)]
    async fn those_who_ask_as_often_as_they_can_on_each_connection_leave_one_wait_to_every_other() {
        const CONNECTIONS: usize = 60;
        let strangers = strangers(1);
        let begun = Arc::new(AtomicUsize::new(0));
        let [calm, flood @ ..] = connections::<{ CONNECTIONS + 1 }>();
        let streams = usize::try_from(HTTP2_STREAMS_MAX).unwrap();
        let all = CONNECTIONS * streams;
        for number in 0..all {
            let (strangers, begun) = (strangers.clone(), begun.clone());
            let connection = flood[number / streams].clone();
            tokio::spawn(async move {
                begun.fetch_add(1, Ordering::Relaxed);
                drop(strangers.check(&connection, || Err::<(), ()>(())).await);
            });
        }
        while begun.load(Ordering::Relaxed) < all {
            tokio::task::yield_now().await;
        }
        assert!(strangers.unknown.enter(&calm.number()).is_none(), "all are taken");
        let asked = Instant::now();
        let checked = strangers.check(&calm, || Ok::<(), ()>(())).await;
        assert_eq!(checked.expect("it may wait"), Ok(()));
        assert!(asked.elapsed() <= longest(CONNECTIONS), "{:?}", asked.elapsed());
    }

    /// So many tokens wait at most, and whoever sends them leaves places for others.
    #[tokio::test]
    async fn a_connection_that_sends_bad_tokens_without_end_leaves_places_to_another() {
        let (strangers, [one, other]) = (strangers(1), connections());
        let mut sent: Vec<_> = (0..UNKNOWN_MAX)
            .map(|_| Box::pin(strangers.check(&one, || Err::<(), ()>(()))))
            .collect();
        let told: Vec<_> = sent.iter_mut().filter_map(futures::FutureExt::now_or_never).collect();
        assert_eq!(strangers.waiting(), UNKNOWN_MAX / 2 + 1);
        let (checked, refused): (Vec<_>, Vec<_>) = told.into_iter().partition(Result::is_ok);
        assert_eq!(checked.len(), CHECKS_AT_ONCE_MAX / 2);
        let statuses = refused.into_iter().map(|refused| refused.unwrap_err().status().as_u16());
        assert_eq!(
            statuses.filter(|status| *status == 503).count(),
            sent.len() / 2 - 1 - checked.len()
        );
        let other = strangers.check(&other, || Ok::<(), ()>(()));
        let other = futures::FutureExt::now_or_never(other).expect("it waits for none of them");
        assert_eq!(other.expect("it has a place"), Ok(()));
        drop(sent);
        assert_eq!(strangers.waiting(), 0, "who hangs up waits no more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_whose_turn_does_not_come_is_given_up() {
        let strangers = strangers(1);
        let [late_one, holders @ ..] = connections::<{ CHECKS_AT_ONCE_MAX + 2 }>();
        let places = holders.iter().map_while(|it| strangers.checks.enter(&it.number()));
        let held: Vec<_> = places.collect();
        assert_eq!(held.len(), CHECKS_AT_ONCE_MAX, "one for each connection");
        let asked = Instant::now();
        let late = strangers.check(&late_one, || Ok::<(), ()>(())).await;
        assert_eq!(late.unwrap_err().status(), 503);
        assert_eq!(asked.elapsed(), CHECK_PATIENCE);
        assert_eq!(strangers.waiting(), 0);
        drop(held);
        assert!(strangers.check(&late_one, || Ok::<(), ()>(())).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_good_keeps_no_place() {
        let strangers = strangers(1);
        for connection in connections::<100>() {
            assert!(strangers.check(&connection, || Ok::<(), ()>(())).await.is_ok());
        }
        assert_eq!((strangers.waiting(), strangers.checks.taken()), (0, 0));
    }
}
