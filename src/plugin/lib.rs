//! HashiCorp's go-plugin over gRPC, both sides: a host that starts, checks, calls and stops plugin
//! processes, and what a plugin needs to be one. It knows nothing of FlexCore's log and can be used
//! alone.
//!
//! [`Plugin::start`] runs a [`Checked`] file and shakes hands with it; [`Plugin::connection`] is a
//! gRPC connection for generated clients. Nothing that a plugin prints, sends or fails to do can
//! hang, grow or end the host: every wait has a deadline, and every buffer a bound; they stand in
//! [`limits`]. Two things last as long as their caller waits: a call through a [`Connection`],
//! which should have a deadline, such as [`Connection::within`]; and waiting for an end, with
//! [`Plugin::ended`] and [`Connection::closed`]. Each call under way may take as much memory as its
//! answer may be large. [`contract`] is what FlexCore's own plugins speak.

mod broker;
mod connection;
pub mod contract;
mod error;
pub mod guard;
mod handshake;
mod host;
mod identity;
pub mod limits;
mod logs;
mod mux;
mod process;
mod reflection;
mod serve;
mod transport;
mod wire;

pub use broker::{Accepted, Broker};
pub use connection::Connection;
pub use error::Error;
pub use handshake::Cookie;
pub use host::{Ended, Output, Plugin, Reattach, Start};
pub use logs::{Level, Line};
pub use process::{Checked, Printed};
pub use reflection::{Method, Reflection};
pub use serve::{Descriptors, Network, RoutesFn, Serve, Stdio, serve};
pub use transport::Address;
