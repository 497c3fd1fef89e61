//! Every limit that the log's format fixes, each with its reason.

/// Longest payload of a command, in bytes: a commit must fit the broker's 1 MiB message with room
/// for several events.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;

/// Longest body of one commit, in bytes, its events in their envelopes: just under the broker's
/// `max_payload` of 1 MiB, less the headers.
pub const COMMIT_BYTES_MAX: usize = 960 * 1024;

/// Largest queued command, in bytes, headers and payload: what the broker takes of headers beside
/// the longest payload. The additions that are made where it is put aside fit a message then.
pub const QUEUED_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 64 * 1024;

/// Most events that one command may produce: they are one message, folded as one.
pub const COMMIT_EVENTS_MAX: usize = 256;

/// Deepest nesting of JSON that is read: deeper documents exist only to exhaust stacks.
pub const JSON_DEPTH_MAX: usize = 32;

/// Command ids that an aggregate remembers whole, so that a command that is repeated soon finds its
/// first outcome at once. Of the older ones it keeps fingerprints.
pub const COMMAND_IDS_REMEMBERED: usize = 1_024;

/// Fingerprints of older command ids in one block: one message beside the snapshot, of 80 KiB. The
/// snapshot itself has those that fill no block yet.
pub const FINGERPRINTS_PER_BLOCK: usize = 4_096;

/// Largest state of one aggregate as JSON text, in bytes: it travels in one snapshot message.
pub const STATE_BYTES_MAX: usize = 512 * 1024;

/// Largest integer in a payload, and in what a decider returns, either way from zero: 2^53 − 1.
/// Deciders reckon in doubles, and a double beyond may stand for several integers.
pub const INTEGER_EXACT_MAX: u64 = (1 << 53) - 1;

/// Largest file of an installed plugin, in bytes: a static executable with its debug information has
/// some 100 MiB, and every worker fetches it and keeps it on its disk.
pub const PLUGIN_FILE_BYTES_MAX: u64 = 256 << 20;
