//! `flexcore doctor`: what is missing on this machine, and how to get it.

use std::{io::Write, path::Path};

use comfy_table::{ContentArrangement, Table, presets};
use flexcore_servers::{Finding, State};

/// Prints what was found, as a table or as JSON. Returns whether nothing that is needed is missing.
pub(crate) async fn run(
    cache: &Path,
    data: &Path,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let (cache, data) = (cache.to_owned(), data.to_owned());
    let findings =
        tokio::task::spawn_blocking(move || flexcore_servers::probe(&cache, &data)).await?;
    let well = findings.iter().all(|finding| finding.state != State::Missing);
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

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["", "what", "found", "what to do"]);
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "missing",
        };
        table.add_row([state, finding.what, &finding.found, &finding.advice]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        // Below /proc nobody can create a file, not even root.
        let nowhere = Path::new("/proc/flexcore");
        let well = run(folder.path(), nowhere, true, &mut out).await.unwrap();
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert!(!well && report["ok"] == false, "{report}");
        let state = |what: &str| {
            let findings = report["findings"].as_array().unwrap();
            findings.iter().find(|finding| finding["what"] == what).unwrap()["state"].clone()
        };
        assert_eq!(state("data folder"), "missing");
        assert_eq!(state("cache folder"), "ok");
        out.clear();
        run(folder.path(), nowhere, false, &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("choose a folder that this user can write to"), "{text}");
    }
}
