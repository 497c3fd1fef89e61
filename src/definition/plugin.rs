//! A plugin's manifest, `plugin.yaml`: the file that is started, what it may use, and who may call it.

#[cfg(test)]
mod tests;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
    sync::Arc,
    time::Duration,
};

use flexcore_domain::{Name, Tenant};

use self::values::{
    MEMORY, PROCESSOR, amount, bytes, count, line, list, time, whole, word, yes_or_no,
};
use super::{
    Problem, SourceFile,
    fields::{Fields, entries},
    notes::Notes,
    yaml::{self, Node},
};

/// Longest text of a manifest, in bytes: it is one event of the log, as JSON, and every process has it
/// in memory.
const MANIFEST_BYTES_MAX: usize = 256 * 1024;
/// Longest version, in characters: a person reads it in a table.
const VERSION_MAX: usize = 64;
/// Longest summary, in characters: it is one line of a table.
const SUMMARY_MAX: usize = 200;
/// Longest path of the file, in bytes: Linux takes 4,095, with the folder in front.
const FILE_MAX: usize = 1024;
/// Most arguments, and most variables of the environment: together they are well below what Linux
/// takes at a start, 2 MiB.
const WORDS_MAX: usize = 64;
/// Longest argument, or value of a variable, in bytes.
const WORD_BYTES_MAX: usize = 4 * 1024;
/// Longest name of a variable, in bytes.
const VARIABLE_BYTES_MAX: usize = 128;
/// Most versions of the protocol that a plugin is offered.
const PROTOCOL_VERSIONS_MAX: usize = 16;
/// Most instances that one worker runs: each is a process with its own memory.
const INSTANCES_MAX: usize = 16;
/// Most calls under way in one instance: each has a place in the worker's memory.
const CONCURRENCY_MAX: usize = 1024;
/// Most tenants that are listed: each call looks for its own.
const TENANTS_MAX: usize = 1000;
/// Most open files that a plugin may be given: Linux allows a process no more, unless told to.
const FILES_MAX: u64 = 1_048_576;
/// Fewest open files: with fewer no plugin starts.
const FILES_MIN: u64 = 16;
/// Most processes and threads: a machine has 65,536 numbers for them in many places.
const PROCESSES_MAX: u64 = 65_536;
/// Limits of the time until a plugin is ready.
const START: (&str, &str) = ("1s", "10m");
/// Limits of the time of one call.
const CALL: (&str, &str) = ("1s", "5m");
/// The longest time of a call where the manifest says nothing, in seconds.
pub const PLUGIN_CALL_S: u64 = 30;

/// Variables that tell a plugin of its host: no manifest sets them.
const RESERVED: &str = "PLUGIN_";

const KEYS: [&str; 18] = [
    "name",
    "version",
    "summary",
    "file",
    "contract",
    "arguments",
    "environment",
    "cookie",
    "protocol_versions",
    "tls",
    "multiplex",
    "instances",
    "concurrency",
    "start",
    "call",
    "tenants",
    "limits",
    "sandbox",
];

/// A manifest, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginManifest {
    /// The plugin's name: callers know it by this.
    pub name: Name,
    /// Its version, for people.
    pub version: String,
    /// One sentence about it.
    pub summary: Option<String>,
    /// The executable file: a path below the manifest's folder, without `..`.
    pub file: String,
    /// The way in which it is called.
    pub contract: PluginContract,
    /// Its arguments, without NUL.
    pub arguments: Vec<String>,
    /// Variables of its environment, without NUL; none begins with `PLUGIN_`.
    pub environment: BTreeMap<String, String>,
    /// Key and value of the magic cookie; `None`: FlexCore's own.
    pub cookie: Option<(String, String)>,
    /// Versions of the protocol that it is offered; never empty, each once.
    pub protocol_versions: Vec<u32>,
    /// True if host and plugin prove to each other who they are, over TLS.
    pub tls: bool,
    /// True if everything goes over one connection.
    pub multiplex: bool,
    /// Processes of it that each worker runs.
    pub instances: usize,
    /// Calls that one instance may have under way.
    pub concurrency: usize,
    /// Longest time from its start until it is ready.
    pub start: Duration,
    /// Longest time of one call.
    pub call: Duration,
    /// Tenants that may call it; `None`: all.
    pub tenants: Option<BTreeSet<Tenant>>,
    /// What it may use of the machine.
    pub limits: PluginLimits,
    /// What it is to be kept from.
    pub sandbox: PluginSandbox,
    /// The text that all this was read from.
    pub source: SourceFile,
}

