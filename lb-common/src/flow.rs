//! A flow: the 5-tuple of a packet, its rewritten form, and the hash that both sides compute alike.

use crate::family::{Address, Be16, Family, Protocol, V4, V6};

/// Key of `CONNECTIONS`: a packet's 5-tuple as it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey<F: Family> {
    /// Addresses and ports.
    pub tuple: Tuple<F>,
    /// Protocol.
    pub protocol: Protocol,
    /// Zero.
    pub _pad: [u8; 3],
}

/// Addresses and ports of a packet, or those it is rewritten to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Tuple<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port.
    pub src_port: Be16,
    /// Destination port.
    pub dst_port: Be16,
}

impl<F: Family> Tuple<F> {
    /// The tuple of an answer: source and destination exchanged.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }

    /// Becomes `other` [reversed](Self::reversed), in place: the BPF stack has no room for a copy.
    #[inline(always)]
    pub const fn reverse_of(&mut self, other: &Self) {
        self.src = other.dst;
        self.dst = other.src;
        self.src_port = other.dst_port;
        self.dst_port = other.src_port;
    }
}

impl<F: Family> FlowKey<F> {
    /// The flow of `tuple` over `protocol`.
    #[inline(always)]
    pub const fn new(tuple: Tuple<F>, protocol: Protocol) -> Self {
        Self { tuple, protocol, _pad: [0; 3] }
    }

    /// Sets the protocol and zeroes what pads it, in one store: a key that was written in smaller pieces than it is read
    /// makes the processor wait (store forwarding).
    #[inline(always)]
    pub const fn set_protocol(&mut self, protocol: Protocol) {
        let word = u32::from_ne_bytes([protocol.0, 0, 0, 0]);
        // SAFETY: protocol and padding are the last word of the key, which is aligned to words; any bytes are valid.
        unsafe { (&raw mut *self).byte_add(size_of::<Self>() - size_of::<u32>()).cast::<u32>().write(word) };
    }

    /// Hash of the flow, 32 well-mixed bits.
    #[inline(always)]
    pub fn hash(&self, seed: u32) -> u32 {
        let mut hash = Mix(seed ^ self.protocol.0 as u32);
        let mut index = 0;
        while index < F::Addr::WORDS {
            hash.add(self.tuple.src.word(index));
            hash.add(self.tuple.dst.word(index));
            index += 1;
        }
        hash.add(((self.tuple.src_port.get() as u32) << 16) | self.tuple.dst_port.get() as u32);
        hash.finish()
    }
}

/// Hash of a 64-bit number (a socket cookie), 32 well-mixed bits.
#[inline(always)]
pub fn hash_u64(value: u64, seed: u32) -> u32 {
    let mut hash = Mix(seed);
    hash.add(value as u32);
    hash.add((value >> 32) as u32);
    hash.finish()
}

/// Hash of words in host order, 32 well-mixed bits: the same on every machine.
pub fn hash_words(words: impl IntoIterator<Item = u32>, seed: u32) -> u32 {
    let mut hash = Mix(seed);
    words.into_iter().for_each(|word| hash.add(word));
    hash.finish()
}

/// Position of `hash` in a run of `count` slots: multiplication instead of a division (Lemire, "Fast random integer
/// generation in an interval", 2019). Below `count` for every `count` > 0.
#[inline(always)]
pub const fn slot_index(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// The mixing steps of MurmurHash3 for 32-bit words (Appleby, public domain).
struct Mix(u32);

impl Mix {
    #[inline(always)]
    fn add(&mut self, word: u32) {
        let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
        self.0 = (self.0 ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }

    #[inline(always)]
    fn finish(self) -> u32 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        hash ^ (hash >> 16)
    }
}

const _: () = assert!(size_of::<FlowKey<V4>>() == 16 && align_of::<FlowKey<V4>>() == 4);
const _: () = assert!(size_of::<FlowKey<V6>>() == 40 && align_of::<FlowKey<V6>>() == 4);
const _: () = assert!(size_of::<Tuple<V4>>() == 12);
const _: () = assert!(size_of::<Tuple<V6>>() == 36);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Addr4;

    fn flow(port: u16) -> FlowKey<V4> {
        let tuple = Tuple {
            src: Addr4([192, 0, 2, 1]),
            dst: Addr4([10, 96, 0, 1]),
            src_port: Be16::new(port),
            dst_port: Be16::new(80),
        };
        FlowKey::new(tuple, Protocol::TCP)
    }

    #[test]
    fn slots_are_chosen_evenly_over_source_ports() {
        const COUNT: u32 = 7;
        let mut hits = [0u32; COUNT as usize];
        for port in 1..=u16::MAX {
            hits[slot_index(flow(port).hash(0), COUNT) as usize] += 1;
        }
        let mean = u32::from(u16::MAX) / COUNT;
        assert!(hits.iter().all(|&hit| hit.abs_diff(mean) < mean / 20), "{hits:?}");
    }

    #[test]
    fn slot_index_stays_inside_the_run() {
        for count in [1, 2, 3, 1000, u32::MAX] {
            assert!(slot_index(u32::MAX, count) < count);
            assert_eq!(slot_index(0, count), 0);
        }
    }

    #[test]
    fn a_protocol_is_set_with_its_padding() {
        let mut key = FlowKey { _pad: [1, 2, 3], ..flow(1) };
        key.set_protocol(Protocol::UDP);
        assert_eq!(key, FlowKey::new(flow(1).tuple, Protocol::UDP));
    }

    #[test]
    fn reversing_twice_is_nothing() {
        let tuple = flow(4711).tuple;
        assert_eq!(tuple.reversed().reversed(), tuple);
        assert_ne!(flow(1).hash(0), flow(1).hash(1), "the seed matters");
    }
}
