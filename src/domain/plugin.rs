//! Calls of installed plugins, and what workers tell about these: the words that gateways, tools and workers
//! speak over NATS.
//!
//! All this is for processes of FlexCore alone: whoever may publish to these subjects says for which tenant,
//! and on whose behalf.

pub mod decisions;
pub mod told;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::names::Name;

/// The group in which workers take calls: each call goes to one of them.
pub const QUEUE_GROUP: &str = "plugins";

/// The subject of the question for what each worker has of all plugins. Its body is empty, and each worker
/// answers with a [`PluginReport`].
pub const REPORTS_SUBJECT: &str = "ctl.plugins";

/// The subjects of all questions for a plugin's log, for those who answer.
pub const LOGS_SUBJECTS: &str = "ctl.plugin_logs.*";

/// How the subjects of calls begin.
const CALLS: &str = "plug.";

/// How the subjects of questions for a log begin.
const LOGS: &str = "ctl.plugin_logs.";

/// Header names of calls. The others are those of commands: the actor ([`crate::command::header::ACTOR`]), the
/// idempotency key ([`crate::command::header::OWN_COMMAND_ID`]), the trace, and the time that is left.
pub mod header {
    /// Whose call it is.
    pub const TENANT: &str = "Flexcore-Tenant";
    /// The version of the plugin that is meant; without it the one that is installed is.
    pub const VERSION: &str = "Flexcore-Plugin-Version";
}

/// Largest input of a call, in bytes: just under the broker's message of 1 MiB, less the headers.
pub const INPUT_BYTES_MAX: usize = 960 * 1024;

/// Largest output of a call, in bytes: it is one message, too.
pub const OUTPUT_BYTES_MAX: usize = 960 * 1024;

/// Largest body of a worker's report or of a plugin's log, in bytes: one message each.
pub const REPORT_BYTES_MAX: usize = 900 * 1024;

/// Longest name of a function or of a foreign plugin's method, in bytes.
const FUNCTION_BYTES_MAX: usize = 256;

/// Characters of a message in a reply: what a plugin may say about a failure.
const MESSAGE_CHARS_MAX: usize = 4_096;

/// Characters of a failure's code.
const CODE_CHARS_MAX: usize = 40;

/// Largest details of a failure, in bytes.
const DETAILS_BYTES_MAX: usize = 64 * 1024;

/// Characters of a reason in a report.
const REASON_CHARS_MAX: usize = 400;

/// The subject of a call: `plug.<plugin>.<function>`. `None` where it can be no name of a function: 256 letters,
/// digits and `_ - / .` at most. Methods of foreign plugins are called `package.Service/Method`.
#[must_use]
pub fn call_subject(plugin: &Name, function: &str) -> Option<String> {
    is_function(function).then(|| format!("{CALLS}{plugin}.{function}"))
}

/// The subjects of all calls of a plugin, for those who answer.
#[must_use]
pub fn call_subjects(plugin: &Name) -> String {
    format!("{CALLS}{plugin}.>")
}

/// The function in the subject of a call; `None`: it is no such subject.
#[must_use]
pub fn called_function(subject: &str) -> Option<&str> {
    let (_, function) = subject.strip_prefix(CALLS)?.split_once('.')?;
    Some(function).filter(|function| is_function(function))
}

/// The subject of the question for the last lines of a plugin's log. Each worker answers with a list of lines,
/// the last one last.
#[must_use]
pub fn logs_subject(plugin: &Name) -> String {
    format!("{LOGS}{plugin}")
}

/// The plugin in the subject of such a question; `None`: it is no such subject.
#[must_use]
pub fn plugin_of_logs(subject: &str) -> Option<Name> {
    Name::parse(subject.strip_prefix(LOGS)?).ok()
}

fn is_function(text: &str) -> bool {
    let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || b"_-/.".contains(&byte);
    text.len() <= FUNCTION_BYTES_MAX
        && text.bytes().all(is_inside)
        // No part of a subject may be empty.
        && text.split('.').all(|part| !part.is_empty())
}

/// What came of a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginReply {
    /// It was done. This is what the function returned.
    Output(Box<RawValue>),
    /// The plugin says that it was not done.
    Failed {
        /// A stable word for programs.
        code: String,
        /// A sentence for people.
        message: String,
        /// The same may succeed later.
        temporary: bool,
        /// With `temporary`: not before so many milliseconds; 0: the plugin does not say.
        retry_after_ms: u64,
        /// More for programs.
        details: Option<Box<RawValue>>,
    },
    /// The plugin did not say what came of it.
    Refused {
        /// Why, for programs.
        refusal: PluginRefusal,
        /// Why, for people.
        message: String,
    },
}

