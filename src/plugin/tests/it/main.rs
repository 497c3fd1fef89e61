//! Hosts and plugins as real processes: plugins on other libraries and on our own, plugins that do
//! what no plugin should, plugins and hosts that are killed.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod base;
mod bounds;
mod calls;
mod checksum;
mod contract;
mod first_line;
mod fixtures;
mod foreign_host;
mod guarded;
mod harness;
mod killed;
#[path = "../plugins/lab.rs"]
mod lab;
mod languages;
mod noise;
mod reattach;
mod reflection;
mod sandbox;
mod services;
mod sockets;
mod stopping;
mod surroundings;
mod wrong_key;

use std::time::Duration;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
