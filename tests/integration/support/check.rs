//! The checker: what clients were told, what the log holds, and what the read models show must be
//! one story (facts about reliability, invariants 1 to 8).

use std::{collections::BTreeMap, process::Command};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};

use super::{
    Http, eventually,
    load::{ACCOUNTS, Fate, Sent, TEAMS, Target, account},
    process::{flexcore, succeeded},
    say,
};

/// An installation that is looked at.
pub(crate) struct Place {
    pub(crate) target: Target,
    pub(crate) postgres: String,
    /// Options by which the command line finds it.
    pub(crate) options: Vec<String>,
}

/// The events of one command in the log.
#[derive(Debug)]
struct Commit {
    first: u64,
    last: u64,
    events: u64,
}

/// The sum of an account's events.
#[derive(Debug, Default)]
struct Account {
    version: u64,
    deposits: i64,
    deposited: i64,
    withdrawn: i64,
    commits: BTreeMap<String, Commit>,
}

impl Place {
    fn command(&self) -> Command {
        let mut command = flexcore();
        command.args(&self.options);
        command
    }

    async fn json(&self, arguments: &'static [&'static str]) -> Value {
        let mut command = self.command();
        command.args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        serde_json::from_str(&succeeded(arguments, &output)).unwrap()
    }

    /// Holds the history to the log and the rows.
    pub(crate) async fn check(&self, history: &[Sent]) {
        let http = Http::new(&self.target.http, &self.target.token);
        let count = |of: fn(&Sent) -> bool| history.iter().filter(|sent| of(sent)).count();
        say(&format!(
            "{} commands: {} accepted, {} refused, {} queued; {} were unknown at first",
            history.len(),
            count(|sent| matches!(sent.fate, Fate::Accepted(_))),
            count(|sent| matches!(sent.fate, Fate::Refused(_))),
            count(|sent| sent.fate == Fate::Queued),
            count(|sent| sent.unknown > 0),
        ));
        // Outcomes first: a command that is queued is processed when it is known.
        for sent in history.iter().filter(|sent| sent.fate == Fate::Queued) {
            self.check_queued(&http, sent).await;
        }
        let mut accounts = BTreeMap::new();
        for number in 0..ACCOUNTS {
            accounts.insert(account(number), fold(&http, &account(number)).await);
        }
        for sent in history {
            check_sent(sent, &accounts[&sent.account]);
        }
        check_nothing_else(history, &accounts);
        self.check_rows(&http, &accounts).await;
        let verified = self.json(&["verify", "--json"]).await;
        assert_eq!(verified["broken"], Value::Null, "{verified}");
        let events: u64 = accounts.values().map(|account| account.version).sum();
        assert_eq!(verified["events"], json!(events + 1), "and the deployment: {verified}");
        let rebuilt = self.json(&["rebuild", "accounts", "--json"]).await;
        assert_eq!(rebuilt["read_model"], json!("accounts"), "{rebuilt}");
        self.check_rows(&http, &accounts).await;
    }

    async fn check_queued(&self, http: &Http, sent: &Sent) {
        let Sent { key, account, .. } = sent;
        let path = format!("/v1/commands/{key}?aggregate=account&id={account}");
        let outcome = eventually(&format!("the outcome of {key}"), async || {
            let answer = http.get(&path).await;
            if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{answer:?}")) }
        })
        .await;
        let status = outcome["status"].as_str().unwrap();
        assert!(["accepted", "rejected"].contains(&status), "{sent:?}: {outcome}");
        let events = format!("/v1/aggregates/account/{account}/events?limit=1000");
        if status == "accepted" {
            let version = outcome["version"].as_u64().unwrap();
            let path = format!("{events}&after_version={}", version - 1);
            let found = http.get(&path).await.ok();
            assert_eq!(found[0]["commandid"], json!(key), "{outcome}");
        }
    }

    /// Every row equals the fold of the log, once all of it is read.
    async fn check_rows(&self, http: &Http, accounts: &BTreeMap<String, Account>) {
        let rows = accounts.iter().map(|(id, account)| {
            let Account { version, deposits, deposited, withdrawn, .. } = account;
            json!({"account": id, "version": version, "deposits": deposits,
                   "deposited": deposited, "withdrawn": withdrawn})
        });
        let mut expected: Vec<Value> = rows.collect();
        expected.sort_by_key(|row| row["account"].as_str().unwrap().to_owned());
        let path =
            "/v1/query/accounts?limit=1000&fields=account,version,deposits,deposited,withdrawn";
        eventually("the rows to equal the fold", async || {
            let rows = http.rows(path).await;
            if rows == expected { Ok(()) } else { Err(format!("{rows:?}\nnot\n{expected:?}")) }
        })
        .await;
        let of_team = |team: usize, of: fn(&Account) -> i64| {
            let members = (0..ACCOUNTS).filter(move |number| number % TEAMS == team);
            members.map(|number| of(&accounts[&account(number)])).sum::<i64>()
        };
        let teams = (0..TEAMS).map(|team| {
            json!({"team": format!("t{team}"), "accounts": ACCOUNTS / TEAMS,
                   "deposits": of_team(team, |account| account.deposits),
                   "deposited": of_team(team, |account| account.deposited),
                   "withdrawn": of_team(team, |account| account.withdrawn)})
        });
        assert_eq!(http.rows("/v1/query/teams").await, teams.collect::<Vec<_>>());
    }

    /// Checkpoints of the versions that serve, by read model and slot.
    pub(crate) async fn checkpoints(&self) -> BTreeMap<(i64, i16), i64> {
        let mut sql = PgConnection::connect(&self.postgres).await.unwrap();
        let statement = "select p.id, r.slot, r.place from flexcore.projections p \
                         cross join lateral flexcore.reached(p.id) r \
                         where p.state = 'serving'";
        let rows = sqlx::query(statement).fetch_all(&mut sql).await.unwrap();
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
    }
}

