//! Keeps the instances of one plugin running, and calls them, on top of `flexcore_plugin`. It knows
//! nothing of FlexCore's log.
//!
//! Each instance has a task that does what `lifecycle` says: start it, look whether it is well, wait
//! and start it anew when it has ended, and leave it alone for minutes when it never lasts. The
//! instances of one [`Spec`] are a group. [`Pool::upgrade`] starts another group beside the one in
//! service, and puts it in its place when all of its instances are ready.

mod calls;
mod configured;
mod decide;
mod error;
mod figures;
mod group;
mod instance;
mod lifecycle;
mod limits;
mod lines;
mod locked;
mod measure;
mod memory;
mod notice;
mod pool;
mod run;
mod spec;
mod status;
mod tenants;

pub use configured::{Configurations, Reading};
pub use error::{ChangeError, PoolError};
pub use limits::{LEFT_MIN, LINGER_MIN};
pub use measure::wanted;
pub use pool::Pool;
pub use spec::{PoolCall, Spec};
pub use status::{PoolState, PoolStatus};
