//! Members on a real broker: each test has its own.
#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod faults;
mod floor;
mod handover;
mod keys;
mod owners;
