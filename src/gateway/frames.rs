//! What arrives over a connection of HTTP/2 and belongs to no request. hyper answers each frame of it, as
//! fast as they come, so a connection has a small budget for them. Answers add to it: whoever reads them has
//! to say so.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{
    FRAME_SMALL_BYTES, FRAMES_BURST, FRAMES_EARNED_MAX, FRAMES_PER_ANSWER, FRAMES_PER_PIECE,
    FRAMES_PER_REQUEST, FRAMES_PER_SECOND, READ_PER_FRAME_BYTES,
};

/// What each connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame's head: 3 bytes of length, its type, flags, and 4 bytes of stream.
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// The connection has used up its budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("too many frames that belong to no request")]
pub(crate) struct Flood;

/// The frames of one connection, both ways. One that does not speak HTTP/2 has none.
pub(crate) struct Frames {
    protocol: Protocol,
    arriving: Heads,
    leaving: Heads,
    /// Frames that may still arrive.
    left: u32,
    /// Up to when [`FRAMES_PER_SECOND`] has been added.
    filled: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// It has begun with so many bytes of [`PREFACE`].
    Begun(usize),
    Http2,
    Other,
}

impl Frames {
    /// Those of a new connection.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            protocol: Protocol::Begun(0),
            arriving: Heads::default(),
            leaving: Heads::default(),
            left: FRAMES_BURST,
            filled: now,
        }
    }

    /// True if the connection speaks HTTP/2, as far as it is known.
    pub(crate) fn are_there(&self) -> bool {
        self.protocol == Protocol::Http2
    }

    /// Counts what the client has sent. Fails when that is too much: the connection is to be closed.
    pub(crate) fn arrived(&mut self, bytes: &[u8], now: Instant) -> Result<(), Flood> {
        let mut bytes = self.behind_preface(bytes);
        if !self.are_there() {
            return Ok(());
        }
        self.fill(now);
        while let Some(frame) = self.arriving.pass(&mut bytes) {
            match frame.kind {
                HEADERS => self.earn(FRAMES_PER_REQUEST),
                // A body, within its own limits.
                DATA | CONTINUATION if frame.size_bytes >= FRAME_SMALL_BYTES => {}
                _ => self.left = self.left.checked_sub(1).ok_or(Flood)?,
            }
        }
        Ok(())
    }

    /// Notes what has been sent to the client. Pieces of answers count for tenants alone: a stranger may ask
    /// for a document a few bytes at a time.
    pub(crate) fn went(&mut self, mut bytes: &[u8], to_tenant: bool) {
        if !self.are_there() {
            return;
        }
        while let Some(frame) = self.leaving.pass(&mut bytes) {
            match frame.kind {
                HEADERS => self.earn(FRAMES_PER_ANSWER),
                DATA => {
                    let least = if to_tenant { FRAMES_PER_PIECE } else { 0 };
                    self.earn(least.max(frame.size_bytes / READ_PER_FRAME_BYTES));
                }
                _ => {}
            }
        }
    }

    /// What follows the preface, or its part that comes now.
    fn behind_preface<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Protocol::Begun(has) = self.protocol else { return bytes };
        let awaited = &PREFACE[has..];
        let (part, rest) = bytes.split_at(bytes.len().min(awaited.len()));
        self.protocol = if !awaited.starts_with(part) {
            Protocol::Other
        } else if part.len() == awaited.len() {
            Protocol::Http2
        } else {
            Protocol::Begun(has + part.len())
        };
        rest
    }

    fn fill(&mut self, now: Instant) {
        let every = Duration::from_secs(1) / FRAMES_PER_SECOND;
        let since = now.saturating_duration_since(self.filled);
        let more = u32::try_from(since.as_nanos() / every.as_nanos()).unwrap_or(u32::MAX);
        self.filled += every * more;
        if self.left < FRAMES_BURST {
            self.left = self.left.saturating_add(more).min(FRAMES_BURST);
        }
    }

    fn earn(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(FRAMES_EARNED_MAX);
    }
}

/// Finds the heads of frames in bytes that come in pieces of any size.
#[derive(Default)]
struct Heads {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that are there.
    has: usize,
    /// Bytes to the next head.
    skip: usize,
}

struct Frame {
    kind: u8,
    /// Without its head.
    size_bytes: u32,
}

