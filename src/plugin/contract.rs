//! The contract between FlexCore and its plugins, `flexcore.plugin.v1`, both halves: a [`Client`]
//! for whoever calls a plugin, and [`Serving`] for whoever is one.
//!
//! Each half looks at what it sends and at what it gets. The limits stand in [`crate::limits`];
//! `schemas/proto/flexcore/plugin/v1/plugin.proto` says what every field means.

mod batches;
mod check;
mod client;
mod decide;
mod exchange;
mod failure;
mod messages;
mod serving;

pub use batches::{Batch, Batches};
pub use check::is_word;
pub use client::{Client, is_unknown};
pub use decide::Decider;
pub use messages::{
    CallOutcome, CallRequest, CallResponse, CallResult, ConfigureRequest, ConfigureResponse,
    Context, DecideRequest, DecideResponse, Decision, DecisionResult, DescribeRequest, Description,
    Event, Events, Failure, Function, Question, SERVICE, StreamRequest, StreamResponse,
};
pub use serving::{Messages, Serving, VERSION, plugin};

#[cfg(test)]
#[path = "contract/proto_tests.rs"]
mod proto_tests;
