//! `BACKENDS4`, `BACKENDS6`, `MEMBERS`, `SLOTS`, `GENERATIONS`: who serves, and for which service port.

use crate::{
    family::{Be16, Family, Protocol, V4, V6},
    id::{BackendId, ServicePortId},
};

/// What a backend may be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BackendState(pub u8);

impl BackendState {
    /// Ready: takes new connections.
    pub const ACTIVE: Self = Self(1);
    /// Serving while it terminates: keeps its connections, and takes new ones only when no backend is ready.
    pub const TERMINATING: Self = Self(2);
    /// Serving but not ready: keeps its connections, takes no new ones.
    pub const QUARANTINED: Self = Self(3);

    /// The name operators read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ACTIVE => "active",
            Self::TERMINATING => "terminating",
            Self::QUARANTINED => "quarantined",
            _ => "?",
        }
    }
}

/// Facts about a backend. A bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BackendFlags(pub u32);

impl BackendFlags {
    /// Runs on this node: reached by DNAT alone, the client keeps its address.
    pub const LOCAL: Self = Self(1);
}

/// Value of `BACKENDS` under a [`BackendId`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct BackendValue<F: Family> {
    /// Address that serves.
    pub addr: F::Addr,
    /// Port that serves.
    pub port: Be16,
    /// Protocol that serves.
    pub protocol: Protocol,
    /// The best state this backend has in any service port.
    pub state: BackendState,
    /// Facts.
    pub flags: BackendFlags,
    /// Address of the node it runs on, where tunnels for it end; unspecified: not known, so no tunnel leads there.
    pub node: F::Addr,
}

/// Key of `MEMBERS`: a backend as seen by one service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct MemberKey {
    /// The service port.
    pub service_port: ServicePortId,
    /// The backend.
    pub backend: BackendId,
}

/// The sets of backends a member stands in (spec 2.6 to 2.11). A bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct MemberSets(pub u8);

impl MemberSets {
    /// Takes new connections under policy Cluster.
    pub const CLUSTER: Self = Self(1);
    /// Takes new connections under policy Local.
    pub const LOCAL: Self = Self(2);
}

/// Value of `MEMBERS`: present while the backend still serves *this* service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct MemberValue {
    /// State in this service port.
    pub state: BackendState,
    /// The sets it stands in: a client's affinity to it holds only where it could be chosen (spec 3.8).
    pub sets: MemberSets,
    /// Zero.
    pub _pad: [u8; 2],
}

impl MemberValue {
    /// A member in `state` that stands in `sets`.
    pub const fn new(state: BackendState, sets: MemberSets) -> Self {
        Self { state, sets, _pad: [0; 2] }
    }
}

const _: () = assert!(size_of::<BackendValue<V4>>() == 16);
const _: () = assert!(size_of::<BackendValue<V6>>() == 40);
const _: () = assert!(size_of::<MemberKey>() == 8);
const _: () = assert!(size_of::<MemberValue>() == 4);
