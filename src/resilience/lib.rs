//! Keeps one target's fault from becoming everybody's: deadlines that travel with a request,
//! circuit breakers, retries within a budget, failover among endpoints, and shares of scarce
//! resources. All policies stand in [`policy`], and what they do is seen in the metrics that
//! `measure` lists.
//!
//! [`circuit`] and [`budget`] decide, with time and chance as arguments; [`Breaker`], [`Retry`] and
//! [`Endpoints`] act. A caller says what counts as a failure: a downstream that answers "no" works.
//!
//! Our own, because of the crates that were tried recloser 1.4 lets every call through when half
//! open, tower-resilience 0.13 pauses for one fixed time on a clock that tests cannot move, and
//! backon 1.6 knows neither full jitter nor a budget nor a deadline.

mod beside;
mod breaker;
pub mod budget;
pub mod circuit;
mod circuits;
mod deadline;
mod endpoints;
mod error;
mod measure;
mod pause;
pub mod policy;
mod retry;
mod shares;

pub use beside::Beside;
pub use breaker::Breaker;
pub use budget::Budget;
pub use circuit::{CircuitState, Verdict};
pub use deadline::{Deadline, Exceeded, HEADER, InvalidTimeout, TIMEOUT_MAX};
pub use endpoints::{Endpoints, Order};
pub use error::Error;
pub use pause::{Backoff, jitter, lasts};
pub use policy::Policies;
pub use retry::Retry;
pub use shares::{HeldPlace, Shares};

/// Settings of property tests. A failing case is printed, and kept as a test of its own; a file of
/// them would go beside this crate's folder, where only crates may be.
#[cfg(test)]
fn cases() -> proptest::test_runner::Config {
    proptest::test_runner::Config { failure_persistence: None, ..Default::default() }
}