/// All events of an account, folded; fails when they do not follow one another.
async fn fold(http: &Http, id: &str) -> Account {
    let mut account = Account::default();
    loop {
        let after = account.version;
        let path = format!("/v1/aggregates/account/{id}/events?limit=1000&after_version={after}");
        let page = http.get(&path).await.ok();
        let events = page.as_array().unwrap();
        for event in events {
            account.version += 1;
            assert_eq!(
                event["sequence"],
                json!(account.version),
                "{id}: versions follow one another"
            );
            let amount = event["data"]["amount"].as_i64().unwrap_or(0);
            match event["type"].as_str().unwrap() {
                "account.opened" => {}
                "account.deposited" => {
                    account.deposits += 1;
                    account.deposited += amount;
                }
                "account.withdrawn" => account.withdrawn += amount,
                other => panic!("{other}"),
            }
            assert!(
                account.withdrawn <= account.deposited,
                "{id}: the rules hold at every version"
            );
            let version = account.version;
            let key = event["commandid"].as_str().unwrap().to_owned();
            let commit =
                account.commits.entry(key).or_insert(Commit { first: version, last: 0, events: 0 });
            (commit.last, commit.events) = (version, commit.events + 1);
        }
        if events.len() < 1_000 {
            return account;
        }
    }
}

/// One command's story.
fn check_sent(sent: &Sent, account: &Account) {
    let commit = account.commits.get(&sent.key);
    if let Some(Commit { first, last, events }) = commit {
        assert_eq!(
            last + 1 - first,
            *events,
            "{sent:?} took effect twice, or in pieces: {commit:?}"
        );
        let payload: Value = serde_json::from_str(&sent.payload).unwrap();
        let whole = payload["parts"].as_u64().unwrap_or(1);
        assert_eq!(*events, whole, "{sent:?} took effect in part: {commit:?}");
        if let Some(version) = sent.if_match {
            assert_eq!(*first, version + 1, "{sent:?} was held to a version: {commit:?}");
        }
    }
    match (sent.fate, commit) {
        (Fate::Accepted(version), Some(commit)) => {
            assert_eq!(commit.last, version, "{sent:?} is elsewhere: {commit:?}");
        }
        (Fate::Accepted(_), None) => panic!("LOST: {sent:?} was acknowledged"),
        (Fate::Refused(_), Some(commit)) => panic!("{sent:?} was refused, but: {commit:?}"),
        // Checked with their outcomes; or sent without a PubAck, so stored or not.
        (Fate::Refused(_), None) | (Fate::Queued | Fate::Unknown, _) => {}
    }
}

/// Nothing is in the log that nobody sent.
fn check_nothing_else(history: &[Sent], accounts: &BTreeMap<String, Account>) {
    let sent: BTreeMap<&str, &Sent> =
        history.iter().map(|sent| (sent.key.as_str(), sent)).collect();
    assert_eq!(sent.len(), history.len(), "keys are unique");
    for (id, account) in accounts {
        let others = account.commits.iter().filter(|(key, _)| !sent.contains_key(key.as_str()));
        let others: Vec<_> = others.collect();
        assert_eq!(others.len(), 1, "{id}: only its opening: {others:?}");
        for key in account.commits.keys() {
            assert!(sent.get(key.as_str()).is_none_or(|sent| sent.account == *id), "{key} in {id}");
        }
    }
}
