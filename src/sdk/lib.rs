//! Plugins of FlexCore in Rust. An author writes functions and hands them to [`run`]:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use flexcore_sdk::{Call, Failure, Function, Plugin};
//!
//! #[derive(serde::Deserialize)]
//! struct Greeting {
//!     name: String,
//! }
//!
//! #[derive(serde::Serialize)]
//! struct Greeted {
//!     text: String,
//! }
//!
//! async fn greet(call: Call<Greeting>) -> Result<Greeted, Failure> {
//!     if call.input.name.is_empty() {
//!         return Err(Failure::new("no_name", "Nobody can be greeted without a name."));
//!     }
//!     tracing::info!(name = call.input.name, "greeting");
//!     Ok(Greeted { text: format!("Hello, {}!", call.input.name) })
//! }
//!
//! fn main() -> ExitCode {
//!     let greet = Function::new("greet", greet).summary("Greets somebody.").idempotent();
//!     flexcore_sdk::run(Plugin::new("greeter", env!("CARGO_PKG_VERSION")).function(greet))
//! }
//! ```
//!
//! What is logged with [`tracing`] is in the host's log, with its level and its fields. Standard
//! output is the host's: do not print there. A function whose caller has given up is dropped at its
//! next `.await`; work on threads looks at [`Call::stop`].

mod call;
mod configured;
mod decider;
mod function;
mod logs;
mod panics;
mod plugin;
mod run;
mod served;
mod streamed;
pub mod template;
#[cfg(feature = "testing")]
pub mod testing;

pub use call::Call;
pub use decider::{Event, Question, Refused};
pub use flexcore_plugin::contract::Failure;
pub use function::Function;
pub use plugin::Plugin;
pub use run::run;
