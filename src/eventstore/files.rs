//! Files of plugins, in an object store of the broker, each under its SHA-256. They lie there as in any
//! object store (ADR-20 of NATS): chunks of the file, and one record that says which these are. So
//! `nats object` lists and copies them. Who writes has the record stored last, so a file is there as a
//! whole or not at all.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_nats::{HeaderMap, jetstream::stream::LastRawMessageErrorKind};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use flexcore_broker::{acknowledged::expect_last, stream::found};
use flexcore_domain::{Hash, Tenant, limits::PLUGIN_FILE_BYTES_MAX};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, OpenOptions},
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
};
use uuid::Uuid;

use crate::{
    Error, EventStore, direct, load,
    topology::{self, FILES_BUCKET},
    unavailable,
};

/// Bytes of a chunk: a quarter of what the broker takes in one message, so that nothing else waits long
/// behind one.
const CHUNK_BYTES: u64 = 256 << 10;
/// Chunks of one question, 1 MiB: they wait in the broker's memory until they are taken.
const CHUNKS_AT_ONCE: usize = 4;
/// Longest name under which chunks lie, in characters: the broker's own tools give 22.
const CHUNKS_NAME_MAX: usize = 64;
/// What the record's digest begins with.
const DIGEST: &str = "SHA-256=";
/// The mode of a fetched file: nobody else needs it.
const MODE: u32 = 0o700;

/// What is said of a stored file, in the words of object stores.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    name: String,
    bucket: String,
    /// The name under which its chunks lie. A deleted file's record still says so: whoever deletes it may die
    /// before they are gone.
    pub(crate) nuid: String,
    /// In bytes.
    size: u64,
    chunks: u64,
    #[serde(default)]
    digest: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) deleted: bool,
}

impl Record {
    fn is_there(&self) -> bool {
        // It becomes part of a subject.
        let is_name = self.nuid.bytes().all(|b| b.is_ascii_alphanumeric());
        !self.deleted && is_name && (1..=CHUNKS_NAME_MAX).contains(&self.nuid.len())
    }
}

/// What the broker has of a file.
#[derive(Default)]
struct StoredFile {
    /// The stream sequence of its record; 0: there is none.
    sequence: u64,
    /// `None`: it is not there, or was deleted, or its record cannot be read.
    record: Option<Record>,
}

/// A file that is marked as deleted and still has its chunks.
pub(crate) struct MarkedFile {
    hash: Hash,
    sequence: u64,
    record: Record,
}

