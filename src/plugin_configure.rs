//! `flexcore plugin configure` and `flexcore plugin configuration`: what a plugin has to know for one tenant.

use std::{
    fs::File,
    io::{self, Read, Write},
};

use anyhow::{Context, bail, ensure};
use flexcore_domain::{
    Name, Tenant,
    plugin::PluginReply,
    plugin_configuration::{CONFIGURATION_BYTES_MAX, ConfigurationLook},
};
use flexcore_operations::plugins::{self, Looked};
use serde::Serialize;
use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::{config::Config, out, program::shown};

/// Give an installed plugin the configuration of a tenant, secrets included
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin configure http --tenant acme http.json
  pass show http-acme | flexcore plugin configure http --tenant acme -
  flexcore plugin configure http --tenant acme --remove

It is JSON that fits the plugin's schema, which `flexcore plugin configuration` shows; 64 KiB at most. A worker checks
it before it is stored, sealed with the key for secrets (FLEXCORE_SECRETS_KEY or --secrets-key-file; a `dev` has its
own). It takes the place of the one before; a *** stands for the stored value that is shown so, which stays. Workers
hear of it within moments, and give it to the plugin before the tenant's next call there: until then, a call may
have the one before.")]
pub(crate) struct Configure {
    /// The plugin's name
    name: Name,
    /// The file with the configuration; - reads standard input
    #[arg(required_unless_present = "remove", conflicts_with = "remove", value_name = "FILE")]
    file: Option<String>,
    /// Take the tenant's configuration away
    #[arg(long)]
    remove: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Show a tenant's configuration of an installed plugin, without its secrets
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Values that the plugin's schema calls secrets (\"writeOnly\": true) are shown as ***, and so is what it does not
describe, or describes as of another type. With --json the schema is told, too. Exit code 0: the tenant has none, or
one that fits; 1: it does not fit the schema of the version in service, or does not open.")]
pub(crate) struct Configuration {
    /// The plugin's name
    name: Name,
    /// Show the JSON Schema of its configurations instead
    #[arg(long)]
    schema: bool,
    /// With the schema, in JSON on one line
    #[arg(long)]
    json: bool,
}

/// What was done, for programs.
#[derive(Serialize)]
struct Done<'a> {
    plugin: &'a Name,
    tenant: &'a Tenant,
    configured: bool,
    /// Something was stored, or taken away.
    changed: bool,
}

pub(crate) async fn configure(
    config: &Config,
    args: Configure,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let (name, tenant) = (&args.name, &config.tenant()?);
    let done = if args.remove {
        let store = config.event_store().await?;
        let changed = plugins::unconfigure(&store, name, tenant).await?;
        Done { plugin: name, tenant, configured: false, changed }
    } else {
        let from = args.file.unwrap_or_default();
        let configuration = spawn_blocking(move || read(&from)).await??;
        let store = config.event_store().await?;
        looked(plugins::configure(&store, name, tenant, &configuration).await?)?;
        Done { plugin: name, tenant, configured: true, changed: true }
    };
    if args.json {
        out::json(out, &done)?;
        return Ok(true);
    }
    let what = match (done.configured, done.changed) {
        (true, _) => "is configured",
        (false, true) => "is configured no more",
        (false, false) => "was not configured",
    };
    writeln!(out, "{name} {what} for tenant {tenant}")?;
    Ok(true)
}

pub(crate) async fn configuration(
    config: &Config,
    args: &Configuration,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let (name, tenant) = (&args.name, &config.tenant()?);
    let store = config.event_store().await?;
    let look = looked(plugins::configuration(&store, name, tenant).await?)?;
    if args.json {
        out::json(out, &look)?;
        return Ok(look.unfit.is_none());
    }
    let wanted = if args.schema { &look.schema } else { &look.configuration };
    match wanted {
        Some(json) => {
            let json: Value = serde_json::from_str(json.get()).context("reading the answer")?;
            writeln!(out, "{json:#}")?;
        }
        None if args.schema => writeln!(out, "{name} {}", no_schema(look.schema_too_large))?,
        None if look.unfit.is_some() => {
            writeln!(out, "the configuration of {name} for tenant {tenant} cannot be shown")?;
        }
        None => writeln!(out, "tenant {tenant} has no configuration of {name}")?,
    }
    if let Some(reason) = &look.unfit {
        out::note(&format!("the plugin does not get this configuration: {}", shown(reason)));
    }
    Ok(look.unfit.is_none())
}

/// Why there is no schema to show.
fn no_schema(too_large: bool) -> &'static str {
    if too_large { "has a schema that is too large to be shown" } else { "takes no configuration" }
}

fn looked(looked: Looked) -> anyhow::Result<Box<ConfigurationLook>> {
    match looked {
        Looked::At(look) => Ok(look),
        Looked::Refused(PluginReply::Refused { message, .. }) => bail!("{}", shown(&message)),
        Looked::Refused(_) => bail!("the worker's answer cannot be read"),
        Looked::Locked(why) => bail!("{why}"),
    }
}

/// What the file has, or standard input.
fn read(from: &str) -> anyhow::Result<Vec<u8>> {
    let from = from.strip_prefix('@').unwrap_or(from);
    let source: Box<dyn Read> = match from {
        "-" => Box::new(io::stdin()),
        path => Box::new(File::open(path).with_context(|| format!("reading {path}"))?),
    };
    let mut json = Vec::new();
    let limit = u64::try_from(CONFIGURATION_BYTES_MAX)?.saturating_add(1);
    source.take(limit).read_to_end(&mut json).context("reading the configuration")?;
    ensure!(
        json.len() <= CONFIGURATION_BYTES_MAX,
        "the configuration has more than {CONFIGURATION_BYTES_MAX} bytes"
    );
    Ok(json)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Given {
        #[command(flatten)]
        configure: Configure,
    }

    #[test]
    fn a_configuration_comes_from_a_file_and_never_from_the_command_line_itself() {
        let given = |line: &[&str]| Given::try_parse_from([&["flexcore"], line].concat());
        assert_eq!(given(&["http", "x.json"]).unwrap().configure.file.as_deref(), Some("x.json"));
        assert!(given(&["http", "--remove"]).unwrap().configure.remove);
        for wrong in [&["http"][..], &["http", "x.json", "--remove"]] {
            assert!(given(wrong).is_err(), "{wrong:?}");
        }
        let error = read(r#"{"key": "s"}"#).unwrap_err();
        assert!(error.to_string().starts_with("reading "), "{error}");
    }

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let of = |bytes: usize| {
            std::fs::write(&path, vec![b' '; bytes]).unwrap();
            read(&format!("@{}", path.display())).map(|json| json.len())
        };
        assert_eq!(of(CONFIGURATION_BYTES_MAX).unwrap(), CONFIGURATION_BYTES_MAX);
        assert!(of(CONFIGURATION_BYTES_MAX + 1).is_err());
    }
}
