//! What a flood of new flows may not do: drive established connections out of `CONNECTIONS`.
//!
//! Each CPU counts the flows it opens (`NEW_FLOWS`). Beyond a rate a new flow gets its backend by its hash and is recorded
//! in `FLOOD4` or `FLOOD6`, where only its like can be evicted for it; once it has proved that somebody answers it
//! ([`proves`]) it moves to `CONNECTIONS`. Decision 0009 says why so.

use crate::{
    conntrack::{Coarse, ConnectionFlags, ConnectionValue, Phase, TcpFlags},
    family::{Family, Protocol},
    flow::Tuple,
};

/// Value of `NEW_FLOWS[0]`, one per CPU: the rate of new flows, and what was done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NewFlows {
    /// The window, a unit of [`Coarse`], that `flows` counts.
    pub window: Coarse,
    /// Flows opened in it.
    pub flows: u32,
    /// Flows opened in the window before.
    pub flows_before: u32,
    /// Zero.
    pub _pad: u32,
    /// Flows recorded in `FLOOD`, ever.
    pub recorded: u64,
    /// Of these, flows that moved to `CONNECTIONS`.
    pub promoted: u64,
}

impl NewFlows {
    /// Counts a flow opened at `now`; true if it is one of a flood: more than `threshold` (0: never) came in this window
    /// or the one before.
    #[inline(always)]
    pub const fn count(&mut self, now: Coarse, threshold: u32) -> bool {
        if self.window.0 != now.0 {
            self.flows_before = if self.window.0.wrapping_add(1) == now.0 { self.flows } else { 0 };
            self.window = now;
            self.flows = 0;
        }
        self.flows = self.flows.saturating_add(1);
        threshold != 0 && (self.flows > threshold || self.flows_before > threshold)
    }
}

/// Value of `FLOOD_STATE[0]`, shared by all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FloodState {
    /// When a flow was last recorded in `FLOOD`; 0: never.
    pub last: Coarse,
}

impl FloodState {
    /// Units of [`Coarse`] for which flows are looked for in `FLOOD` after the last was recorded: longer than a
    /// connection may take to open ([`Phase::timeout_s`]).
    pub const RECENT: u32 = 64;

    /// True if `FLOOD` may hold flows that live.
    #[inline(always)]
    pub const fn is_recent(self, now: Coarse) -> bool {
        self.last.0 != 0 && now.0.saturating_sub(self.last.0) <= Self::RECENT
    }

    /// True if flows are being recorded there, as far as a clock of seconds can tell.
    pub const fn is_active(self, now: Coarse) -> bool {
        self.last.0 != 0 && now.0.saturating_sub(self.last.0) <= 1
    }
}

/// Whether a packet proves that its flow, which has `entry` in `FLOOD`, is a conversation and no forgery.
///
/// TCP: the backend sends more than SYN or RST, which it does only to a client that answered its SYN. UDP: the client
/// sends again after an answer (`answered`); a single question and its answer are over anyway. What goes on in a tunnel is
/// answered past this node: the client's word must do.
#[inline(always)]
pub fn proves<F: Family>(
    entry: &ConnectionValue<F>,
    protocol: Protocol,
    flags: TcpFlags,
    answered: bool,
) -> bool {
    let is_reply = entry.flags.has(ConnectionFlags::REPLY);
    if protocol.0 == Protocol::TCP.0 {
        (is_reply || entry.flags.has(ConnectionFlags::TUNNEL))
            && !flags.has(TcpFlags::SYN)
            && !flags.has(TcpFlags::RST)
    } else {
        !is_reply && answered
    }
}

/// Makes `other` the entry of the other direction of a flow whose packets are `tuple` and have `entry`.
#[inline(always)]
pub fn mirror<F: Family>(other: &mut ConnectionValue<F>, entry: &ConnectionValue<F>, tuple: &Tuple<F>) {
    *other = *entry;
    other.to.reverse_of(tuple);
    other.flags.0 ^= ConnectionFlags::REPLY.0;
    other.phase = Phase::ESTABLISHED;
}

