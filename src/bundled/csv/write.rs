//! Writing rows: an object is replaced as a whole, or not at all.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use flexcore_sdk::Failure;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    cells::{add_cells, add_row, checked},
    late,
    layout::{Format, ROW_BYTES_MAX, at_row, delimiter, is_flat},
    read::first,
    source::Source,
    store::{Bucket, Object, Record, digest},
};

/// Rows of one call.
pub(super) const ROWS_MAX: usize = 10_000;
/// Bytes of the rows of one call, as they are written. 16 MiB: columns that rows leave out take room,
/// too.
const WRITTEN_BYTES_MAX: usize = 16 << 20;
/// Largest object that rows are added to, in bytes. 256 MiB: all of it is written anew.
const APPENDED_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a chunk: what object stores write unless told otherwise.
const CHUNK_BYTES: usize = 128 << 10;
/// Calls that an object remembers to have been written by. 64: an attempt that is repeated follows
/// soon.
const CALLS_MAX: usize = 64;
/// Under which name it does.
const CALLS: &str = "flexcore-calls";
/// Bytes of a hash that are kept of a call's key, and of its rows.
const MARK_BYTES: usize = 8;
/// Longest time for freeing the room of what is not used. 300 ms, behind the caller's.
const PURGE_WAIT: Duration = Duration::from_millis(300);

/// What a caller wants to be written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Given {
    pub(super) bucket: String,
    object: String,
    #[serde(default)]
    format: Format,
    delimiter: Option<String>,
    header: Option<bool>,
    columns: Option<Vec<String>>,
    rows: Vec<Box<RawValue>>,
    #[serde(default)]
    append: bool,
}

/// What the object is now.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Kept {
    written: bool,
    size_bytes: u64,
}

/// Writes rows within a time. The same call again writes nothing; where somebody else has written
/// meanwhile, it fails for now, and may be repeated.
pub(super) async fn rows(
    bucket: &Bucket,
    given: &Given,
    key: &str,
    within: Duration,
) -> Result<Kept, Failure> {
    let nuid = Uuid::new_v4().simple().to_string();
    let mut is_under_way = false;
    let written = timeout(within, replaced(bucket, given, key, &nuid, &mut is_under_way)).await;
    let Unkept { failure, is_known } = match written {
        Ok(Ok(kept)) => return Ok(kept),
        Ok(Err(unkept)) => unkept,
        Err(_) => Unkept { failure: late(), is_known: !is_under_way },
    };
    // Where nobody knows if the record is stored, it may need its chunks.
    if is_known {
        let _ = timeout(PURGE_WAIT, bucket.purge(&nuid)).await;
    }
    Err(failure)
}

/// Why nothing was written, and whether that is known.
struct Unkept {
    failure: Failure,
    is_known: bool,
}

impl From<Failure> for Unkept {
    fn from(failure: Failure) -> Self {
        Self { failure, is_known: true }
    }
}

/// Says when the record is on its way.
async fn replaced(
    bucket: &Bucket,
    given: &Given,
    key: &str,
    nuid: &str,
    is_under_way: &mut bool,
) -> Result<Kept, Unkept> {
    let Object { sequence, record: former } = bucket.object(&given.object).await?;
    let mark = mark(given, key);
    if let (Some(mark), Some(former)) = (&mark, &former)
        && let Some(same) = remembered(former, mark)
    {
        if same {
            return Ok(Kept { written: false, size_bytes: former.size });
        }
        let message = "the idempotency key was used for other rows";
        return Err(Failure::new("key_reused", message).into());
    }
    let kept = former.as_ref().filter(|_| given.append);
    let text = text(bucket, given, kept).await?;
    let mut sent = Sent::new(bucket, nuid);
    if let Some(kept) = kept {
        sent.copy(kept).await?;
    }
    sent.text(text).await?;
    let mut record = former.clone().unwrap_or_else(|| bucket.record(&given.object));
    sent.told(&mut record, nuid);
    if let Some(mark) = mark {
        remember(&mut record, &mark);
    }
    *is_under_way = true;
    let stored = bucket.write_record(&record, sequence).await;
    stored
        .map_err(|unwritten| Unkept { failure: unwritten.failure, is_known: unwritten.is_known })?;
    if let Some(former) = former {
        bucket.purge(&former.nuid).await;
    }
    Ok(Kept { written: true, size_bytes: record.size })
}

/// Chunks that are sent, and what their record is to say.
struct Sent<'a> {
    bucket: &'a Bucket,
    nuid: &'a str,
    hash: Sha256,
    size: u64,
    chunks: u64,
    last: u8,
}

