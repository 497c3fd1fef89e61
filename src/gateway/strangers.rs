//! Requests of strangers: without a token, or with one that is not good. All of them together have so
//! many places and a rate, apart from those of tenants. Whoever asks how the gateway is, is none of them.
//!
//! A token that was good before is found in the memory, whatever strangers do. One that nobody has seen
//! yet has to be checked, and is not refused for the bad ones of others. So that these cannot take the
//! processors, few are checked at once, and a bad one keeps its place for a while. Connections take
//! turns, so a good one waits for one bad one of each of them.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc};

use axum::extract::Request;
use flexcore_resilience::Shares;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use crate::{
    admission::shed,
    error::Problem,
    limits::{
        CHECK_PATIENCE, CHECKS_AT_ONCE_MAX, STRANGER_REFUSED_AFTER, STRANGERS_MAX, UNKNOWN_MAX,
        WRONG_TOKEN_KEEPS,
    },
    problems,
};

pub(crate) struct Strangers {
    rate: DefaultDirectRateLimiter,
    per_second: NonZeroU32,
    under_way: Arc<Semaphore>,
    /// One wait for a check of each connection.
    first: Shares<Peer>,
    /// All others.
    unknown: Shares<Peer>,
    checks: Shares<Peer>,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl Peer {
    /// The one that sent the request.
    pub(crate) fn of(request: &Request) -> Self {
        let peer = request.extensions().get().copied();
        peer.expect("BUG: every request comes over a connection")
    }
}

/// A stranger's place, free again when it is dropped.
pub(crate) type StrangerPlace = OwnedSemaphorePermit;

impl Strangers {
    /// All of them together may send so many requests a second, and as a burst.
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        Self {
            rate: RateLimiter::direct(Quota::per_second(per_second)),
            per_second,
            under_way: Arc::new(Semaphore::new(STRANGERS_MAX)),
            first: Shares::limited(usize::MAX, 1, 1),
            unknown: Shares::new(UNKNOWN_MAX, 1),
            checks: Shares::new(CHECKS_AT_ONCE_MAX, 1),
        }
    }

