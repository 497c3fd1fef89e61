//! Folding a batch of changes per row, so that a batch of any length is a few statements.
//!
//! The sum of a row's changes is one delta a column: a value to set, to add, or to compare with.
//! Where that depends on the row as it is (sums of floating point numbers, whose order matters;
//! minimum after sum; a sum that comes near 64 bits on its way), the operations are kept and
//! replayed on the old value. So the rows are the same however the events fall into batches.

use std::collections::HashMap;

use flexcore_definition::{Cell, Operation};
use flexcore_domain::Tenant;

use crate::plan::Change;

/// The sum of a batch: a delta for each row, in the order of their first change.
#[derive(Debug, Default)]
pub(crate) struct Fold<'a> {
    pub(crate) rows: Vec<Row<'a>>,
    index: HashMap<RowKey<'a>, usize>,
}

/// The change of a row.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) tenant: &'a Tenant,
    pub(crate) key: &'a [Cell],
    pub(crate) fate: Fate,
}

#[derive(Debug)]
pub(crate) enum Fate {
    /// It is gone after the batch.
    Delete,
    /// It is there after the batch, each column changed so.
    Keep(Vec<Delta>),
}

/// The change of a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Delta {
    /// As it was; null in a new row.
    Same,
    Set(Cell),
    Add(Sum),
    Min(Cell),
    Max(Cell),
    /// Operations to run on the old value, each with its change's index in the batch.
    Replay(Vec<(usize, Operation, Cell)>),
}

/// Integers that are added one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sum {
    pub(crate) total: i64,
    /// The least and the most that it was on its way, from 0 on.
    low: i64,
    high: i64,
    /// The added values, each with its change's index in the batch.
    operations: Vec<(usize, i64)>,
}

/// The most that a sum may reach on its way before it is replayed. A value within the same bounds
/// cannot pass 64 bits by it.
pub(crate) const ON_ITS_WAY_MAX: i64 = 1 << 62;

impl Sum {
    /// True if it was further on its way than where it ends: then its total does not tell if the
    /// old value passes 64 bits in between.
    pub(crate) fn comes_back(&self) -> bool {
        self.low < self.total.min(0) || self.high > self.total.max(0)
    }

    /// This sum, then another number; `None` when it goes too far.
    fn then(&self, number: i64) -> Option<(i64, i64, i64)> {
        let total = self.total.checked_add(number)?;
        let (low, high) = (self.low.min(total), self.high.max(total));
        (low >= -ON_ITS_WAY_MAX && high <= ON_ITS_WAY_MAX).then_some((total, low, high))
    }

    /// Its parts, for a replay.
    fn replayed(self) -> Vec<(usize, Operation, Cell)> {
        let add = |(index, number)| (index, Operation::Add, Cell::Integer(number));
        self.operations.into_iter().map(add).collect()
    }
}

