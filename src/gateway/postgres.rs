//! Reads from Postgres behind their breaker: while Postgres is away, queries are answered at once
//! instead of holding places and connections that others could use.

use std::{future::Future, time::Duration};

use flexcore_domain::{Name, Position};
use flexcore_readmodel::{Error, ReadModels, STATEMENT_TIMEOUT, look_timeout};
use flexcore_resilience::{self as resilience, Deadline, Verdict};
use tokio::time::Instant;

use crate::{error::Problem, limits::READ_TIMEOUT, shared::Shared};

/// Makes a read, unless Postgres is left alone for now. Postgres gives it up when the client does,
/// where that says when.
pub(crate) async fn read<T, F>(
    shared: &Shared,
    client: Option<Deadline>,
    read: impl FnOnce(ReadModels) -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Error>>,
{
    let deadline = until(client);
    let read = read(shared.read_models.within(deadline.remaining(Instant::now())));
    Ok(shared.postgres.call(deadline, judge, read).await?)
}

fn until(client: Option<Deadline>) -> Deadline {
    let longest = Deadline::after(READ_TIMEOUT);
    client.map_or(longest, |client| client.min(longest))
}

/// Waits until the read models have passed the positions. The looks go through the breaker; the
/// wait between them does not, because it says nothing about Postgres however long it is. Of a
/// client's time a part is left for looking what is missing.
pub(crate) async fn wait(
    shared: &Shared,
    client: Option<Deadline>,
    read_models: &[Name],
    positions: &[Position],
    wait: Duration,
) -> Result<(), Problem> {
    let wait = client.map_or(wait, |client| wait.min(client.remaining(Instant::now()) * 9 / 10));
    let look = shared.read_models.look(read_models, positions);
    let deadline = until(client).within(look_timeout(wait));
    let looked = shared.postgres.call(deadline, judge, look).await;
    let unreached = match looked {
        Ok(None) => return Ok(()),
        Ok(Some(unreached)) => unreached,
        // The client's own wait is over.
        Err(resilience::Error::TimedOut { .. }) if wait < READ_TIMEOUT => {
            return Err(Error::Timeout(wait).into());
        }
        Err(error) => return Err(error.into()),
    };
    if unreached.reached(wait).await? {
        return Ok(());
    }
    read(shared, client, |_| async { Err(unreached.missing().await) }).await
}

/// Whether Postgres did its part.
fn judge<T>(result: &Result<T, Error>) -> Verdict {
    match result {
        // A client that waits for a moment only says nothing about Postgres.
        Err(Error::Timeout(after)) if *after < STATEMENT_TIMEOUT => Verdict::Neutral,
        Err(Error::Unavailable(_) | Error::Timeout(_)) => Verdict::Failure,
        Ok(_) | Err(Error::NotBuilt(_) | Error::NotYet { .. } | Error::TooManyRows { .. }) => {
            Verdict::Success
        }
        // Refused before Postgres was asked, or by it: which one is not told apart.
        Err(_) => Verdict::Neutral,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_postgres_did_counts() {
        let of = |error| judge::<()>(&Err(error));
        assert_eq!(judge(&Ok(())), Verdict::Success);
        assert_eq!(of(Error::NotBuilt("flights".to_owned())), Verdict::Success);
        assert_eq!(of(Error::Unavailable("no connection in time".to_owned())), Verdict::Failure);
        assert_eq!(of(Error::Timeout(Duration::from_secs(5))), Verdict::Failure);
        assert_eq!(of(Error::Timeout(Duration::from_millis(4_999))), Verdict::Neutral);
        assert_eq!(of(Error::InvalidCursor), Verdict::Neutral);
        assert_eq!(of(Error::TooManyWaiters), Verdict::Neutral);
    }
}
