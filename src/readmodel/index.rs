//! The indexes of a table: their names, their columns, and the rows that stand in them.
//!
//! Every index begins with the tenant, because every read is of one, and ends with the rest of the
//! key, so that pages continue where the last one ended. An entry of a Postgres index has 2,704
//! bytes, and a text has no limit: a row with a longer text than [`INDEX_TEXT_BYTES_MAX`] is left
//! out, and stands in a second index of such rows, by key. So every row can be written, and found.

use flexcore_definition::{Column, ColumnType, INDEX_TEXT_BYTES_MAX, Index};
use flexcore_domain::Name;

use crate::select::{Filter, Op};

/// The beginning of an index's name: no name of a read model begins so.
pub(crate) const PREFIX: &str = "_i";

/// One of Postgres's indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) name: String,
    /// The text after the table in `create index`.
    pub(crate) definition: String,
}

/// The columns of an index, those of the key that follow by themselves included.
pub(crate) fn whole(index: &Index, key: &[Name]) -> Vec<(Name, bool)> {
    let is_named = |name: &Name| index.columns.iter().any(|(column, _)| column == name);
    let rest = key.iter().filter(|name| !is_named(name)).map(|name| (name.clone(), false));
    index.columns.iter().cloned().chain(rest).collect()
}

/// The columns whose text may be too long for the index. A key is never that long.
pub(crate) fn texts<'a>(index: &'a Index, columns: &[Column], key: &[Name]) -> Vec<&'a Name> {
    let is_text = |name: &Name| {
        columns.iter().any(|column| column.name == *name && column.column_type == ColumnType::Text)
    };
    let names = index.columns.iter().map(|(name, _)| name);
    names.filter(|name| !key.contains(name) && is_text(name)).collect()
}

/// The condition of rows that stand in the index; empty: all do. Postgres compares it with that of
/// the index, so that the two must be written alike.
pub(crate) fn short(texts: &[&Name], of: &str) -> String {
    let one = |name: &&Name| {
        let max = INDEX_TEXT_BYTES_MAX;
        format!("(octet_length({of}\"{name}\") <= {max} or {of}\"{name}\" is null)")
    };
    texts.iter().map(one).collect::<Vec<_>>().join(" and ")
}

/// The condition of the other rows.
pub(crate) fn long(texts: &[&Name], of: &str) -> String {
    let one = |name: &&Name| format!("octet_length({of}\"{name}\") > {INDEX_TEXT_BYTES_MAX}");
    format!("({})", texts.iter().map(one).collect::<Vec<_>>().join(" or "))
}

/// True if a filter can only match rows that stand in an index with this text column: `None`, when
/// it matches others as well; `Some(false)`, when it matches none of them.
pub(crate) fn is_short(filter: &Filter) -> Option<bool> {
    let mut lengths = filter.values.iter().map(|value| value.len() <= INDEX_TEXT_BYTES_MAX);
    match filter.op {
        Op::Eq | Op::In if lengths.all(|short| short) => Some(true),
        Op::Eq => Some(false),
        Op::IsNull => Some(true),
        _ => None,
    }
}

/// Postgres' indexes for a declared index of the version with this number of its own.
pub(crate) fn made(id: i64, index: &Index, columns: &[Column], key: &[Name]) -> Vec<Made> {
    let nullable = |name: &Name| !key.contains(name);
    let place = |(name, descends): &(Name, bool)| match (descends, nullable(name)) {
        (false, _) => format!("\"{name}\""),
        (true, true) => format!("\"{name}\" desc nulls last"),
        (true, false) => format!("\"{name}\" desc"),
    };
    let listed = |columns: &[(Name, bool)]| {
        let places: Vec<String> = columns.iter().map(place).collect();
        format!("(tenant, {})", places.join(", "))
    };
    let texts = texts(index, columns, key);
    let mut definitions = vec![listed(&whole(index, key))];
    if !texts.is_empty() {
        definitions[0].push_str(&format!(" where {}", short(&texts, "")));
        let by_key: Vec<(Name, bool)> = key.iter().map(|name| (name.clone(), false)).collect();
        definitions.push(format!("{} where {}", listed(&by_key), long(&texts, "")));
    }
    let name = |definition: &str| format!("{PREFIX}{id}_{:016x}", fnv1a(definition));
    definitions.into_iter().map(|definition| Made { name: name(&definition), definition }).collect()
}

/// The version that an index is of.
pub(crate) fn id_of(name: &str) -> Option<i64> {
    name.strip_prefix(PREFIX)?.split('_').next()?.parse().ok()
}

/// FNV-1a 64: the parts of an index identify it, and so does the query of a cursor.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn columns() -> Vec<Column> {
        let columns =
            [("id", ColumnType::Text), ("a", ColumnType::Text), ("n", ColumnType::Integer)];
        columns.map(|(text, column_type)| Column { name: name(text), column_type }).to_vec()
    }

    fn index(columns: &[(&str, bool)]) -> Index {
        Index { columns: columns.iter().map(|(text, desc)| (name(text), *desc)).collect() }
    }

    #[test]
    fn an_index_begins_with_the_tenant_and_ends_with_the_key() {
        let of = |columns_of: &[(&str, bool)]| {
            let made = made(7, &index(columns_of), &columns(), &[name("id")]);
            made.into_iter().map(|made| made.definition).collect::<Vec<_>>()
        };
        assert_eq!(of(&[("n", true)]), ["(tenant, \"n\" desc nulls last, \"id\")"]);
        assert_eq!(of(&[("id", true)]), ["(tenant, \"id\" desc)"]);
        assert_eq!(
            of(&[("a", false), ("n", false)]),
            [
                "(tenant, \"a\", \"n\", \"id\") where (octet_length(\"a\") <= 255 or \"a\" is null)",
                "(tenant, \"id\") where (octet_length(\"a\") > 255)"
            ]
        );
    }

    #[test]
    fn an_index_names_its_version() {
        assert_eq!(id_of("_i12_9f86d081884c7d65"), Some(12));
        assert_eq!(id_of("_ix"), None);
    }
}