/// Why a call has no answer of its plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginRefusal {
    /// No plugin of this name is installed.
    NotInstalled,
    /// The plugin has no such function.
    UnknownFunction,
    /// The input is no JSON, or not what the function takes. Or a header is missing or wrong.
    InvalidInput,
    /// The input is larger than the limit.
    TooLarge,
    /// The plugin is not for this tenant.
    NotForTenant,
    /// Another version of the plugin is in service, and the call names its own. What came of it does not count.
    OtherVersion,
    /// Too much is under way already. Nothing was done.
    Busy,
    /// The plugin does not run now. Nothing was done.
    Away,
    /// The plugin did not answer in time. It may have done what was asked.
    Late,
    /// The plugin broke its contract. It may have done what was asked.
    Faulty,
    /// The plugin ended during the call, or nobody understands what came back, such as a word of a later
    /// version. It may have done what was asked.
    #[serde(other)]
    Unknown,
}

impl PluginReply {
    /// A refusal, in words.
    #[must_use]
    pub fn refused(refusal: PluginRefusal, message: impl Into<String>) -> Self {
        Self::Refused { refusal, message: message.into() }
    }

    /// As it fits into a message: texts are cut, and an output that is too large is the plugin's fault.
    #[must_use]
    pub fn shortened(self) -> Self {
        match self {
            Self::Output(output) if output.get().len() > OUTPUT_BYTES_MAX => {
                let bytes = output.get().len();
                let message =
                    format!("an output of {bytes} bytes; at most {OUTPUT_BYTES_MAX} are accepted");
                Self::refused(PluginRefusal::Faulty, message)
            }
            Self::Output(output) => Self::Output(output),
            Self::Failed { code, message, temporary, retry_after_ms, details } => Self::Failed {
                code: cut(code, CODE_CHARS_MAX),
                message: cut(message, MESSAGE_CHARS_MAX),
                temporary,
                retry_after_ms,
                details: details.filter(|details| details.get().len() <= DETAILS_BYTES_MAX),
            },
            Self::Refused { refusal, message } => {
                Self::Refused { refusal, message: cut(message, MESSAGE_CHARS_MAX) }
            }
        }
    }
}

/// What one worker has of all plugins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PluginReport {
    /// The worker's id as a member of the cluster.
    pub member: String,
    /// The plugins, in the order of their names.
    pub plugins: Vec<PluginStatus>,
}

/// What a worker has of a plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PluginStatus {
    /// The plugin's name.
    pub name: Name,
    /// The number of the installation or restart that the worker has taken up; 0: none yet.
    pub number: u32,
    /// The version that is in service, as its manifest says; empty: none.
    pub version: String,
    /// A word: `fetching`, `starting`, `ready`, `busy`, `draining`, `backing_off`, `failed`, `unreadable`.
    pub state: String,
    /// Instances that should run on this worker.
    pub instances: usize,
    /// Instances that take calls now.
    pub ready: usize,
    /// Restarts of instances since the worker took the plugin up.
    pub restarts: u64,
    /// Calls that ended since then.
    pub calls: u64,
    /// Those among them that failed.
    pub errors: u64,
    /// Calls under way.
    pub under_way: usize,
    /// The time in milliseconds that half of the last calls stayed below.
    pub p50_ms: f64,
    /// The time in milliseconds that 99 of 100 of the last calls stayed below.
    pub p99_ms: f64,
    /// Memory of all its processes, in bytes.
    pub memory_bytes: u64,
    /// Why it is not ready, or why a newer version is not in service.
    pub reason: Option<String>,
    /// What it says about itself; `None`: not known yet, a foreign plugin, or no room in the report.
    pub description: Option<PluginDescription>,
    /// What was asked for of its sandbox: each measure, and `holds` or why it does not.
    pub sandbox: Vec<(String, String)>,
}

/// What a plugin says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PluginDescription {
    /// Its functions.
    pub functions: Vec<PluginFunction>,
    /// It decides on commands.
    pub decides: bool,
}

/// A function of a plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PluginFunction {
    /// Its name, as calls have it.
    pub name: String,
    /// One sentence.
    pub summary: String,
    /// JSON Schema of its input; `None`: any JSON, or no room in the report.
    pub input_schema: Option<Box<RawValue>>,
    /// JSON Schema of its output; `None`: any JSON, or no room in the report.
    pub output_schema: Option<Box<RawValue>>,
    /// A call may be repeated under its idempotency key.
    pub idempotent: bool,
}