impl<'a> Sent<'a> {
    fn new(bucket: &'a Bucket, nuid: &'a str) -> Self {
        Self { bucket, nuid, hash: Sha256::new(), size: 0, chunks: 0, last: b'\n' }
    }

    async fn chunk(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let Some(last) = bytes.last().copied() else { return Ok(()) };
        self.last = last;
        self.hash.update(&bytes);
        self.size += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.chunks += 1;
        self.bucket.write_chunk(self.nuid, bytes).await
    }

    /// All of another version, which has to be whole, and the end of its last line.
    async fn copy(&mut self, former: &Record) -> Result<(), Failure> {
        if former.size > APPENDED_BYTES_MAX {
            let most = APPENDED_BYTES_MAX >> 20;
            let message = format!("rows are added to objects of {most} MiB at most");
            return Err(Failure::new("too_large", message));
        }
        let mut source = Source::new(self.bucket, former);
        while let Some(chunk) = source.next_chunk().await? {
            self.chunk(chunk).await?;
        }
        let found = digest(&self.hash.clone().finalize());
        if !former.digest.is_empty() && former.digest != found {
            return Err(Failure::new("bad_object", "the object has another digest than it says"));
        }
        if self.last != b'\n' {
            self.chunk(Bytes::from_static(b"\n")).await?;
        }
        Ok(())
    }

    async fn text(&mut self, text: Vec<u8>) -> Result<(), Failure> {
        let mut text = Bytes::from(text);
        while !text.is_empty() {
            let chunk = text.split_to(text.len().min(CHUNK_BYTES));
            self.chunk(chunk).await?;
        }
        Ok(())
    }

    fn told(self, record: &mut Record, nuid: &str) {
        nuid.clone_into(&mut record.nuid);
        record.size = self.size;
        record.chunks = self.chunks;
        record.digest = digest(&self.hash.finalize());
        record.deleted = false;
    }
}

/// The rows as they are written behind what is kept of the object.
async fn text(bucket: &Bucket, given: &Given, kept: Option<&Record>) -> Result<Vec<u8>, Failure> {
    let delimiter = delimiter(given.delimiter.as_deref())?;
    if given.rows.len() > ROWS_MAX {
        return Err(Failure::new("too_many_rows", format!("a call has {ROWS_MAX} rows at most")));
    }
    let mut text = Vec::new();
    if given.format == Format::Ndjson {
        for (number, row) in (1..).zip(&given.rows) {
            add_json(&mut text, row, number)?;
            is_bounded(&text)?;
        }
        return Ok(text);
    }
    let has_header = given.header.unwrap_or(true);
    let former = match kept {
        Some(record) if has_header => first(bucket, record, delimiter).await?,
        _ => None,
    };
    let columns = match (&former, &given.columns) {
        (Some(former), Some(columns)) if former != columns => {
            let message = "the object's header has other columns";
            return Err(Failure::new("bad_columns", message));
        }
        (Some(former), _) => former.clone(),
        (None, Some(columns)) => columns.clone(),
        (None, None) => keys(given.rows.first().map(|row| &**row), has_header)?,
    };
    if has_header || !columns.is_empty() {
        checked(&columns)?;
    }
    if has_header && former.is_none() {
        add_cells(&mut text, &columns, delimiter);
    }
    for (number, row) in (1..).zip(&given.rows) {
        let row: Value = serde_json::from_str(row.get())
            .map_err(|_| at_row("bad_row", number, "it is too deep"))?;
        add_row(&mut text, &row, &columns, delimiter, number)?;
        is_bounded(&text)?;
    }
    Ok(text)
}

/// The columns of a first row that is an object; none of another.
fn keys(row: Option<&RawValue>, has_header: bool) -> Result<Vec<String>, Failure> {
    let row = row.and_then(|row| serde_json::from_str(row.get()).ok());
    match row {
        Some(Value::Object(members)) => Ok(members.into_iter().map(|(name, _)| name).collect()),
        _ if has_header => {
            let message = "say the `columns`, or begin with a row that is an object";
            Err(Failure::new("bad_columns", message))
        }
        _ => Ok(Vec::new()),
    }
}

/// A line of NDJSON: JSON as it came, but on one line.
fn add_json(text: &mut Vec<u8>, row: &RawValue, number: u64) -> Result<(), Failure> {
    if row.get().len() > ROW_BYTES_MAX {
        let what = format!("it is longer than {} KiB", ROW_BYTES_MAX >> 10);
        return Err(at_row("row_too_long", number, &what));
    }
    is_flat(row.get(), number)?;
    // Within a text of JSON there are no such bytes, so they stand between others.
    let on_one_line = |byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte };
    text.extend(row.get().bytes().map(on_one_line));
    text.push(b'\n');
    Ok(())
}

