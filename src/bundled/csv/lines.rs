//! Rows out of pieces of a text, in room that is bounded.

use flexcore_sdk::Failure;

use super::layout::{COLUMNS_MAX, Format, ROW_BYTES_MAX, at_row};

/// Takes pieces, and gives rows.
pub(super) enum Lines {
    Csv(Box<Records>),
    Ndjson(Vec<u8>),
}

/// One row as it is written.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// The cells of CSV.
    Cells(Vec<String>),
    /// A line of NDJSON.
    Json(String),
}

/// What a piece has led to.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// No whole row: more is needed.
    Nothing,
    Line(Line),
    End,
}

/// A row of CSV that grows.
pub(super) struct Records {
    parser: csv_core::Reader,
    text: Vec<u8>,
    /// Bytes of `text` that are used.
    used: usize,
    /// Where each cell ends in it.
    ends: Vec<usize>,
    cells: usize,
}

impl Lines {
    pub(super) fn new(format: Format, delimiter: u8) -> Self {
        match format {
            Format::Ndjson => Self::Ndjson(Vec::new()),
            Format::Csv => Self::Csv(Box::new(Records {
                parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
                text: vec![0; ROW_BYTES_MAX],
                used: 0,
                ends: vec![0; COLUMNS_MAX],
                cells: 0,
            })),
        }
    }

    /// The next row of this piece, and how much of the piece is used up. An empty piece says that
    /// there is no more. `row` is the row's number, for failures.
    pub(super) fn next(&mut self, piece: &[u8], row: u64) -> Result<(usize, Found), Failure> {
        match self {
            Self::Csv(records) => records.next(piece, row),
            Self::Ndjson(line) => next_line(line, piece, row),
        }
    }
}

impl Records {
    fn next(&mut self, piece: &[u8], row: u64) -> Result<(usize, Found), Failure> {
        let text = self.text.get_mut(self.used..).unwrap_or_default();
        let ends = self.ends.get_mut(self.cells..).unwrap_or_default();
        let (result, read, written, ended) = self.parser.read_record(piece, text, ends);
        self.used += written;
        self.cells += ended;
        match result {
            csv_core::ReadRecordResult::InputEmpty => Ok((read, Found::Nothing)),
            csv_core::ReadRecordResult::OutputFull => Err(too_long(row)),
            csv_core::ReadRecordResult::OutputEndsFull => {
                let what = format!("it has more than {COLUMNS_MAX} cells");
                Err(at_row("too_many_columns", row, &what))
            }
            csv_core::ReadRecordResult::End => Ok((read, Found::End)),
            csv_core::ReadRecordResult::Record => Ok((read, Found::Line(self.taken(row)?))),
        }
    }

    fn taken(&mut self, row: u64) -> Result<Line, Failure> {
        let mut cells = Vec::with_capacity(self.cells);
        let mut begin = 0;
        for end in self.ends.iter().take(self.cells) {
            let cell = self.text.get(begin..*end).unwrap_or_default();
            cells.push(std::str::from_utf8(cell).map_err(|_| no_text(row))?.to_owned());
            begin = *end;
        }
        (self.used, self.cells) = (0, 0);
        Ok(Line::Cells(cells))
    }
}

fn next_line(line: &mut Vec<u8>, piece: &[u8], row: u64) -> Result<(usize, Found), Failure> {
    let end = piece.iter().position(|byte| *byte == b'\n');
    let part = end.map_or(piece, |end| piece.get(..end).unwrap_or_default());
    if line.len().saturating_add(part.len()) > ROW_BYTES_MAX {
        return Err(too_long(row));
    }
    line.extend_from_slice(part);
    let read = end.map_or(piece.len(), |end| end + 1);
    if end.is_none() && !piece.is_empty() {
        return Ok((read, Found::Nothing));
    }
    let whole = std::mem::take(line);
    if whole.trim_ascii().is_empty() {
        // A line of white space is none.
        return Ok((read, if piece.is_empty() { Found::End } else { Found::Nothing }));
    }
    let text = String::from_utf8(whole).map_err(|_| no_text(row))?;
    Ok((read, Found::Line(Line::Json(text.trim_ascii().to_owned()))))
}