impl PluginReport {
    /// As it fits into a message: reasons are cut; where that is not enough, plugins lose their schemas, then
    /// their descriptions. The last ones are left out where there are too many even so.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        for plugin in &mut self.plugins {
            plugin.cut();
        }
        let mut left = REPORT_BYTES_MAX.saturating_sub(json_bytes(&self.member) + 64);
        let mut waiting = self.plugins.len();
        self.plugins.retain_mut(|plugin| {
            // What one does not use of its part is for those behind it.
            let part = left / waiting.max(1);
            waiting = waiting.saturating_sub(1);
            let bytes = plugin.bytes_within(part) + 1;
            let fits = bytes <= left;
            left = left.saturating_sub(if fits { bytes } else { 0 });
            fits
        });
        self
    }
}

impl PluginStatus {
    fn cut(&mut self) {
        self.reason = self.reason.take().map(|reason| cut(reason, REASON_CHARS_MAX));
        for (measure, holds) in &mut self.sandbox {
            *measure = cut(std::mem::take(measure), CODE_CHARS_MAX);
            *holds = cut(std::mem::take(holds), REASON_CHARS_MAX);
        }
    }

    /// Its bytes as JSON, without schemas or a description where it would have more than this.
    fn bytes_within(&mut self, bytes_max: usize) -> usize {
        let whole = json_bytes(&*self);
        if whole <= bytes_max {
            return whole;
        }
        for function in self.description.iter_mut().flat_map(|about| &mut about.functions) {
            function.input_schema = None;
            function.output_schema = None;
        }
        let without_schemas = json_bytes(&*self);
        if without_schemas <= bytes_max {
            return without_schemas;
        }
        self.description = None;
        json_bytes(&*self)
    }
}

/// The last lines of a log that fit into a message.
#[must_use]
pub fn lines_within(lines: &[String], bytes_max: usize) -> &[String] {
    let mut bytes = 2;
    let fits = |line: &&String| {
        bytes += json_bytes(line) + 1;
        bytes <= bytes_max
    };
    let count = lines.iter().rev().take_while(fits).count();
    lines.split_at(lines.len() - count).1
}

fn json_bytes(value: &(impl Serialize + ?Sized)) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX / 2, |json| json.len())
}

