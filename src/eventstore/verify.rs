//! Verify: walks the log, or one aggregate, and says what is broken and what was not checked.

use std::{hash::RandomState, time::Duration};

use flexcore_domain::{AggregateKey, Slot};
use serde::Serialize;

use crate::{
    Error, EventStore, Filter, Read, Recorded,
    links::{Links, Part},
    topology, unavailable,
};

/// The findings of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Commits read.
    pub commits: u64,
    /// Events in them.
    pub events: u64,
    /// Last stream sequence read.
    pub last_sequence: u64,
    /// Aggregates whose commits were checked against one another from the first one on.
    pub aggregates: u64,
    /// Commits that were not checked against their predecessor, because there was no memory for it.
    pub not_checked: u64,
    /// The first break, in words; `None`: contiguous and unchanged, where it was checked.
    pub broken: Option<String>,
    /// Aggregates and other subjects with a break, at least; reading stops where messages are missing.
    pub breaks: u64,
    /// Times that the log was read: with many aggregates once for its messages, and again a slot at a
    /// time, so that all of them are checked in bounded memory. A third time: slots with more than there
    /// is memory for were read again, a part of their aggregates at a time.
    pub passes: u64,
}

/// Commits between two calls of the progress function.
const STEP: usize = 1_000;
/// Most parts in which a slot's aggregates are checked, and so most times that it is read again.
const PARTS_MAX: u64 = 256;
/// Times of two seconds in which nothing comes before the broker is taken to be away.
const SILENT_MAX: u32 = 5;

/// Walks the whole log, or one aggregate: stream sequences and versions must follow one another
/// and every commit must carry the hash that follows from its predecessor. At most `links_max`
/// aggregates ([`crate::LINKS_MAX`]) are kept in memory at a time. `progress` is called with (commits
/// read, commits in all). Fails with [`Error::Unavailable`] when the broker goes away; a break is not
/// a failure but the report's `broken`.
pub async fn verify(
    store: &EventStore,
    aggregate: Option<&AggregateKey>,
    links_max: usize,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    if let Some(key) = aggregate {
        return one(store, key).await;
    }
    let log = store.jetstream.get_stream(topology::EVENTS).await.map_err(unavailable)?;
    let state = &log.cached_info().state;
    let (end, subjects) = (state.last_sequence, state.subjects_count);
    // Links are remembered in two generations: what is met again within half the room is there.
    let at_once = subjects <= links_max as u64 / 2;
    let mut report = Report { passes: 1, ..Report::default() };
    let links = at_once.then(|| Links::with_room_for(links_max));
    let all = if at_once { end } else { 2 * end };
    let told = |report: &Report| progress(report.last_sequence, all);
    walk(store, Filter::Everything, end, links, &mut report, told).await?;
    if at_once || report.last_sequence < end {
        return Ok(report);
    }
    let mut linked = Report { passes: 2, ..Report::default() };
    for slot in Slot::all() {
        let filter = Filter::Slot(slot);
        let last =
            store.leaders.last_on(topology::EVENTS, &filter.subjects()[0], 0).await?.min(end);
        let (mut slots, before) = (Report::default(), linked.commits);
        let told = |slots: &Report| progress(end + before + slots.commits, all);
        let links = Links::with_room_for(links_max);
        walk(store, filter.clone(), last, Some(links), &mut slots, told).await?;
        if slots.not_checked > 0 {
            linked.passes = 3;
            slots = in_parts(store, &filter, last, links_max, slots).await?;
        }
        linked = linked.and(slots);
    }
    Ok(report.with_links(linked))
}

