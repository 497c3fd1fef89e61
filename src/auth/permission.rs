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
    /// Configure installed plugins for the tenant.
    ConfigurePlugins,
    /// See the cluster: members, lag, servers.
    SeeCluster,
    /// Install, restart and remove plugins, and read what they print: they run on the platform's machines.
    ManagePlugins,
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
            | Permission::CallPlugins
            | Permission::ConfigurePlugins => true,
            Permission::SeeCluster | Permission::ManagePlugins => {
                self.tenant.as_str() == Tenant::PLATFORM
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flexcore_domain::ActorName;

    use super::*;

    #[test]
    fn what_concerns_all_tenants_is_for_the_platforms_own_alone() {
        let of = |tenant: &str| Identity {
            tenant: Tenant::parse(tenant).unwrap(),
            subject: ActorName::parse("alice").unwrap(),
            expires_s: 0,
        };
        let (acme, platform) = (of("acme"), of(Tenant::PLATFORM));
        for own in [Permission::SendCommands, Permission::CallPlugins, Permission::ConfigurePlugins]
        {
            assert!(acme.may(own) && platform.may(own), "{own:?}");
        }
        for all in [Permission::SeeCluster, Permission::ManagePlugins] {
            assert!(!acme.may(all) && platform.may(all), "{all:?}");
        }
    }
}
