//! The messages of `flexcore.plugin.v1`, written by hand. A test holds them to the listing
//! `schemas/proto/contract.json`, and that to the .proto file, whose comments say more.

use std::fmt;

use bytes::Bytes;

/// The full name of the service.
pub const SERVICE: &str = "flexcore.plugin.v1.Plugin";

pub(super) const DESCRIBE: &str = "/flexcore.plugin.v1.Plugin/Describe";
pub(super) const CONFIGURE: &str = "/flexcore.plugin.v1.Plugin/Configure";
pub(super) const CALL: &str = "/flexcore.plugin.v1.Plugin/Call";
pub(super) const STREAM: &str = "/flexcore.plugin.v1.Plugin/Stream";
pub(super) const DECIDE: &str = "/flexcore.plugin.v1.Plugin/Decide";

/// The question what a plugin can do.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DescribeRequest {}

/// What a plugin is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Description {
    /// Its name, for people.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version, for people.
    #[prost(string, tag = "2")]
    pub version: String,
    /// One sentence.
    #[prost(string, tag = "3")]
    pub summary: String,
    /// [`FUNCTIONS_MAX`](crate::limits::FUNCTIONS_MAX) at most.
    #[prost(message, repeated, tag = "4")]
    pub functions: Vec<Function>,
    /// JSON Schema of the configuration; empty: the plugin takes none.
    #[prost(string, tag = "5")]
    pub configuration_schema: String,
    /// It decides on commands.
    #[prost(bool, tag = "6")]
    pub decides: bool,
}

/// A function that can be called.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Function {
    /// `[a-z][a-z0-9_]{0,39}`
    #[prost(string, tag = "1")]
    pub name: String,
    /// One sentence.
    #[prost(string, tag = "2")]
    pub summary: String,
    /// JSON Schema of its input; empty: any JSON.
    #[prost(string, tag = "3")]
    pub input_schema: String,
    /// JSON Schema of its output; empty: any JSON.
    #[prost(string, tag = "4")]
    pub output_schema: String,
    /// A call may be repeated under its idempotency key.
    #[prost(bool, tag = "5")]
    pub idempotent: bool,
}

/// On whose behalf something is done, and until when.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Context {
    /// Whose data and configuration it is.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// Who caused it, as recorded.
    #[prost(string, tag = "2")]
    pub actor: String,
    /// The same for every attempt of one call.
    #[prost(string, tag = "3")]
    pub idempotency_key: String,
    /// Milliseconds from now on that the caller waits.
    #[prost(uint64, tag = "4")]
    pub timeout_ms: u64,
    /// W3C Trace Context; empty: none.
    #[prost(string, tag = "5")]
    pub traceparent: String,
    /// W3C Trace Context; empty: none.
    #[prost(string, tag = "6")]
    pub tracestate: String,
}

/// The configuration of one tenant.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct ConfigureRequest {
    /// Whose it is.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// JSON; `null`: it was taken away.
    #[prost(bytes = "bytes", tag = "2")]
    pub configuration: Bytes,
}

/// Without the configuration, which has secrets.
impl fmt::Debug for ConfigureRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigureRequest").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// Whether a configuration can be used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfigureResponse {
    /// Set: it cannot.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
}

/// A call of a function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CallRequest {
    /// On whose behalf.
    #[prost(message, optional, tag = "1")]
    pub context: Option<Context>,
    /// The function's name.
    #[prost(string, tag = "2")]
    pub function: String,
    /// JSON.
    #[prost(bytes = "bytes", tag = "3")]
    pub input: Bytes,
}

/// What became of a call.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CallResponse {
    /// Always there.
    #[prost(oneof = "CallResult", tags = "1, 2")]
    pub result: Option<CallResult>,
}

/// The result in a [`CallResponse`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum CallResult {
    /// JSON.
    #[prost(bytes = "bytes", tag = "1")]
    Output(Bytes),
    /// It was not done.
    #[prost(message, tag = "2")]
    Failure(Failure),
}

/// What became of a call: its output, which is JSON, or why it was not done.
pub type CallOutcome = Result<Bytes, Failure>;

/// Why something was not done.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// A stable word for programs: `[a-z][a-z0-9_]{0,39}`
    #[prost(string, tag = "1")]
    pub code: String,
    /// A sentence for people, without secrets.
    #[prost(string, tag = "2")]
    pub message: String,
    /// The same may succeed later.
    #[prost(bool, tag = "3")]
    pub temporary: bool,
    /// With `temporary`: not before so many milliseconds.
    #[prost(uint64, tag = "4")]
    pub retry_after_ms: u64,
    /// JSON with more for programs; empty: none.
    #[prost(bytes = "bytes", tag = "5")]
    pub details: Bytes,
}

/// A batch of calls of one function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamRequest {
    /// 1, 2, 3 …
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// In the first message: for all.
    #[prost(message, optional, tag = "2")]
    pub context: Option<Context>,
    /// In the first message: for all.
    #[prost(string, tag = "3")]
    pub function: String,
    /// JSON each.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub inputs: Vec<Bytes>,
}

/// What became of a batch of calls.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamResponse {
    /// That of the request.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// One for each input, in their order.
    #[prost(message, repeated, tag = "2")]
    pub results: Vec<CallResponse>,
}

/// A batch of questions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DecideRequest {
    /// 1, 2, 3 …
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Of different aggregates.
    #[prost(message, repeated, tag = "2")]
    pub questions: Vec<Question>,
}

/// A command that waits for its decision.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Question {
    /// On whose behalf.
    #[prost(message, optional, tag = "1")]
    pub context: Option<Context>,
    /// The aggregate's name.
    #[prost(string, tag = "2")]
    pub aggregate: String,
    /// The aggregate's id.
    #[prost(string, tag = "3")]
    pub id: String,
    /// Of the aggregate, before the command.
    #[prost(uint64, tag = "4")]
    pub version: u64,
    /// The command's name.
    #[prost(string, tag = "5")]
    pub command: String,
    /// The command's id.
    #[prost(string, tag = "6")]
    pub command_id: String,
    /// When the worker took it up: milliseconds since 1970-01-01 UTC.
    #[prost(int64, tag = "7")]
    pub now_ms: i64,
    /// JSON; `null` before the first event.
    #[prost(bytes = "bytes", tag = "8")]
    pub state: Bytes,
    /// JSON.
    #[prost(bytes = "bytes", tag = "9")]
    pub payload: Bytes,
}

/// The decisions on a batch of questions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DecideResponse {
    /// That of the request.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// One for each question, in their order.
    #[prost(message, repeated, tag = "2")]
    pub decisions: Vec<Decision>,
}

/// The decision on a command.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Decision {
    /// Always there.
    #[prost(oneof = "DecisionResult", tags = "1, 2, 3")]
    pub result: Option<DecisionResult>,
}

/// The result in a [`Decision`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum DecisionResult {
    /// Accepted.
    #[prost(message, tag = "1")]
    Events(Events),
    /// The rules say no.
    #[prost(message, tag = "2")]
    Rejected(Failure),
    /// The plugin cannot decide now.
    #[prost(message, tag = "3")]
    Failure(Failure),
}

/// What is recorded together or not at all.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Events {
    /// [`EVENTS_MAX`](crate::limits::EVENTS_MAX) at most.
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<Event>,
}

/// Something that happened to an aggregate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// Its name, as the aggregate declares it.
    #[prost(string, tag = "1")]
    pub event: String,
    /// JSON.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
}
