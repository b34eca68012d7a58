//! `COUNTERS` (per verdict), `SERVICE_COUNTERS` (per service port id), `BACKEND_COUNTERS` (per backend id): per-CPU
//! arrays. A reader adds up the CPUs.

/// Value of `COUNTERS` under a [`crate::verdict::Verdict`] index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VerdictCounter {
    /// Packets, or socket calls.
    pub packets: u64,
    /// Bytes from the link layer up; 0 for socket calls.
    pub bytes: u64,
}

/// Value of `SERVICE_COUNTERS` and `BACKEND_COUNTERS`. Packets that a socket hook translated are not seen again, so
/// they count as connections only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TrafficCounter {
    /// Connections (TCP, SCTP, connected UDP) and flows (UDP) given a backend.
    pub connections: u64,
    /// Packets translated, both directions.
    pub packets: u64,
    /// Bytes translated, both directions, from the link layer up.
    pub bytes: u64,
    /// New connections refused or dropped.
    pub refused: u64,
}

const _: () = assert!(size_of::<VerdictCounter>() == 16);
const _: () = assert!(size_of::<TrafficCounter>() == 32);
