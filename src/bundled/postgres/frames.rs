//! A database's messages, as far as their lengths: sqlx makes room for a message as soon as its length
//! is announced, be it 4 GiB.

use std::io;

use crate::meter::Meter;

/// Bytes of a message's head: of which sort it is, and its length.
const HEAD_BYTES: usize = 5;
/// Bytes of a length, which counts itself.
const LENGTH_BYTES: usize = 4;

/// Where in a database's messages its bytes are.
#[derive(Default)]
pub(super) struct Frames {
    /// What has come of the next message's head.
    head: Vec<u8>,
    /// Bytes of the last message that are still to come.
    rest: usize,
}

impl Frames {
    /// Takes all of each message that begins in these bytes from the meter. Fails where that has no
    /// room for one, and where a length is none.
    pub(super) fn pass(&mut self, mut bytes: &[u8], meter: &Meter) -> io::Result<()> {
        while !bytes.is_empty() {
            let passed = self.rest.min(bytes.len());
            self.rest -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            let missing = HEAD_BYTES.saturating_sub(self.head.len());
            let (head, behind) = bytes.split_at(missing.min(bytes.len()));
            self.head.extend_from_slice(head);
            bytes = behind;
            if let Some(length) = self.length() {
                meter.take(length.saturating_add(1))?;
                let rest = length.checked_sub(LENGTH_BYTES);
                self.rest = rest.ok_or_else(|| io::Error::other("this is no Postgres"))?;
                self.head.clear();
            }
        }
        Ok(())
    }

    /// The length in the head, when all of the head is here.
    fn length(&self) -> Option<usize> {
        let [_, length @ ..] = self.head.as_slice() else { return None };
        let length = u32::from_be_bytes(length.try_into().ok()?);
        Some(usize::try_from(length).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &[u8] = b"Z\0\0\0\x05IS\0\0\0\x04D\0\0\0\x0aabcdef1\0\0\0\x04";

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        for cut in 1..=MESSAGES.len() {
            let (mut frames, meter) = (Frames::default(), Meter::new(MESSAGES.len()));
            for bytes in MESSAGES.chunks(cut) {
                frames.pass(bytes, &meter).unwrap();
            }
            assert_eq!(meter.total(), MESSAGES.len(), "{cut}");
        }
    }

    #[test]
    fn a_message_is_refused_by_its_head_alone() {
        for head in [&b"R\xff\xff\xff\xf0"[..], b"D\0\0\0\x15", b"D\0\0\0\x03", b"D\0\0\0\0"] {
            for cut in 1..=head.len() {
                let (mut frames, meter) = (Frames::default(), Meter::new(20));
                let passed = head.chunks(cut).try_for_each(|bytes| frames.pass(bytes, &meter));
                passed.unwrap_err();
            }
        }
        let (mut frames, meter) = (Frames::default(), Meter::new(20));
        frames.pass(b"D\0\0\0\x0f", &meter).unwrap();
        frames.pass(b"12345678901D\0\0\0\x04", &meter).unwrap_err();
        assert!(meter.is_over());
    }
}
