//! The memory of the broker's servers. Each of them keeps the subject of every aggregate in memory, for
//! ever. When a server needs more than its container gives it, the kernel kills it; at the next start it
//! reads all subjects again, and is killed again. So there is an alarm long before that.
//!
//! A server says its limit itself: `GOMEMLIMIT`, in its environment, is where its collector begins to work
//! harder. It has to be less than what the kernel gives the server.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

/// The part of its limit from which on a server nears it, in percent. Up to a half of what a server has then
/// is garbage, which it collects when it must, so the log can grow to more than twice its size before the
/// kernel kills the server.
const NEAR_PERCENT: u64 = 70;
/// A server that neared its limit does so until it has less than this part of it: between two collections
/// a server's memory goes up and down by a tenth.
const FAR_PERCENT: u64 = 55;

/// Memory of one of the broker's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What its process has, in bytes.
    pub bytes: u64,
    /// Its limit (`GOMEMLIMIT`), in bytes; 0: it has none.
    pub bytes_max: u64,
}

impl Memory {
    /// Reads a server's `/varz`; `None`: it says nothing of its memory.
    #[must_use]
    pub fn of(varz: &Value) -> Option<Self> {
        let bytes_max = varz["gomemlimit"].as_u64().unwrap_or(0);
        Some(Self { bytes: varz["mem"].as_u64()?, bytes_max })
    }

    /// The part of its limit that it has, in percent; `None`: it has no limit.
    fn percent(self) -> Option<u64> {
        self.bytes.saturating_mul(100).checked_div(self.bytes_max)
    }
}

/// Whether a server neared its limit when it was last seen.
#[derive(Default)]
pub(crate) struct Alarm(AtomicBool);

impl Alarm {
    /// Keeps what the servers that have answered say.
    pub(crate) fn keep(&self, servers: &[Memory]) {
        let from = if self.is_on() { FAR_PERCENT } else { NEAR_PERCENT };
        let is_near = |server: &Memory| server.percent().is_some_and(|percent| percent >= from);
        self.0.store(servers.iter().any(is_near), Ordering::Relaxed);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_alarm_stays_until_there_is_clearly_more_room() {
        let alarm = Alarm::default();
        let of = |bytes| Memory { bytes, bytes_max: 1_000 };
        let none = Memory { bytes: u64::MAX, bytes_max: 0 };
        for (servers, is_on) in [
            (vec![of(699), of(1)], false),
            (vec![of(1), of(700)], true),
            (vec![of(550)], true),
            (vec![of(549)], false),
            (vec![of(699)], false),
            (vec![of(u64::MAX)], true),
            (vec![none], false),
            (vec![], false),
        ] {
            alarm.keep(&servers);
            assert_eq!(alarm.is_on(), is_on, "{servers:?}");
        }
    }

    #[test]
    fn a_server_says_its_memory_and_its_limit() {
        let limited = json!({"mem": 7, "gomemlimit": 9});
        assert_eq!(Memory::of(&limited), Some(Memory { bytes: 7, bytes_max: 9 }));
        assert_eq!(Memory::of(&json!({"mem": 7})), Some(Memory { bytes: 7, bytes_max: 0 }));
        assert_eq!(Memory::of(&json!({"gomemlimit": 9})), None);
    }

    /// The bytes that stand behind this in a file, in the units of Compose, Kubernetes and Go.
    fn bytes(text: &str, name: &str) -> u64 {
        let (_, value) = text.split_once(name).unwrap();
        let (number, unit) = value.split_at(value.find(char::is_alphabetic).unwrap());
        let unit: String = unit.chars().take_while(char::is_ascii_alphanumeric).collect();
        let shift = match unit.as_str() {
            "m" | "Mi" | "MiB" => 20,
            "g" | "Gi" | "GiB" => 30,
            _ => panic!("{name}: what is {unit}?"),
        };
        number.parse::<u64>().unwrap() << shift
    }

    #[test]
    fn what_is_shipped_has_its_alarm_long_before_the_kernel_kills_a_server() {
        let (_, document) =
            include_str!("../../deploy/README.md").split_once("## What a log costs").unwrap();
        let (_, compose) = include_str!("../../docker-compose.yml").split_once("x-nats:").unwrap();
        let (compose, _) = compose.split_once("\n  postgres:").unwrap();
        let servers = compose.matches("SERVER_NAME:").count();
        assert_eq!((servers, compose.matches("*nats-environment").count()), (3, 2), "all have it");
        let kubernetes = include_str!("../../deploy/kubernetes/nats.yaml");
        for (name, text, given, limit) in [
            ("compose", compose, "mem_limit: ", "GOMEMLIMIT: "),
            ("Kubernetes", kubernetes, "limits: {memory: ", "GOMEMLIMIT, value: "),
        ] {
            let (given, bytes_max) = (bytes(text, given), bytes(text, limit));
            let (three_quarters, four_fifths) = (given / 4 * 3, given / 5 * 4);
            assert!((three_quarters..=four_fifths).contains(&bytes_max), "{name}: {bytes_max}");
            let alarm = Alarm::default();
            alarm.keep(&[Memory { bytes: given / 10 * 6, bytes_max }]);
            assert!(alarm.is_on(), "{name}");
            let said = format!("{name} as shipped, {} GiB a server", given >> 30);
            assert!(document.contains(&said), "deploy/README.md does not say: {said}");
        }
    }
}
