//! One account by the ledger's rules, written a second time: what a command makes of a state, and
//! what an event does to it. Nothing here is shared with the tested code.

use crate::{
    evidence::{Change, Row},
    history::Wanted,
};

/// Most that one deposit may be, and most parts that it may come in.
const AMOUNT_MAX: i64 = 1_000_000;
const PARTS_MAX: u64 = 8;

/// An account after some of its commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Its events so far.
    pub(crate) version: u64,
    /// `None`: it is not open.
    pub(crate) branch: Option<String>,
    pub(crate) changes: i64,
    pub(crate) deposited: i64,
    pub(crate) withdrawn: i64,
}

impl Account {
    pub(crate) fn balance(&self) -> i64 {
        self.deposited - self.withdrawn
    }

    /// The events of a command, or the word for why there are none.
    pub(crate) fn decide(&self, wanted: &Wanted, tag: &str) -> Result<Vec<Change>, &'static str> {
        let fits = match wanted {
            Wanted::Open { .. } => true,
            Wanted::Deposit { amount, parts } => {
                (1..=AMOUNT_MAX).contains(amount) && (1..=PARTS_MAX).contains(parts)
            }
            Wanted::Withdraw { amount } => *amount >= 1,
        };
        if !fits {
            return Err("invalid-payload");
        }
        let change = |event: &str, branch: &str, amount| Change {
            event: event.to_owned(),
            branch: branch.to_owned(),
            amount,
            tag: tag.to_owned(),
        };
        match (wanted, &self.branch) {
            (Wanted::Open { branch }, None) => Ok(vec![change("opened", branch, 0)]),
            (Wanted::Open { .. }, Some(_)) => Err("already_open"),
            (Wanted::Deposit { .. } | Wanted::Withdraw { .. }, None) => Err("not_open"),
            (Wanted::Deposit { amount, parts }, Some(branch)) => {
                Ok((0..*parts).map(|_| change("deposited", branch, *amount)).collect())
            }
            (Wanted::Withdraw { amount }, Some(_)) if *amount > self.balance() => Err("too_little"),
            (Wanted::Withdraw { amount }, Some(branch)) => {
                Ok(vec![change("withdrawn", branch, *amount)])
            }
        }
    }

    /// The account after one more event.
    pub(crate) fn evolve(&mut self, change: &Change) {
        self.version += 1;
        match change.event.as_str() {
            "opened" => {
                self.branch = Some(change.branch.clone());
                return;
            }
            "deposited" => self.deposited += change.amount,
            _ => self.withdrawn += change.amount,
        }
        self.changes += 1;
    }

    /// Its row; `None`: there is none.
    pub(crate) fn row(&self) -> Option<Row> {
        Some(Row {
            branch: self.branch.clone()?,
            changes: self.changes,
            deposited: self.deposited,
            withdrawn: self.withdrawn,
            version: self.version.cast_signed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_those_of_the_ledger() {
        let open = Wanted::Open { branch: "b1".to_owned() };
        let deposit = |amount, parts| Wanted::Deposit { amount, parts };
        let withdraw = |amount| Wanted::Withdraw { amount };
        let mut account = Account::default();
        assert_eq!(account.decide(&deposit(1, 1), "t"), Err("not_open"));
        assert_eq!(account.decide(&withdraw(1), "t"), Err("not_open"));
        assert_eq!(account.row(), None);
        let steps =
            [(&open, 1, 0), (&deposit(7, 1), 2, 7), (&deposit(2, 3), 5, 13), (&withdraw(13), 6, 0)];
        for (wanted, version, balance) in steps {
            let changes = account.decide(wanted, "t").unwrap();
            assert!(changes.iter().all(|change| change.tag == "t" && change.branch == "b1"));
            changes.iter().for_each(|change| account.evolve(change));
            assert_eq!((account.version, account.balance()), (version, balance));
        }
        let (branch, version) = ("b1".to_owned(), 6);
        let row = Row { branch, changes: 5, deposited: 13, withdrawn: 13, version };
        assert_eq!(account.row(), Some(row));
        for (wanted, word) in [
            (open, "already_open"),
            (withdraw(1), "too_little"),
            (withdraw(0), "invalid-payload"),
            (deposit(0, 1), "invalid-payload"),
            (deposit(AMOUNT_MAX + 1, 1), "invalid-payload"),
            (deposit(1, 0), "invalid-payload"),
            (deposit(1, PARTS_MAX + 1), "invalid-payload"),
        ] {
            assert_eq!(account.decide(&wanted, "t"), Err(word), "{wanted:?}");
        }
    }
}
