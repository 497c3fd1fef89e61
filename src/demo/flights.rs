//! The flights of the data set: what became of each, read once into types that cannot contradict
//! themselves, and what that means as commands.

use std::{collections::HashSet, sync::Arc};

use anyhow::{Context as _, ensure};
use flexcore_domain::{AggregateId, CommandName};
use serde::Deserialize;
use time::{Date, Month, OffsetDateTime, format_description::well_known::Rfc3339};

/// 1 January, for when the whole cannot be had.
pub(crate) const SAMPLE: &str = include_str!("../../schemas/flights/sample/flights.csv");
/// A flight is scheduled so many minutes before its departure; the earliest departure of the year is
/// 43 minutes early.
const SCHEDULE_LEAD_MINUTES: i64 = 120;
const DAY_MINUTES: i64 = 24 * 60;
/// Three times the year: a file with more is not this data set, and would fill the memory.
const FLIGHTS_MAX: usize = 1_000_000;

/// One flight. Times are minutes since 1970.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) id: AggregateId,
    pub(crate) carrier: Arc<str>,
    number: u32,
    tailnum: Option<Arc<str>>,
    pub(crate) origin: Arc<str>,
    pub(crate) destination: Arc<str>,
    month: u8,
    scheduled_departure: i64,
    scheduled_arrival: Option<i64>,
    distance_miles: u32,
    pub(crate) fate: Fate,
}

/// The end of a flight.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Cancelled,
    /// No landing = diverted.
    Departed {
        delay_minutes: i64,
        landing: Option<Landing>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Landing {
    pub(crate) delay_minutes: i64,
    arrived: Option<i64>,
    air_time_minutes: Option<i64>,
}

impl Flight {
    pub(crate) fn is_in(&self, month: Option<u8>) -> bool {
        month.is_none_or(|month| month == self.month)
    }

    /// Its commands, with their times.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (i64, FlightCommand)> {
        let scheduled = self.scheduled_departure - SCHEDULE_LEAD_MINUTES;
        let (second, third) = match &self.fate {
            Fate::Cancelled => ((self.scheduled_departure, FlightCommand::Cancel), None),
            Fate::Departed { delay_minutes, landing } => {
                let departed = self.scheduled_departure + delay_minutes;
                let planned = self.scheduled_arrival.map_or(0, |at| at - self.scheduled_departure);
                // The clock of the destination is another one: what counts here is time passed. A
                // diverted flight is known as one when it should have arrived.
                let (passed, command) = match landing {
                    Some(landing) => {
                        (landing.air_time_minutes.unwrap_or(planned), FlightCommand::Arrive)
                    }
                    None => (planned, FlightCommand::Divert),
                };
                ((departed, FlightCommand::Depart), Some((departed + passed.max(1), command)))
            }
        };
        [(scheduled.min(second.0 - 1), FlightCommand::Schedule), second].into_iter().chain(third)
    }

    pub(crate) fn payload(&self, command: FlightCommand) -> String {
        let json = match (command, &self.fate) {
            (FlightCommand::Schedule, _) => serde_json::json!({
                "carrier": &*self.carrier,
                "number": self.number,
                "tailnum": self.tailnum.as_deref(),
                "origin": &*self.origin,
                "destination": &*self.destination,
                "scheduled_departure": rfc3339(self.scheduled_departure),
                "scheduled_arrival": self.scheduled_arrival.map(rfc3339),
                "distance_miles": self.distance_miles,
            }),
            (FlightCommand::Depart, Fate::Departed { delay_minutes, .. }) => serde_json::json!({
                "departed_at": rfc3339(self.scheduled_departure + delay_minutes),
                "delay_minutes": delay_minutes,
            }),
            (FlightCommand::Arrive, Fate::Departed { landing: Some(landing), .. }) => {
                serde_json::json!({
                    "arrived_at": landing.arrived.map(rfc3339),
                    "delay_minutes": landing.delay_minutes,
                    "air_time_minutes": landing.air_time_minutes,
                })
            }
            (FlightCommand::Cancel, Fate::Cancelled) | (FlightCommand::Divert, _) => {
                serde_json::json!({})
            }
            _ => unreachable!("BUG: {command:?} of a flight to which it did not happen"),
        };
        json.to_string()
    }
}

fn rfc3339(minute: i64) -> String {
    OffsetDateTime::from_unix_timestamp(minute * 60)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .expect("BUG: a time of 2013 has a text")
}

/// The commands of a flight, in the order in which it passes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FlightCommand {
    Schedule,
    Depart,
    Cancel,
    Arrive,
    Divert,
}

impl FlightCommand {
    /// In the order of the variants.
    pub(crate) fn names() -> [CommandName; 5] {
        ["schedule", "depart", "cancel", "arrive", "divert"]
            .map(|name| CommandName::parse(name).expect("BUG: a command's name"))
    }
}

