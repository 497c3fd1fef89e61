//! The words of FlexCore as types: names that cannot be wrong, the envelope of commits, and the
//! decider interface. Pure and synchronous: no clock, no network, no runtime.

pub mod command;
pub mod commit;
pub mod decider;
mod hash;
pub mod json;
pub mod limits;
pub mod log;
pub mod names;
pub mod plugin;
pub mod plugin_configuration;
pub mod position;
mod seal;
pub mod slot;
pub mod trace;

pub use command::{Command, Outcome, Provenance, StateReply};
pub use commit::{Commit, Event};
pub use decider::{Context, Decider, Decision, NewEvent, Refusal, State};
pub use hash::{CommandHash, Digest, Hash, Secret};
pub use json::{Payload, Violation};
pub use names::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandId, CommandName, EventName,
    InvalidName, Name, Tenant,
};
pub use plugin::{
    PluginDescription, PluginFunction, PluginRefusal, PluginReply, PluginReport, PluginStatus,
};
pub use position::Position;
pub use seal::{Vouched, WRONG_SEAL};
pub use slot::{PORTIONS, SLOTS, Slot, fnv1a};
pub use trace::TraceParent;
