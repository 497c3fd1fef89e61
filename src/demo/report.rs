//! Output of the demo: tables, a comparison with the data set, and commands to try next.

use std::{collections::BTreeMap, io::Write};

use anyhow::Context;
use flexcore_domain::Name;
use flexcore_installation::Dev;
use flexcore_out as out;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    Args,
    dataset::{Dataset, Tally},
    through_outages,
};

type Row = Map<String, Value>;

/// Carriers that the table shows.
const CARRIERS_SHOWN: usize = 16;

/// The demo's measurements.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) profile: String,
    pub(crate) flights: u64,
    pub(crate) commands: u64,
    /// Why only the sample was used.
    pub(crate) only_sample: Option<String>,
    /// Commands a second from the first publish until the broker had all of the bulk.
    pub(crate) published_per_s: f64,
    /// Commands a second from the first publish until every row of the bulk was readable.
    pub(crate) readable_per_s: f64,
    /// From sending a command to its row being readable, at the steady rate.
    pub(crate) end_to_end_p50_ms: f64,
    pub(crate) end_to_end_p99_ms: f64,
    pub(crate) paced_per_s: u32,
    /// Every count and sum equals the one computed from the data set.
    pub(crate) equal_to_data_set: bool,
}

/// Output of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    figures: &'a Figures,
    by_status: Vec<Row>,
    delays_by_carrier: Vec<Row>,
}

/// Prints everything. Returns false when a number differs from the data set's own.
pub(crate) async fn print(
    dev: &Dev,
    dataset: &Dataset,
    month: Option<u8>,
    figures: &Figures,
    args: &Args,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let by_status = named(dev, "flights_by_status").await?;
    let delays_by_carrier = named(dev, "delays_by_carrier").await?;
    let differences = compare(dev, dataset, month).await?;
    let figures = Figures { equal_to_data_set: differences.is_empty(), ..figures.clone() };
    if args.json {
        out::json(out, &Report { figures: &figures, by_status, delays_by_carrier })?;
    } else {
        print_tables(out, &figures, &by_status, &delays_by_carrier)?;
    }
    for difference in &differences {
        writeln!(out, "differs from the data set: {difference}")?;
    }
    if !args.exit && !args.json {
        next(out, dev)?;
    }
    Ok(differences.is_empty())
}

fn print_tables(
    out: &mut dyn Write,
    figures: &Figures,
    by_status: &[Row],
    delays_by_carrier: &[Row],
) -> anyhow::Result<()> {
    if let Some(why) = &figures.only_sample {
        writeln!(out, "The sample of 1 January only, in place of the data set: {why}\n")?;
    }
    writeln!(out, "Flights by status")?;
    writeln!(out, "{}\n", table(by_status))?;
    writeln!(out, "Carriers by average departure delay, in minutes")?;
    let shown = delays_by_carrier.len().min(CARRIERS_SHOWN);
    writeln!(out, "{}\n", table(&delays_by_carrier[..shown]))?;
    let mut table = out::table(["measured", "figure", "how"]);
    let count = |number: f64| format!("{number:.0}/s");
    let paced = format!("sent at {}/s, until the row is readable", figures.paced_per_s);
    table.add_row([
        "commands".to_owned(),
        figures.commands.to_string(),
        format!("{} flights, profile {}", figures.flights, figures.profile),
    ]);
    table.add_row([
        "published".to_owned(),
        count(figures.published_per_s),
        "stored by the broker, over NATS".to_owned(),
    ]);
    table.add_row([
        "readable".to_owned(),
        count(figures.readable_per_s),
        "from the first publish until every row was there".to_owned(),
    ]);
    let latency = |ms: f64| format!("{ms:.1} ms");
    table.add_row(["end to end p50".to_owned(), latency(figures.end_to_end_p50_ms), paced]);
    table.add_row(["end to end p99".to_owned(), latency(figures.end_to_end_p99_ms), String::new()]);
    let equal = if figures.equal_to_data_set { "yes" } else { "NO" };
    table.add_row([
        "equal to the data set",
        equal,
        "every carrier and route, counted from the CSV",
    ]);
    writeln!(out, "{table}")?;
    Ok(())
}

fn table(rows: &[Row]) -> comfy_table::Table {
    let Some(first) = rows.first() else { return out::table(["no rows"]) };
    let mut table = out::table(first.keys().map(String::as_str));
    for row in rows {
        table.add_row(row.values().map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }));
    }
    table
}