/// Checks a slot's aggregates again, which are too many for the memory: a part of them at a time, and
/// smaller parts where that was not enough.
async fn in_parts(
    store: &EventStore,
    filter: &Filter,
    last: u64,
    links_max: usize,
    mut slots: Report,
) -> Result<Report, Error> {
    let room = links_max as u64 / 2;
    if room == 0 {
        return Ok(slots);
    }
    let mut of = slots.aggregates.div_ceil(room).next_power_of_two().max(2);
    while slots.not_checked > 0 && of <= PARTS_MAX {
        let (keys, mut parts) = (RandomState::new(), Report::default());
        for number in 0..of {
            let links = Links::of_part(Part { keys: keys.clone(), number, of }, links_max);
            let mut part = Report::default();
            walk(store, filter.clone(), last, Some(links), &mut part, |_| ()).await?;
            // A message that is no commit at all is found in each part.
            let breaks = parts.breaks.max(part.breaks);
            parts = Report { breaks, ..parts.and(part) };
        }
        slots.broken = slots.broken.or(parts.broken);
        slots.breaks = slots.breaks.max(parts.breaks);
        slots.not_checked = parts.not_checked;
        of *= 2;
    }
    Ok(slots)
}

async fn one(store: &EventStore, key: &AggregateKey) -> Result<Report, Error> {
    let mut report = Report { passes: 1, ..Report::default() };
    match store.load(key, 0).await {
        Ok(commits) => {
            commits.iter().for_each(|recorded| report.count(recorded));
            report.aggregates = u64::from(!commits.is_empty());
        }
        Err(error @ (Error::Unavailable(_) | Error::Misconfigured(_))) => return Err(error),
        Err(broken) => report.broken_by(broken.to_string()),
    }
    Ok(report)
}

/// Reads what the filter names up to this sequence.
async fn walk(
    store: &EventStore,
    filter: Filter,
    last: u64,
    links: Option<Links>,
    report: &mut Report,
    mut progress: impl FnMut(&Report),
) -> Result<(), Error> {
    let mut subscription = store.subscribe_with(filter, 1, links).await?;
    let mut silent = 0;
    while subscription.read_to() < last {
        match subscription.next_batch(STEP, Duration::from_secs(2)).await {
            Ok(Read::Commits(batch)) if batch.is_empty() => {
                silent += 1;
                if silent == SILENT_MAX {
                    return Err(Error::Unavailable("the broker sends nothing more".to_owned()));
                }
            }
            Ok(Read::Commits(batch)) => {
                silent = 0;
                batch.iter().take_while(|c| c.sequence <= last).for_each(|c| report.count(c));
                progress(report);
            }
            Ok(Read::Broken(broken)) if broken.sequence > last => break,
            Ok(Read::Broken(broken)) => {
                report.broken_by(broken.reason);
                report.commits += 1;
                report.last_sequence = broken.sequence;
            }
            Err(error @ (Error::Unavailable(_) | Error::Misconfigured(_))) => return Err(error),
            Err(broken) => {
                report.broken_by(broken.to_string());
                break;
            }
        }
    }
    if let Some(links) = subscription.links() {
        report.aggregates += links.begun;
        report.not_checked += links.unchecked;
    }
    Ok(())
}

impl Report {
    /// True if everything was checked and nothing is broken.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.broken.is_none() && self.not_checked == 0
    }

    fn count(&mut self, recorded: &Recorded) {
        self.commits += 1;
        self.events += recorded.commit.events.len() as u64;
        self.last_sequence = recorded.sequence;
    }

    fn broken_by(&mut self, reason: String) {
        self.broken.get_or_insert(reason);
        self.breaks += 1;
    }

    /// With what another reader found in another place.
    fn and(self, other: Self) -> Self {
        Self {
            commits: self.commits + other.commits,
            events: self.events + other.events,
            last_sequence: self.last_sequence.max(other.last_sequence),
            aggregates: self.aggregates + other.aggregates,
            not_checked: self.not_checked + other.not_checked,
            broken: self.broken.or(other.broken),
            breaks: self.breaks + other.breaks,
            passes: self.passes.max(other.passes),
        }
    }

    /// With what the slots' readers found, which together have read what this one has.
    fn with_links(self, linked: Self) -> Self {
        let (slots, log) = (linked.commits, self.commits);
        let missing = (slots != log)
            .then(|| format!("gap in the log: of {log} messages the slots have {slots}"));
        Self {
            aggregates: linked.aggregates,
            not_checked: linked.not_checked,
            broken: self.broken.or(linked.broken).or(missing),
            breaks: self.breaks.max(linked.breaks),
            passes: linked.passes,
            ..self
        }
    }
}