/// The way in which a plugin is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginContract {
    /// FlexCore's own service, with functions.
    Flexcore,
    /// None of ours: its methods are called by reflection.
    None,
}

/// What each process of a plugin may use of the machine. `None`: FlexCore sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PluginLimits {
    /// Address space, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time over its whole life, in seconds.
    pub cpu_s: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
    /// Processes and threads of its user altogether.
    pub processes: Option<u64>,
}

/// What a plugin is to be kept from. `None`: nobody asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PluginSandbox {
    /// It runs as a user of its own.
    pub own_user: Option<Wish>,
    /// It reaches no network.
    pub network: Option<Wish>,
    /// It opens no files but the system's and its own.
    pub files: Option<Wish>,
    /// It sees no processes but its own.
    pub processes: Option<Wish>,
}

/// How much a measure is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The plugin starts without it where the machine does not have it.
    Ask,
    /// The plugin does not start without it.
    Demand,
}

impl PluginManifest {
    /// Reads a manifest. Fails with all problems that were found, by file and line. Neither the
    /// file that it names nor anything else on a disk is looked at.
    pub fn read(source: SourceFile) -> Result<Self, Vec<Problem>> {
        let file: Arc<str> = source.path.as_str().into();
        let mut notes = Notes::new(file.clone());
        let read = match document(&file, &source.text, &mut notes) {
            Ok(node) => node.and_then(|node| manifest(&node, source, &mut notes)),
            Err(problem) => return Err(vec![problem]),
        };
        match read {
            Some(manifest) if notes.problems.is_empty() => Ok(manifest),
            _ => {
                notes.problems.sort_by_key(|problem| problem.place.line);
                Err(notes.problems)
            }
        }
    }
}

/// The one document of a manifest.
fn document(file: &Arc<str>, text: &str, notes: &mut Notes) -> Result<Option<Node>, Problem> {
    if text.len() > MANIFEST_BYTES_MAX {
        let size = text.len();
        let message = format!("a manifest of {size} bytes; at most {MANIFEST_BYTES_MAX}");
        return Ok(notes.add(1, message));
    }
    let mut documents = yaml::documents(file, text)?.into_iter();
    let first = documents.next();
    if first.is_none() {
        return Ok(notes.add(1, "the manifest is empty: it needs `name`, `version` and `file`"));
    }
    if let Some(second) = documents.next() {
        return Ok(notes.add(second.line, "a manifest has one document, and a second begins here"));
    }
    Ok(first)
}