/// Commands to try next, to be pasted as they stand.
fn next(out: &mut dyn Write, dev: &Dev) -> anyhow::Result<()> {
    let http = &dev.ready.http;
    writeln!(
        out,
        "
Serving on {http} until Ctrl-C. In another terminal, in this folder:

  alias flexcore=\"$PWD/target/release/flexcore\"
  flexcore query delays_by_carrier
  flexcore query flights carrier=UA departure_delay_minutes=gte.120 --limit 5
  flexcore verify

  TOKEN=$(flexcore token)
  curl -s {http}/v1/aggregates/flight/UA1545-20130101-EWR -H \"Authorization: Bearer $TOKEN\"
  curl -s {http}/v1/aggregates/flight/UA1545-20130101-EWR/events \\
    -H \"Authorization: Bearer $TOKEN\"
  curl -s -X POST {http}/v1/commands/flight/UA1545-20130101-EWR/depart \\
    -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\
    -d '{{\"departed_at\":\"2013-01-01T05:17:00Z\",\"delay_minutes\":2}}'

The last one is rejected: that flight has departed and arrived. {http}/openapi.json says more."
    )?;
    Ok(())
}

async fn named(dev: &Dev, name: &str) -> anyhow::Result<Vec<Row>> {
    let catalog = dev.installation.catalog.borrow().clone();
    let query = catalog.query(name).with_context(|| format!("the application has no {name}"))?;
    let ask =
        async || Ok(dev.installation.read_models.run_query(&dev.ready.tenant, query, &[]).await?);
    let text = through_outages(ask).await?;
    Ok(serde_json::from_str(&text)?)
}

async fn rows(dev: &Dev, name: &str) -> anyhow::Result<Vec<Row>> {
    let catalog = dev.installation.catalog.borrow().clone();
    let model =
        catalog.read_model(name).with_context(|| format!("the application has no {name}"))?;
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let mut pairs = vec![("limit".to_owned(), "500".to_owned())];
        pairs.extend(cursor.take().map(|cursor| ("cursor".to_owned(), cursor)));
        let select = flexcore_readmodel::Select::parse(model, &pairs)?;
        let ask = async || {
            Ok(dev.installation.read_models.select(&dev.ready.tenant, model, &select).await?)
        };
        let page = through_outages(ask).await?;
        all.extend(serde_json::from_str::<Vec<Row>>(&page.rows)?);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(all);
        }
    }
}

/// The read models against the data set's own numbers, carrier by carrier and route by route.
async fn compare(dev: &Dev, dataset: &Dataset, month: Option<u8>) -> anyhow::Result<Vec<String>> {
    let expected = dataset.expected(month);
    let mut differences = Vec::new();
    let carriers = rows(dev, "carriers").await?;
    let routes = rows(dev, "routes").await?;
    let text = |row: &Row, column: &str| row[column].as_str().unwrap_or_default().to_owned();
    let by_carrier = carriers.iter().map(|row| (text(row, "carrier"), row)).collect();
    let by_route =
        routes.iter().map(|row| (text(row, "origin") + "-" + &text(row, "destination"), row));
    compare_tallies("carrier", &expected.carriers, &by_carrier, &mut differences);
    compare_tallies("route", &expected.routes, &by_route.collect(), &mut differences);
    let flights: i64 =
        carriers.iter().filter_map(|row| row.get("scheduled").and_then(Value::as_i64)).sum();
    if flights.unsigned_abs() > expected.all.flights {
        differences.truncate(1);
        differences.push(format!(
            "the data folder holds {flights} flights, more than the {} of this run: \
             start with an empty one (--data)",
            expected.all.flights
        ));
    }
    Ok(differences)
}

fn compare_tallies(
    what: &str,
    expected: &BTreeMap<String, Tally>,
    found: &BTreeMap<String, &Row>,
    differences: &mut Vec<String>,
) {
    for key in expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key))) {
        let (Some(tally), Some(row)) = (expected.get(key), found.get(key)) else {
            differences.push(format!("{what} {key} is in only one of both"));
            continue;
        };
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for (column, wanted) in [
            ("scheduled", count(tally.flights)),
            ("departures", count(tally.departures)),
            ("cancellations", count(tally.cancelled)),
            ("arrivals", count(tally.arrived)),
            ("diversions", count(tally.diverted)),
            ("departure_delay_minutes", tally.departure_delay_minutes),
        ] {
            let shown = row.get(column).and_then(Value::as_f64).unwrap_or(0.0);
            if (shown - wanted as f64).abs() > 0.5 {
                differences.push(format!("{what} {key}: {column} is {shown}, not {wanted}"));
            }
        }
    }
}

/// Names of the read models that the demo waits for.
pub(crate) fn read_models(dev: &Dev) -> Vec<Name> {
    let catalog = dev.installation.catalog.borrow().clone();
    catalog.applications.values().flat_map(|app| app.read_models.keys().cloned()).collect()
}
