//! Read models on a real Postgres: one server for all tests, a database for each.
#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod bounds;
mod database;
mod dropped;
mod fold;
mod hostile;
mod indexes;
mod isolation;
mod large;
mod named_alike;
mod queries;
mod reading;
mod served;
mod sessions;
mod unstopped;
mod versions;
