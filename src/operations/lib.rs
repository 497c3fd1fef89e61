//! Operation of an installation: deploy an application, install plugins and call them, look at the cluster
//! and at dead messages, drain a member, rebuild read models. The command line and the gateway call it.
//!
//! Nothing here prints or answers: the caller shows the results.

pub mod application;
pub mod dead;
mod deciders;
pub mod deploy;
pub mod drain;
mod error;
mod needed;
pub mod plugins;
pub mod report;
pub mod rows;
mod transforms;

pub use error::{Error, QUERIES_UNCHECKED};
