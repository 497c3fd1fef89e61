//! Reads from Postgres behind their breaker: while Postgres is away, queries are answered at once
//! instead of holding places and connections that others could use.

use std::{future::Future, time::Duration};

use flexcore_domain::{Name, Position};
use flexcore_readmodel::{Error, look_timeout};
use flexcore_resilience::{self as resilience, Deadline, Verdict};

use crate::{error::Problem, limits::READ_TIMEOUT, shared::Shared};

/// Makes a read, unless Postgres is left alone for now.
pub(crate) async fn read<T>(
    shared: &Shared,
    read: impl Future<Output = Result<T, Error>>,
) -> Result<T, Problem> {
    let deadline = Deadline::after(READ_TIMEOUT);
    Ok(shared.postgres.call(deadline, judge, read).await?)
}

/// Waits until the read models have passed the positions. The looks go through the breaker; the
/// wait between them does not, because it says nothing about Postgres however long it is.
pub(crate) async fn wait(
    shared: &Shared,
    read_models: &[Name],
    positions: &[Position],
    wait: Duration,
) -> Result<(), Problem> {
    let look = shared.read_models.look(read_models, positions);
    let deadline = Deadline::after(READ_TIMEOUT).within(look_timeout(wait));
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
    read(shared, async { Err(unreached.missing().await) }).await
}

/// Whether Postgres did its part.
fn judge<T>(result: &Result<T, Error>) -> Verdict {
    match result {
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
        assert_eq!(of(Error::InvalidCursor), Verdict::Neutral);
        assert_eq!(of(Error::TooManyWaiters), Verdict::Neutral);
    }
}
