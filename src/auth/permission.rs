//! What a sender may do.

use flexcore_domain::Tenant;

use crate::Identity;

/// What a request needs its sender to be allowed. One list for every door: a route names one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Send commands, and ask what came of them.
    SendCommands,
    /// Read the state and the events of an aggregate.
    ReadAggregates,
    /// Read the rows of read models.
    RunQueries,
    /// Follow the events of the tenant.
    ReadEvents,
    /// Call the functions of installed plugins, and see which there are.
    CallPlugins,
    /// See the cluster: members, lag, servers.
    SeeCluster,
}

impl Identity {
    /// Whether the sender has this permission. Every token has those that concern its own tenant's data;
    /// the platform as a whole is for tokens of the platform's tenant, [`Tenant::PLATFORM`].
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        match permission {
            Permission::SendCommands
            | Permission::ReadAggregates
            | Permission::RunQueries
            | Permission::ReadEvents
            | Permission::CallPlugins => true,
            Permission::SeeCluster => self.tenant.as_str() == Tenant::PLATFORM,
        }
    }
}