    /// A place for a stranger's request. Fails when all are taken, and when the rate is used up. The
    /// latter is told late: who is told at once comes again at once.
    pub(crate) async fn enter(&self) -> Result<StrangerPlace, Problem> {
        let Ok(place) = self.under_way.clone().try_acquire_owned() else {
            shed("strangers");
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

    /// Checks a token that is in no memory, when it is this connection's turn. One of each connection may
    /// wait in any case: over HTTP/2 a few connections can take all places that are shared. Fails when this
    /// one has its share of them, or its turn does not come in time.
    pub(crate) async fn check<T, E>(
        &self,
        peer: Peer,
        check: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, Problem> {
        let busy = || {
            shed("tokens");
            let detail = "too many tokens wait to be checked; nothing was done";
            Problem::new(&problems::OVERLOADED, detail)
        };
        let waits = self.first.enter(&peer).or_else(|| self.unknown.enter(&peer));
        let _waits = waits.ok_or_else(busy)?;
        let turn = timeout(CHECK_PATIENCE, self.checks.wait(&peer)).await.map_err(|_| busy())?;
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
    use crate::limits::HTTP2_STREAMS_MAX;

    fn strangers(per_second: u32) -> Arc<Strangers> {
        Arc::new(Strangers::new(NonZeroU32::new(per_second).unwrap()))
    }

    fn peer(port: u16) -> Peer {
        Peer(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    impl Strangers {
        /// Requests that wait for a check.
        fn waiting(&self) -> usize {
            self.first.taken() + self.unknown.taken()
        }
    }

    /// That many connections send bad ones. The longest wait of another one's good token then.
    fn longest(connections: u16) -> Duration {
        // A timer may be a millisecond late.
        let each = WRONG_TOKEN_KEEPS + Duration::from_millis(1);
        each * (u32::from(connections) / u32::try_from(CHECKS_AT_ONCE_MAX).unwrap() + 2)
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_their_rate_strangers_are_told_so_late() {
        let strangers = strangers(5);
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(strangers.enter().await.expect("within the rate"));
        }
        let asked = Instant::now();
        assert_eq!(strangers.enter().await.unwrap_err().status(), 429);
        assert_eq!(asked.elapsed(), STRANGER_REFUSED_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_strangers_have_a_place_at_once() {
        let strangers = strangers(100_000);
        let mut held = Vec::new();
        for _ in 0..STRANGERS_MAX {
            held.push(strangers.enter().await.expect("a place is free"));
        }
        let asked = Instant::now();
        assert_eq!(strangers.enter().await.unwrap_err().status(), 503);
        assert_eq!(asked.elapsed(), Duration::ZERO);
        held.pop();
        assert!(strangers.enter().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_token_waits_for_one_bad_one_of_each_connection() {
        const CONNECTIONS: u16 = 100;
        const BAD: usize = 2_000;
        let strangers = strangers(1);
        for port in (0..CONNECTIONS).cycle().take(BAD) {
            let strangers = strangers.clone();
            tokio::spawn(async move {
                let checked = strangers.check(peer(port), || Err::<(), ()>(())).await;
                assert_eq!(checked.expect("it has its turn"), Err(()));
            });
        }
        while strangers.waiting() < BAD - CHECKS_AT_ONCE_MAX {
            tokio::task::yield_now().await;
        }
        let asked = Instant::now();
        let checked = strangers.check(peer(CONNECTIONS), || Ok::<(), ()>(())).await;
        assert_eq!(checked.expect("its turn comes"), Ok(()));
        assert!(asked.elapsed() <= longest(CONNECTIONS), "{:?}", asked.elapsed());
    }

    /// Forty connections of HTTP/2 once took all places, and everybody's new token was refused.
    #[tokio::test(start_paused = true)]
    async fn those_who_ask_as_often_as_they_can_on_each_connection_leave_one_wait_to_every_other() {
        const CONNECTIONS: u16 = 60;
        let strangers = strangers(1);
        let begun = Arc::new(AtomicUsize::new(0));
        let streams = usize::try_from(HTTP2_STREAMS_MAX).unwrap();
        let all = usize::from(CONNECTIONS) * streams;
        for number in 0..all {
            let (strangers, begun) = (strangers.clone(), begun.clone());
            let peer = peer(u16::try_from(number / streams).unwrap());
            tokio::spawn(async move {
                begun.fetch_add(1, Ordering::Relaxed);
                drop(strangers.check(peer, || Err::<(), ()>(())).await);
            });
        }
        while begun.load(Ordering::Relaxed) < all {
            tokio::task::yield_now().await;
        }
        assert!(strangers.unknown.enter(&peer(CONNECTIONS)).is_none(), "all are taken");
        let asked = Instant::now();
        let checked = strangers.check(peer(CONNECTIONS), || Ok::<(), ()>(())).await;
        assert_eq!(checked.expect("it may wait"), Ok(()));
        assert!(asked.elapsed() <= longest(CONNECTIONS), "{:?}", asked.elapsed());
    }

    /// So many tokens wait at most, and whoever sends them leaves places for others.
    #[tokio::test]
    async fn a_connection_that_sends_bad_tokens_without_end_leaves_places_to_another() {
        let strangers = strangers(1);
        let mut sent: Vec<_> = (0..UNKNOWN_MAX)
            .map(|_| Box::pin(strangers.check(peer(0), || Err::<(), ()>(()))))
            .collect();
        let told: Vec<_> = sent.iter_mut().filter_map(futures::FutureExt::now_or_never).collect();
        assert_eq!(strangers.unknown.taken(), UNKNOWN_MAX / 2);
        let (checked, refused): (Vec<_>, Vec<_>) = told.into_iter().partition(Result::is_ok);
        assert_eq!(checked.len(), CHECKS_AT_ONCE_MAX / 2);
        let statuses = refused.into_iter().map(|refused| refused.unwrap_err().status().as_u16());
        assert_eq!(
            statuses.filter(|status| *status == 503).count(),
            sent.len() / 2 - checked.len()
        );
        let other = strangers.check(peer(1), || Ok::<(), ()>(()));
        let other = futures::FutureExt::now_or_never(other).expect("it waits for none of them");
        assert_eq!(other.expect("it has a place"), Ok(()));
        drop(sent);
        assert_eq!(strangers.unknown.taken(), 0, "who hangs up waits no more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_whose_turn_does_not_come_is_given_up() {
        let strangers = strangers(1);
        let places = (0..).map_while(|port| strangers.checks.enter(&peer(port)));
        let held: Vec<_> = places.collect();
        assert_eq!(held.len(), CHECKS_AT_ONCE_MAX, "one for each connection");
        let asked = Instant::now();
        let late = strangers.check(peer(1_000), || Ok::<(), ()>(())).await;
        assert_eq!(late.unwrap_err().status(), 503);
        assert_eq!(asked.elapsed(), CHECK_PATIENCE);
        assert_eq!(strangers.unknown.taken(), 0);
        drop(held);
        assert!(strangers.check(peer(1_000), || Ok::<(), ()>(())).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_good_keeps_no_place() {
        let strangers = strangers(1);
        for port in 0..1_000 {
            assert!(strangers.check(peer(port), || Ok::<(), ()>(())).await.is_ok());
        }
        assert_eq!((strangers.waiting(), strangers.checks.taken()), (0, 0));
    }
}