/// The flights of the CSV; fails at the first that contradicts itself, naming its line.
pub(crate) fn parse(csv: &[u8]) -> anyhow::Result<Vec<Flight>> {
    let mut reader = csv::Reader::from_reader(csv);
    let headers = reader.headers()?.clone();
    let mut texts = HashSet::new();
    let mut ids = HashSet::new();
    let mut flights = Vec::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let fields: Fields<'_> = record.deserialize(Some(&headers))?;
        let flight = fields.flight(&mut texts).with_context(|| format!("line {line}"))?;
        ensure!(
            ids.insert(flight.id.clone()),
            "line {line}: the flight {} is there twice",
            flight.id
        );
        ensure!(flights.len() < FLIGHTS_MAX, "more than {FLIGHTS_MAX} flights");
        flights.push(flight);
    }
    Ok(flights)
}

/// A line as it stands in the file; `NA` = missing, clock times as `hhmm`.
#[derive(Deserialize)]
struct Fields<'a> {
    year: i32,
    month: u8,
    day: u8,
    dep_time: &'a str,
    sched_dep_time: &'a str,
    dep_delay: &'a str,
    arr_time: &'a str,
    sched_arr_time: &'a str,
    arr_delay: &'a str,
    carrier: &'a str,
    flight: u32,
    tailnum: &'a str,
    origin: &'a str,
    dest: &'a str,
    air_time: &'a str,
    distance: u32,
}

impl Fields<'_> {
    fn flight(&self, texts: &mut HashSet<Arc<str>>) -> anyhow::Result<Flight> {
        let date = Date::from_calendar_date(self.year, Month::try_from(self.month)?, self.day)?;
        let midnight = date.midnight().assume_utc().unix_timestamp() / 60;
        let departure = clock(self.sched_dep_time)?.context("no scheduled departure")?;
        // Westward flights gain less than they take: an earlier clock means the next day.
        let arrival = clock(self.sched_arr_time)?
            .map(|at| midnight + at + if at < departure { DAY_MINUTES } else { 0 });
        let (carrier, origin, day) = (self.carrier, self.origin, self.day);
        let (year, month, number) = (self.year, self.month, self.flight);
        let id = format!("{carrier}{number}-{year:04}{month:02}{day:02}-{origin}");
        let mut text = |text: &str| match texts.get(text) {
            Some(known) => Arc::clone(known),
            None => {
                let new: Arc<str> = text.into();
                texts.insert(Arc::clone(&new));
                new
            }
        };
        Ok(Flight {
            id: AggregateId::parse(&id)?,
            carrier: text(carrier),
            number,
            tailnum: present(self.tailnum).map(&mut text),
            origin: text(origin),
            destination: text(self.dest),
            month,
            scheduled_departure: midnight + departure,
            scheduled_arrival: arrival,
            distance_miles: self.distance,
            fate: self.fate(arrival)?,
        })
    }

    /// The delays say when; the clock times of the file only whether.
    fn fate(&self, scheduled_arrival: Option<i64>) -> anyhow::Result<Fate> {
        let arrival_delay = integer(self.arr_delay)?;
        if present(self.dep_time).is_none() {
            ensure!(arrival_delay.is_none(), "a flight arrived that did not depart");
            return Ok(Fate::Cancelled);
        }
        let delay_minutes = integer(self.dep_delay)?.context("departed without a delay")?;
        let landing = match arrival_delay {
            None => None,
            Some(delay_minutes) => Some(Landing {
                delay_minutes,
                arrived: present(self.arr_time)
                    .and(scheduled_arrival)
                    .map(|scheduled| scheduled + delay_minutes),
                air_time_minutes: integer(self.air_time)?,
            }),
        };
        Ok(Fate::Departed { delay_minutes, landing })
    }
}

fn present(field: &str) -> Option<&str> {
    (field != "NA").then_some(field)
}

fn integer(field: &str) -> anyhow::Result<Option<i64>> {
    let parse = |text: &str| text.parse().with_context(|| format!("not a number: {text:?}"));
    present(field).map(parse).transpose()
}

/// Minutes after midnight; 2400 is the next midnight.
fn clock(field: &str) -> anyhow::Result<Option<i64>> {
    let Some(hhmm) = integer(field)? else { return Ok(None) };
    let (hours, minutes) = (hhmm / 100, hhmm % 100);
    ensure!((0..=24).contains(&hours) && minutes < 60, "not a time of day: {field:?}");
    Ok(Some(hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_row_is_named_by_its_line() {
        let broken = [
            ("517,515,2,", "517,2515,2,", "not a time of day"),
            ("517,515,2,", "517,515,NA,", "without a delay"),
            ("517,515,2,", "NA,515,NA,", "did not depart"),
            ("517,515,2,", "517,515,x,", "not a number"),
        ];
        for (from, to, reason) in broken {
            let error = parse(SAMPLE.replacen(from, to, 1).as_bytes()).expect_err(to);
            let text = format!("{error:#}");
            assert!(text.contains("line 2") && text.contains(reason), "{text}");
        }
        let second = SAMPLE.lines().nth(1).unwrap();
        let error = parse(format!("{SAMPLE}{second}\n").as_bytes()).expect_err("twice");
        assert!(error.to_string().contains("UA1545-20130101-EWR is there twice"), "{error}");
    }
}
