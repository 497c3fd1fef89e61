//! Watches how large the log becomes, and says so long before a server's memory or disk is full.

use std::{collections::BTreeSet, time::Duration};

use flexcore_cluster::Member;
use flexcore_eventstore::{EventStore, Growth, ServerUse};
use metrics::gauge;
use tokio_util::sync::CancellationToken;

/// Time between looks at the log: it grows slowly, and the question costs the broker little.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Aggregates from which on there is an alarm: every server keeps their names in memory, some 7 GB by
/// then.
const AGGREGATES_ALARM: u64 = 10_000_000;
/// The same where a server has no limit of its memory, or none says: by then their names take a gigabyte
/// at most, as the smallest machines have.
const AGGREGATES_ALARM_BLIND: u64 = 1_000_000;
/// The part of a server's `max_file_store` from which on there is an alarm, in percent. When all of it
/// is used, nothing is stored any more.
const STORE_ALARM_PERCENT: u64 = 70;

/// A limit that is nearly reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Aggregates,
    Memory,
    Store,
}

impl Limit {
    const ALL: [Self; 3] = [Self::Aggregates, Self::Memory, Self::Store];

    fn name(self) -> &'static str {
        match self {
            Self::Aggregates => "aggregates",
            Self::Memory => "memory",
            Self::Store => "store",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Aggregates => {
                "the log has very many aggregates, whose names every server keeps in memory: give \
                 the servers more memory, and a limit for it, GOMEMLIMIT, if they have none"
            }
            Self::Memory => {
                "a server nears the limit of its memory, GOMEMLIMIT, most likely since the log has very \
                 many aggregates: give each server more memory, and then a higher limit, before the \
                 kernel kills it, again at each start"
            }
            Self::Store => {
                "a server's streams take most of its max_file_store: enlarge the disk, and then \
                 max_file_store in nats.conf"
            }
        }
    }
}

/// Looks at the log until the token is cancelled. One worker does it for all.
pub(super) async fn watch(store: EventStore, member: Member, stop: CancellationToken) {
    let assigned = member.assigned();
    let mut known = BTreeSet::new();
    loop {
        if assigned.borrow().of(crate::COMMANDS).contains_key(&0) {
            match store.growth().await {
                Ok(growth) => {
                    let servers = store.servers_use().await;
                    known = tell(growth, &servers, store.broker_memory_is_near(), &known);
                }
                Err(error) => tracing::debug!(%error, "the log's size is not known"),
            }
        } else {
            clear();
            known.clear();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Sets the metrics, and warns of a limit that is newly near. Returns what is.
fn tell(
    growth: Growth,
    servers: &[ServerUse],
    memory_is_near: bool,
    known: &BTreeSet<Limit>,
) -> BTreeSet<Limit> {
    gauge!("flexcore_log_bytes").set(growth.bytes as f64);
    gauge!("flexcore_log_aggregates").set(growth.aggregates as f64);
    for used in servers {
        let set = |gauge: metrics::Gauge, bytes: u64| gauge.set(bytes as f64);
        let server = || used.server.clone();
        set(gauge!("flexcore_broker_memory_bytes", "server" => server()), used.memory_bytes);
        set(
            gauge!("flexcore_broker_memory_limit_bytes", "server" => server()),
            used.memory_bytes_max,
        );
        set(gauge!("flexcore_broker_store_bytes", "server" => server()), used.store_bytes);
        set(
            gauge!("flexcore_broker_store_limit_bytes", "server" => server()),
            used.store_bytes_max,
        );
    }
    let near = near(growth, servers, memory_is_near);
    for limit in Limit::ALL {
        let is_near = near.contains(&limit);
        alarm(limit).set(f64::from(u8::from(is_near)));
        if is_near && !known.contains(&limit) {
            tracing::warn!(growth.aggregates, growth.bytes, ?servers, "{}", limit.advice());
        }
    }
    near
}

/// Another worker looks: nothing is known here.
fn clear() {
    gauge!("flexcore_log_bytes").set(0.0);
    gauge!("flexcore_log_aggregates").set(0.0);
    for limit in Limit::ALL {
        alarm(limit).set(0.0);
    }
}

fn alarm(limit: Limit) -> metrics::Gauge {
    gauge!("flexcore_capacity_alarm", "limit" => limit.name())
}

fn near(growth: Growth, servers: &[ServerUse], memory_is_near: bool) -> BTreeSet<Limit> {
    let is_filling = |used: &ServerUse| {
        let alarm = used.store_bytes_max / 100 * STORE_ALARM_PERCENT;
        used.store_bytes_max > 0 && used.store_bytes >= alarm
    };
    let is_blind = servers.is_empty() || servers.iter().any(|used| used.memory_bytes_max == 0);
    let aggregates = if is_blind { AGGREGATES_ALARM_BLIND } else { AGGREGATES_ALARM };
    let is_near = |limit: &Limit| match limit {
        Limit::Aggregates => growth.aggregates >= aggregates,
        Limit::Memory => memory_is_near,
        Limit::Store => servers.iter().any(is_filling),
    };
    Limit::ALL.into_iter().filter(is_near).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(store_bytes: u64, store_bytes_max: u64) -> ServerUse {
        let server = "n".to_owned();
        ServerUse { server, memory_bytes: 0, memory_bytes_max: 1, store_bytes, store_bytes_max }
    }

    fn of(aggregates: u64, servers: &[ServerUse], memory_is_near: bool) -> Vec<Limit> {
        let growth = Growth { bytes: 1, aggregates };
        near(growth, servers, memory_is_near).into_iter().collect()
    }

    #[test]
    fn an_alarm_comes_long_before_the_limit() {
        let few = AGGREGATES_ALARM - 1;
        assert_eq!(of(few, &[used(0, 0)], false), []);
        assert_eq!(of(few, &[used(0, 0)], true), [Limit::Memory]);
        assert_eq!(of(AGGREGATES_ALARM, &[used(0, 0)], false), [Limit::Aggregates]);
        assert_eq!(of(few, &[used(699, 1_000), used(0, 1_000)], false), []);
        assert_eq!(of(few, &[used(0, 1_000), used(700, 1_000)], false), [Limit::Store]);
        assert_eq!(of(AGGREGATES_ALARM, &[used(1_000, 1_000)], true), Limit::ALL);
        assert_eq!(of(few, &[used(9, 0)], false), [], "without a limit");
    }

    #[test]
    fn where_a_server_has_no_limit_of_its_memory_the_alarm_comes_at_fewer_aggregates() {
        let unlimited = ServerUse { memory_bytes_max: 0, ..used(0, 0) };
        for servers in [vec![], vec![used(0, 0), unlimited]] {
            assert_eq!(of(AGGREGATES_ALARM_BLIND - 1, &servers, false), []);
            assert_eq!(of(AGGREGATES_ALARM_BLIND, &servers, false), [Limit::Aggregates]);
        }
        assert_eq!(of(AGGREGATES_ALARM_BLIND, &[used(0, 0)], false), []);
    }
}