fn too_long(row: u64) -> Failure {
    at_row("row_too_long", row, &format!("it is longer than {} KiB", ROW_BYTES_MAX >> 10))
}

fn no_text(row: u64) -> Failure {
    at_row("not_utf8", row, "it is not in UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All rows of a text that comes in pieces of this size.
    fn rows(format: Format, text: &[u8], size: usize) -> Result<Vec<Line>, Failure> {
        let (mut lines, mut rows) = (Lines::new(format, b','), Vec::new());
        let mut pieces = text.chunks(size);
        let mut piece = pieces.next().unwrap_or_default();
        loop {
            let (read, found) = lines.next(piece, 1)?;
            piece = &piece[read..];
            match found {
                Found::End => return Ok(rows),
                Found::Line(line) => rows.push(line),
                Found::Nothing => {}
            }
            if piece.is_empty() {
                piece = pieces.next().unwrap_or_default();
            }
        }
    }

    fn cells(row: &[&str]) -> Line {
        Line::Cells(row.iter().map(|cell| (*cell).to_owned()).collect())
    }

    #[test]
    fn csv_is_the_same_in_pieces_of_any_size() {
        let text = "a,b\r\n\"x\ny\",\"say \"\"hi\"\"\"\n\n,\nü,\"last\"";
        for size in 1..=text.len() {
            let expected = [
                cells(&["a", "b"]),
                cells(&["x\ny", "say \"hi\""]),
                cells(&["", ""]),
                cells(&["ü", "last"]),
            ];
            assert_eq!(rows(Format::Csv, text.as_bytes(), size).unwrap(), expected, "{size}");
        }
        assert_eq!(rows(Format::Csv, b"", 1).unwrap(), []);
        assert_eq!(rows(Format::Csv, b"\n\n", 1).unwrap(), []);
    }

    #[test]
    fn ndjson_is_the_same_in_pieces_of_any_size() {
        let text = "{\"a\":1}\r\n\n  \n[\"\u{fc}\"]\n2";
        for size in 1..=text.len() {
            let expected = ["{\"a\":1}", "[\"\u{fc}\"]", "2"];
            let expected = expected.map(|line| Line::Json(line.to_owned()));
            assert_eq!(rows(Format::Ndjson, text.as_bytes(), size).unwrap(), expected, "{size}");
        }
        assert_eq!(rows(Format::Ndjson, b"", 1).unwrap(), []);
        assert_eq!(rows(Format::Ndjson, b"\n \n", 2).unwrap(), []);
    }

    #[test]
    fn a_row_is_limited_in_length_and_in_cells() {
        for format in [Format::Csv, Format::Ndjson] {
            // A cell of CSV needs a byte of room more until its end is seen.
            let longest = "x".repeat(ROW_BYTES_MAX - 1);
            assert_eq!(rows(format, longest.as_bytes(), 65_536).unwrap().len(), 1);
            let longer = "x".repeat(ROW_BYTES_MAX + 1);
            let failure = rows(format, longer.as_bytes(), 65_536).unwrap_err();
            assert_eq!(failure.code, "row_too_long");
            let endless = format!("\"{}", "x\n".repeat(ROW_BYTES_MAX));
            if format == Format::Csv {
                let failure = rows(format, endless.as_bytes(), 65_536).unwrap_err();
                assert_eq!(failure.code, "row_too_long", "a quote that is not closed");
            }
        }
        let most = vec!["x"; COLUMNS_MAX - 1].join(",");
        assert_eq!(rows(Format::Csv, most.as_bytes(), 100).unwrap().len(), 1);
        let more = vec!["x"; COLUMNS_MAX + 2].join(",");
        let failure = rows(Format::Csv, more.as_bytes(), 100).unwrap_err();
        assert_eq!(failure.code, "too_many_columns");
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for format in [Format::Csv, Format::Ndjson] {
            assert_eq!(rows(format, b"a\xff\n", 10).unwrap_err().code, "not_utf8");
        }
    }
}
