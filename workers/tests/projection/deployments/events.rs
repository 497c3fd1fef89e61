//! Events of random accounts: their data, how upcasts change them, and the values that declarations name.

use super::{Random, floats};
use crate::*;

/// The events of the one kind of aggregate.
pub(super) const EVENTS: [&str; 2] = ["paid", "closed"];

/// A change of the data by an upcast: in JavaScript, and in Rust.
pub(super) type Upcast = (&'static str, fn(&mut Data));

pub(super) const UPCASTS: [Upcast; 8] = [
    ("({ ...data, amount: data.amount * 100 })", |data| data.amount *= 100),
    ("({ ...data, amount: data.amount + 1 })", |data| data.amount += 1),
    ("({ ...data, note: 'n' + data.amount })", |data| {
        data.note = Some(format!("n{}", data.amount))
    }),
    ("({ ...data, note: null })", |data| data.note = None),
    ("({ ...data, group: data.group + 'z' })", |data| data.group.push('z')),
    ("({ ...data, flag: !data.flag })", |data| data.flag = !data.flag),
    ("({ ...data, day: data.at.slice(0, 10) })", |data| data.day = data.at[..10].to_owned()),
    ("({ ...data, at: data.day + 'T00:00:00Z' })", |data| {
        data.at = format!("{}T00:00:00Z", data.day)
    }),
];
/// Most of an event's upcasts that multiply: sums stay among the integers that a double holds.
pub(super) const HUNDREDFOLD_MAX: usize = 4;
/// Most upcasts of an event: it may have 100 versions.
pub(super) const UPCASTS_MAX: usize = 50;

/// The data of an event, in some version.
#[derive(Clone)]
pub(super) struct Data {
    group: String,
    amount: i64,
    note: Option<String>,
    flag: bool,
    day: String,
    at: String,
}

impl Data {
    pub(super) fn any(random: &mut Random) -> Self {
        let amount = random.below(1_000).cast_signed();
        let note = match random.below(4) {
            0 => None,
            // Longer than what an index holds.
            1 => Some("é".repeat(150)),
            _ => Some(format!("m{amount}")),
        };
        Self {
            group: random.of(&["x", "y", "z"]).to_owned(),
            amount,
            note,
            flag: random.below(2) == 0,
            day: format!("2013-02-{:02}", 1 + random.below(5)),
            at: format!("2013-03-{:02}T{:02}:00:00Z", 1 + random.below(5), random.below(24)),
        }
    }
}

/// An event as it was recorded.
pub(super) struct Happened {
    /// Of [`EVENTS`].
    pub(super) event: usize,
    /// Of its schema.
    pub(super) version: u32,
    pub(super) id: String,
    /// The aggregate's version with it.
    pub(super) nth: u64,
    /// The time of its commit: minutes of January 1970.
    pub(super) minutes: u64,
    pub(super) data: Data,
}

impl Happened {
    pub(super) fn event(&self) -> Event {
        let Data { group, amount, note, flag, day, at } = &self.data;
        let data = json!({"group": group, "amount": amount, "note": note, "flag": flag,
                          "day": day, "at": at});
        Event {
            event: EventName::parse(EVENTS[self.event]).unwrap(),
            version: self.nth,
            schema_version: self.version,
            data: to_raw_value(&data).unwrap(),
        }
    }

    /// The value that a declaration names, as Postgres has it in JSON.
    pub(super) fn value(&self, column_type: &str, of: &str, data: &Data) -> Value {
        match of {
            "$.group" => json!(data.group),
            "$.amount" => json!(data.amount as f64),
            "$.note" => json!(data.note),
            "$.flag" => json!(data.flag),
            "$.day" => json!(data.day),
            "$.at" => json!(data.at.replace('Z', "+00:00")),
            "$id" => json!(self.id),
            "$version" => json!(self.nth as f64),
            "$time" => json!(self.time(column_type)),
            "'$$5'" => json!("$5"),
            "'2014-05-06'" => json!("2014-05-06"),
            literal => floats(serde_json::from_str(literal).unwrap()),
        }
    }

    fn time(&self, column_type: &str) -> String {
        let (hours, minute) = (self.minutes / 60, self.minutes % 60);
        let date = format!("1970-01-{:02}", 1 + hours / 24);
        match column_type {
            "date" => date,
            "text" => format!("{date}T{:02}:{minute:02}:00.000Z", hours % 24),
            _ => format!("{date}T{:02}:{minute:02}:00+00:00", hours % 24),
        }
    }
}
