//! `flexcore token`: mints a bearer token with the installation's signing key.

use std::{fs, io::Write, time::Duration};

use anyhow::Context;
use flexcore_auth::SigningKey;
use flexcore_domain::{ActorName, Tenant};
use flexcore_installation::tokens;
use serde_json::json;

use crate::{config::Config, out};

/// Mint a token for the gateway
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore token
  curl -H \"Authorization: Bearer $(flexcore token --tenant acme --lifetime 600)\" …")]
pub(crate) struct Token {
    /// The bearer's name
    #[arg(long, default_value = "cli")]
    pub(crate) subject: ActorName,
    /// Lifetime of the token, in seconds
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    pub(crate) lifetime: u64,
    /// In JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Lifetime of a token that a subcommand mints for its own request.
const OWN_LIFETIME: Duration = Duration::from_secs(300);

pub(crate) fn run(config: &Config, args: &Token, out: &mut dyn Write) -> anyhow::Result<bool> {
    let tenant = config.tenant()?;
    let token = mint(config, &tenant, &args.subject, Duration::from_secs(args.lifetime))?;
    if args.json {
        let (subject, expires_in) = (&args.subject, args.lifetime);
        let answer =
            json!({"token": token, "tenant": tenant, "subject": subject, "expires_in": expires_in});
        out::json(out, &answer)?;
    } else {
        writeln!(out, "{token}")?;
    }
    Ok(true)
}

/// The token that was given, else a fresh one from the signing key, else that of the running `dev`.
pub(crate) fn for_request(config: &Config) -> anyhow::Result<String> {
    if let Some(token) = config.token() {
        return Ok(token.to_owned());
    }
    let subject = ActorName::parse("cli").expect("BUG: the name is valid");
    match mint(config, &config.tenant()?, &subject, OWN_LIFETIME) {
        Ok(token) => Ok(token),
        Err(error) => config.running().map(|ready| ready.token).map_err(|_| error),
    }
}

/// A token signed with the configured key. Fails when the key cannot be read or the lifetime is
/// longer than allowed.
fn mint(
    config: &Config,
    tenant: &Tenant,
    subject: &ActorName,
    lifetime: Duration,
) -> anyhow::Result<String> {
    let path = config.signing_key();
    let pem = fs::read_to_string(&path).with_context(|| {
        let path = path.display();
        format!("no signing key at {path}: `flexcore dev` makes one, or give --signing-key")
    })?;
    let key =
        SigningKey::from_pem(&pem).with_context(|| format!("signing key {}", path.display()))?;
    tokens::mint(&tokens::issuer(key), tenant, subject, lifetime)
}
