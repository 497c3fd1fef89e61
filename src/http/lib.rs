//! HTTP where no web framework is needed: a client over plain TCP, whose answers are whole, within a time
//! and a size.

mod client;

pub use client::{Connection, Error, Limits, ask};
pub use hyper::{Method, Request, Response, StatusCode, body::Bytes, header};
