//! What a lane goes on with: loads and looks into the log that have ended, and decisions that have come.
//! Functions follow from each, so it is a piece of work: a lane does one after another, and tenants take
//! turns. Done as they come, a calm tenant's command would stand behind all that another began while it
//! was alone. Those of a tenant that rests ([`Rests`](super::rests::Rests)) wait until its rest is over.

use std::collections::{HashMap, HashSet, VecDeque};

use flexcore_domain::{Tenant, limits::FINGERPRINTS_PER_BLOCK};
use flexcore_eventstore::snapshot::{RememberedCommand, Snapshot};

use super::{
    deciders::NoDecision,
    messages::{Input, Loaded},
};

/// Most bytes of loaded commits and of proposed events that wait in a lane. Nobody takes more of them than are left
/// for others, but for one load. What does not fit is loaded again in its turn.
const BYTES_MAX: usize = 32 << 20;

/// Pieces of work that have not been begun.
#[derive(Default)]
pub(super) struct Pieces {
    of: HashMap<Tenant, Own>,
    /// Those that have something, as it is their turn.
    order: VecDeque<Tenant>,
    /// Those that have something and rest.
    held: HashSet<Tenant>,
    bytes: usize,
}

/// One tenant's.
#[derive(Default)]
struct Own {
    inputs: VecDeque<(Input, usize)>,
    bytes: usize,
}

impl Pieces {
    /// Keeps an input for its tenant's turn. Gives it back where no function follows from it.
    pub(super) fn put(&mut self, input: Input) -> Option<Input> {
        let (Input::Loaded { key, .. }
        | Input::Again { key, .. }
        | Input::Unloaded { key }
        | Input::LookedUp { key, .. }
        | Input::Decided { key, .. }) = &input
        else {
            return Some(input);
        };
        let tenant = key.tenant().clone();
        let own = self.of.entry(tenant.clone()).or_default();
        let is_first = own.inputs.is_empty();
        let mut size = size_bytes(&input);
        let fits = is_first || own.bytes + size <= BYTES_MAX.saturating_sub(self.bytes);
        let kept = match input {
            Input::Loaded { key, result: Ok(_) } if !fits => {
                size = size_of::<Input>();
                Input::Unloaded { key }
            }
            Input::Decided { key, number, result: Ok(_) } if !fits => {
                size = size_of::<Input>();
                let why = "too many decisions of the tenant wait: send the command again later";
                Input::Decided { key, number, result: Err(NoDecision::Busy(why.to_owned())) }
            }
            input => input,
        };
        own.inputs.push_back((kept, size));
        own.bytes += size;
        self.bytes += size;
        if is_first {
            self.order.push_back(tenant);
        }
        None
    }

    /// The next piece: of the tenant whose turn it is, among those that do not rest.
    pub(super) fn next(&mut self, rests: impl Fn(&Tenant) -> bool) -> Option<Input> {
        loop {
            let tenant = self.order.pop_front()?;
            if rests(&tenant) {
                self.held.insert(tenant);
                continue;
            }
            let Some(own) = self.of.get_mut(&tenant) else { continue };
            let Some((input, size)) = own.inputs.pop_front() else { continue };
            own.bytes -= size;
            self.bytes -= size;
            if own.inputs.is_empty() {
                self.of.remove(&tenant);
            } else {
                self.order.push_back(tenant);
            }
            return Some(input);
        }
    }

    /// A tenant's rest may be over.
    pub(super) fn rested(&mut self, tenant: &Tenant) {
        if let Some(tenant) = self.held.take(tenant) {
            self.order.push_back(tenant);
        }
    }
}

/// About the bytes that it takes: commits as they are stored, and as they were read; events as they came.
fn size_bytes(input: &Input) -> usize {
    let Loaded { snapshot, commits, .. } = match input {
        Input::Loaded { result: Ok(loaded), .. } => loaded,
        Input::Decided { result: Ok(events), .. } => {
            return size_of::<Input>() + events.iter().map(|it| it.data.len()).sum::<usize>();
        }
        _ => return size_of::<Input>(),
    };
    let commits = commits.iter().map(|recorded| 2 * recorded.body.len()).sum::<usize>();
    size_of::<Input>() + commits + snapshot.as_ref().map_or(0, size_of_snapshot)
}

