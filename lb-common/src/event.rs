//! `EVENTS`: a ring buffer of sampled verdicts, off by default ([`crate::settings::Settings`]).

use crate::{
    family::{Be16, Protocol},
    id::{BackendId, ServicePortId},
};

/// One record of `EVENTS`. Addresses are 16 bytes: IPv4 in the first four, zero padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// Service port, or none.
    pub service_port: ServicePortId,
    /// Backend chosen, or none.
    pub backend: BackendId,
    /// Device the packet was seen on; 0 for socket calls.
    pub ifindex: u32,
    /// A [`crate::verdict::Verdict`] code.
    pub verdict: u32,
    /// Source as seen.
    pub src: [u8; 16],
    /// Destination as seen.
    pub dst: [u8; 16],
    /// Source port as seen.
    pub src_port: Be16,
    /// Destination port as seen.
    pub dst_port: Be16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// 4 or 6.
    pub family: u8,
    /// Zero.
    pub _pad: [u8; 2],
}

const _: () = assert!(size_of::<Event>() == 64);
