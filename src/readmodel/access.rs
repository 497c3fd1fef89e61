//! The way in which a selection finds its rows: by which index, and if in that order.

use flexcore_definition::{Index, ReadModelDefinition};
use flexcore_domain::Name;

use crate::{
    index::{is_short, texts, whole},
    select::{Op, Select},
};

/// An index that serves a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// `None`: the key's.
    pub(crate) index: Option<Index>,
    /// The filters that it answers; the others are held against each row that it finds.
    pub(crate) found_by: Vec<usize>,
    /// It has the rows in the order of the selection.
    pub(crate) in_order: bool,
    /// Columns that a filter holds to one value: they order nothing.
    pub(crate) fixed: Vec<Name>,
    rank: (usize, bool, usize),
}

/// The one of these indexes, and of the key's, that serves a selection best; `order` is the whole order
/// of the selection, with whether each column descends. `None`: every row of the tenant is to be looked
/// at, in the order of the key at best.
pub(crate) fn best(
    model: &ReadModelDefinition,
    select: &Select,
    order: &[(Name, bool)],
    indexes: &[Index],
) -> Option<Access> {
    let of_key = Index { columns: model.key.iter().map(|name| (name.clone(), false)).collect() };
    let mut best: Option<Access> = None;
    let candidates = indexes.iter().map(|index| (index, Some(index.clone())));
    for (index, declared) in [(&of_key, None)].into_iter().chain(candidates) {
        let is_beyond = |name: &&Name| {
            let mut on = select.filters.iter().filter(|filter| filter.column == **name);
            on.any(|filter| is_short(filter) == Some(false))
        };
        if texts(index, &model.columns, &model.key).iter().any(is_beyond) {
            continue;
        }
        let access = Access { index: declared, ..access(model, select, order, index) };
        let is_useful = !access.found_by.is_empty() || access.rank.1;
        if is_useful && best.as_ref().is_none_or(|best| best.rank < access.rank) {
            best = Some(access);
        }
    }
    best
}

/// The use of one index for a selection.
fn access(
    model: &ReadModelDefinition,
    select: &Select,
    order: &[(Name, bool)],
    index: &Index,
) -> Access {
    let on = |name: &Name| {
        let name = name.clone();
        select.filters.iter().enumerate().filter(move |(_, filter)| filter.column == name)
    };
    let is_fixed = |name: &Name| on(name).any(|(_, filter)| filter.op == Op::Eq);
    let columns = whole(index, &model.key);
    let (mut found_by, mut equal, mut range) = (Vec::new(), 0, 0);
    for (name, _) in &columns {
        let usable = on(name).filter(|(_, filter)| filter.op != Op::Ne).map(|(at, _)| at);
        let before = found_by.len();
        found_by.extend(usable);
        if !is_fixed(name) {
            range = found_by.len() - before;
            break;
        }
        equal += 1;
    }
    let free = |columns: &[(Name, bool)]| {
        columns.iter().filter(|(name, _)| !is_fixed(name)).cloned().collect::<Vec<_>>()
    };
    let in_order = free(&columns).starts_with(&free(order));
    let fixed = order.iter().map(|(name, _)| name).filter(|name| is_fixed(name)).cloned().collect();
    // The order by key alone is what every selection has that asks for none.
    let is_asked = in_order && !select.sort.is_empty();
    Access { index: None, found_by, in_order, fixed, rank: (equal, is_asked, range) }
}

#[cfg(test)]
mod tests {
    use flexcore_definition::{Column, ColumnType, FileLine};

    use super::*;

    fn model(indexes: &[&[&str]]) -> ReadModelDefinition {
        let name = |text: &str| Name::parse(text).unwrap();
        let column = |(text, column_type)| Column { name: name(text), column_type };
        let index = |columns: &&[&str]| Index {
            columns: columns
                .iter()
                .map(|text| (name(text.trim_start_matches('-')), text.starts_with('-')))
                .collect(),
        };
        ReadModelDefinition {
            name: name("orders"),
            description: String::new(),
            place: FileLine::default(),
            columns: [
                ("id", ColumnType::Text),
                ("customer", ColumnType::Text),
                ("at", ColumnType::Timestamp),
                ("total", ColumnType::Integer),
            ]
            .map(column)
            .to_vec(),
            key: vec![name("id")],
            indexes: indexes.iter().map(index).collect(),
            on: Default::default(),
            followed: Default::default(),
            shared: false,
            fingerprint: String::new(),
        }
    }

    fn order(model: &ReadModelDefinition, select: &Select) -> Vec<(Name, bool)> {
        let is_asked = |key: &&Name| select.sort.iter().all(|(name, _)| name != *key);
        let rest = model.key.iter().filter(is_asked).map(|name| (name.clone(), false));
        select.sort.iter().cloned().chain(rest).collect()
    }

    /// The index, the filters that it answers, and whether it gives the order.
    fn found(indexes: &[&[&str]], query: &[(&str, &str)]) -> Option<(String, usize, bool)> {
        let model = model(indexes);
        let pairs: Vec<_> =
            query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let select = Select::parse(&model, &pairs).unwrap();
        let access = best(&model, &select, &order(&model, &select), &model.indexes)?;
        let name = access.index.map_or("key".to_owned(), |index| index.to_string());
        Some((name, access.found_by.len(), access.in_order))
    }

    #[test]
    fn the_index_that_answers_most_is_taken() {
        let all: &[&[&str]] = &[&["customer", "-at"], &["-at"], &["total"]];
        let time = "2013-01-01T00:00:00Z";
        for (query, expected) in [
            (&[][..], None),
            (&[("total", "ne.1")], None),
            (&[("at", time)], Some(("[-at]", 1, true))),
            (&[("id", "x")], Some(("key", 1, true))),
            (&[("id", "x"), ("customer", "c")], Some(("key", 1, true))),
            (&[("customer", "c")], Some(("[customer, -at]", 1, false))),
            (&[("customer", "c"), ("sort", "-at")], Some(("[customer, -at]", 1, true))),
            (&[("customer", "c"), ("sort", "customer,-at")], Some(("[customer, -at]", 1, true))),
            (&[("customer", "c"), ("sort", "at")], Some(("[customer, -at]", 1, false))),
            (&[("customer", "in.c,d"), ("sort", "-at")], Some(("[-at]", 0, true))),
            (
                &[("customer", "c"), ("at", "gt.2013-01-01T00:00:00Z")],
                Some(("[customer, -at]", 2, false)),
            ),
            (&[("sort", "-at")], Some(("[-at]", 0, true))),
            (&[("sort", "at")], None),
            (&[("sort", "-at,-id")], None),
            (&[("total", "gte.1")], Some(("[total]", 1, false))),
            (
                &[("total", "gte.1"), ("total", "lt.5"), ("sort", "total")],
                Some(("[total]", 2, true)),
            ),
            (&[("sort", "id")], Some(("key", 0, true))),
        ] {
            let expected = expected.map(|(name, count, order)| (name.to_owned(), count, order));
            assert_eq!(found(all, query), expected, "{query:?}");
        }
    }

    #[test]
    fn a_text_too_long_for_an_index_is_not_looked_for_in_it() {
        let (short, long) = ("é".repeat(127), "é".repeat(128));
        assert!(found(&[&["customer"]], &[("customer", &short)]).is_some());
        assert_eq!(found(&[&["customer"]], &[("customer", &long)]), None);
        assert!(found(&[&["customer"]], &[("customer", &format!("gt.{long}"))]).is_some());
    }
}
