//! A plugin of the SDK on the real host.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod calls;
mod decisions;
mod go_template;
mod kit;
mod new_plugin;
mod python;
mod steps;

/// The plugin under test.
const LAB: &str = env!("CARGO_BIN_EXE_flexcore-sdk-lab");
