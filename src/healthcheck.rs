//! `flexcore healthcheck`: what a container's health check runs.

use std::{io::Write, time::Duration};

use flexcore_http::{
    Method,
    health::{LIVEZ, READYZ},
};

use crate::gateways::{self, Call};

/// Ask a gateway or a worker whether it is well, for containers without a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore healthcheck 127.0.0.1:9090
  flexcore healthcheck 127.0.0.1:9090 --live

Exit code 0: it answers that it is; 1: it does not.")]
pub(crate) struct Healthcheck {
    /// Where it serves its health, HOST:PORT
    pub(crate) address: String,
    /// Ask whether the process answers (/livez), not whether it can work (/readyz)
    #[arg(long)]
    pub(crate) live: bool,
}

/// Longest wait for the answer: whoever does not say within it that it is well is not.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: &Healthcheck, out: &mut dyn Write) -> anyhow::Result<bool> {
    let path = if args.live { LIVEZ } else { READYZ };
    let call = Call { method: Method::GET, path, token: "", headers: &[], body: None };
    let answer = tokio::time::timeout(ANSWER_MAX, gateways::call(vec![args.address.clone()], call))
        .await??;
    writeln!(out, "{} {}", answer.status, String::from_utf8_lossy(&answer.body).trim_end())?;
    Ok(answer.status.is_success())
}
