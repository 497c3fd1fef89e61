//! Deciders in JavaScript: the functions of a deployed definition, run by QuickJS with a cap on
//! memory, stack and processor time, and with nothing that could make the same input give another answer.

pub mod clock;
mod decider;
pub mod limits;
mod returned;
mod sandbox;
pub mod scenario;
pub mod threads;
mod violations;

pub use decider::{Proposed, ScriptDecider, check};
