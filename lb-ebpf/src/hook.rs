//! Where a packet is seen, and where an answer to it goes.

/// The hook a packet is seen at.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Comes in from the network, or out of a tunnel.
    UplinkIngress,
    /// Leaves to the network, or into a tunnel.
    UplinkEgress,
    /// Comes in from a pod.
    WorkloadIngress,
    /// Leaves to a pod.
    WorkloadEgress,
}

impl Hook {
    /// The hook of `code`, its discriminant.
    #[inline(always)]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::UplinkIngress),
            1 => Some(Self::UplinkEgress),
            2 => Some(Self::WorkloadIngress),
            3 => Some(Self::WorkloadEgress),
            _ => None,
        }
    }

    /// True if packets come in there.
    #[inline(always)]
    pub const fn is_ingress(self) -> bool {
        matches!(self, Self::UplinkIngress | Self::WorkloadIngress)
    }

    /// Where an answer to a packet seen here goes.
    #[inline(always)]
    pub const fn back(self) -> Back {
        if self.is_ingress() { Back::Device } else { Back::Socket }
    }
}

/// Where an answer to a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// Out by the device, for the packet came in there.
    Device,
    /// In by the device, for a socket of this node sent the packet.
    Socket,
}
