//! `FRONTENDS4`, `FRONTENDS6`: address, port and protocol a client dials → what serves it.

use crate::{
    backend::MemberSets,
    family::{Be16, Family, Protocol, V4, V6},
    id::ServicePortId,
};

/// Key of `FRONTENDS`: what the client dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FrontendKey<F: Family> {
    /// The VIP.
    pub addr: F::Addr,
    /// Destination port.
    pub port: Be16,
    /// Destination protocol.
    pub protocol: Protocol,
    /// Zero.
    pub _pad: u8,
}

impl<F: Family> FrontendKey<F> {
    /// The frontend `addr:port` of `protocol`.
    #[inline(always)]
    pub const fn new(addr: F::Addr, port: Be16, protocol: Protocol) -> Self {
        Self { addr, port, protocol, _pad: 0 }
    }
}

/// A contiguous stretch of `SLOTS`: indices `base` to `base + count - 1`. `count` 0: no backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Run {
    /// First slot.
    pub base: u32,
    /// Number of slots.
    pub count: u32,
}

/// Where a frontend comes from in the Service object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FrontendKind(pub u8);

impl FrontendKind {
    /// `spec.clusterIPs`.
    pub const CLUSTER_IP: Self = Self(1);
    /// `spec.ports[].nodePort` on a node address.
    pub const NODE_PORT: Self = Self(2);
    /// `spec.externalIPs`.
    pub const EXTERNAL_IP: Self = Self(3);
    /// `status.loadBalancer.ingress[].ip`.
    pub const LOAD_BALANCER: Self = Self(4);

    /// The name operators read in `lb-agent services` and dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CLUSTER_IP => "ClusterIP",
            Self::NODE_PORT => "NodePort",
            Self::EXTERNAL_IP => "ExternalIP",
            Self::LOAD_BALANCER => "LoadBalancer",
            _ => "?",
        }
    }
}

/// What else applies to a frontend. A bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FrontendFlags(pub u16);

impl FrontendFlags {
    /// `SOURCE_RANGES` must allow the client.
    pub const SOURCE_RANGES: Self = Self(1);
    /// `sessionAffinity: ClientIP`, for `affinity_timeout_s`.
    pub const AFFINITY: Self = Self(2);
    /// An empty internal run is dropped in silence, not refused (`internalTrafficPolicy: Local`, spec 5).
    pub const INTERNAL_DROP: Self = Self(4);
    /// An empty external run is dropped in silence, not refused (`externalTrafficPolicy: Local`, spec 5).
    pub const EXTERNAL_DROP: Self = Self(8);
    /// Reached from processes of the node itself only, through the socket hooks (NodePort on 127.0.0.1 and ::1).
    pub const HOST_ONLY: Self = Self(16);
    /// The runs are Maglev tables: choose by flow hash, not at random.
    pub const MAGLEV: Self = Self(32);

    /// The internal run is the local set (`internalTrafficPolicy: Local`).
    pub const INTERNAL_LOCAL: Self = Self(64);
    /// The external run is the local set (`externalTrafficPolicy: Local`).
    pub const EXTERNAL_LOCAL: Self = Self(128);
    /// `SOURCE_RANGES` allow every address of this node: the node's own processes need not be asked.
    pub const NODE_ALLOWED: Self = Self(256);
    /// Another frontend of the service port is left to the packet programs by pods' socket hooks, and affinity knows
    /// clients by their addresses there: so is this one, or a client had two backends.
    pub const BY_PACKET: Self = Self(512);
    /// Direct server return: what a client outside sends to a backend elsewhere goes to its node in a tunnel, unchanged, and
    /// that node answers the client itself. What comes in a tunnel chooses from the own run.
    pub const DSR: Self = Self(1024);
    /// With [`Self::DSR`] and [`Self::MAGLEV`]: XDP needs no connection to find a flow's node, the table does. Without affinity
    /// and source ranges, and not on an address of the node, whose own connections have answers.
    pub const STATELESS: Self = Self(2048);
}

/// Where a client stands: `internalTrafficPolicy` or `externalTrafficPolicy` speaks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// From a pod or a process of this node.
    Internal,
    /// From outside.
    External,
}

/// Value of `FRONTENDS`. One write of it switches a frontend from one backend set to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FrontendValue {
    /// The service port this frontend belongs to.
    pub service_port: ServicePortId,
    /// What else applies.
    pub flags: FrontendFlags,
    /// Where it comes from.
    pub kind: FrontendKind,
    /// Zero.
    pub _pad: u8,
    /// Seconds since the client's last new connection that affinity lasts; 0 without affinity (spec 3.6).
    pub affinity_timeout_s: u32,
    /// Backends of clients in the cluster.
    pub internal: Run,
    /// Backends of clients outside.
    pub external: Run,
    /// With [`FrontendFlags::DSR`], the backends of this node: what another node sends here in a tunnel is for one of them.
    pub own: Run,
}

/// What an empty run means for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Empty {
    /// Nothing serves: TCP RST, ICMP port unreachable or ECONNREFUSED.
    Refuse,
    /// Policy Local without a local backend: silence, which is what load balancers test.
    Drop,
}

impl FrontendValue {
    /// Every run it refers to.
    pub const fn runs(&self) -> [Run; 3] {
        [self.internal, self.external, self.own]
    }

    /// The run that serves `scope`.
    #[inline(always)]
    pub const fn run(&self, scope: Scope) -> Run {
        match scope {
            Scope::Internal => self.internal,
            Scope::External => self.external,
        }
    }

    /// The set of members a client of `scope` chooses from.
    #[inline(always)]
    pub const fn member_set(&self, scope: Scope) -> MemberSets {
        let flag = match scope {
            Scope::Internal => FrontendFlags::INTERNAL_LOCAL,
            Scope::External => FrontendFlags::EXTERNAL_LOCAL,
        };
        if self.flags.has(flag) { MemberSets::LOCAL } else { MemberSets::CLUSTER }
    }

    /// What a client of `scope` gets when its run is empty.
    #[inline(always)]
    pub const fn when_empty(&self, scope: Scope) -> Empty {
        let flag = match scope {
            Scope::Internal => FrontendFlags::INTERNAL_DROP,
            Scope::External => FrontendFlags::EXTERNAL_DROP,
        };
        if self.flags.has(flag) { Empty::Drop } else { Empty::Refuse }
    }
}

const _: () = assert!(size_of::<FrontendKey<V4>>() == 8);
const _: () = assert!(size_of::<FrontendKey<V6>>() == 20);
const _: () = assert!(size_of::<FrontendValue>() == 36);
