//! A batch on its way into Postgres: what cannot be applied is put aside first.

use flexcore_cluster::Guard;
use flexcore_eventstore::{self as eventstore, EventStore};
use flexcore_readmodel::{Error, ReadModels};
use metrics::counter;

use super::{
    batch::{Batch, Dead},
    failure::Failure,
};

/// Puts aside what cannot be applied, then applies the rest. Changes that the table refuses are
/// found in the attempt, and put aside before the next: each round leaves fewer changes.
pub(super) async fn commit(
    store: EventStore,
    read_models: ReadModels,
    guard: Guard,
    mut batch: Batch,
) -> Result<(), Failure> {
    let mut dead = std::mem::take(&mut batch.dead);
    loop {
        if !guard.holds() {
            // It is kept at the broker.
            let reason = "the member's lease does not hold".to_owned();
            return Err(eventstore::Error::Unavailable(reason).into());
        }
        for dead in dead.drain(..) {
            bury(&store, &mut batch, dead).await?;
        }
        match read_models.apply(&batch.parts).await {
            Ok(()) => break,
            Err(Error::Unappliable { part, changes }) if !changes.is_empty() => {
                dead = take_out(&mut batch, part, changes);
            }
            Err(error) => return Err(error.into()),
        }
    }
    for part in &batch.parts {
        let name = part.read_model().to_string();
        counter!("flexcore_projection_events_total", "read_model" => name.clone())
            .increment(part.changes.len() as u64);
        counter!("flexcore_projection_parked_total", "read_model" => name)
            .increment(part.parked.len() as u64);
    }
    Ok(())
}

/// Publishes an event to FLEX_DEAD; returns when the broker has it.
async fn bury(store: &EventStore, batch: &mut Batch, dead: Dead) -> Result<(), Failure> {
    let part = &mut batch.parts[dead.part];
    let parked = dead.parked;
    let kind = format!("projection.{}.{}", part.read_model(), parked.key.slot());
    let subject = eventstore::subject(&parked.key);
    store.bury(&kind, &parked.reason, &subject, None, dead.body).await?;
    tracing::warn!(
        read_model = %part.read_model(),
        sequence = parked.sequence,
        event = %parked.event,
        reason = parked.reason,
        "an event cannot be applied and was put aside"
    );
    part.parked.push(parked);
    Ok(())
}

/// Takes changes out of a part; returns their events.
fn take_out(batch: &mut Batch, part: usize, changes: Vec<(usize, String)>) -> Vec<Dead> {
    let mut dead = Vec::with_capacity(changes.len());
    let mut gone = vec![false; batch.parts[part].changes.len()];
    for (index, reason) in changes {
        let (commit, event) = batch.origins[part][index];
        let recorded = &batch.commits[commit];
        dead.push(Dead::new(part, recorded, &recorded.commit.events[event], reason));
        gone[index] = true;
    }
    let mut keep = gone.iter().map(|gone| !gone);
    batch.parts[part].changes.retain(|_| keep.next().unwrap_or(true));
    let mut keep = gone.iter().map(|gone| !gone);
    batch.origins[part].retain(|_| keep.next().unwrap_or(true));
    dead
}
