//! A pool with real processes of a plugin.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod calls;
mod configured;
mod decisions;
mod harness;
mod versions;
