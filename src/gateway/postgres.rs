//! Reads from Postgres behind their breaker: while Postgres is away, queries are answered at once
//! instead of holding places and connections that others could use.

use std::{future::Future, time::Duration};

use flexcore_domain::{Name, Position, Tenant};
use flexcore_readmodel::{Error, ReadModels, look_timeout};
use flexcore_resilience::{self as resilience, Deadline, HeldPlace, Verdict};
use tokio::time::Instant;

use crate::{admission::shed, error::Problem, limits::READ_TIMEOUT, problems, shared::Shared};

/// Makes a read when the tenant has a place, unless its breaker is open. Postgres gives it
/// up when the client does, where that says when.
pub(crate) async fn read<T, F>(
    shared: &Shared,
    tenant: &Tenant,
    client: Option<Deadline>,
    read: impl FnOnce(ReadModels) -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Error>>,
{
    shared.readiness.check_rows()?;
    let deadline = until(client);
    let _place = place(shared, tenant, deadline).await?;
    let read = read(shared.read_models.within(deadline.remaining(Instant::now())));
    call(shared, client, deadline, read).await.map_err(Problem::from)
}

/// A place for a query. Fails when the tenant has none in time: its own queries have all that it may
/// have.
async fn place(
    shared: &Shared,
    tenant: &Tenant,
    deadline: Deadline,
) -> Result<HeldPlace<Tenant>, Problem> {
    let place = deadline.timeout("postgres", shared.admission.query(tenant)).await;
    place.map_err(|_| {
        shed("queries");
        let detail = "the tenant's other queries take all the places that it has";
        Problem::new(&problems::OVERLOADED, detail)
    })
}

/// Asks Postgres, unless its breaker is open. A call that a client ended says nothing about
/// Postgres: neither where we give it up, nor where Postgres does, which is told how long the
/// client waits.
async fn call<T>(
    shared: &Shared,
    client: Option<Deadline>,
    deadline: Deadline,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, resilience::Error<Error>> {
    let usual = shared.read_models.statement_timeout();
    let hasty = client.is_some_and(|client| client.remaining(Instant::now()) < usual);
    let called = shared.postgres.call(deadline, judge, asked).await;
    called.map_err(|error| of_client(error, hasty))
}

/// A query that Postgres gave up because its client does not wait longer is one that we gave up.
fn of_client(error: resilience::Error<Error>, hasty: bool) -> resilience::Error<Error> {
    match error {
        resilience::Error::Failed(Error::Timeout(_)) if hasty => {
            resilience::Error::TimedOut { target: "postgres" }
        }
        error => error,
    }
}

fn is_over(client: Option<Deadline>) -> bool {
    client.is_some_and(|client| client.is_over(Instant::now()))
}

fn until(client: Option<Deadline>) -> Deadline {
    let longest = Deadline::after(READ_TIMEOUT);
    client.map_or(longest, |client| client.min(longest))
}

/// Waits until the read models have passed the positions. The looks go through the breaker; the
/// wait between them does not, because its length says nothing about Postgres. A part of a client's
/// time is left for a look at the missing slots.
pub(crate) async fn wait(
    shared: &Shared,
    tenant: &Tenant,
    client: Option<Deadline>,
    read_models: &[Name],
    positions: &[Position],
    wait: Duration,
) -> Result<(), Problem> {
    let asked = wait;
    let wait = client.map_or(wait, |client| wait.min(client.remaining(Instant::now()) * 9 / 10));
    let waits = Deadline::after(wait);
    let look = shared.read_models.look(read_models, positions);
    let longest = look_timeout(wait);
    let deadline = until(client).within(longest);
    let looked = {
        let _place = place(shared, tenant, deadline).await?;
        call(shared, client, deadline, look).await
    };
    let unreached = match looked {
        Ok(None) => return Ok(()),
        Ok(Some(unreached)) => unreached,
        // The wait that was asked for is over, and not the time in which the client hears of it.
        Err(resilience::Error::TimedOut { .. })
            if wait == asked && longest < READ_TIMEOUT && !is_over(client) =>
        {
            return Err(Error::Timeout(longest).into());
        }
        Err(error) => return Err(error.into()),
    };
    if unreached.reached(waits.remaining(Instant::now())).await? {
        return Ok(());
    }
    read(shared, tenant, client, |_| async { Err(unreached.missing().await) }).await
}

/// True if Postgres did its part. A statement that it ended for its time was too slow, and another
/// tenant's may be quick: a Postgres that is stuck does not even say so. Nor does what a statement takes say
/// that another one finds no room.
fn judge<T>(result: &Result<T, Error>) -> Verdict {
    match result {
        Err(Error::Unavailable(_)) => Verdict::Failure,
        Ok(_)
        | Err(
            Error::NotBuilt(_)
            | Error::ColumnNotBuilt { .. }
            | Error::NotYet { .. }
            | Error::TooManyRows { .. }
            | Error::ResultTooLarge { .. },
        ) => Verdict::Success,
        // Refused before Postgres was asked, or by it: which one is not told apart.
        Err(_) => Verdict::Neutral,
    }
}

#[cfg(test)]
mod tests {
    use flexcore_readmodel::GRACE;
    use flexcore_resilience::{Breaker, CircuitState, Policies};

    use super::*;

    #[test]
    fn only_what_postgres_did_counts() {
        let of = |error| judge::<()>(&Err(error));
        assert_eq!(judge(&Ok(())), Verdict::Success);
        assert_eq!(of(Error::NotBuilt("flights".to_owned())), Verdict::Success);
        assert_eq!(of(Error::Unavailable("no connection in time".to_owned())), Verdict::Failure);
        assert_eq!(of(Error::Timeout(Duration::from_secs(5))), Verdict::Neutral);
        for of_statement in [Error::TooMuch, Error::Exhausted, Error::ReadOnly] {
            assert_eq!(of(of_statement("why".to_owned())), Verdict::Neutral);
        }
        assert_eq!(of(Error::InvalidCursor), Verdict::Neutral);
        assert_eq!(of(Error::TooManyWaiters), Verdict::Neutral);
        assert_eq!(of(Error::NoPlace), Verdict::Neutral);
    }

    #[test]
    fn what_postgres_gives_up_for_a_client_is_the_clients() {
        let timeout = || Error::Timeout(Duration::from_millis(300));
        let told = |hasty| of_client(resilience::Error::Failed(timeout()), hasty);
        assert!(matches!(told(true), resilience::Error::TimedOut { .. }));
        assert!(matches!(told(false), resilience::Error::Failed(Error::Timeout(_))));
    }

    /// One tenant's statements that Postgres ended once had everybody's queries refused.
    #[tokio::test(start_paused = true)]
    async fn queries_that_are_too_slow_do_not_open_the_breaker_and_a_stuck_postgres_does() {
        let settings = flexcore_readmodel::Settings::default();
        let longest = settings.acquire_timeout + settings.statement_timeout + 2 * GRACE;
        assert!(longest < READ_TIMEOUT, "it ends by itself first");
        let breaker = Breaker::new("postgres", Policies::default().postgres.breaker);
        let state = async |takes: Duration| {
            for _ in 0..20 {
                let slow = async {
                    tokio::time::sleep(takes).await;
                    Err::<(), _>(Error::Timeout(settings.statement_timeout))
                };
                let _ = breaker.call(Deadline::after(READ_TIMEOUT), judge, slow).await;
            }
            breaker.state()
        };
        assert_eq!(state(longest).await, CircuitState::Closed);
        assert_eq!(state(READ_TIMEOUT * 2).await, CircuitState::Open);
    }
}
