//! `flexcore plugin install` and `flexcore plugin upgrade`: a plugin is tried as workers start it, and put where they
//! find it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use flexcore_definition::{PluginContract, PluginManifest};
use flexcore_installation::stop_at_signals;
use flexcore_operations::{
    self as operations,
    plugins::{self, Installed},
};
use flexcore_plugin::{
    Checked, Cookie, Reflection,
    contract::{Client, Description},
};
use flexcore_sdk::testing::Schemas;
use flexcore_workers::plugin as workers;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    out,
    plugin_files::{self, PluginFiles},
    program::{Program, Running, SaidBy, shown, told, with_plugin},
};

/// Have the workers run a plugin, or its new version
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin install .
  flexcore plugin install plugins/greeter/plugin.yaml --json

It is started once here as workers start it, within its limits and its sandbox, to see that it starts. Where
this machine does not have what its sandbox demands, --unchecked installs it all the same. Every worker with the
role `plugin` gets the file and starts it, with no restart of FlexCore. Where a version runs already, it goes on
until the new one is ready, and when that does not start. What is installed already is started anew where a worker
does not run it. Exit code 0: it is installed; 1: it is not, or no worker can run it.")]
pub(crate) struct Install {
    #[command(flatten)]
    source: Source,
}

/// Have the workers run another version of an installed plugin
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin upgrade .
  flexcore plugin upgrade plugins/greeter/plugin.yaml --json

As `flexcore plugin install`, for a plugin that is installed: a name that was mistyped installs nothing. Calls go on
meanwhile; the former version goes on where the new one does not start. The same version with another file or
manifest is an upgrade, too. Exit code 0: it is installed; 1: it is not, or no worker can run it.")]
pub(crate) struct Upgrade {
    #[command(flatten)]
    source: Source,
}