const _: () = assert!(size_of::<NewFlows>() == 32);
const _: () = assert!(size_of::<FloodState>() == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        family::{Addr4, Be16, V4},
        flow::FlowKey,
    };

    #[test]
    fn a_flood_is_more_flows_than_the_threshold_in_this_second_or_the_last() {
        let mut flows = NewFlows::default();
        let mut counted = |window, times: u32, threshold| {
            (0..times).filter(|_| flows.count(Coarse(window), threshold)).count()
        };
        assert_eq!(counted(7, 10, 10), 0);
        assert_eq!(counted(7, 5, 10), 5, "from the eleventh on");
        assert_eq!(counted(8, 3, 10), 3, "the one before was a flood");
        assert_eq!(counted(9, 3, 10), 0, "it is over");
        assert_eq!(counted(9, 100, 0), 0, "switched off");
        assert_eq!(counted(11, 3, 10), 0, "the window between had none");
    }

    #[test]
    fn flows_are_looked_for_while_one_may_still_open() {
        let state = FloodState { last: Coarse(100) };
        assert!(state.is_recent(Coarse(164)) && !state.is_recent(Coarse(165)));
        assert!(state.is_active(Coarse(101)) && !state.is_active(Coarse(102)));
        assert!(state.is_recent(Coarse(99)), "another CPU's clock is a tick ahead");
        assert!(!FloodState::default().is_recent(Coarse(1)), "there was none");
        let opening = Phase::OPENING.timeout_s(Protocol::TCP);
        assert!(Coarse(0).is_older_than(Coarse(FloodState::RECENT), opening));
    }

    #[test]
    fn only_what_a_forger_cannot_bring_about_proves_a_flow() {
        const ACK: TcpFlags = TcpFlags::ACK;
        let (forward, reply) = (ConnectionFlags::SNAT, ConnectionFlags::SNAT.with(ConnectionFlags::REPLY));
        let rows = [
            ("the client's SYN", Protocol::TCP, forward, TcpFlags::SYN, false),
            ("the client's ACK", Protocol::TCP, forward, ACK, false),
            ("the backend's SYN", Protocol::TCP, reply, TcpFlags(TcpFlags::SYN.0 | ACK.0), false),
            ("its RST", Protocol::TCP, reply, TcpFlags(TcpFlags::RST.0 | ACK.0), false),
            ("its ACK", Protocol::TCP, reply, ACK, true),
            (
                "a client's SYN that is tunnelled",
                Protocol::TCP,
                ConnectionFlags::TUNNEL,
                TcpFlags::SYN,
                false,
            ),
            ("its ACK that is tunnelled", Protocol::TCP, ConnectionFlags::TUNNEL, ACK, true),
            ("its FIN", Protocol::TCP, reply, TcpFlags(TcpFlags::FIN.0 | ACK.0), true),
        ];
        for (name, protocol, flags, tcp, expected) in rows {
            let entry = ConnectionValue::<V4> { flags, ..Default::default() };
            assert_eq!(proves(&entry, protocol, tcp, true), expected, "{name}");
        }
        for (flags, answered, expected) in
            [(forward, false, false), (forward, true, true), (reply, true, false)]
        {
            let entry = ConnectionValue::<V4> { flags, ..Default::default() };
            assert_eq!(
                proves(&entry, Protocol::UDP, TcpFlags(0), answered),
                expected,
                "{flags:?} {answered}"
            );
        }
    }

    #[test]
    fn mirroring_twice_is_nothing() {
        let tuple = |src, dst| Tuple::<V4> {
            src: Addr4([src; 4]),
            dst: Addr4([dst; 4]),
            src_port: Be16::new(src.into()),
            dst_port: Be16::new(dst.into()),
        };
        let key = FlowKey::new(tuple(1, 2), Protocol::TCP);
        let entry = ConnectionValue { to: tuple(3, 4), phase: Phase::ESTABLISHED, ..Default::default() };
        let (mut other, mut again) = (ConnectionValue::default(), ConnectionValue::default());
        mirror(&mut other, &entry, &key.tuple);
        assert_eq!((other.to, other.flags), (tuple(2, 1), ConnectionFlags::REPLY));
        mirror(&mut again, &other, &entry.to.reversed());
        assert_eq!(again, entry);
    }
}