impl Heads {
    /// The next frame whose head ends in these bytes, which are passed over up to there; `None`: all are.
    fn pass(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let (skipped, rest) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= skipped.len();
        let (part, rest) = rest.split_at(rest.len().min(HEAD_BYTES - self.has));
        self.head[self.has..self.has + part.len()].copy_from_slice(part);
        self.has += part.len();
        *bytes = rest;
        if self.has < HEAD_BYTES {
            return None;
        }
        self.has = 0;
        let [high, middle, low, kind, ..] = self.head;
        let size_bytes = u32::from_be_bytes([0, high, middle, low]);
        self.skip = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        Some(Frame { kind, size_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;
    const UNKNOWN: u8 = 77;

    fn frame(kind: u8, size_bytes: usize) -> Vec<u8> {
        let size = u32::try_from(size_bytes).unwrap().to_be_bytes();
        let mut frame = vec![size[1], size[2], size[3], kind, 0, 0, 0, 0, 1];
        // Each of these bytes would be a frame's, if it were taken for its head.
        frame.resize(HEAD_BYTES + size_bytes, PING);
        frame
    }

    fn many(kind: u8, size_bytes: usize, number: u32) -> Vec<u8> {
        frame(kind, size_bytes).repeat(usize::try_from(number).unwrap())
    }

    fn begun(now: Instant) -> Frames {
        let mut frames = Frames::new(now);
        frames.arrived(PREFACE, now).unwrap();
        assert!(frames.are_there());
        frames
    }

    #[test]
    fn frames_of_no_request_are_bounded() {
        let now = Instant::now();
        for (kind, size) in [
            (PING, 8),
            (SETTINGS, 6),
            (SETTINGS, 6_000),
            (WINDOW_UPDATE, 4),
            (UNKNOWN, 16_384),
            (DATA, 0),
            (CONTINUATION, 0),
        ] {
            let mut frames = begun(now);
            assert_eq!(frames.arrived(&many(kind, size, FRAMES_BURST), now), Ok(()), "{kind}");
            assert_eq!(frames.arrived(&frame(kind, size), now), Err(Flood), "{kind}");
        }
    }

    #[test]
    fn the_budget_comes_back_with_time_up_to_the_burst() {
        let start = Instant::now();
        let mut frames = begun(start);
        let mut sent = FRAMES_BURST;
        frames.arrived(&many(PING, 8, FRAMES_BURST), start).unwrap();
        // As often as it looks, no part of a second is lost.
        for ms in (0..=3_000).step_by(7) {
            let now = start + Duration::from_millis(ms);
            while frames.left > 0 {
                frames.arrived(&frame(PING, 8), now).unwrap();
                sent += 1;
            }
            frames.fill(now);
        }
        assert!((295..=300).contains(&(sent - FRAMES_BURST)), "{sent}");
        let later = start + Duration::from_secs(3_600);
        frames.arrived(&many(PING, 8, FRAMES_BURST), later).unwrap();
        assert_eq!(frames.arrived(&frame(PING, 8), later), Err(Flood));
    }

    #[test]
    fn frames_that_come_in_pieces_are_the_same() {
        let now = Instant::now();
        let all = [
            PREFACE.to_vec(),
            frame(SETTINGS, 18),
            frame(HEADERS, 40),
            frame(DATA, 300),
            frame(DATA, 0),
            frame(UNKNOWN, 70_000),
            frame(PING, 8),
        ]
        .concat();
        let left = |pieces: &[&[u8]]| {
            let mut frames = Frames::new(now);
            for piece in pieces {
                frames.arrived(piece, now).unwrap();
            }
            assert_eq!((frames.arriving.has, frames.arriving.skip), (0, 0));
            frames.left
        };
        let whole = left(&[&all]);
        assert_eq!(whole, FRAMES_BURST - 1 + FRAMES_PER_REQUEST - 3);
        for at in (0..=500).chain(all.len() - 20..=all.len()) {
            let (one, two) = all.split_at(at);
            assert_eq!(left(&[one, two]), whole, "{at}");
        }
        assert_eq!(left(&all.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn whoever_reads_answers_may_say_so() {
        let now = Instant::now();
        let mut frames = begun(now);
        // A proxy that says of each small answer twice how much it has read.
        for _ in 0..10_000 {
            frames.arrived(&frame(HEADERS, 40), now).unwrap();
            frames.went(&[frame(HEADERS, 90), frame(DATA, 60)].concat(), false);
            frames.arrived(&many(WINDOW_UPDATE, 4, 2), now).unwrap();
        }
        // A large document, and events.
        let mut frames = begun(now);
        for _ in 0..10_000 {
            frames.went(&frame(DATA, 16_384), false);
            frames.arrived(&many(WINDOW_UPDATE, 4, 2), now).unwrap();
        }
        let mut frames = begun(now);
        for _ in 0..10_000 {
            frames.went(&frame(DATA, 100), true);
            frames.arrived(&many(WINDOW_UPDATE, 4, 2), now).unwrap();
        }
        // Requests that are given up.
        for _ in 0..10_000 {
            frames.arrived(&[frame(HEADERS, 40), frame(3, 4)].concat(), now).unwrap();
        }
    }

    #[test]
    fn what_the_gateway_says_to_no_request_earns_nothing() {
        let now = Instant::now();
        let mut frames = begun(now);
        frames.went(&[many(PING, 8, 10_000), many(SETTINGS, 0, 10_000)].concat(), true);
        // A stranger that reads a document byte by byte.
        frames.went(&many(DATA, 1, 10_000), false);
        assert_eq!(frames.left, FRAMES_BURST);
        frames.went(&many(DATA, 16_384, 1_000), false);
        assert_eq!(frames.left, FRAMES_EARNED_MAX);
    }

    #[test]
    fn a_connection_that_does_not_speak_http2_has_no_frames() {
        let now = Instant::now();
        for first in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSN", b"PR", b""] {
            let mut frames = Frames::new(now);
            frames.arrived(first, now).unwrap();
            frames.arrived(&many(PING, 8, 2 * FRAMES_BURST), now).unwrap();
            assert!(!frames.are_there());
        }
    }
}
