//! `CONNECTIONS4`, `CONNECTIONS6`: one entry per direction, each "rewrite this 5-tuple to that one", and the pure
//! rules of its life: phases, expiry, and whether an entry may still be used.

use crate::{
    family::{Family, Protocol, V4, V6},
    flow::Tuple,
    id::{BackendId, ServicePortId},
};

/// Which way an entry translates, and where. A bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ConnectionFlags(pub u8);

impl ConnectionFlags {
    /// Backend → client. Otherwise client → backend.
    pub const REPLY: Self = Self(1);
    /// Both directions are translated where they come in, and sent on by the program itself.
    pub const FORWARDED: Self = Self(2);
    /// The same, and the source address is rewritten to a node address: the stack would drop a foreign packet with a source
    /// address of its own.
    pub const SNAT: Self = Self(Self::FORWARDED.0 | 16);
    /// The client is a process of this node whose packets are translated as they leave.
    pub const HOST: Self = Self(4);
    /// Client → backend's node, in a tunnel: `to` has the addresses of the tunnel's ends, and the packet in it stays as it
    /// is. There is no entry of the other direction, for the answers do not pass here.
    pub const TUNNEL: Self = Self(8);
}

/// How far a connection has come, as seen by the packets of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Phase(pub u8);

impl Phase {
    /// Only the opening packet of this direction was seen, or nothing yet; a UDP flow of a moment, as a DNS query.
    pub const OPENING: Self = Self(0);
    /// Data flows: TCP and SCTP past the handshake, UDP that lasted into another second.
    pub const ESTABLISHED: Self = Self(1);
    /// This direction sent FIN, or SHUTDOWN.
    pub const FINISHED: Self = Self(2);
    /// This direction sent RST, or ABORT.
    pub const RESET: Self = Self(3);

    /// The name operators read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OPENING => "opening",
            Self::ESTABLISHED => "established",
            Self::FINISHED => "finished",
            Self::RESET => "reset",
            _ => "?",
        }
    }

    /// The phase after a TCP packet with `flags`, or an SCTP packet that says as much ([`crate::sctp::flags`]).
    #[inline(always)]
    #[must_use]
    pub const fn after(self, flags: TcpFlags) -> Self {
        if flags.has(TcpFlags::RST) {
            Self::RESET
        } else if flags.has(TcpFlags::FIN) {
            Self::FINISHED
        } else if flags.has(TcpFlags::SYN) {
            Self::OPENING
        } else if self.0 > Self::ESTABLISHED.0 {
            self
        } else {
            Self::ESTABLISHED
        }
    }

    /// Seconds without a packet after which the entry is dead. Established TCP as kube-proxy sets it (spec 7.22); the
    /// others as nf_conntrack's defaults for close, time wait, UDP and UDP streams, time wait halved. Established SCTP
    /// sends heartbeats every 30 s, and nf_conntrack lets it miss seven; INIT is repeated within a minute at the latest
    /// (RFC 9260, 16), and SHUTDOWN waits for nobody.
    #[inline(always)]
    pub const fn timeout_s(self, protocol: Protocol) -> u32 {
        TIMEOUTS_S[(protocol.0 & 3) as usize][(self.0 & 3) as usize]
    }
}

/// [`Phase::timeout_s`] of SCTP, UDP and TCP, by the last two bits of the protocol's number, and by phase. A table and
/// not branches: the verifier walks every branch of the loop in which the datapath asks.
static TIMEOUTS_S: [[u32; 4]; 4] =
    [[60, 210, 30, 10], [30, 120, 120, 120], [60, 86_400, 60, 10], [30, 120, 120, 120]];

const _: () = assert!(Protocol::SCTP.0 & 3 == 0 && Protocol::UDP.0 & 3 == 1 && Protocol::TCP.0 & 3 == 2);

/// TCP flag bits as in byte 13 of the header (RFC 9293, 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(1);
    /// Opens a connection.
    pub const SYN: Self = Self(2);
    /// Resets it.
    pub const RST: Self = Self(4);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(16);

    /// True for the first packet of a TCP connection: SYN without ACK or RST.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0) == Self::SYN.0
    }
}

/// CLOCK_MONOTONIC in units of 2^30 ns (1.07 s): fits 32 bits for 146 years and costs a shift, not a division.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Coarse(pub u32);