/// Every field is read before the first wrong one ends it, so that all problems are told at once.
fn manifest(node: &Node, source: SourceFile, notes: &mut Notes) -> Option<PluginManifest> {
    let fields = &Fields::of(node, "a plugin", &KEYS, notes)?;
    let name = fields.required("name", notes).and_then(|node| {
        let text = notes.text(node, "`name`")?;
        notes.name(Name::parse, text, node.line)
    });
    let version = fields.required("version", notes).and_then(|node| version(node, notes));
    let summary = or(fields, "summary", None, notes, |node, notes| {
        line(node, "`summary`", SUMMARY_MAX, notes).map(Some)
    });
    let file = fields.required("file", notes).and_then(|node| executable(node, notes));
    let contract = or(fields, "contract", PluginContract::Flexcore, notes, |node, notes| {
        let known = [("flexcore", PluginContract::Flexcore), ("none", PluginContract::None)];
        word(node, "`contract`", &known, notes)
    });
    let arguments = or(fields, "arguments", Vec::new(), notes, arguments);
    let environment = or(fields, "environment", BTreeMap::new(), notes, environment);
    let cookie = or(fields, "cookie", None, notes, |node, notes| cookie(node, notes).map(Some));
    let protocol_versions = or(fields, "protocol_versions", vec![1], notes, protocol_versions);
    let [tls, multiplex] = [("tls", true), ("multiplex", false)].map(|(name, absent)| {
        or(fields, name, absent, notes, |node, notes| yes_or_no(node, &format!("`{name}`"), notes))
    });
    let [instances, concurrency] =
        [("instances", 1, INSTANCES_MAX), ("concurrency", 64, CONCURRENCY_MAX)].map(
            |(name, absent, most)| {
                or(fields, name, absent, notes, |node, notes| {
                    count(node, &format!("`{name}`"), most, notes)
                })
            },
        );
    let [start, call] =
        [("start", 60, START), ("call", PLUGIN_CALL_S, CALL)].map(|(name, s, limits)| {
            or(fields, name, Duration::from_secs(s), notes, |node, notes| {
                time(node, &format!("`{name}`"), limits, notes)
            })
        });
    let tenants = or(fields, "tenants", None, notes, |node, notes| tenants(node, notes).map(Some));
    let limits = or(fields, "limits", PluginLimits::default(), notes, limits);
    let sandbox = or(fields, "sandbox", PluginSandbox::default(), notes, sandbox);
    Some(PluginManifest {
        name: name?,
        version: version?.to_owned(),
        summary: summary?.map(str::to_owned),
        file: file?,
        contract: contract?,
        arguments: arguments?,
        environment: environment?,
        cookie: cookie?,
        protocol_versions: protocol_versions?,
        tls: tls?,
        multiplex: multiplex?,
        instances: instances?,
        concurrency: concurrency?,
        start: start?,
        call: call?,
        tenants: tenants?,
        limits: limits?,
        sandbox: sandbox?,
        source,
    })
}

/// The value of a field, or this one where it is absent; `None`, and a note, where it is wrong.
fn or<'n, T>(
    fields: &Fields<'n>,
    name: &str,
    absent: T,
    notes: &mut Notes,
    read: impl FnOnce(&'n Node, &mut Notes) -> Option<T>,
) -> Option<T> {
    match fields.get(name) {
        Some(node) => read(node, notes),
        None => Some(absent),
    }
}

/// A path that stays below the manifest's folder.
fn executable(node: &Node, notes: &mut Notes) -> Option<String> {
    let text = bytes(node, "`file`", FILE_MAX, notes)?;
    let mut parts = Path::new(text).components();
    let is_below = parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let names_one = Path::new(text).file_name().is_some();
    if !is_below || !names_one || text.chars().any(char::is_control) {
        let rule = "`file` is a path below the manifest's folder: not absolute, and without `..`";
        return notes.add(node.line, rule);
    }
    Some(text.to_owned())
}

/// A plugin's version, as its manifest has it.
pub(super) fn version<'n>(node: &'n Node, notes: &mut Notes) -> Option<&'n str> {
    line(node, "`version`", VERSION_MAX, notes)
}

fn arguments(node: &Node, notes: &mut Notes) -> Option<Vec<String>> {
    let nodes = list(node, "`arguments`", 0..=WORDS_MAX, notes)?;
    let read = |node| bytes(node, "an argument", WORD_BYTES_MAX, notes).map(str::to_owned);
    // Each is read, also behind a wrong one.
    nodes.iter().map(read).collect::<Vec<_>>().into_iter().collect()
}

fn environment(node: &Node, notes: &mut Notes) -> Option<BTreeMap<String, String>> {
    let entries = entries(node, "`environment`", notes)?;
    if entries.len() > WORDS_MAX {
        return notes.add(node.line, format!("`environment` has at most {WORDS_MAX} variables"));
    }
    let mut found = BTreeMap::new();
    for (key, node) in entries {
        if check_variable(&key.text, key.line, notes).is_some()
            && let Some(value) = bytes(node, "a variable", WORD_BYTES_MAX, notes)
        {
            found.insert(key.text.clone(), value.to_owned());
        }
    }
    // Incomplete only when a note says so; the whole is refused then.
    Some(found)
}

