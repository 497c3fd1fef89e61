//! The workers: what keeps FlexCore running. One file a worker; this is the complete list.

pub mod command;
#[cfg(feature = "defects")]
mod defects;
pub mod projection;
