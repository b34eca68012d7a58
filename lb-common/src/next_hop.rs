//! `NEXT_HOPS4`, `NEXT_HOPS6`: where XDP or tc last sent what goes from one address to another: what the routing table said,
//! so as not to ask it for each packet.
//!
//! Each CPU has its own, so nobody reads what another is writing. A slot holds the pair that used it last.

use crate::{
    conntrack::Coarse,
    family::{Address as _, Family, V4, V6},
    flow::Tuple,
    limits,
};

/// Link-layer addresses as a frame begins with them: the neighbour's, the device's. Aligned, to be copied by words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Macs(pub [[u8; 6]; 2]);

/// Who sends packets on, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Manner(pub u16);

impl Manner {
    /// XDP, out of the device; tc, to a neighbour that the kernel finds, which is asked for anew each time.
    pub const PLAIN: Self = Self(0);
    /// tc, out of the device in a frame that it addresses itself.
    pub const ADDRESSED: Self = Self(1);
    /// tc, into the pod behind the device (`DeviceFlags::PEER`).
    pub const INTO_POD: Self = Self(2);
}

/// Value of `NEXT_HOPS` under [`slot`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NextHopValue<F: Family> {
    /// Source of the packets, after their translation.
    pub src: F::Addr,
    /// Their destination.
    pub dst: F::Addr,
    /// Source of this node's own packets on the device they leave by; zero: none is known.
    pub node: F::Addr,
    /// The device they come in by.
    pub from: u32,
    /// The device they leave by; 0: none is known.
    pub ifindex: u32,
    /// When the routing table was asked.
    pub asked: Coarse,
    /// To whom on the link, and from whom.
    pub macs: Macs,
    /// MTU of the way in bytes.
    pub mtu: u16,
    /// How they are sent: [`Manner::PLAIN`] is XDP's way, the others are tc's.
    pub manner: Manner,
}

/// 2^32 divided by the golden ratio: multiples of it are spread evenly (Knuth, The Art of Computer Programming, 6.4).
const GOLDEN_RATIO: u32 = 0x9e37_79b9;

/// The slot of packets with `tuple`'s addresses.
#[inline(always)]
pub fn slot<F: Family>(tuple: &Tuple<F>) -> u32 {
    let last = F::Addr::WORDS - 1;
    let mixed = tuple.src.word(last).rotate_left(16) ^ tuple.dst.word(last);
    mixed.wrapping_mul(GOLDEN_RATIO) >> (32 - limits::NEXT_HOPS.ilog2())
}

impl<F: Family> NextHopValue<F> {
    /// Every so many units of [`Coarse`] a packet goes by tc: there the kernel sees that the neighbour is in use, and
    /// asks it whether it still has its address (RFC 4861, 7.3).
    const PROBE_EVERY: u32 = 16;

    /// True if this is the way of packets with `tuple`'s addresses that come in by device `from`.
    #[inline(always)]
    pub fn is_of(&self, tuple: &Tuple<F>, from: u32) -> bool {
        self.dst == tuple.dst && self.src == tuple.src && self.from == from && self.ifindex != 0
    }

    /// True if a packet of `ip_len` bytes may go this way: asked within this unit of [`Coarse`], so for a second at most.
    #[inline(always)]
    pub const fn holds(&self, now: Coarse, ip_len: u32) -> bool {
        self.asked.0 == now.0 && ip_len <= self.mtu as u32
    }

    /// True if it is time that a packet goes by tc.
    #[inline(always)]
    pub const fn is_to_be_probed(&self, now: Coarse) -> bool {
        now.0.is_multiple_of(Self::PROBE_EVERY) && self.asked.0.wrapping_add(1) == now.0
    }
}

const _: () = assert!(limits::NEXT_HOPS.is_power_of_two());
const _: () = assert!(size_of::<NextHopValue<V4>>() == 40);
const _: () = assert!(size_of::<NextHopValue<V6>>() == 76);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Addr4, Be16};

    fn tuple(dst: u8) -> Tuple<V4> {
        let port = Be16::new(80);
        Tuple { src: Addr4([192, 0, 2, 1]), dst: Addr4([10, 0, 0, dst]), src_port: port, dst_port: port }
    }

    #[test]
    fn a_way_serves_one_second_and_is_probed_now_and_then() {
        let hop = NextHopValue::<V4> { ifindex: 2, asked: Coarse(31), mtu: 1500, ..Default::default() };
        assert!(hop.holds(Coarse(31), 1500));
        assert!(!hop.holds(Coarse(32), 1500) && !hop.holds(Coarse(31), 1501));
        assert!(hop.is_to_be_probed(Coarse(32)) && !hop.is_to_be_probed(Coarse(33)));
        let old = NextHopValue { asked: Coarse(3), ..hop };
        assert!(!old.is_to_be_probed(Coarse(32)), "too old to be used once more");
    }

    #[test]
    fn a_way_is_of_its_addresses_and_device_only() {
        let Tuple { src, dst, .. } = tuple(1);
        let hop = NextHopValue::<V4> { src, dst, from: 7, ifindex: 2, ..Default::default() };
        assert!(hop.is_of(&tuple(1), 7));
        assert!(!hop.is_of(&tuple(2), 7) && !hop.is_of(&tuple(1), 8));
        assert!(!NextHopValue { ifindex: 0, ..hop }.is_of(&tuple(1), 7));
    }

    #[test]
    fn neighbours_in_a_network_do_not_share_slots() {
        let mut used = [false; limits::NEXT_HOPS as usize];
        (0..=255).for_each(|dst| used[slot(&tuple(dst)) as usize] = true);
        let slots = used.iter().filter(|used| **used).count();
        assert!(slots > 220, "{slots} slots for 256 addresses");
    }
}
