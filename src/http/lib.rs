//! HTTP where no web framework is needed: a client over plain TCP, whose answers are whole, within a time
//! and a size; and the pages on which a process says how it is.

mod accept;
mod client;
pub mod health;

pub use accept::accept;
pub use client::{Connection, Error, Limits, ask};
pub use hyper::{Method, Request, Response, StatusCode, body::Bytes, header};
