//! Ids that join the maps. Zero means none, so that a zeroed value never names anything.

/// Id of a service port: one port of one Service (namespace, name, port name, protocol). Shared by all its
/// frontends and by both IP families. Index of `GENERATIONS` and `SERVICE_COUNTERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ServicePortId(pub u32);

/// Id of a backend: an address, port and protocol that serves. Unique over both IP families. Key of `BACKENDS`,
/// index of `BACKEND_COUNTERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BackendId(pub u32);

impl ServicePortId {
    /// No service port.
    pub const NONE: Self = Self(0);
}

impl BackendId {
    /// No backend.
    pub const NONE: Self = Self(0);
}