/// A note where the name is none of a variable that a manifest may set.
fn check_variable(name: &str, line: usize, notes: &mut Notes) -> Option<()> {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !begins || !goes_on || name.len() > VARIABLE_BYTES_MAX {
        let rule = "the name of a variable is [A-Za-z_][A-Za-z0-9_]*";
        return notes.add(line, format!("{rule}, {VARIABLE_BYTES_MAX} bytes at most"));
    }
    if name.starts_with(RESERVED) {
        let message = format!("variables {RESERVED}* are the host's own: choose another name");
        return notes.add(line, message);
    }
    Some(())
}

fn cookie(node: &Node, notes: &mut Notes) -> Option<(String, String)> {
    let fields = Fields::of(node, "`cookie`", &["key", "value"], notes)?;
    let key = fields.required("key", notes).and_then(|node| {
        let text = notes.text(node, "`key`")?;
        check_variable(text, node.line, notes).map(|()| text.to_owned())
    });
    let value = fields
        .required("value", notes)
        .and_then(|node| line(node, "`value`", WORD_BYTES_MAX, notes));
    Some((key?, value?.to_owned()))
}

fn protocol_versions(node: &Node, notes: &mut Notes) -> Option<Vec<u32>> {
    let nodes = list(node, "`protocol_versions`", 1..=PROTOCOL_VERSIONS_MAX, notes)?;
    let mut found = Vec::new();
    for node in nodes {
        let read = whole(node, "a version of the protocol", 0..=u64::from(u32::MAX), notes);
        let version = u32::try_from(read?).ok()?;
        if found.contains(&version) {
            return notes.add(node.line, format!("version {version} is here twice"));
        }
        found.push(version);
    }
    Some(found)
}

fn tenants(node: &Node, notes: &mut Notes) -> Option<BTreeSet<Tenant>> {
    let nodes = list(node, "`tenants`", 1..=TENANTS_MAX, notes)?;
    let mut found = BTreeSet::new();
    for node in nodes {
        let text = notes.text(node, "a tenant")?;
        let tenant = notes.name(Tenant::parse, text, node.line)?;
        if !found.insert(tenant) {
            return notes.add(node.line, "this tenant is here twice");
        }
    }
    Some(found)
}

fn limits(node: &Node, notes: &mut Notes) -> Option<PluginLimits> {
    let known = ["memory", "processor", "files", "processes"];
    let fields = &Fields::of(node, "`limits`", &known, notes)?;
    let memory_bytes = or(fields, "memory", None, notes, |node, notes| {
        amount(node, "`memory`", &MEMORY, notes).map(Some)
    });
    let cpu_ms = or(fields, "processor", None, notes, |node, notes| {
        amount(node, "`processor`", &PROCESSOR, notes).map(Some)
    });
    let files = or(fields, "files", None, notes, |node, notes| {
        whole(node, "`files`", FILES_MIN..=FILES_MAX, notes).map(Some)
    });
    let processes = or(fields, "processes", None, notes, |node, notes| {
        whole(node, "`processes`", 1..=PROCESSES_MAX, notes).map(Some)
    });
    // The kernel counts whole seconds.
    let cpu_s = cpu_ms?.map(|ms| ms.div_ceil(1_000));
    Some(PluginLimits { memory_bytes: memory_bytes?, cpu_s, files: files?, processes: processes? })
}

fn sandbox(node: &Node, notes: &mut Notes) -> Option<PluginSandbox> {
    let known = ["own_user", "network", "files", "processes"];
    let fields = &Fields::of(node, "`sandbox`", &known, notes)?;
    let words = [("ask", Wish::Ask), ("demand", Wish::Demand)];
    let [own_user, network, files, processes] = known.map(|name| {
        or(fields, name, None, notes, |node, notes| {
            word(node, &format!("`{name}`"), &words, notes).map(Some)
        })
    });
    Some(PluginSandbox {
        own_user: own_user?,
        network: network?,
        files: files?,
        processes: processes?,
    })
}
