//! The ways from a client to a backend that are compared.

use lb_tests::bench::row::Target;

use crate::load::Measure;

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    /// The client dials the backend, the node forwards: what the others are compared with.
    Direct,
    /// The same with programs that do nothing at the hooks of `SocketLb`: what being asked costs.
    Empty,
    /// The same with a program at the client's and the backend's device that forwards by itself.
    Forward,
    /// The same as [`Self::Empty`], with a `connect()` hook that looks up what is dialled and records it.
    SocketRecord,
    /// The same, recorded in the socket's own storage.
    SocketStore,
    /// The same as [`Self::Forward`], and the program records both directions of each flow.
    Record,
    /// A pod dials a ClusterIP, its socket is led to the backend.
    SocketLb,
    /// A pod dials a ClusterIP, packets are translated at its device.
    Tc,
    /// The same, and the program sends them on past the stack.
    TcForward,
    /// The same to a backend on another node.
    TcForwardAway,
    /// A client outside dials a NodePort, packets are translated at the uplink and forwarded with another source.
    NodePortTc,
    /// The same in XDP, in the driver of veth, where bulk data loses its segmentation offload.
    NodePortXdp,
    /// A pod dials a ClusterIP, kube-proxy's iptables rules translate.
    Iptables,
    /// A pod dials a ClusterIP, kube-proxy's nftables rules translate.
    Nftables,
    /// A client outside dials a NodePort, kube-proxy's nftables rules translate.
    NodePortNftables,
}

impl Path {
    /// All that are compared, in the order in which they are shown.
    pub(crate) const COMPARED: [Self; 14] = [
        Self::Empty,
        Self::SocketRecord,
        Self::SocketStore,
        Self::Forward,
        Self::Record,
        Self::SocketLb,
        Self::Tc,
        Self::TcForward,
        Self::TcForwardAway,
        Self::Nftables,
        Self::Iptables,
        Self::NodePortTc,
        Self::NodePortXdp,
        Self::NodePortNftables,
    ];

    /// In a row's case.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Empty => "floor: empty programs",
            Self::Forward => "floor: forwarded by a program",
            Self::SocketRecord => "floor: a connection recorded by its socket",
            Self::SocketStore => "floor: a connection recorded in its socket's storage",
            Self::Record => "floor: forwarded by a program that records both directions",
            Self::SocketLb => "ClusterIP by socket",
            Self::Tc => "ClusterIP by tc",
            Self::TcForward => "ClusterIP by tc, sent on past the stack",
            Self::TcForwardAway => "ClusterIP by tc, sent on past the stack to another node",
            Self::NodePortTc => "NodePort by tc",
            Self::NodePortXdp => "NodePort by XDP",
            Self::Iptables => "ClusterIP by iptables",
            Self::Nftables => "ClusterIP by nftables",
            Self::NodePortNftables => "NodePort by nftables",
        }
    }

    /// Arguments of the agent, if the path has one. They say whether the backend is a pod of the node.
    pub(crate) const fn agent_args(self) -> Option<&'static [&'static str]> {
        match self {
            Self::SocketLb => Some(&["--workload", "client", "--uplink", "backend"]),
            Self::Tc => Some(&["--workload", "client", "--uplink", "backend", "--socket-lb", "false"]),
            Self::TcForward => Some(&[
                "--workload",
                "client",
                "--workload",
                "backend",
                "--socket-lb",
                "false",
                "--forward-pods",
            ]),
            Self::TcForwardAway => Some(&[
                "--workload",
                "client",
                "--uplink",
                "backend",
                "--socket-lb",
                "false",
                "--forward-pods",
            ]),
            Self::NodePortTc => Some(&["--uplink", "client", "--uplink", "backend", "--xdp", "off"]),
            Self::NodePortXdp => Some(&["--uplink", "client", "--uplink", "backend", "--xdp", "native"]),
            _ => None,
        }
    }

    /// True if the client dials a NodePort.
    pub(crate) const fn is_node_port(self) -> bool {
        matches!(self, Self::NodePortTc | Self::NodePortXdp | Self::NodePortNftables)
    }

    /// True if the client dials the backend, so that Services play no part.
    pub(crate) const fn is_direct(self) -> bool {
        matches!(
            self,
            Self::Direct
                | Self::Empty
                | Self::SocketRecord
                | Self::SocketStore
                | Self::Forward
                | Self::Record
        )
    }

    /// True if nftables rules translate.
    pub(crate) const fn is_nftables(self) -> bool {
        matches!(self, Self::Nftables | Self::NodePortNftables)
    }

    /// Of the ratio to direct.
    pub(crate) const fn target(self, measure: Measure) -> Target {
        match (self, measure) {
            (Self::SocketLb, _) => Target::AtLeast(0.98),
            (Self::Tc | Self::TcForward | Self::TcForwardAway, Measure::TcpConnect) => Target::AtLeast(1.0),
            (Self::Tc | Self::TcForward | Self::TcForwardAway, Measure::UdpFlow) => Target::AtLeast(0.95),
            _ => Target::NotSet,
        }
    }
}
