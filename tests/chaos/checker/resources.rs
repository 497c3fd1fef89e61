//! Held resources: invariant 18.

use std::collections::BTreeMap;

use super::Verdict;

/// Name of a check.
pub(crate) const HELD: &str = "what is held returns to its base line";

/// The amount of each held resource, by a name such as `worker-1 threads`.
pub(crate) type Held = BTreeMap<String, i64>;

/// The amount that may be added: what a name ends with, then in absolute numbers, then in
/// hundredths of the earlier amount.
const TOLERANCE: [(&str, i64, i64); 7] = [
    // Readers come and go: one a process, one for each read model that is apart or being built,
    // and those of a process that was killed go after a while without a reader.
    ("FLEX_EVENTS consumers", 7, 0),
    // One reader a slot: exactly as many as before.
    ("consumers", 0, 0),
    // Inboxes of requests under way come and go.
    ("subscriptions", 16, 10),
    ("connections", 4, 10),
    // Pools of connections to Postgres, of which a gateway has two of 16, and of clients breathe.
    ("descriptors", 32, 25),
    // A Go program keeps every thread that it ever needed at once, for reads of the disk.
    ("broker threads", 64, 100),
    // Threads for blocking work end after ten seconds without any.
    ("threads", 4, 0),
];

/// 18: after a fault, held resources return to their base line.
pub(crate) fn returns_to_the_base_line(before: &Held, after: &Held) -> Verdict {
    let mut verdict = Verdict::new(18, HELD);
    for (name, now) in after {
        let then = before.get(name).copied().unwrap_or(0);
        let rule = TOLERANCE.iter().find(|(what, ..)| name.ends_with(what));
        let (_, more, hundredths) = rule.copied().unwrap_or(("", 0, 0));
        let most = then + more.max(then * hundredths / 100);
        verdict.hold(*now <= most, || format!("{name}: {now}, was {then}, may be {most}"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaks_is_found() {
        let held = |name: &str, count| Held::from([(name.to_owned(), count)]);
        for (name, before, after, violations) in [
            ("FLEX_COMMANDS consumers", 64, 64, 0),
            ("FLEX_COMMANDS consumers", 64, 65, 1),
            ("FLEX_EVENTS consumers", 5, 7, 0),
            ("worker-1 threads", 8, 12, 0),
            ("worker-1 threads", 8, 13, 1),
            ("gateway-1 descriptors", 100, 132, 0),
            ("gateway-1 descriptors", 100, 133, 1),
            ("nats-1 connections", 4, 9, 1),
        ] {
            let verdict = returns_to_the_base_line(&held(name, before), &held(name, after));
            assert_eq!(verdict.violations.len(), violations, "{name} {before} {after}");
        }
    }
}