impl Coarse {
    /// From CLOCK_MONOTONIC nanoseconds.
    #[inline(always)]
    pub const fn from_ns(ns: u64) -> Self {
        Self((ns >> 30) as u32)
    }

    /// True if more than `seconds` have passed between `self` and `now`.
    #[inline(always)]
    pub const fn is_older_than(self, now: Self, seconds: u32) -> bool {
        (now.0.saturating_sub(self.0) as u64) << 30 > seconds as u64 * 1_000_000_000
    }

    /// Whole seconds between `self` and `now`.
    pub const fn age_s(self, now: Self) -> u64 {
        ((now.0.saturating_sub(self.0) as u64) << 30) / 1_000_000_000
    }
}

/// Value of `CONNECTIONS` under a [`crate::flow::FlowKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ConnectionValue<F: Family> {
    /// What the packet's addresses and ports become.
    pub to: Tuple<F>,
    /// The service port the client dialled.
    pub service_port: ServicePortId,
    /// The backend that serves it.
    pub backend: BackendId,
    /// `GENERATIONS[service_port]` when the backend was last known to serve it.
    pub generation: u32,
    /// When this direction last sent a packet.
    pub last_seen: Coarse,
    /// Which way, and where, it translates.
    pub flags: ConnectionFlags,
    /// How far this direction has come.
    pub phase: Phase,
    /// Zero.
    pub _pad: [u8; 2],
}

impl<F: Family> ConnectionValue<F> {
    /// Notes a packet of this entry's direction. Writes only what changes, so that a busy line stays shared.
    #[inline(always)]
    pub fn note(&mut self, protocol: Protocol, flags: TcpFlags, now: Coarse) {
        let phase = if protocol.has_handshake() {
            self.phase.after(flags)
        } else if self.last_seen != now {
            Phase::ESTABLISHED
        } else {
            self.phase
        };
        if self.phase != phase {
            self.phase = phase;
        }
        if self.last_seen != now {
            self.last_seen = now;
        }
    }

    /// True when its direction has been silent for longer than its phase allows.
    #[inline(always)]
    pub const fn is_expired(&self, protocol: Protocol, now: Coarse) -> bool {
        self.last_seen.is_older_than(now, self.phase.timeout_s(protocol))
    }
}

/// What the maps say about a connection's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Still serves this service port.
    Serves,
    /// No longer serves it.
    Gone,
}

/// What to do with a packet that has a client → backend entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Translate as the entry says.
    Keep,
    /// Choose a backend anew, as for a first packet.
    Reselect,
}

/// Whether a client → backend entry still holds for a packet.
///
/// - Dead entries (expired; TCP or SCTP finished or reset and opened again) are chosen anew.
/// - UDP, and TCP connections being opened, leave a backend that no longer serves this service port at once
///   (spec 7.4, 7.6); TCP past its handshake drains (spec 7.15). SCTP does as TCP.
/// - A SYN on a live connection does not move it: a forged one could break it.
#[inline(always)]
pub fn reuse<F: Family>(
    entry: &ConnectionValue<F>,
    protocol: Protocol,
    flags: TcpFlags,
    now: Coarse,
    membership: Membership,
) -> Reuse {
    let has_handshake = protocol.has_handshake();
    let opens = has_handshake && flags.opens();
    let over = entry.phase.0 >= Phase::FINISHED.0;
    let dead = if has_handshake {
        opens && (over || entry.is_expired(protocol, now))
    } else {
        entry.is_expired(protocol, now)
    };
    let leaves = membership == Membership::Gone && (!has_handshake || opens);
    if dead || leaves { Reuse::Reselect } else { Reuse::Keep }
}

