//! The plugins that come with FlexCore, all in one executable. The first argument names the one that
//! this process is; `manifests/` has a manifest for each.
//!
//! Any further argument is `--network=10.1.0.0/16`: tenants may then configure the plugin to reach
//! this network, which is not the internet.

mod csv;
mod depth;
mod http;
mod mail;
mod meter;
mod places;
mod postgres;
mod reach;
mod trusted;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use flexcore_plugin::guard;
use flexcore_sdk::Plugin;

/// Makes a plugin.
type Make = fn() -> Plugin;

/// All plugins, by the names that manifests give as the first argument.
static PLUGINS: [(&str, Make); 4] = [
    ("http", http::plugin),
    ("postgres", postgres::plugin),
    ("mail", mail::plugin),
    ("csv", csv::plugin),
];

/// What an argument begins with that permits a network.
const NETWORK: &str = "--network=";

fn main() -> ExitCode {
    // Tests start it as the guard of itself, with arguments of the guard's own.
    if let Some(code) = guard::entered() {
        return code;
    }
    match chosen(std::env::args_os().skip(1)) {
        Ok(plugin) => flexcore_sdk::run(plugin),
        Err(why) => {
            // Nobody is left to be told where this fails.
            drop(writeln!(io::stderr(), "{why}"));
            ExitCode::FAILURE
        }
    }
}

/// The plugin that the arguments name, with the networks that they permit. Fails with a sentence for
/// people.
fn chosen(arguments: impl Iterator<Item = OsString>) -> Result<Plugin, String> {
    let arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    let (networks, words): (Vec<_>, Vec<_>) =
        arguments.partition(|argument| argument.starts_with(NETWORK));
    let names = PLUGINS.map(|(name, _)| name).join(", ");
    let plugin = match words.as_slice() {
        [word] => PLUGINS.iter().find(|(name, _)| name == word).map(|(_, plugin)| plugin),
        _ => None,
    };
    let Some(plugin) = plugin else {
        return Err(format!(
            "This is a plugin of FlexCore, which starts it by its manifest. Its arguments are one of \
             {names}, and {NETWORK}NETWORK for each network that tenants may configure."
        ));
    };
    let networks: Vec<_> = networks
        .iter()
        .filter_map(|network| network.strip_prefix(NETWORK))
        .map(str::to_owned)
        .collect();
    reach::permit(&networks)?;
    Ok(plugin())
}
