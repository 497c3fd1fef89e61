//! Where a page ended. It is text that a caller hands back: nothing in it is trusted.

use std::fmt;

use flexcore_sdk::Failure;

/// The place behind a row, in one version of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cursor {
    /// The name of the version's chunks.
    pub(super) nuid: String,
    /// The stream sequence of the chunk.
    pub(super) sequence: u64,
    /// Bytes of the chunk that are read.
    pub(super) offset: usize,
    /// Bytes of the object before this chunk.
    pub(super) before: u64,
    /// Rows that are read.
    pub(super) row: u64,
}

impl Cursor {
    /// Fails where it is not one of this version of the object.
    pub(super) fn parse(text: &str, nuid: &str) -> Result<Self, Failure> {
        let parts: Vec<&str> = text.split('.').collect();
        let [version, sequence, offset, before, row] = parts[..] else { return Err(wrong()) };
        if version != nuid {
            let message =
                "the object has been written anew since the last page: begin without cursor";
            return Err(Failure::new("object_changed", message));
        }
        Ok(Self {
            nuid: version.to_owned(),
            sequence: sequence.parse().map_err(|_| wrong())?,
            offset: offset.parse().map_err(|_| wrong())?,
            before: before.parse().map_err(|_| wrong())?,
            row: row.parse().map_err(|_| wrong())?,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nuid, sequence, offset, before, row } = self;
        write!(f, "{nuid}.{sequence}.{offset}.{before}.{row}")
    }
}

pub(super) fn wrong() -> Failure {
    Failure::new("bad_cursor", "the cursor is not one of a page of this object")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_belongs_to_one_version() {
        let cursor = Cursor { nuid: "a1".to_owned(), sequence: 7, offset: 5, before: 90, row: 3 };
        assert_eq!(Cursor::parse(&cursor.to_string(), "a1").unwrap(), cursor);
        let changed = Cursor::parse(&cursor.to_string(), "b2").unwrap_err();
        assert_eq!((&*changed.code, changed.temporary), ("object_changed", false));
        for text in [
            "",
            "a1",
            "a1.1.2.3",
            "a1.1.2.3.4.5",
            "a1.-1.2.3.4",
            "a1.x.2.3.4",
            "a1....",
            "a1.99999999999999999999999.1.1.1",
        ] {
            assert_eq!(Cursor::parse(text, "a1").unwrap_err().code, "bad_cursor", "{text}");
        }
    }
}