const _: () = assert!(size_of::<ConnectionValue<V4>>() == 32);
const _: () = assert!(size_of::<ConnectionValue<V6>>() == 56);

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;
    const NONE: TcpFlags = TcpFlags(0);

    fn entry(phase: Phase, last_seen: u32) -> ConnectionValue<V4> {
        ConnectionValue { phase, last_seen: Coarse(last_seen), ..Default::default() }
    }

    #[test]
    fn phases_follow_the_flags_of_one_direction() {
        let rows = [
            (Phase::OPENING, SYN, Phase::OPENING),
            (Phase::OPENING, ACK, Phase::ESTABLISHED),
            (Phase::ESTABLISHED, ACK, Phase::ESTABLISHED),
            (Phase::ESTABLISHED, TcpFlags(17), Phase::FINISHED),
            (Phase::FINISHED, ACK, Phase::FINISHED),
            (Phase::ESTABLISHED, TcpFlags::RST, Phase::RESET),
            (Phase::FINISHED, SYN, Phase::OPENING),
        ];
        for (before, flags, after) in rows {
            assert_eq!(before.after(flags), after, "{before:?} {flags:?}");
        }
    }

    #[test]
    fn udp_is_established_when_it_lasts() {
        let mut entry = entry(Phase::OPENING, 7);
        entry.note(Protocol::UDP, NONE, Coarse(7));
        assert_eq!((entry.phase, entry.last_seen), (Phase::OPENING, Coarse(7)));
        assert!(entry.is_expired(Protocol::UDP, Coarse(7 + 30)));
        entry.note(Protocol::UDP, NONE, Coarse(8));
        assert_eq!((entry.phase, entry.last_seen), (Phase::ESTABLISHED, Coarse(8)));
        assert!(!entry.is_expired(Protocol::UDP, Coarse(8 + 30)));
    }

    #[test]
    fn entries_are_kept_or_left_as_the_rules_say() {
        use Membership::{Gone, Serves};
        use Reuse::{Keep, Reselect};
        let rows = [
            ("established TCP keeps", Protocol::TCP, Phase::ESTABLISHED, ACK, 1, Serves, Keep),
            ("TCP drains", Protocol::TCP, Phase::ESTABLISHED, ACK, 1, Gone, Keep),
            ("a retransmitted SYN keeps", Protocol::TCP, Phase::OPENING, SYN, 1, Serves, Keep),
            (
                "a retransmitted SYN leaves a gone backend",
                Protocol::TCP,
                Phase::OPENING,
                SYN,
                1,
                Gone,
                Reselect,
            ),
            ("a SYN does not move a live one", Protocol::TCP, Phase::ESTABLISHED, SYN, 1, Serves, Keep),
            ("a finished one is opened anew", Protocol::TCP, Phase::FINISHED, SYN, 1, Serves, Reselect),
            ("a reset one is opened anew", Protocol::TCP, Phase::RESET, SYN, 1, Serves, Reselect),
            ("the last ACK of a finished one", Protocol::TCP, Phase::FINISHED, ACK, 1, Gone, Keep),
            ("an expired opening is opened anew", Protocol::TCP, Phase::OPENING, SYN, 600, Serves, Reselect),
            ("established SCTP drains", Protocol::SCTP, Phase::ESTABLISHED, ACK, 1, Gone, Keep),
            ("an INIT leaves a gone backend", Protocol::SCTP, Phase::OPENING, SYN, 1, Gone, Reselect),
            ("an aborted one is opened anew", Protocol::SCTP, Phase::RESET, SYN, 1, Serves, Reselect),
            ("a quiet association goes on", Protocol::SCTP, Phase::ESTABLISHED, ACK, 600, Serves, Keep),
            ("UDP keeps", Protocol::UDP, Phase::ESTABLISHED, NONE, 1, Serves, Keep),
            ("UDP leaves a gone backend", Protocol::UDP, Phase::ESTABLISHED, NONE, 1, Gone, Reselect),
            ("UDP expires", Protocol::UDP, Phase::ESTABLISHED, NONE, 600, Serves, Reselect),
        ];
        for (name, protocol, phase, flags, age, membership, expected) in rows {
            let got = reuse(&entry(phase, 1000), protocol, flags, Coarse(1000 + age), membership);
            assert_eq!(got, expected, "{name}");
        }
    }

    #[test]
    fn coarse_time_is_about_a_second() {
        assert_eq!(Coarse::from_ns(1 << 30), Coarse(1));
        assert!(!Coarse(0).is_older_than(Coarse(111), 120));
        assert!(Coarse(0).is_older_than(Coarse(112), 120));
        assert!(!Coarse(5).is_older_than(Coarse(4), 0), "a clock read before the write");
    }
}
