//! Why the broker does not store a message: which of its answers end, which pass, and which leave open
//! whether it is stored.

/// The meaning of the broker's answer to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An expectation in its headers does not hold.
    Conflict,
    /// Another message is just being stored on which the expectation depends.
    Busy,
    /// The server does not take the batch that it closes, with any messages.
    BatchIncomplete,
    /// It is larger than the stream takes: it is refused each time.
    TooLarge,
    /// There is no room for it now. Nothing of it is stored, and it may be sent again.
    NoRoom,
    /// It may be stored or not, and the trouble passes.
    Unknown,
}

/// The server's codes (`errors.json` in its sources) that say more than "unknown". An unknown code
/// says nothing final about the message: the stream moves, has no leader, or was sealed by a
/// person.
const CODES: [(u64, Refusal); 12] = [
    // Resource limits exceeded for account.
    (10_002, Refusal::NoRoom),
    // Insufficient resources: `max_file_store` is reached.
    (10_023, Refusal::NoRoom),
    // Insufficient memory resources available.
    (10_028, Refusal::NoRoom),
    // Insufficient storage resources available.
    (10_047, Refusal::NoRoom),
    // Message size exceeds maximum allowed: the stream's `max_msg_size`.
    (10_054, Refusal::TooLarge),
    // Wrong last sequence.
    (10_071, Refusal::Conflict),
    // Header size exceeds maximum allowed of 64k.
    (10_097, Refusal::TooLarge),
    // Wrong last sequence, which can't be told: the subject is being written just now.
    (10_164, Refusal::Busy),
    // The whole batch is not there.
    (10_176, Refusal::BatchIncomplete),
    // Batch publish is too large: more messages than the server takes in one.
    (10_199, Refusal::BatchIncomplete),
    // It contains a message id twice.
    (10_201, Refusal::BatchIncomplete),
    // Too many batches are under way.
    (10_210, Refusal::BatchIncomplete),
];

/// Storing failed; the description says why.
const STORE_FAILED: u64 = 10_077;
/// The description's first words where the stream's own limits (`discard: new`) or the disk are the
/// reason.
const STORE_IS_FULL: [&str; 4] = [
    "maximum bytes exceeded",
    "maximum messages exceeded",
    "maximum messages per subject exceeded",
    "no space left on device",
];

/// The meaning of an error code and its description.
pub(crate) fn of(code: u64, description: &str) -> Refusal {
    if code == STORE_FAILED {
        let full = STORE_IS_FULL.iter().any(|text| description.contains(text));
        return if full { Refusal::NoRoom } else { Refusal::Unknown };
    }
    let known = CODES.iter().find(|(known, _)| *known == code);
    known.map_or(Refusal::Unknown, |(_, refusal)| *refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_what_passes_and_what_is_open() {
        for (code, description, refusal) in [
            (10_071, "wrong last sequence: 7", Refusal::Conflict),
            (10_164, "wrong last sequence", Refusal::Busy),
            (10_054, "message size exceeds maximum allowed", Refusal::TooLarge),
            (10_097, "header size exceeds maximum allowed of 64k", Refusal::TooLarge),
            (10_023, "insufficient resources", Refusal::NoRoom),
            (10_047, "insufficient storage resources available", Refusal::NoRoom),
            (10_077, "maximum bytes exceeded", Refusal::NoRoom),
            (10_077, "maximum messages exceeded", Refusal::NoRoom),
            (10_077, "write msgs/1.blk: no space left on device", Refusal::NoRoom),
            (10_077, "store is closed", Refusal::Unknown),
            (10_008, "JetStream system temporarily unavailable", Refusal::Unknown),
            (10_109, "invalid operation on sealed stream", Refusal::Unknown),
            (10_176, "batch publish is incomplete and was abandoned", Refusal::BatchIncomplete),
            (0, "", Refusal::Unknown),
        ] {
            assert_eq!(of(code, description), refusal, "{code} {description}");
        }
        assert!(CODES.is_sorted_by_key(|(code, _)| *code), "each once");
    }
}
