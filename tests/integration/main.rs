//! The executable as its users meet it: real processes, a real nats-server and a real Postgres.
//!
//! Tests that need no process of their own share one `flexcore dev` and are kept apart by tenant.
//! A randomised test prints its seed; `FLEXCORE_TEST_SEED` repeats it (`random`: a new one).
#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod support;

mod cluster;
mod damage;
mod declared_deciders;
mod definitions;
mod dev;
mod documents;
mod faults;
mod flights;
mod hostile;
mod http_commands;
mod installed_plugins;
mod kill;
mod limits;
mod nats_commands;
mod pauses;
mod plugin_configurations;
mod plugin_deciders;
mod plugin_workers;
mod plugins;
mod publish;
mod python_plugins;
mod queries;
mod read_models;
mod runaways;
mod slots;
mod tried_plugins;