fn is_bounded(text: &[u8]) -> Result<(), Failure> {
    if text.len() <= WRITTEN_BYTES_MAX {
        return Ok(());
    }
    let message = format!("the rows have over {} MiB as they are written", WRITTEN_BYTES_MAX >> 20);
    Err(Failure::new("too_large", message))
}

/// What an object remembers of a call: its key, and what it wrote.
struct Mark {
    key: String,
    rows: String,
}

fn mark(given: &Given, key: &str) -> Option<Mark> {
    if key.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    let Given { format, delimiter, header, columns, append, .. } = given;
    hash.update(format!("{format:?} {delimiter:?} {header:?} {columns:?} {append}"));
    for row in &given.rows {
        hash.update(row.get());
        hash.update([0_u8]);
    }
    Some(Mark { key: short(&Sha256::digest(key)), rows: short(&hash.finalize()) })
}

fn short(hash: &[u8]) -> String {
    hash.iter().take(MARK_BYTES).fold(String::new(), |mut text, byte| {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// If a call of this key wrote the same rows; `None`: there was none.
fn remembered(record: &Record, mark: &Mark) -> Option<bool> {
    let calls = record.metadata.get(CALLS)?.as_str()?;
    let mut calls = calls.split(' ').filter_map(|call| call.split_once(':'));
    calls.find(|(key, _)| *key == mark.key).map(|(_, rows)| rows == mark.rows)
}

fn remember(record: &mut Record, mark: &Mark) {
    let calls = record.metadata.get(CALLS).and_then(Value::as_str).unwrap_or_default();
    let mut calls: Vec<&str> = calls.split(' ').filter(|call| !call.is_empty()).collect();
    let more = (calls.len() + 1).saturating_sub(CALLS_MAX);
    calls.drain(..more.min(calls.len()));
    let call = format!("{}:{}", mark.key, mark.rows);
    calls.push(&call);
    let calls = Value::from(calls.join(" "));
    record.metadata.insert(CALLS.to_owned(), calls);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn given(rows: &Value) -> Given {
        // By its text: rows are kept as they are written.
        let json = json!({ "bucket": "b", "object": "o", "rows": rows }).to_string();
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn an_object_remembers_the_last_calls() {
        let mut record = Record::default();
        let mark_of = |key: &str, rows: Value| mark(&given(&rows), key).unwrap();
        let first = mark_of("0", json!([1]));
        assert_eq!(remembered(&record, &first), None);
        remember(&mut record, &first);
        assert_eq!(remembered(&record, &first), Some(true));
        assert_eq!(remembered(&record, &mark_of("0", json!([2]))), Some(false));
        assert_eq!(remembered(&record, &mark_of("1", json!([1]))), None);
        for number in 1..=CALLS_MAX {
            remember(&mut record, &mark_of(&number.to_string(), json!([1])));
        }
        assert_eq!(remembered(&record, &first), None, "the oldest is forgotten");
        assert_eq!(remembered(&record, &mark_of("1", json!([1]))), Some(true));
        let calls = record.metadata.get(CALLS).unwrap().as_str().unwrap();
        assert_eq!(calls.split(' ').count(), CALLS_MAX);
        assert!(mark(&given(&json!([])), "").is_none(), "a call without a key is not remembered");
    }

    #[test]
    fn json_is_kept_and_stands_on_one_line() {
        let row = RawValue::from_string("{\n\"a\":\r\n1.50, \"b\": \"\\n\"}".to_owned()).unwrap();
        let mut text = Vec::new();
        add_json(&mut text, &row, 1).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "{ \"a\":  1.50, \"b\": \"\\n\"}\n");
        let long = RawValue::from_string(format!("\"{}\"", "x".repeat(ROW_BYTES_MAX))).unwrap();
        assert_eq!(add_json(&mut Vec::new(), &long, 1).unwrap_err().code, "row_too_long");
    }

    #[test]
    fn columns_are_those_of_the_first_row() {
        let columns =
            |rows: Value, header| keys(given(&rows).rows.first().map(|row| &**row), header);
        assert_eq!(columns(json!([{ "b": 1, "a": 2 }]), true).unwrap(), ["b", "a"]);
        assert!(columns(json!([[1]]), false).unwrap().is_empty());
        for rows in [json!([[1]]), json!([]), json!([1])] {
            assert_eq!(columns(rows, true).unwrap_err().code, "bad_columns");
        }
    }
}