impl<'a> Fold<'a> {
    /// Folds the changes in order. `columns` is how many a row has beside its key.
    pub(crate) fn new(columns: usize, changes: impl Iterator<Item = (usize, &'a Change)>) -> Self {
        let mut fold = Self::default();
        for (index, change) in changes {
            let row = fold.row(columns, change);
            if change.delete {
                row.fate = Fate::Delete;
                continue;
            }
            if matches!(row.fate, Fate::Delete) {
                // A change after a deletion makes a new row: nothing of the old one may shine
                // through.
                row.fate = Fate::Keep(vec![Delta::Set(Cell::Null); columns]);
            }
            let Fate::Keep(deltas) = &mut row.fate else { continue };
            for (column, operation, operand) in &change.operations {
                let before = std::mem::replace(&mut deltas[*column], Delta::Same);
                deltas[*column] = before.then(index, *operation, operand);
            }
        }
        fold
    }

    fn row(&mut self, columns: usize, change: &'a Change) -> &mut Row<'a> {
        let key = RowKey { tenant: &change.tenant, key: &change.key };
        let at = *self.index.entry(key).or_insert_with(|| {
            let fate = Fate::Keep(vec![Delta::Same; columns]);
            self.rows.push(Row { tenant: &change.tenant, key: &change.key, fate });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }
}

impl Delta {
    /// This delta, then the operation.
    fn then(self, index: usize, operation: Operation, operand: &Cell) -> Self {
        if operation != Operation::Set && *operand == Cell::Null {
            return self;
        }
        match (self, operation, operand) {
            (_, Operation::Set, _) => Self::Set(operand.clone()),
            (Self::Same, Operation::Add, Cell::Integer(_)) => {
                Self::Add(Sum::default()).then(index, operation, operand)
            }
            (Self::Same, Operation::Min, _) => Self::Min(operand.clone()),
            (Self::Same, Operation::Max, _) => Self::Max(operand.clone()),
            (Self::Same, ..) => Self::Replay(vec![(index, operation, operand.clone())]),
            (Self::Replay(mut operations), ..) => {
                operations.push((index, operation, operand.clone()));
                Self::Replay(operations)
            }
            (Self::Set(value), ..) => match apply(&value, operation, operand) {
                Some(value) => Self::Set(value),
                // Beyond 64 bits: the replay finds out which change it was.
                None => Self::Replay(vec![
                    (index, Operation::Set, value),
                    (index, operation, operand.clone()),
                ]),
            },
            (Self::Add(mut sum), Operation::Add, Cell::Integer(n)) => {
                let then = sum.then(*n);
                sum.operations.push((index, *n));
                match then {
                    Some((total, low, high)) => Self::Add(Sum { total, low, high, ..sum }),
                    None => Self::Replay(sum.replayed()),
                }
            }
            (Self::Min(value), Operation::Min, _) => {
                Self::Min(apply(&value, operation, operand).unwrap_or(value))
            }
            (Self::Max(value), Operation::Max, _) => {
                Self::Max(apply(&value, operation, operand).unwrap_or(value))
            }
            (Self::Add(sum), ..) => {
                let mut operations = sum.replayed();
                operations.push((index, operation, operand.clone()));
                Self::Replay(operations)
            }
            (Self::Min(value), ..) => {
                Self::replayed(Operation::Min, value, index, operation, operand)
            }
            (Self::Max(value), ..) => {
                Self::replayed(Operation::Max, value, index, operation, operand)
            }
        }
    }

    fn replayed(
        first: Operation,
        so_far: Cell,
        index: usize,
        operation: Operation,
        operand: &Cell,
    ) -> Self {
        Self::Replay(vec![(index, first, so_far), (index, operation, operand.clone())])
    }
}

/// Runs the operations on a column's old value. Fails with the index of the change that passes 64
/// bits or the range of floating point.
pub(crate) fn replay(old: Cell, operations: &[(usize, Operation, Cell)]) -> Result<Cell, usize> {
    operations.iter().try_fold(old, |value, (index, operation, operand)| {
        apply(&value, *operation, operand).ok_or(*index)
    })
}

/// The value after an operation, exactly as SQL has it; `None`: out of range.
pub(crate) fn apply(value: &Cell, operation: Operation, operand: &Cell) -> Option<Cell> {
    Some(match (operation, value, operand) {
        (Operation::Set, ..) => operand.clone(),
        (_, _, Cell::Null) => value.clone(),
        (Operation::Add, Cell::Integer(a), Cell::Integer(b)) => Cell::Integer(a.checked_add(*b)?),
        (Operation::Add, Cell::Number(a), Cell::Number(b)) => {
            Cell::Number(Some(a + b).filter(|sum| sum.is_finite())?)
        }
        (_, Cell::Null, _) => operand.clone(),
        (Operation::Min, ..) if operand.is_less(value) => operand.clone(),
        (Operation::Max, ..) if value.is_less(operand) => operand.clone(),
        _ => value.clone(),
    })
}

/// A row's identity.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowKey<'a> {
    pub(crate) tenant: &'a Tenant,
    pub(crate) key: &'a [Cell],
}