fn cut(text: String, chars_max: usize) -> String {
    if text.chars().nth(chars_max).is_none() {
        return text;
    }
    let mut short: String = text.chars().take(chars_max).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn status(name: &str) -> PluginStatus {
        PluginStatus {
            name: Name::parse(name).unwrap(),
            number: 3,
            version: "0.1.0".to_owned(),
            state: "ready".to_owned(),
            instances: 1,
            ready: 1,
            restarts: 0,
            calls: 7,
            errors: 0,
            under_way: 0,
            p50_ms: 0.25,
            p99_ms: 1.5,
            memory_bytes: 1 << 20,
            reason: None,
            description: None,
            sandbox: vec![("network".to_owned(), "holds".to_owned())],
        }
    }

    fn described(name: &str, functions: usize, schema_bytes: usize) -> PluginStatus {
        let schema = raw(&format!("{{\"title\":\"{}\"}}", "x".repeat(schema_bytes)));
        let function = |number: usize| PluginFunction {
            name: format!("f{number}"),
            summary: "s".repeat(100),
            input_schema: Some(schema.clone()),
            output_schema: Some(schema.clone()),
            idempotent: true,
        };
        let functions = (0..functions).map(function).collect();
        let description = Some(PluginDescription { functions, decides: false });
        PluginStatus { description, ..status(name) }
    }

    #[test]
    fn subjects_name_plugin_and_function() {
        let plugin = Name::parse("greeter").unwrap();
        let subject = call_subject(&plugin, "greet").unwrap();
        assert_eq!(subject, "plug.greeter.greet");
        assert_eq!(called_function(&subject), Some("greet"));
        let method = call_subject(&plugin, "my.v1.Greeter/Greet").unwrap();
        assert_eq!(called_function(&method), Some("my.v1.Greeter/Greet"));
        for wrong in ["", "*", ">", "a b", "a..b", ".a", "a.", "é", &"a".repeat(257)] {
            assert_eq!(call_subject(&plugin, wrong), None, "{wrong:?}");
        }
        for wrong in ["plug.greeter", "plug.greeter.", "cmd.greeter.x", "greet"] {
            assert_eq!(called_function(wrong), None, "{wrong:?}");
        }
        assert_eq!(call_subjects(&plugin), "plug.greeter.>");
        assert_eq!(plugin_of_logs(&logs_subject(&plugin)), Some(plugin));
        assert_eq!(plugin_of_logs("ctl.plugin_logs.A"), None);
    }

    #[test]
    fn replies_round_trip() {
        for reply in [
            PluginReply::Output(raw(r#"{"a":[1.50]}"#)),
            PluginReply::Output(raw("null")),
            PluginReply::Failed {
                code: "no_name".to_owned(),
                message: "why".to_owned(),
                temporary: true,
                retry_after_ms: 5,
                details: Some(raw(r#"{"b":1e3}"#)),
            },
            PluginReply::refused(PluginRefusal::NotForTenant, "why"),
        ] {
            let text = serde_json::to_string(&reply).unwrap();
            let read: PluginReply = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        let refused = serde_json::to_string(&PluginReply::refused(PluginRefusal::Busy, "x"));
        assert_eq!(refused.unwrap(), r#"{"refused":{"refusal":"busy","message":"x"}}"#);
    }

    /// Gateways and workers of two versions run side by side during an upgrade.
    #[test]
    fn a_refusal_of_a_later_version_leaves_open_what_was_done() {
        let read =
            |word: &str| serde_json::from_str::<PluginRefusal>(&format!("\"{word}\"")).unwrap();
        assert_eq!(read("moved"), PluginRefusal::Unknown);
        assert_eq!(read("unknown"), PluginRefusal::Unknown);
        assert_eq!(read("faulty"), PluginRefusal::Faulty);
        let later = r#"{"refused":{"refusal":"moved","message":"x"}}"#;
        let later: PluginReply = serde_json::from_str(later).unwrap();
        assert!(matches!(later, PluginReply::Refused { refusal: PluginRefusal::Unknown, .. }));
        let written = serde_json::to_string(&PluginRefusal::Unknown).unwrap();
        assert_eq!(written, "\"unknown\"");
    }

    #[test]
    fn a_reply_about_a_call_fits_a_message_whatever_it_quotes() {
        let message_bytes = 1 << 20;
        let long = || "\u{1}".repeat(600_000);
        let text = |bytes: usize| raw(&format!("\"{}\"", "x".repeat(bytes - 2)));
        for reply in [
            PluginReply::Output(text(OUTPUT_BYTES_MAX)),
            PluginReply::Output(text(2 * OUTPUT_BYTES_MAX)),
            PluginReply::Failed {
                code: long(),
                message: long(),
                temporary: false,
                retry_after_ms: u64::MAX,
                details: Some(text(600_000)),
            },
            PluginReply::refused(PluginRefusal::Faulty, long()),
        ] {
            let bytes = serde_json::to_vec(&reply.shortened()).unwrap().len();
            assert!(bytes < message_bytes - 32 * 1024, "{bytes}");
        }
        let whole = PluginReply::Output(text(OUTPUT_BYTES_MAX)).shortened();
        assert!(matches!(whole, PluginReply::Output(_)));
        let lines: Vec<String> = (0..256).map(|_| "\u{1}".repeat(4_096)).collect();
        let fitting = lines_within(&lines, REPORT_BYTES_MAX);
        assert!(serde_json::to_vec(fitting).unwrap().len() <= REPORT_BYTES_MAX);
        assert!(!fitting.is_empty() && fitting.len() < lines.len());
        assert_eq!(lines_within(&lines[..3], REPORT_BYTES_MAX).len(), 3);
    }

    #[test]
    fn a_report_fits_a_message_and_small_plugins_stay_whole() {
        let report = PluginReport {
            member: "worker-1".to_owned(),
            plugins: vec![
                described("small", 2, 100),
                described("large", 256, 8 * 1024),
                PluginStatus { reason: Some("\u{1}".repeat(600_000)), ..status("troubled") },
            ],
        };
        let short = report.shortened();
        assert!(json_bytes(&short) <= REPORT_BYTES_MAX);
        let about = |at: usize| short.plugins[at].description.as_ref();
        assert!(about(0).unwrap().functions[0].input_schema.is_some());
        assert!(about(1).unwrap().functions[0].input_schema.is_none());
        assert_eq!(about(1).unwrap().functions.len(), 256);
        assert_eq!(short.plugins.len(), 3);
        let many = (0..20_000).map(|number| status(&format!("p{number}"))).collect();
        let short = PluginReport { member: "w".to_owned(), plugins: many }.shortened();
        assert!(json_bytes(&short) <= REPORT_BYTES_MAX);
        assert!(short.plugins.len() > 1_000);
    }

    #[test]
    fn reports_round_trip() {
        let report =
            PluginReport { member: "w".to_owned(), plugins: vec![described("greeter", 1, 10)] };
        let text = serde_json::to_string(&report).unwrap();
        let read: PluginReport = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}
