//! The packet filter of a pod: what may come in before the service mesh runs, and what goes through it.
//!
//! Two tables of nf_tables' `inet` family, so that one set of rules serves IPv4 and IPv6:
//! - `contrast_deny` ([`deny_incoming`]): nothing comes in. Stands from the guest's start.
//! - `contrast_mesh` ([`redirect`]): incoming TCP goes to the mesh's transparent sockets. Put in place
//!   and exchanged for the other in one transaction: there is no moment between them.
//!
//! Both fail closed. A packet is let in because the kernel handed it to a socket of the mesh; when the
//! mesh is gone there is no socket, no mark, and the input chain drops it. Nothing here needs routing
//! rules: only packets to the pod's own addresses are taken.
//!
//! Speaks to the kernel over netlink, since the usual libraries are GPL or need a C library.

mod expression;
mod netlink;
mod rules;

pub use netlink::FilterError;
pub use rules::{Redirection, UnlistedPorts};

use rules::{DENY, MESH, deny_chains, mesh_chains};

/// Drops everything incoming but answers to what the pod itself began. To be lifted by [`redirect`] or
/// [`lift_deny`].
pub fn deny_incoming() -> Result<(), FilterError> {
    netlink::Transaction::new().replace_table(DENY, &deny_chains()).commit()
}

/// Removes what [`deny_incoming`] put in place, if it is there.
pub fn lift_deny() -> Result<(), FilterError> {
    netlink::Transaction::new().remove_table(DENY).commit()
}

/// Sends incoming TCP through the mesh, in place of earlier rules of the mesh and of [`deny_incoming`].
pub fn redirect(redirection: &Redirection) -> Result<(), FilterError> {
    netlink::Transaction::new().replace_table(MESH, &mesh_chains(redirection)).remove_table(DENY).commit()
}
