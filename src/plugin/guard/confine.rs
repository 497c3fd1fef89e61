//! The measures of a sandbox, taken by the process that is about to become the plugin. It has one
//! thread: users, privileges and namespaces are a thread's.

use std::{ffi::CStr, io, os::fd::BorrowedFd, path::Path};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Gid, Uid},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, capabilities, clear_ambient_capability_set,
        set_capabilities, set_thread_gid, set_thread_groups, set_thread_uid,
    },
};

use super::{
    Held, Measure, MeasureState, Orders, User,
    apart::{Apart, unshare},
    files, group,
};

/// Takes all measures that are asked for, in an order in which none takes away what a later one
/// needs. Fails only where going on would be worse than not to start.
pub(super) fn confine(
    orders: &Orders,
    apart: &Apart,
    program_file: BorrowedFd<'_>,
) -> io::Result<Held> {
    let sandbox = &orders.sandbox;
    let mut held = Held::default();
    if let Some(Err(error)) = orders.group.as_deref().map(group::join) {
        // The host has said already which limits there are.
        for measure in [Measure::Memory, Measure::Tasks] {
            held.set(measure, MeasureState::of("put the plugin into its cgroup", Err(&error)));
        }
    }
    if sandbox.no_network {
        // A new one has nothing but a loopback interface, which is down.
        let tried = unshare(UnshareFlags::NEWNET);
        held.set(Measure::Network, MeasureState::of("make a network of its own", tried));
    }
    if sandbox.own_processes {
        held.set(Measure::Processes, processes(apart));
    }
    if let Some(files) = &sandbox.files {
        let program = Path::new(&orders.program);
        held.set(Measure::Files, files::close_others(files, program, program_file));
    }
    if let Some(user) = sandbox.user {
        // Its folder is this user's already.
        become_user(user)?;
        held.set(Measure::User, MeasureState::Holds);
    }
    // Asked for or not: with root's powers it could read the memory and environment of a host that
    // is root.
    drop_privileges()?;
    if sandbox.asks(Measure::Privileges) {
        held.set(Measure::Privileges, MeasureState::Holds);
    }
    Ok(held)
}

fn processes(apart: &Apart) -> MeasureState {
    match apart {
        Apart::Own => {
            MeasureState::of("show the plugin its own processes only", show_own_processes())
        }
        Apart::Refused(reason) => MeasureState::NotAvailable(reason.clone()),
        Apart::Shared => MeasureState::NotAvailable("its guard did not try".to_owned()),
    }
}

/// Puts a `/proc` with only the processes of this namespace in the place of the other one.
fn show_own_processes() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWIPC)?;
    // Nobody else is to see what is mounted from here on.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("proc", "/proc", "proc", flags, None::<&CStr>)?)
}

fn become_user(user: User) -> io::Result<()> {
    set_thread_groups(&[])?;
    set_thread_gid(Gid::from_raw(user.gid))?;
    // The last one: it takes the right to the others.
    Ok(set_thread_uid(Uid::from_raw(user.uid))?)
}

/// Without new privileges at an `exec`, which are forbidden before, there are none ever after.
fn drop_privileges() -> io::Result<()> {
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    if capabilities(None)?.permitted.is_empty() {
        return Ok(());
    }
    Err(io::Error::other("privileges are left"))
}

/// Why this process cannot give a user of its own to a plugin, if it cannot.
pub(crate) fn no_user_for(user: User) -> Option<String> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    // The host enters the plugin's folder, and its guard ends the plugin.
    let needed = needed | CapabilitySet::DAC_OVERRIDE | CapabilitySet::KILL;
    match capabilities(None) {
        _ if user.uid == 0 || user.gid == 0 => Some("user and group 0 are root's".to_owned()),
        Ok(own) if own.effective.contains(needed) => None,
        Ok(_) => Some("the host has not the powers of root".to_owned()),
        Err(error) => Some(format!("cannot look at the host's own powers: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_no_user_of_its_own() {
        for user in [User { uid: 0, gid: 1 }, User { uid: 1, gid: 0 }] {
            assert!(no_user_for(user).unwrap().contains("root"));
        }
    }

    #[test]
    fn processes_are_its_own_only_where_the_guard_made_them_so() {
        let refused = processes(&Apart::Refused("no".to_owned()));
        assert_eq!(refused, MeasureState::NotAvailable("no".to_owned()));
        assert!(matches!(processes(&Apart::Shared), MeasureState::NotAvailable(_)));
    }
}