/// A plugin as its author has it.
#[derive(Debug, clap::Args)]
struct Source {
    /// The plugin's folder with its plugin.yaml, or such a file
    place: PathBuf,
    /// Do not start it here first
    #[arg(long)]
    unchecked: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn install(
    config: &Config,
    args: Install,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let store = config.event_store();
    put(args.source, out, async |manifest: &PluginManifest, file: &Path| {
        Ok(plugins::install(&store.await?, manifest, file).await?)
    })
    .await
}

pub(crate) async fn upgrade(
    config: &Config,
    args: Upgrade,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let store = config.event_store();
    put(args.source, out, async |manifest: &PluginManifest, file: &Path| {
        let advice =
            "an upgrade is of what is installed; `flexcore plugin install` installs it first";
        plugins::upgrade(&store.await?, manifest, file).await.map_err(|error| match error {
            error @ operations::Error::NoPlugin(_) => anyhow::Error::new(error).context(advice),
            error => error.into(),
        })
    })
    .await
}

/// Tries a plugin, has it put where workers find it, and tells what came of that.
async fn put(
    source: Source,
    out: &mut dyn Write,
    putting: impl AsyncFnOnce(&PluginManifest, &Path) -> anyhow::Result<Installed>,
) -> anyhow::Result<bool> {
    let Source { place, unchecked, json } = source;
    let PluginFiles { manifest, file } =
        spawn_blocking(move || plugin_files::read(&place)).await??;
    if !unchecked {
        let advice = "it was tried here and is not installed; --unchecked installs it untried";
        tried(&manifest, file.clone()).await.context(advice)?;
    }
    // After a try signals are ours.
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let installing = stop.run_until_cancelled(putting(&manifest, file.as_path()));
    let Some(installed) = installing.await.transpose()? else {
        bail!("interrupted; `flexcore plugin list` shows whether it is installed");
    };
    if json {
        out::json(out, &installed)?;
    } else {
        writeln!(out, "{}", line(&manifest, &installed))?;
        for warning in &installed.warnings {
            writeln!(out, "warning: {}", shown(warning))?;
        }
    }
    Ok(installed.trouble.is_none())
}

/// What came of an installation.
fn line(manifest: &PluginManifest, installed: &Installed) -> String {
    let Installed { name, number, is_new, is_restarted, picked_up_ms, trouble, .. } = installed;
    let version = match installed.former_version.as_deref() {
        Some(former) if *is_new => format!("{} → {}", shown(former), shown(&manifest.version)),
        _ => shown(&manifest.version),
    };
    let done = match (*is_new, *is_restarted) {
        (true, _) if installed.former_version.is_some() => "upgraded, as number",
        (true, _) => "installed as number",
        (false, true) => "it was in force and did not run everywhere; started anew as number",
        (false, false) => "nothing changed; in force is number",
    };
    let came_of_it = match (trouble, picked_up_ms) {
        (Some(trouble), _) => format!("; it does not run: {}", shown(trouble)),
        (None, Some(ms)) => format!(", at a worker after {ms} ms"),
        (None, None) => "; no worker has picked it up: `flexcore worker plugin`".to_owned(),
    };
    format!("{name} {version}: {done} {number}{came_of_it}")
}

/// Starts the plugin as its manifest says, asks what it can do, and ends it. Fails where it would not
/// serve.
async fn tried(manifest: &PluginManifest, file: PathBuf) -> anyhow::Result<()> {
    let program = program_of(manifest, file).await?;
    let is_ours = matches!(manifest.contract, PluginContract::Flexcore);
    with_plugin(&program, async move |running: &Running| asked(running, is_ours).await).await
}

/// Asks a running plugin whether it is well, and what it offers.
async fn asked(running: &Running, is_ours: bool) -> anyhow::Result<()> {
    running.plugin.check().await.map_err(told)?;
    let connection = running.plugin.connection();
    if is_ours {
        let advice = "it does not speak FlexCore's contract; a plugin of another host has \
                      `contract: none`";
        let description = Client::new(connection).describe().await.map_err(told).context(advice)?;
        readable(&description)?;
    } else {
        let advice = "its methods are not known, and could not be called";
        Reflection::load(connection).await.map_err(told).context(advice)?;
    }
    Ok(())
}

/// Fails where a schema is none that workers read: no call of that function would be made.
fn readable(description: &Description) -> anyhow::Result<()> {
    let advice = "its functions could not be called, or it could not be configured";
    match Schemas::of(description) {
        Ok(_) => Ok(()),
        Err(why) => Err(anyhow!("{}", shown(&why)).context(advice)),
    }
}

/// The program of a manifest whose executable is this file, as it is now.
pub(crate) async fn program_of(
    manifest: &PluginManifest,
    file: PathBuf,
) -> anyhow::Result<Program> {
    let path = file.clone();
    let checked = spawn_blocking(move || Checked::open(&path, None)).await?.map_err(told)?;
    Ok(started_by(manifest, file, checked.sha256()))
}

/// The start of a plugin as its manifest says it, and as workers do it (`workers/plugin/start.rs`). With a hash a
/// copy of the file runs there, too, which finds nothing beside itself, and which a user of its own may read.
fn started_by(manifest: &PluginManifest, file: PathBuf, sha256: [u8; 32]) -> Program {
    let cookie = manifest.cookie.clone().map(|(key, value)| Cookie { key, value });
    let env = manifest.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    Program {
        file,
        cookie,
        protocol_version: manifest.protocol_versions.clone(),
        no_tls: !manifest.tls,
        multiplex: manifest.multiplex,
        env: env.collect(),
        arg: manifest.arguments.iter().map(Into::into).collect(),
        sha256: Some(sha256),
        timeout: manifest.start.as_secs().max(1),
        bounds: workers::bounds(manifest),
        sandbox: workers::sandbox(manifest, workers::TRIAL_USER),
        said_by: SaidBy::Manifest,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flexcore_definition::SourceFile;
    use flexcore_plugin::{
        contract::Function,
        guard::{Bounds, Files, Measure, Sandbox},
    };

    use super::*;

    fn program(text: &str) -> Program {
        let text = format!("name: greeter\nversion: 0.1.0\nfile: greeter\n{text}");
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        started_by(&PluginManifest::read(source).unwrap(), "greeter".into(), [7; 32])
    }

    #[test]
    fn an_installation_says_from_which_version_to_which() {
        let text = "name: greeter\nversion: 0.2.0\nfile: greeter\n".to_owned();
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        let manifest = PluginManifest::read(source).unwrap();
        let line = |former: Option<&str>, is_new: bool, trouble: Option<&str>| {
            let installed = Installed {
                name: "greeter".to_owned(),
                number: 7,
                former_version: former.map(str::to_owned),
                is_new,
                is_restarted: false,
                sha256: String::new(),
                bytes: 9,
                picked_up_ms: Some(12),
                trouble: trouble.map(str::to_owned),
                warnings: Vec::new(),
            };
            line(&manifest, &installed)
        };
        let at = "at a worker after 12 ms";
        assert_eq!(line(None, true, None), format!("greeter 0.2.0: installed as number 7, {at}"));
        let upgraded = line(Some("0.1.0"), true, None);
        assert_eq!(upgraded, format!("greeter 0.1.0 → 0.2.0: upgraded, as number 7, {at}"));
        let same = line(Some("0.2.0"), false, None);
        assert_eq!(same, format!("greeter 0.2.0: nothing changed; in force is number 7, {at}"));
        let fails = line(Some("0.1.0"), true, Some("it ended\u{1b}[0m"));
        assert!(fails.contains("as number 7; it does not run: it ended"), "{fails}");
        assert!(!fails.contains('\u{1b}'), "{fails:?}");
    }

    /// Such a plugin was installed, and each call of it was answered 502.
    #[test]
    fn a_plugin_whose_schemas_are_none_is_not_installed() {
        let of = |input_schema: &str| {
            let function = Function {
                name: "greet".to_owned(),
                input_schema: input_schema.to_owned(),
                ..Function::default()
            };
            readable(&Description { functions: vec![function], ..Description::default() })
        };
        of("").unwrap();
        of(r#"{"type": "string"}"#).unwrap();
        for wrong in [r#"{"type": "strin"}"#, r##"{"$ref": "#/$defs/none"}"##, "{"] {
            let error = format!("{:#}", of(wrong).unwrap_err());
            assert!(error.contains("could not be called") && error.contains("greet"), "{error}");
        }
    }

    #[test]
    fn a_plugin_is_tried_with_the_limits_and_the_sandbox_of_its_manifest() {
        let plain = program("");
        assert_eq!((plain.bounds, plain.sandbox), (Bounds::default(), Sandbox::default()));
        assert_eq!(plain.sha256, Some([7; 32]), "a copy runs, as on a worker");
        let bound = program(
            "limits: {memory: 1GiB, processor: 60s, files: 256, processes: 64}\n\
             sandbox: {own_user: ask, network: demand, files: ask, processes: demand}\n",
        );
        let bounds = Bounds {
            memory_bytes: Some(1 << 30),
            cpu_s: Some(60),
            files: Some(256),
            processes: Some(64),
        };
        let sandbox = Sandbox {
            user: Some(workers::TRIAL_USER),
            no_network: true,
            files: Some(Files::default()),
            own_processes: true,
            demanded: BTreeSet::from([Measure::Network, Measure::Processes]),
            ..Sandbox::default()
        };
        assert_eq!((bound.bounds, bound.sandbox), (bounds, sandbox));
    }
}
