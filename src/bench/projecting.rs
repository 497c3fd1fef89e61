//! The projection worker at work, and waiting for it.

use std::time::{Duration, Instant};

use anyhow::bail;
use flexcore_installation::{Installation, Roles};
use flexcore_out as out;
use flexcore_readmodel::{ReadModels, VersionState};
use tokio_util::sync::CancellationToken;

use crate::{counter::READ_MODEL, raw_rows::BATCH};

/// Longest wait for the next sign of progress.
const STALLED: Duration = Duration::from_secs(30);
/// The goals.
pub(crate) const GOAL_RATIO: f64 = 0.5;

/// The meaning of raw rows.
pub(crate) fn raw_in_words() -> String {
    format!(
        "rows of the same width written by unnest upserts, {BATCH} and a checkpoint of 64 slots a \
         transaction, one connection, nothing read from the log"
    )
}

/// The projection worker at work.
pub(crate) struct Projecting {
    roles: Roles,
    stop: CancellationToken,
}

impl Projecting {
    pub(crate) fn start(installation: &Installation) -> Self {
        let stop = CancellationToken::new();
        let mut roles = Roles::new(stop.clone());
        roles.projections(installation);
        Self { roles, stop }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.roles.ended().await
    }
}

/// Waits until the read model serves with everything up to this stream sequence.
pub(crate) async fn caught_up(read_models: &ReadModels, end: u64) -> anyhow::Result<()> {
    let bar = out::progress(end, "projecting");
    let mut last = (0, Instant::now());
    loop {
        let statuses = read_models.status().await?;
        let ours = statuses.iter().filter(|status| status.read_model.as_str() == READ_MODEL);
        let position = ours.clone().map(|status| status.position).max().unwrap_or(0);
        if ours.clone().any(|status| status.state == VersionState::Serving && status.lag(end) == 0)
        {
            bar.finish_and_clear();
            return Ok(());
        }
        bar.set_position(position);
        if position != last.0 {
            last = (position, Instant::now());
        } else if last.1.elapsed() > STALLED {
            bail!("the read model stands at {position} of {end} and does not move");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Events that could not be applied.
pub(crate) async fn parked(read_models: &ReadModels) -> anyhow::Result<u64> {
    let statuses = read_models.status().await?;
    Ok(statuses.iter().map(|status| status.parked).sum())
}
