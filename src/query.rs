//! `flexcore query`: asks the gateway for rows of a read model or of a named query.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context;
use flexcore_definition::taken;
use flexcore_http::{Method, StatusCode};
use serde_json::Value;

use crate::{config::Config, gateways, out, token};

/// Ask a read model or a named query; one that is being built is waited for, 10 s at most
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore query flights carrier=UA --limit 5 --sort=-dep_delay
  flexcore query flights carrier=UA --sort=-departed_at --explain
  flexcore query delays_by_carrier --json")]
pub(crate) struct Query {
    /// The read model, or the named query
    pub(crate) name: flexcore_domain::Name,
    /// Filters on columns, or parameters of the named query: NAME=VALUE
    #[arg(value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) filters: Vec<(String, String)>,
    /// Most rows
    #[arg(long)]
    pub(crate) limit: Option<u32>,
    /// Columns to sort by, `-` before one for downwards, commas between
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) sort: Option<String>,
    /// Columns to show, commas between
    #[arg(long)]
    pub(crate) fields: Option<String>,
    /// Positions that the read model must have passed first (read your writes)
    #[arg(long, value_name = "POSITION")]
    pub(crate) min_position: Option<String>,
    /// Say which index finds the rows, and what to declare where none does, in place of the rows
    #[arg(long)]
    pub(crate) explain: bool,
    /// Answer in JSON, as the gateway gave it
    #[arg(long)]
    pub(crate) json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Longest wait for a read model that is being built: one that was just deployed takes a moment.
const BUILD_WAIT: Duration = Duration::from_secs(10);
/// Between two questions meanwhile.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

pub(crate) async fn run(
    config: &Config,
    args: &Query,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let gateways = config.http()?;
    let token = token::for_request(config)?;
    let parameters = parameters(args);
    let ask = async |path: String| {
        let explain = if args.explain { "/explain" } else { "" };
        let path = format!("{path}{explain}{parameters}");
        let call = gateways::Call {
            method: Method::GET,
            path: &path,
            token: &token,
            headers: &[],
            body: None,
        };
        let since = Instant::now();
        loop {
            let answer = gateways::call(gateways.clone(), call.clone()).await?;
            if !is_built_soon(&answer) || since.elapsed() > BUILD_WAIT {
                return anyhow::Ok(answer);
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
    };
    // The two share their names only by mistake, and a person should not have to know which is it.
    let read_model = ask(format!("/v1/query/{}", args.name)).await?;
    let answer = if read_model.status == StatusCode::NOT_FOUND {
        let named = ask(format!("/v1/queries/{}", args.name)).await?;
        if named.status == StatusCode::NOT_FOUND { read_model } else { named }
    } else {
        read_model
    };
    let body = answer.success()?;
    if args.json {
        out::json(out, &body)?;
        return Ok(true);
    }
    if args.explain {
        for read in body["explain"].as_array().context("the gateway's answer explains nothing")? {
            let text = |name: &str| read[name].as_str().unwrap_or_default();
            writeln!(out, "{}: {}", text("read_model"), text("says"))?;
        }
        return Ok(true);
    }
    let rows = body["rows"].as_array().context("the gateway's answer has no rows")?;
    write_rows(rows, out)?;
    if body["next_cursor"].is_string() {
        writeln!(out, "there are more: --limit, or --json for the cursor")?;
    }
    Ok(true)
}

/// True if it asks for a read model that is being built.
fn is_built_soon(answer: &gateways::Answer) -> bool {
    let problem = || serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    answer.status == StatusCode::SERVICE_UNAVAILABLE
        && problem()["type"] == "/problems/read-model-building"
}

fn parameters(args: &Query) -> String {
    let own = [
        (taken::LIMIT, args.limit.map(|limit| limit.to_string())),
        (taken::SORT, args.sort.clone()),
        (taken::FIELDS, args.fields.clone()),
        (taken::MIN_POSITION, args.min_position.clone()),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let all = args.filters.iter().cloned().chain(own);
    let parts: Vec<_> =
        all.map(|(name, value)| format!("{}={}", encoded(&name), encoded(&value))).collect();
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

/// Percent-encoding of everything but RFC 3986's unreserved characters.
fn encoded(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            result.push(char::from(byte));
        } else {
            result.push_str(&format!("%{byte:02X}"));
        }
    }
    result
}

fn write_rows(rows: &[Value], out: &mut dyn Write) -> anyhow::Result<()> {
    let Some(Value::Object(first)) = rows.first() else {
        writeln!(out, "no rows")?;
        return Ok(());
    };
    let mut table = out::table(first.keys().map(String::as_str));
    for row in rows {
        table.add_row(first.keys().map(|column| match &row[column.as_str()] {
            Value::Null => String::new(),
            Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
            other => other.to_string(),
        }));
    }
    writeln!(out, "{table}\n{} rows", rows.len())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_plain_character_is_encoded() {
        assert_eq!(encoded("a-b_c.d~1"), "a-b_c.d~1");
        assert_eq!(encoded("é &=%\0"), "%C3%A9%20%26%3D%25%00");
    }

    #[test]
    fn rows_become_a_table() {
        let mut out = Vec::new();
        let rows = [json!({"carrier": "UA", "flights": 2}), json!({"carrier": "B6\u{1b}"})];
        write_rows(&rows, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("carrier") && text.contains("UA") && text.contains("2 rows"));
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
