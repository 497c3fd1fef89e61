//! Reading a page of rows.

use std::collections::BTreeMap;

use flexcore_sdk::Failure;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    cells::{CellType, Named},
    cursor::Cursor,
    layout::{Format, at_row, delimiter, is_flat},
    lines::{Found, Line, Lines},
    source::Source,
    store::{Bucket, Record},
};

/// Rows of a page, at most.
pub(super) const ROWS_MAX: u32 = 10_000;
/// The same unless the caller says otherwise.
const ROWS: u32 = 1_000;
/// Bytes of the rows of a page. 900 KiB: what is around them fits into the 960 KiB that a worker hands
/// on.
const PAGE_BYTES_MAX: usize = 900 * 1024;

/// What a caller asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    pub(super) bucket: String,
    object: String,
    #[serde(default)]
    format: Format,
    delimiter: Option<String>,
    header: Option<bool>,
    limit: Option<u32>,
    cursor: Option<String>,
    #[serde(default)]
    types: BTreeMap<String, CellType>,
}

/// Rows, and where the next ones begin.
#[derive(Serialize)]
pub(super) struct Page {
    rows: Vec<Box<RawValue>>,
    cursor: Option<String>,
}

/// A page of an object. Fails where it is not there, or a row cannot be read, which is named then.
pub(super) async fn page(bucket: &Bucket, asked: &Asked) -> Result<Page, Failure> {
    let delimiter = delimiter(asked.delimiter.as_deref())?;
    let limit = asked.limit.unwrap_or(ROWS);
    if limit == 0 || limit > ROWS_MAX {
        let message = format!("a page has 1 to {ROWS_MAX} rows");
        return Err(Failure::new("bad_limit", message));
    }
    let has_header = asked.format == Format::Csv && asked.header.unwrap_or(true);
    if !has_header && !asked.types.is_empty() {
        return Err(Failure::new("bad_types", "types are those of columns that a header names"));
    }
    let record = bucket.object(&asked.object).await?.record;
    let record = record.ok_or_else(|| Failure::new("no_such_object", "there is no such object"))?;
    let cursor = asked.cursor.as_deref().map(|text| Cursor::parse(text, &record.nuid));
    let cursor = cursor.transpose()?;
    let mut rows = match &cursor {
        Some(cursor) => {
            let source = Source::at(bucket, &record, cursor).await?;
            Rows::new(source, asked.format, delimiter, cursor.row)
        }
        None => Rows::new(Source::new(bucket, &record), asked.format, delimiter, 0),
    };
    let named = if has_header {
        // A row counts from behind the header.
        let header = match cursor {
            Some(_) => first(bucket, &record, delimiter).await?,
            None => rows.header().await?,
        };
        match header {
            Some(header) => Named::by(&header, &asked.types)?,
            None => return Ok(Page { rows: Vec::new(), cursor: None }),
        }
    } else {
        Named::Not
    };
    rows.page(&named, limit).await
}

/// The first row of an object of CSV; `None`: it has none.
pub(super) async fn first(
    bucket: &Bucket,
    record: &Record,
    delimiter: u8,
) -> Result<Option<Vec<String>>, Failure> {
    Rows::new(Source::new(bucket, record), Format::Csv, delimiter, 0).header().await
}

/// Rows that are being read.
struct Rows<'a> {
    source: Source<'a>,
    lines: Lines,
    /// Rows that are read.
    row: u64,
}

impl<'a> Rows<'a> {
    fn new(source: Source<'a>, format: Format, delimiter: u8, row: u64) -> Self {
        Self { source, lines: Lines::new(format, delimiter), row }
    }

    async fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            if self.source.rest().is_empty() {
                self.source.more().await?;
            }
            let row = self.row.saturating_add(1);
            let (used, found) = self.lines.next(self.source.rest(), row)?;
            self.source.used(used);
            match found {
                Found::Nothing => {}
                Found::End => return Ok(None),
                Found::Line(line) => {
                    self.row = row;
                    return Ok(Some(line));
                }
            }
        }
    }

    async fn header(&mut self) -> Result<Option<Vec<String>>, Failure> {
        let line = self.next().await?;
        self.row = 0;
        Ok(match line {
            Some(Line::Cells(cells)) => Some(cells),
            Some(Line::Json(_)) | None => None,
        })
    }

    async fn page(mut self, named: &Named, limit: u32) -> Result<Page, Failure> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for _ in 0..limit {
            let before = self.source.cursor(self.row);
            let Some(line) = self.next().await? else {
                return Ok(Page { rows, cursor: None });
            };
            let row = match line {
                Line::Cells(cells) => named.row(&cells, self.row)?,
                Line::Json(text) => {
                    is_flat(&text, self.row)?;
                    RawValue::from_string(text)
                        .map_err(|_| at_row("bad_row", self.row, "it is no JSON"))?
                }
            };
            // And a comma.
            bytes += row.get().len() + 1;
            if bytes > PAGE_BYTES_MAX {
                if rows.is_empty() {
                    let what = "it is larger than a page, as JSON";
                    return Err(at_row("row_too_long", self.row, what));
                }
                return Ok(Page { rows, cursor: Some(before.to_string()) });
            }
            rows.push(row);
        }
        let is_at_end = self.source.is_at_end();
        let cursor = (!is_at_end).then(|| self.source.cursor(self.row).to_string());
        Ok(Page { rows, cursor })
    }
}
