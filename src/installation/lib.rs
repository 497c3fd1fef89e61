//! An installation of FlexCore: where its servers are, opening it, and the roles that serve from it.
//!
//! Opening it joins the cluster and follows deployments. Roles serve from it; their caller starts
//! them with [`Roles`].

mod connect;
pub mod dev;
mod open;
mod ready;
mod roles;
pub mod tokens;

pub use connect::{Broker, connect};
pub use dev::Dev;
pub use flexcore_http::health::RenderMetrics;
pub use open::{Endpoints, Installation};
pub use ready::Ready;
pub use roles::{Roles, listen, stop_at_signals};
