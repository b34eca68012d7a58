//! The Internet checksum, updated incrementally (RFC 1071, RFC 1624).
//!
//! A checksum is the ones' complement of the ones' complement sum of 16-bit words. That sum does not depend on byte
//! order as long as every operand is read the same way, so these functions work on words *as they lie in memory*
//! and nothing is ever swapped. Ones' complement has two zeros: equation 3 of RFC 1624, `HC' = ~(~HC + ~m + m')`,
//! keeps them apart where the older RFC 1141 does not. UDP sends 0 to say "no checksum" (IPv4 only) and therefore
//! writes a computed 0 as 0xffff (RFC 768).

use crate::{
    family::{Address, Be16},
    flow::Tuple,
};

/// Sum of words not yet folded to 16 bits. Holds up to 2^48 words without loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(pub u64);

impl Sum {
    /// Adds a 32-bit word in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds a 16-bit word in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn add16(self, word: u16) -> Self {
        self.add(word as u32)
    }

    /// Takes a 32-bit word out: adds its complement.
    #[inline(always)]
    #[must_use]
    pub const fn sub(self, word: u32) -> Self {
        self.add(!word)
    }

    /// Adds an address.
    #[inline(always)]
    #[must_use]
    pub fn add_addr<A: Address>(mut self, addr: A) -> Self {
        let mut index = 0;
        while index < A::WORDS {
            self = self.add(addr.word(index));
            index += 1;
        }
        self
    }

    /// Takes an address out.
    #[inline(always)]
    #[must_use]
    pub fn sub_addr<A: Address>(mut self, addr: A) -> Self {
        let mut index = 0;
        while index < A::WORDS {
            self = self.sub(addr.word(index));
            index += 1;
        }
        self
    }

    /// The sum folded to 16 bits, not complemented.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = self.fold32();
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }

    /// The sum folded to 32 bits. Both halves are added to each other in the upper one, where the lower's carry comes in.
    #[inline(always)]
    pub const fn fold32(self) -> u32 {
        (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32
    }

    /// The checksum of what was added.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// `checksum` after the words summed in `difference` (new added, old taken out) changed. RFC 1624, equation 3.
#[inline(always)]
pub const fn update(checksum: u16, difference: Sum) -> u16 {
    !Sum(difference.0).add16(!checksum).fold()
}

/// A UDP checksum after a change: 0 stays 0 ("none"), a computed 0 is written 0xffff (RFC 768).
#[inline(always)]
pub const fn update_udp(checksum: u16, difference: Sum) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match update(checksum, difference) {
        0 => 0xffff,
        updated => updated,
    }
}

/// What changes in a checksum that covers the addresses when `from` becomes `to`.
#[inline(always)]
pub fn address_difference<F: crate::family::Family>(from: &Tuple<F>, to: &Tuple<F>) -> Sum {
    Sum::default().add_addr(to.src).add_addr(to.dst).sub_addr(from.src).sub_addr(from.dst)
}

/// What changes in a checksum that covers the ports when `from` becomes `to`.
#[inline(always)]
pub const fn port_difference<F: crate::family::Family>(from: &Tuple<F>, to: &Tuple<F>) -> Sum {
    let added = Sum(0).add16(word(to.src_port)).add16(word(to.dst_port));
    added.add16(!word(from.src_port)).add16(!word(from.dst_port))
}

/// A port as it lies in memory.
#[inline(always)]
const fn word(port: Be16) -> u16 {
    u16::from_ne_bytes(port.0)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn recomputed(bytes: &[u8]) -> u16 {
        let sum = bytes.chunks(2).fold(Sum::default(), |sum, pair| {
            sum.add16(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
        });
        sum.checksum()
    }

    proptest! {
        #[test]
        fn incremental_equals_recomputed(mut bytes in prop::collection::vec(any::<u8>(), 40..80), new: [u8; 4], at in 0usize..9) {
            bytes.truncate(bytes.len() & !3);
            let before = recomputed(&bytes);
            let at = at * 4;
            let old = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[at..at + 4].copy_from_slice(&new);
            let difference = Sum::default().add(u32::from_ne_bytes(new)).sub(old);
            let updated = update(before, difference);
            let expected = recomputed(&bytes);
            // The two zeros of ones' complement verify alike; all-zero data is the only case where they differ.
            prop_assert!(updated == expected || (bytes.iter().all(|b| *b == 0) && updated == 0));
        }
    }

    #[test]
    fn rfc_1624_example_keeps_the_zeros_apart() {
        // RFC 1624, section 4: header checksum 0xDD2F, a field changes from 0x5555 to 0x3285, result 0x0000.
        let difference = Sum::default().add16(0x3285).add16(!0x5555);
        assert_eq!(update(0xdd2f, difference), 0x0000);
    }

    #[test]
    fn a_udp_checksum_of_zero_stays_none_and_is_never_computed() {
        assert_eq!(update_udp(0, Sum::default().add(0x1234)), 0);
        let difference = Sum::default().add16(0x3285).add16(!0x5555);
        assert_eq!(update_udp(0xdd2f, difference), 0xffff);
    }

    #[test]
    fn folding_holds_for_large_sums() {
        let words: Vec<u32> = (0..100_000).map(|word: u32| word.wrapping_mul(0x9e37_79b9)).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let sum = words.iter().fold(Sum::default(), |sum, word| sum.add(*word));
        assert_eq!(sum.checksum(), recomputed(&bytes));
        assert_eq!(Sum(u64::from(sum.fold32())).fold(), sum.fold());
    }
}
