//! A plugin on the real host, for its author's tests: started as FlexCore starts it, with its
//! guard and with TLS, called with JSON, and held to its own schemas.
//!
//! ```no_run
//! use flexcore_sdk::testing;
//! use serde_json::json;
//!
//! # async fn tests() {
//! const PLUGIN: &str = "target/debug/greeter"; // in a test: env!("CARGO_BIN_EXE_greeter")
//!
//! let plugin = testing::start(PLUGIN).await;
//! let greeted = plugin.call("greet", json!({"name": "Ada"})).await.unwrap();
//! assert_eq!(greeted, json!({"text": "Hello, Ada!"}));
//! plugin.stop().await;
//!
//! testing::conforms(PLUGIN).await;
//! # }
//! ```
//!
//! All of it panics, as tests do, where the plugin or the host does what it must not do. A failure
//! that the plugin answers with is returned. [`requirements`], [`without_a_host`] and [`Schemas`] do
//! not panic: they are for whoever tests plugins of others, as `flexcore plugin check` does.

mod conform;
mod kit;
mod running;
mod schemas;

use std::path::Path;

pub use conform::{Requirement, requirements, without_a_host};
pub use flexcore_plugin::{Error, Level, Line, contract::Context};
pub use kit::Kit;
pub use running::Running;
pub use schemas::Schemas;

/// Starts the executable of a plugin that is built with this SDK.
///
/// # Panics
/// If it does not start.
pub async fn start(file: impl AsRef<Path>) -> Running {
    Kit::new(file).start().await
}

/// Holds the executable of a plugin that is built with this SDK to what every plugin has to do.
///
/// # Panics
/// If it does something else.
pub async fn conforms(file: impl AsRef<Path>) {
    Kit::new(file).conforms().await;
}
