//! `flexcore doctor`: what is missing on this machine, and how to get it.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use flexcore_operations::rows;
use flexcore_readmodel::{Error, ReadModels, Settings};
use flexcore_servers::{Finding, FindingState};

use crate::config::Config;

/// Check everything that FlexCore needs on this machine, and say what to do about what is missing
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 0: nothing is missing; 1: something is.")]
pub(crate) struct Doctor {
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints what was found, as a table or as JSON. Returns whether nothing that is needed is missing.
pub(crate) async fn run(config: &Config, json: bool, out: &mut dyn Write) -> anyhow::Result<bool> {
    let (cache, data) = (config.cache.clone(), config.data.clone());
    let mut findings =
        tokio::task::spawn_blocking(move || flexcore_servers::probe(&cache, &data)).await?;
    if let Ok(url) = config.postgres() {
        findings.push(login_of_queries(&url, config.postgres_query()).await);
    }
    findings.extend(rows_and_log(config).await);
    let well = findings.iter().all(|finding| finding.state != FindingState::Missing);
    if json {
        serde_json::to_writer(&mut *out, &serde_json::json!({ "ok": well, "findings": findings }))?;
        writeln!(out)?;
        return Ok(well);
    }
    writeln!(out, "{}", table(&findings))?;
    if well {
        writeln!(out, "\nEverything that is needed is there.")?;
    } else {
        writeln!(out, "\nSomething that is needed is missing: see \"what to do\".")?;
    }
    Ok(well)
}

/// Checks if the login of queries could see more than one tenant's rows.
async fn login_of_queries(url: &str, query_url: Option<String>) -> Finding {
    let settings = Settings { query_url, ..Settings::default() };
    let checked = match ReadModels::connect(url, settings).await {
        Ok(read_models) => read_models.check_login().await,
        Err(error) => Err(error),
    };
    let what = "login of queries";
    match checked {
        Ok(()) => {
            let found = "owns nothing, and can switch to no other role".to_owned();
            Finding { what, state: FindingState::Ok, found, advice: String::new() }
        }
        Err(Error::NotBuilt(_)) => {
            let advice = "the first gateway or worker makes it when it starts".to_owned();
            Finding {
                what,
                state: FindingState::Warning,
                found: "not there yet".to_owned(),
                advice,
            }
        }
        Err(error) => Finding {
            what,
            state: FindingState::Missing,
            found: error.to_string(),
            advice: "deploy/README.md, \"The login of queries\"".to_owned(),
        },
    }
}

/// Checks if the rows are of the log, where both servers are named and answer.
pub(crate) async fn rows_and_log(config: &Config) -> Option<Finding> {
    let url = config.postgres().ok()?;
    let store = config.event_store().await.ok()?;
    let other = rows::other_log(&store, &url).await.ok()?;
    let (state, found) = match other {
        None => (FindingState::Ok, "they belong together"),
        Some(_) => (FindingState::Missing, "the rows are of another log"),
    };
    let advice = other.unwrap_or_default();
    Some(Finding { what: "rows and log", state, found: found.to_owned(), advice })
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["", "what", "found", "what to do"]);
    for finding in findings {
        let state = match finding.state {
            FindingState::Ok => "ok",
            FindingState::Warning => "warning",
            FindingState::Missing => "missing",
        };
        table.add_row([state, finding.what, &finding.found, &finding.advice]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;

    use super::*;
    use crate::cli;

    fn config(cache: &Path, data: &str, more: &[&str]) -> Config {
        let line = ["flexcore", "--data", data, "--cache", cache.to_str().unwrap(), "doctor"];
        let cli = cli::Cli::try_parse_from(line.iter().chain(more)).unwrap();
        Config::resolve(cli.global, "warn").unwrap()
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        // Below /proc nobody can create a file, not even root.
        let nowhere = config(folder.path(), "/proc/flexcore", &[]);
        let well = run(&nowhere, true, &mut out).await.unwrap();
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert!(!well && report["ok"] == false, "{report}");
        let state = |what: &str| {
            let findings = report["findings"].as_array().unwrap();
            findings.iter().find(|finding| finding["what"] == what).unwrap()["state"].clone()
        };
        assert_eq!(state("data folder"), "missing");
        assert_eq!(state("cache folder"), "ok");
        out.clear();
        run(&nowhere, false, &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("choose a folder that this user can write to"), "{text}");
    }

    #[tokio::test]
    async fn a_database_that_does_not_answer_is_said_to_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        let away =
            config(folder.path(), "/proc/flexcore", &["--postgres", "postgres://127.0.0.1:1/x"]);
        assert!(!run(&away, true, &mut out).await.unwrap());
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let found = report["findings"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&found["what"], &found["state"]),
            (&"login of queries".into(), &"missing".into())
        );
    }
}
