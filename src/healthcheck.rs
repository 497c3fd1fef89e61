//! `flexcore healthcheck`: what a container's health check runs.

use std::{io::Write, time::Duration};

use hyper::Method;

use crate::{
    cli,
    http::{self, Call},
};

/// Longest wait for the answer: whoever does not say within it that it is well is not.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: &cli::Healthcheck, out: &mut dyn Write) -> anyhow::Result<bool> {
    let path = if args.live { "/livez" } else { "/readyz" };
    let call = Call { method: Method::GET, path, token: "", headers: &[], body: None };
    let answer =
        tokio::time::timeout(ANSWER_MAX, http::call(vec![args.address.clone()], call)).await??;
    writeln!(out, "{} {}", answer.status, String::from_utf8_lossy(&answer.body).trim_end())?;
    Ok(answer.status.is_success())
}
