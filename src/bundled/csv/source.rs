//! An object's bytes, a chunk at a time.

use bytes::Bytes;
use flexcore_sdk::Failure;

use super::{
    cursor::{self, Cursor},
    store::{Bucket, Record},
};

/// One version of an object that is being read. One chunk of it is in memory.
pub(super) struct Source<'a> {
    bucket: &'a Bucket,
    record: &'a Record,
    chunk: Bytes,
    /// The stream sequence of the chunk; 0: there is none yet.
    sequence: u64,
    /// Bytes of the chunk that are used up.
    offset: usize,
    /// Bytes of the object before the chunk.
    before: u64,
}

impl<'a> Source<'a> {
    /// From the beginning.
    pub(super) fn new(bucket: &'a Bucket, record: &'a Record) -> Self {
        Self { bucket, record, chunk: Bytes::new(), sequence: 0, offset: 0, before: 0 }
    }

    /// From where a page ended.
    pub(super) async fn at(
        bucket: &'a Bucket,
        record: &'a Record,
        cursor: &Cursor,
    ) -> Result<Self, Failure> {
        let mut source = Self::new(bucket, record);
        source.before = cursor.before;
        source.sequence = cursor.sequence.checked_sub(1).ok_or_else(cursor::wrong)?;
        if !source.load().await? || source.sequence != cursor.sequence {
            return Err(cursor::wrong());
        }
        if cursor.offset > source.chunk.len() {
            return Err(cursor::wrong());
        }
        source.offset = cursor.offset;
        Ok(source)
    }

    /// What of the chunk is not used up.
    pub(super) fn rest(&self) -> &[u8] {
        self.chunk.get(self.offset..).unwrap_or_default()
    }

    /// Uses up bytes of the chunk.
    pub(super) fn used(&mut self, bytes: usize) {
        self.offset += bytes;
    }

    /// Loads the next chunk; false: there is none.
    pub(super) async fn more(&mut self) -> Result<bool, Failure> {
        self.before = self.before.saturating_add(length(&self.chunk));
        self.chunk = Bytes::new();
        self.offset = 0;
        self.load().await
    }

    /// The whole of the next chunk.
    pub(super) async fn next_chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        Ok(if self.more().await? { Some(self.chunk.clone()) } else { None })
    }

    async fn load(&mut self) -> Result<bool, Failure> {
        if self.before >= self.record.size {
            return Ok(false);
        }
        let next = self.sequence.saturating_add(1);
        let found = self.bucket.chunk(&self.record.nuid, next).await?;
        let Some((sequence, chunk)) = found else {
            // Whoever writes it anew frees the room of the former version.
            let message = "parts of the object are gone: it is being written anew, or is damaged";
            return Err(Failure::passing("changed_meanwhile", message));
        };
        if chunk.is_empty() || self.before.saturating_add(length(&chunk)) > self.record.size {
            return Err(Failure::new("bad_object", "the object has other bytes than it says"));
        }
        (self.sequence, self.chunk) = (sequence, chunk);
        Ok(true)
    }

    /// Where reading goes on, behind this number of rows.
    pub(super) fn cursor(&self, row: u64) -> Cursor {
        Cursor {
            nuid: self.record.nuid.clone(),
            sequence: self.sequence,
            offset: self.offset,
            before: self.before,
            row,
        }
    }

    /// True if all bytes are used up.
    pub(super) fn is_at_end(&self) -> bool {
        self.rest().is_empty()
            && self.before.saturating_add(length(&self.chunk)) >= self.record.size
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