/// Its state, and the ids that it remembers.
fn size_of_snapshot(snapshot: &Snapshot) -> usize {
    let one = |it: &RememberedCommand| size_of::<RememberedCommand>() + it.id.as_str().len();
    let commands = snapshot.commands.iter().map(one).sum::<usize>();
    let older = &snapshot.older;
    let prints = older.blocks.len() * FINGERPRINTS_PER_BLOCK + older.open.prints.len();
    snapshot.state.get().len() + commands + prints * (size_of::<u32>() + size_of::<u64>())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flexcore_domain::AggregateKey;

    use super::*;
    use crate::command::{
        deciders::ProposedEvent, lane_tests::started, memory::random_secret, some_keys::key,
    };

    fn loaded(key: AggregateKey) -> Input {
        Input::Loaded { key, result: Ok(Loaded::default()) }
    }

    /// A load of about so many bytes.
    fn large(key: AggregateKey, bytes: usize) -> Input {
        let (_, mut commit) = started();
        commit.body = vec![b' '; bytes / 2].into();
        let loaded = Loaded { commits: vec![commit], ..Loaded::default() };
        Input::Loaded { key, result: Ok(loaded) }
    }

    /// A decision of so many bytes.
    fn decision(key: AggregateKey, bytes: usize) -> Input {
        let event = ProposedEvent { event: "e".to_owned(), data: vec![b' '; bytes].into() };
        Input::Decided { key, number: 1, result: Ok(vec![event]) }
    }

    fn of(input: &Input) -> String {
        input.tenant().unwrap().to_string()
    }

    fn all(pieces: &mut Pieces, rests: impl Fn(&Tenant) -> bool) -> Vec<String> {
        std::iter::from_fn(|| pieces.next(&rests).map(|input| of(&input))).collect()
    }

    #[test]
    fn a_calm_tenants_piece_stands_behind_one_of_anothers() {
        let mut pieces = Pieces::default();
        for id in 0..1_000 {
            assert!(pieces.put(loaded(key("hog", id))).is_none());
        }
        assert!(pieces.put(loaded(key("calm", 0))).is_none());
        let first: Vec<_> = (0..3).map(|_| of(&pieces.next(|_| false).unwrap())).collect();
        assert_eq!(first, ["hog", "calm", "hog"]);
        assert_eq!(all(&mut pieces, |_| false).len(), 998);
        assert_eq!((pieces.bytes, pieces.of.len()), (0, 0));
    }

    #[test]
    fn whoever_rests_is_passed_over_until_it_is_said_that_it_does_not() {
        let mut pieces = Pieces::default();
        for id in 0..2 {
            pieces.put(loaded(key("hog", id)));
        }
        pieces.put(loaded(key("calm", 0)));
        let hog = key("hog", 0).tenant().clone();
        assert_eq!(all(&mut pieces, |tenant| *tenant == hog), ["calm"]);
        pieces.put(loaded(key("hog", 2)));
        assert!(all(&mut pieces, |_| false).is_empty(), "it is asked for again when it has rested");
        pieces.rested(&hog);
        pieces.rested(&hog);
        assert_eq!(all(&mut pieces, |_| false), ["hog"; 3]);
    }

    #[test]
    fn decisions_for_which_there_is_no_room_are_to_be_asked_for_again() {
        let mut pieces = Pieces::default();
        for id in 0..100 {
            pieces.put(decision(key("hog", id), 1 << 20));
        }
        pieces.put(decision(key("calm", 0), 1 << 20));
        assert!(pieces.bytes <= BYTES_MAX, "{}", pieces.bytes);
        let mut kept = HashMap::new();
        while let Some(input) = pieces.next(|_| false) {
            let Input::Decided { result, .. } = &input else { panic!("{input:?}") };
            // Its decider is not away.
            assert!(matches!(result, Ok(_) | Err(NoDecision::Busy(_))), "{result:?}");
            *kept.entry((of(&input), result.is_ok())).or_insert(0) += 1;
        }
        let hogs = kept[&("hog".to_owned(), true)];
        assert!((15..=16).contains(&hogs), "{hogs}");
        assert_eq!(kept[&("hog".to_owned(), false)], 100 - hogs);
        assert_eq!(kept[&("calm".to_owned(), true)], 1);
        assert_eq!(pieces.bytes, 0);
    }

    #[test]
    fn the_bytes_that_wait_are_bounded_and_nothing_is_lost() {
        let mut pieces = Pieces::default();
        for id in 0..100 {
            pieces.put(large(key("hog", id), 1 << 20));
        }
        assert!(pieces.bytes <= BYTES_MAX / 2 + (1 << 20), "{}", pieces.bytes);
        pieces.put(large(key("calm", 0), 8 << 20));
        let mut kept = HashMap::new();
        while let Some(input) = pieces.next(|_| false) {
            let whole = !matches!(input, Input::Unloaded { .. });
            *kept.entry((of(&input), whole)).or_insert(0) += 1;
        }
        let hogs = kept[&("hog".to_owned(), true)];
        assert!((15..=16).contains(&hogs), "{hogs}");
        assert_eq!(kept[&("hog".to_owned(), false)], 100 - hogs);
        assert_eq!(kept[&("calm".to_owned(), true)], 1);
        assert_eq!(pieces.bytes, 0);
    }

    /// However large it is: a tenant always has one.
    #[test]
    fn the_first_load_of_a_tenant_is_kept() {
        let mut pieces = Pieces::default();
        pieces.put(large(key("hog", 0), 2 * BYTES_MAX));
        pieces.put(large(key("calm", 0), 2 * BYTES_MAX));
        pieces.put(large(key("calm", 1), 1_000));
        let kept: Vec<_> = std::iter::from_fn(|| pieces.next(|_| false))
            .map(|input| matches!(input, Input::Loaded { .. }))
            .collect();
        assert_eq!(kept, [true, true, false]);
    }

    #[test]
    fn what_no_function_follows_from_does_not_wait() {
        let mut pieces = Pieces::default();
        let (key, secret) = (key("hog", 0), random_secret());
        assert!(pieces.put(Input::BlocksKept { key, secret, count: 0 }).is_some());
    }

    #[test]
    fn the_ids_of_a_snapshot_count() {
        let older = flexcore_eventstore::snapshot::OlderCommands {
            secret: random_secret(),
            full: 2,
            open: flexcore_eventstore::snapshot::Block::default(),
            blocks: vec![Arc::default(); 2],
            kept: 2,
        };
        let (_, first) = started();
        let snapshot = Snapshot {
            fingerprint: String::new(),
            version: 1,
            sequence: first.sequence,
            hash: first.hash,
            time_ms: 0,
            state: serde_json::value::RawValue::from_string("0".to_owned()).unwrap(),
            commands: Vec::new(),
            older,
        };
        assert!(size_of_snapshot(&snapshot) > 2 * FINGERPRINTS_PER_BLOCK * 12);
    }
}
