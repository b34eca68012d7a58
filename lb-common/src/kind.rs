//! `KINDS`: which kinds of connections may exist. A packet that only a kind of which there is none could concern needs no
//! lookup: on a node whose clients are all served by socket that is every packet between pods.
//!
//! Element [`RECORDED`] is the datapath's: when it last recorded a connection of each kind. Element [`FORGOTTEN`] is the
//! agent's: what stood in the other when a collection had found no connection of the kind any more. Connections of a kind may
//! exist while the two differ.

use crate::conntrack::{Coarse, ConnectionFlags};

/// Index of the element that the datapath writes.
pub const RECORDED: u32 = 0;
/// Index of the element that the agent writes.
pub const FORGOTTEN: u32 = 1;

/// What connections have in common that are translated at the same hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// The client keeps its address: its packets are translated where they come in, the answers where they leave.
    Kept = 0,
    /// Both directions are translated where they come in, as they are where the client gets a node address.
    Forwarded = 1,
    /// The client is a process of this node, whose packets are translated as they leave.
    Host = 2,
    /// No frontend was dialled: the client talks to a backend directly, from another port than it believes. Stands in
    /// `CONNECTIONS` as [`Kind::Kept`] does, and is forgotten with it.
    Beside = 3,
}

impl Kind {
    /// Number of kinds.
    pub const COUNT: usize = 4;

    /// The kind of connections with these flags that came about by a frontend. `None`: in a tunnel there are no answers to
    /// look for, and what is looked up goes to a frontend's port.
    #[inline(always)]
    pub const fn of(flags: ConnectionFlags) -> Option<Self> {
        if flags.has(ConnectionFlags::FORWARDED) {
            Some(Self::Forwarded)
        } else if flags.has(ConnectionFlags::HOST) {
            Some(Self::Host)
        } else if flags.has(ConnectionFlags::TUNNEL) {
            None
        } else {
            Some(Self::Kept)
        }
    }

    /// Its bit in a set.
    #[inline(always)]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// An element of `KINDS`: a time for each kind, 0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Kinds {
    /// By [`Kind`].
    pub at: [Coarse; Kind::COUNT],
}

impl Kinds {
    /// The kinds, as [`Kind::bit`]s, of which connections may exist: `self` is what was recorded.
    #[inline(always)]
    pub const fn since(&self, forgotten: &Self) -> u32 {
        let mut kinds = 0;
        let mut index = 0;
        while index < Kind::COUNT {
            kinds |= ((self.at[index].0 != forgotten.at[index].0) as u32) << index;
            index += 1;
        }
        kinds
    }

    /// Forgets the kinds of which a collection that began at `begun`, when `recorded` stood there, has found none. One recorded
    /// within the two units of the clock before may have been written while it went on.
    pub fn forget(&mut self, recorded: &Self, found: u32, begun: Coarse) {
        for kind in [Kind::Kept, Kind::Forwarded, Kind::Host, Kind::Beside] {
            let stands_as = if kind == Kind::Beside { Kind::Kept } else { kind };
            let last = recorded.at[kind as usize];
            if found & stands_as.bit() == 0 && last.0 + 2 < begun.0 {
                self.at[kind as usize] = last;
            }
        }
    }
}

const _: () = assert!(size_of::<Kinds>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_of_the_connections_that_are_translated_alike() {
        let reply = ConnectionFlags::REPLY;
        for (flags, kind) in [
            (ConnectionFlags(0), Some(Kind::Kept)),
            (ConnectionFlags::SNAT, Some(Kind::Forwarded)),
            (ConnectionFlags::FORWARDED, Some(Kind::Forwarded)),
            (ConnectionFlags::HOST, Some(Kind::Host)),
            (ConnectionFlags::TUNNEL, None),
        ] {
            assert_eq!((Kind::of(flags), Kind::of(flags.with(reply))), (kind, kind), "{flags:?}");
        }
    }

    #[test]
    fn a_kind_is_forgotten_when_none_is_found_and_comes_back_when_one_is_recorded() {
        let (mut recorded, mut forgotten) = (Kinds::default(), Kinds::default());
        assert_eq!(recorded.since(&forgotten), 0);
        recorded.at = [Coarse(10); Kind::COUNT];
        assert_eq!(recorded.since(&forgotten), 0b1111);
        forgotten.forget(&recorded, Kind::Kept.bit(), Coarse(20));
        let left = Kind::Kept.bit() | Kind::Beside.bit();
        assert_eq!(recorded.since(&forgotten), left, "what stands beside a kept one goes with it");
        forgotten.forget(&recorded, 0, Coarse(20));
        assert_eq!(recorded.since(&forgotten), 0);
        recorded.at[Kind::Host as usize] = Coarse(19);
        assert_eq!(recorded.since(&forgotten), Kind::Host.bit());
        forgotten.forget(&recorded, 0, Coarse(20));
        assert_eq!(recorded.since(&forgotten), Kind::Host.bit(), "recorded as the collection began");
    }
}
