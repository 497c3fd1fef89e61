//! How rows are written.

use flexcore_sdk::Failure;
use serde::Deserialize;

use crate::depth::{DEPTH_MAX, depth};

/// Columns of CSV. 1,024: a spreadsheet has more, and nobody reads them.
pub(super) const COLUMNS_MAX: usize = 1_024;
/// Longest row, in bytes, as it is read or written. 256 KiB.
pub(super) const ROW_BYTES_MAX: usize = 256 * 1024;

/// The languages of rows.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    #[default]
    Csv,
    Ndjson,
}

/// The sign between two cells.
pub(super) fn delimiter(text: Option<&str>) -> Result<u8, Failure> {
    let Some(text) = text else { return Ok(b',') };
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n' | b'\0') => Ok(*byte),
        _ => Err(Failure::new("bad_delimiter", "a delimiter is one sign of ASCII, and no quote")),
    }
}

/// Fails where JSON of somebody else is deeper than others take it.
pub(super) fn is_flat(json: &str, row: u64) -> Result<(), Failure> {
    if depth(json) <= DEPTH_MAX {
        return Ok(());
    }
    Err(at_row("too_deep", row, &format!("it is deeper than {DEPTH_MAX}")))
}

/// A failure that names a row, counted from 1 on; the header is none.
pub(super) fn at_row(code: &str, row: u64, what: &str) -> Failure {
    let details = serde_json::json!({ "row": row });
    Failure::new(code, format_args!("row {row}: {what}")).details(&details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_others_is_not_too_deep() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        is_flat(&nested(DEPTH_MAX), 1).unwrap();
        assert_eq!(is_flat(&nested(DEPTH_MAX + 1), 1).unwrap_err().code, "too_deep");
    }

    #[test]
    fn a_delimiter_is_one_sign() {
        assert_eq!(delimiter(None).unwrap(), b',');
        for good in [";", "\t", "|", " "] {
            assert_eq!(delimiter(Some(good)).unwrap(), good.as_bytes()[0]);
        }
        for bad in ["", ",,", "\"", "\n", "\r", "\0", "ü"] {
            assert_eq!(delimiter(Some(bad)).unwrap_err().code, "bad_delimiter", "{bad:?}");
        }
    }
}
