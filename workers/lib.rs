//! The workers: what keeps FlexCore running. One file a worker; this is the complete list.

pub mod command;
pub mod projection;