impl EventStore {
    /// Stores a plugin's file under its SHA-256, 64 digits in lower case. Where it is already, as a whole,
    /// nothing is read or sent. Fails with [`Error::TooLarge`] when it has more than
    /// [`PLUGIN_FILE_BYTES_MAX`] bytes, with [`Error::PluginFile`] when it has another SHA-256, with
    /// [`Error::LocalFile`] when it cannot be read, and with [`Error::NoRoom`] or [`Error::Unavailable`]. It
    /// is not there then, unless the last answer of the broker was lost.
    pub async fn put_plugin_file(
        &self,
        file: &mut (impl AsyncRead + Unpin),
        sha256: &str,
    ) -> Result<(), Error> {
        let hash = parsed(sha256)?;
        self.room.look(&self.settings.monitor_urls).await;
        self.check_room()?;
        topology::create_files(&self.jetstream).await?;
        let before = self.stored_file(&hash).await?;
        if let Some(record) = &before.record
            && self.has_all_chunks(record).await?
        {
            return Ok(());
        }
        self.sweep_plugin_files().await;
        let nuid = Uuid::new_v4().simple().to_string();
        let record = match self.send_chunks(file, &hash, &nuid).await {
            Ok(record) => record,
            Err(error) => {
                self.purge_chunks(&nuid).await;
                return Err(error);
            }
        };
        match self.write_record(&hash, &record, before.sequence).await {
            Ok(_) => {
                if let Some(former) = before.record {
                    self.purge_chunks(&former.nuid).await;
                }
                Ok(())
            }
            // It may be stored, and needs its chunks then.
            Err(error @ Error::Unavailable(_)) => Err(error),
            Err(error) => {
                self.purge_chunks(&nuid).await;
                let is_there = matches!(error, Error::Conflict)
                    && self.stored_file(&hash).await?.record.is_some();
                if is_there { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Writes a stored file to this path, whose folder is there, and lets its owner execute it. A file that
    /// is there is replaced, and the path never has half of one. Fails with [`Error::PluginFile`] when it is
    /// not stored, when it has another SHA-256, and when it has more or fewer bytes than these; with
    /// [`Error::LocalFile`] when it cannot be written; and with [`Error::Unavailable`].
    #[boxed::async_recursion]
    pub async fn fetch_plugin_file(
        &self,
        sha256: &str,
        to: &Path,
        bytes: u64,
    ) -> Result<(), Error> {
        let hash = parsed(sha256)?;
        if bytes > PLUGIN_FILE_BYTES_MAX {
            return Err(too_large());
        }
        let record = self.stored_file(&hash).await?.record;
        let record = record.ok_or_else(|| wrong(&hash, "is not stored"))?;
        if record.size != bytes {
            let size = record.size;
            return Err(wrong(&hash, &format!("has {size} bytes, and {bytes} were installed")));
        }
        let partial = Partial::beside(to);
        self.write_chunks(&partial.0, &record, &hash).await?;
        fs::rename(&partial.0, to).await.map_err(local(to))
    }

    async fn send_chunks(
        &self,
        file: &mut (impl AsyncRead + Unpin),
        hash: &Hash,
        nuid: &str,
    ) -> Result<Record, Error> {
        let (mut hasher, mut size, mut chunks) = (Sha256::new(), 0, 0);
        while let Some(chunk) = next_chunk(file).await? {
            size += length(&chunk);
            if size > PLUGIN_FILE_BYTES_MAX {
                return Err(too_large());
            }
            hasher.update(&chunk);
            chunks += 1;
            self.acknowledged.store(chunks_subject(nuid), HeaderMap::new(), chunk).await?;
        }
        let digest: [u8; 32] = hasher.finalize().into();
        if Hash::from(digest) != *hash {
            return Err(wrong(hash, "has changed since it was looked at"));
        }
        Ok(Record {
            name: hash.to_string(),
            bucket: FILES_BUCKET.to_owned(),
            nuid: nuid.to_owned(),
            size,
            chunks,
            digest: format!("{DIGEST}{}", URL_SAFE.encode(digest)),
            deleted: false,
        })
    }

    /// Writes a file's record if its last one is at this sequence.
    async fn write_record(&self, hash: &Hash, record: &Record, last: u64) -> Result<u64, Error> {
        let mut headers = HeaderMap::new();
        // The former one goes.
        headers.insert("Nats-Rollup", "sub");
        expect_last(&mut headers, last);
        let body = serde_json::to_vec(record).map_err(unavailable)?;
        Ok(self.acknowledged.store(record_subject(hash), headers, body.into()).await?)
    }

    /// What the stream's leader has of a file.
    async fn stored_file(&self, hash: &Hash) -> Result<StoredFile, Error> {
        if found(&self.jetstream, topology::FILES).await?.is_none() {
            return Ok(StoredFile::default());
        }
        let stream = self.jetstream.get_stream_no_info(topology::FILES).await;
        let stream = stream.map_err(unavailable)?;
        match stream.get_last_raw_message_by_subject(&record_subject(hash)).await {
            Ok(message) => {
                let record: Option<Record> = serde_json::from_slice(&message.payload).ok();
                let record = record.filter(Record::is_there);
                Ok(StoredFile { sequence: message.sequence, record })
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Ok(StoredFile::default())
            }
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn has_all_chunks(&self, record: &Record) -> Result<bool, Error> {
        let stream = self.jetstream.get_stream(topology::FILES).await.map_err(unavailable)?;
        let subject = chunks_subject(&record.nuid);
        let mut subjects = stream.info_with_subjects(subject).await.map_err(unavailable)?;
        let first = subjects.try_next().await.map_err(unavailable)?;
        let chunks = first.map_or(0, |(_, messages)| u64::try_from(messages).unwrap_or(u64::MAX));
        Ok(chunks == record.chunks)
    }

    /// Frees the room that chunks take. Where that fails they take room in vain, until somebody sends a file
    /// an hour later.
    async fn purge_chunks(&self, nuid: &str) {
        let purged = async {
            let stream = self.jetstream.get_stream_no_info(topology::FILES).await;
            let stream = stream.map_err(unavailable)?;
            stream.purge().filter(chunks_subject(nuid)).await.map_err(unavailable)
        };
        if let Err(error) = purged.await {
            tracing::warn!(%error, nuid, "parts of a plugin's file take room in vain");
        }
    }

    async fn write_chunks(&self, to: &Path, record: &Record, hash: &Hash) -> Result<(), Error> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(MODE);
        let mut file = options.open(to).await.map_err(local(to))?;
        let (mut hasher, mut left, mut next) = (Sha256::new(), record.size, 1);
        while left > 0 {
            let (chunks, last) = self.read_chunks(&record.nuid, next, hash).await?;
            for chunk in &chunks {
                let more = || wrong(hash, "has more bytes than its record says");
                left = left.checked_sub(length(chunk)).ok_or_else(more)?;
                hasher.update(chunk);
                file.write_all(chunk).await.map_err(local(to))?;
            }
            next = last + 1;
        }
        file.flush().await.map_err(local(to))?;
        file.sync_all().await.map_err(local(to))?;
        let digest: [u8; 32] = hasher.finalize().into();
        if Hash::from(digest) == *hash {
            Ok(())
        } else {
            Err(wrong(hash, "has another content than its name says"))
        }
    }

    /// The next chunks from this stream sequence on, at least one, and the sequence of the last of them.
    async fn read_chunks(
        &self,
        nuid: &str,
        from: u64,
        hash: &Hash,
    ) -> Result<(Vec<Bytes>, u64), Error> {
        let subject = chunks_subject(nuid);
        let question =
            format!(r#"{{"seq":{from},"next_by_subj":"{subject}","batch":{CHUNKS_AT_ONCE}}}"#);
        let _place = self.bulk.places.wait(&platform()).await;
        let to = direct::get(topology::FILES);
        let mut replies = self.bulk.inbox.request(to, None, Bytes::from(question)).await?;
        let (mut chunks, mut last) = (Vec::new(), from);
        // The last reply only says that the batch has ended.
        for _ in 0..=CHUNKS_AT_ONCE {
            let message = replies.next().await?;
            match message.status.map(|status| status.as_u16()) {
                None => {}
                // 204: the batch ends; 404: nothing there.
                Some(204 | 404) => break,
                Some(status) => {
                    let text = message.description.unwrap_or_default();
                    return Err(unavailable(format!("direct get answered {status} {text}")));
                }
            }
            last = load::number(&message, direct::SEQUENCE)
                .filter(|sequence| *sequence >= last)
                .ok_or_else(|| unavailable("direct get without a sequence behind the last"))?;
            chunks.push(message.payload);
        }
        if chunks.is_empty() {
            return Err(self.lacking(&subject, from, hash).await);
        }
        Ok((chunks, last))
    }

    /// Why a replica has no chunk from there on.
    async fn lacking(&self, subject: &str, from: u64, hash: &Hash) -> Error {
        match self.leaders.next_on(topology::FILES, subject, from).await {
            Ok(None) => wrong(hash, "has fewer bytes than its record says"),
            Ok(Some(_)) => unavailable("a replica does not have the whole of a plugin's file yet"),
            Err(error) => error.into(),
        }
    }

    /// Marks a file as deleted and leaves its chunks. `None`: it is not there, or somebody has just stored it
    /// again.
    pub(crate) async fn mark_plugin_file(&self, sha256: &str) -> Result<Option<MarkedFile>, Error> {
        let hash = parsed(sha256)?;
        let StoredFile { sequence, record: Some(record) } = self.stored_file(&hash).await? else {
            return Ok(None);
        };
        let deleted = Record { size: 0, chunks: 0, deleted: true, ..record.clone() };
        match self.write_record(&hash, &deleted, sequence).await {
            Ok(sequence) => Ok(Some(MarkedFile { hash, sequence, record })),
            Err(Error::Conflict) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Frees the room that a marked file takes.
    pub(crate) async fn delete_plugin_file(&self, marked: &MarkedFile) {
        self.purge_chunks(&marked.record.nuid).await;
    }

    /// Takes the mark back.
    pub(crate) async fn restore_plugin_file(&self, marked: &MarkedFile) -> Result<(), Error> {
        match self.write_record(&marked.hash, &marked.record, marked.sequence).await {
            Ok(_) => Ok(()),
            // Stored once more meanwhile, with chunks of its own.
            Err(Error::Conflict) => {
                self.purge_chunks(&marked.record.nuid).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// A file that is not whole yet; it goes with this, unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    /// In the same folder, so that it can be renamed.
    fn beside(to: &Path) -> Self {
        Self(to.with_file_name(format!(".{}.part", Uuid::new_v4().simple())))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        drop(std::fs::remove_file(&self.0));
    }
}

fn platform() -> Tenant {
    Tenant::parse(Tenant::PLATFORM).expect("BUG: a valid tenant")
}

/// A SHA-256 as it is spelt everywhere, since it is a name.
fn parsed(sha256: &str) -> Result<Hash, Error> {
    let hash = Hash::parse(sha256).filter(|hash| hash.to_string() == sha256);
    hash.ok_or_else(|| Error::PluginFile("a SHA-256 has 64 digits, 0 to 9 and a to f".to_owned()))
}

pub(crate) fn chunks_subject(nuid: &str) -> String {
    format!("$O.{FILES_BUCKET}.C.{nuid}")
}

fn record_subject(hash: &Hash) -> String {
    format!("$O.{FILES_BUCKET}.M.{}", URL_SAFE.encode(hash.to_string()))
}

fn length(chunk: &Bytes) -> u64 {
    u64::try_from(chunk.len()).unwrap_or(u64::MAX)
}

/// The next part of a file, of full length but for the last; `None` behind it.
async fn next_chunk(file: &mut (impl AsyncRead + Unpin)) -> Result<Option<Bytes>, Error> {
    let mut chunk = Vec::new();
    let read = file.take(CHUNK_BYTES).read_to_end(&mut chunk).await;
    read.map_err(|error| Error::LocalFile(format!("the plugin's file cannot be read: {error}")))?;
    Ok((!chunk.is_empty()).then(|| chunk.into()))
}

fn too_large() -> Error {
    Error::TooLarge(format!("a plugin's file has at most {PLUGIN_FILE_BYTES_MAX} bytes"))
}

fn wrong(hash: &Hash, what: &str) -> Error {
    Error::PluginFile(format!("the file {hash} {what}: install the plugin again"))
}

fn local(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::LocalFile(format!("cannot write {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_object_stores_write_it() {
        let written = r#"{"name":"a","description":"","options":{"max_chunk_size":131072},
            "bucket":"flex_plugins","nuid":"CkFYh4PKLVBIBrLRfDJZ5o","size":3,"chunks":1,
            "mtime":"0001-01-01T00:00:00Z","digest":"SHA-256=x"}"#;
        let record: Record = serde_json::from_str(written).unwrap();
        assert!(record.is_there());
        assert_eq!((record.size, record.chunks), (3, 1));
        let text = serde_json::to_string(&record).unwrap();
        assert!(!text.contains("deleted"), "{text}");
        for nuid in ["", "a.b", "*", ">", "a b", "a\"", &"a".repeat(CHUNKS_NAME_MAX + 1)] {
            let hostile = Record { nuid: nuid.to_owned(), ..record.clone() };
            assert!(!hostile.is_there(), "{nuid}");
        }
        for length in [CHUNKS_NAME_MAX - 1, CHUNKS_NAME_MAX] {
            assert!(Record { nuid: "a".repeat(length), ..record.clone() }.is_there());
        }
        assert!(!Record { deleted: true, ..record }.is_there());
    }

    #[test]
    fn a_name_is_a_sha256_in_lower_case() {
        let digits = "0123456789abcdef".repeat(4);
        assert!(parsed(&digits).is_ok());
        let long = format!("{digits}0");
        for wrong in ["", &digits[1..], &long, &digits.to_uppercase(), "../../etc/passwd"] {
            assert!(matches!(parsed(wrong), Err(Error::PluginFile(_))), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_in_chunks_of_one_length() {
        let whole = usize::try_from(CHUNK_BYTES).unwrap();
        for bytes in [0, 1, whole - 1, whole, whole + 1, 3 * whole] {
            let text = vec![7_u8; bytes];
            let (mut rest, mut lengths) = (text.as_slice(), Vec::new());
            while let Some(chunk) = next_chunk(&mut rest).await.unwrap() {
                lengths.push(chunk.len());
            }
            let last = bytes % whole;
            let mut expected = vec![whole; bytes / whole];
            expected.extend((last > 0).then_some(last));
            assert_eq!(lengths, expected, "{bytes}");
        }
    }
}
