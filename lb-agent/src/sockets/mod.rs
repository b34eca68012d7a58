//! Sockets whose backend has left: finds those that a socket hook translated to a backend that no longer serves what
//! they dialled, and destroys them, so that their process notices and dials anew.
//!
//! A packet chooses again when its backend has left; a connected socket cannot: its destination was replaced once, at
//! `connect()`. TCP notices by itself sooner or later, UDP never does. [`run::run`] is the loop, started by
//! `cli::run`; [`judge`] decides. What must stay true (docs/decisions/0015): only a socket that is connected to the
//! backend it was given is destroyed. Not one that we did not translate, nor one that has since connected elsewhere,
//! nor an unconnected one: each of its datagrams chooses anew, and destroying it would cost it its port.

pub mod diag;
pub mod namespaces;
pub mod rev_nat;
pub mod run;
pub mod sweep;

use lb_common::family::Protocol;

use crate::reconcile::standing::Standing;

/// How far the search goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Reach {
    /// The node and, where its rights allow, every pod.
    #[default]
    Auto,
    /// The node's own processes only.
    Node,
    /// No socket is destroyed.
    Off,
}

/// What became of the socket of an entry of `SOCK_REV_NAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// It is connected to the backend of the entry.
    Connected,
    /// It exists, without a peer or with another one.
    Elsewhere,
    /// There is no such socket in any network namespace.
    Missing,
    /// None was found, and not every namespace could be searched.
    OutOfReach,
}

/// What to do about an entry of `SOCK_REV_NAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Leave socket and entry alone.
    Keep,
    /// Destroy the socket; the entry goes too.
    Destroy,
    /// The entry is of no more use to anybody.
    Drop,
}

/// What to do about an entry.
///
/// UDP leaves a backend that no longer serves (spec 7.4, 7.10); TCP stays until the backend's pod has ended, or what
/// is open could not drain (spec 7.15, 12A 63).
pub fn judge(protocol: Protocol, standing: Standing, sighting: Sighting) -> Judgement {
    match sighting {
        Sighting::Connected if leaves(protocol, standing) => Judgement::Destroy,
        Sighting::Elsewhere if leaves(protocol, standing) => Judgement::Drop,
        Sighting::Missing => Judgement::Drop,
        Sighting::Connected | Sighting::Elsewhere | Sighting::OutOfReach => Judgement::Keep,
    }
}

/// True if a socket of this protocol may not stay with a backend that stands so.
pub fn leaves(protocol: Protocol, standing: Standing) -> bool {
    match standing {
        Standing::Serves => false,
        Standing::Left => protocol == Protocol::UDP,
        Standing::Ended => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of traps T1 to T4: address gate and managed guard both.
    #[test]
    fn only_a_socket_that_is_connected_to_a_backend_that_left_is_destroyed() {
        use Judgement as J;
        use Sighting as S;
        use Standing::{Ended, Left, Serves};
        let (tcp, udp) = (Protocol::TCP, Protocol::UDP);
        for (name, protocol, standing, sighting, expected) in [
            ("UDP, its backend left", udp, Left, S::Connected, J::Destroy),
            ("UDP, its pod ended", udp, Ended, S::Connected, J::Destroy),
            ("UDP, served", udp, Serves, S::Connected, J::Keep),
            ("TCP drains", tcp, Left, S::Connected, J::Keep),
            ("TCP, its pod ended", tcp, Ended, S::Connected, J::Destroy),
            ("TCP, served", tcp, Serves, S::Connected, J::Keep),
            ("unconnected, or connected elsewhere", udp, Left, S::Elsewhere, J::Drop),
            ("unconnected, served", udp, Serves, S::Elsewhere, J::Keep),
            ("TCP connected elsewhere", tcp, Ended, S::Elsewhere, J::Drop),
            ("closed, though the backend serves", udp, Serves, S::Missing, J::Drop),
            ("closed", tcp, Left, S::Missing, J::Drop),
            ("in a pod that cannot be searched", udp, Left, S::OutOfReach, J::Keep),
        ] {
            assert_eq!(judge(protocol, standing, sighting), expected, "{name}");
        }
    }
}
