//! Sets of 16-bit numbers, a bit each, that stay in the CPU's nearest cache: `PORTS`, the ports that frontends use,
//! `TARGET_PORTS`, those of backends, and `VIP_HASHES`, [`crate::vip::hash`] of the VIPs. A packet asks them before any hash map,
//! and most packets need no more.
//!
//! A bit is set before what it stands for is written, and is never cleared: connections may outlive their frontend. A bit too
//! many costs a lookup; one too few, and packets pass untranslated.

/// Element of the array that holds the bit of a number.
#[inline(always)]
pub const fn word(number: u16) -> u32 {
    number as u32 / u64::BITS
}

/// The bit of a number in its element.
#[inline(always)]
pub const fn bit(number: u16) -> u64 {
    1 << (number as u32 % u64::BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BIT_SET_WORDS;

    #[test]
    fn every_number_has_a_bit_of_its_own() {
        let mut words = [0u64; BIT_SET_WORDS as usize];
        for number in 0..=u16::MAX {
            assert_eq!(words[word(number) as usize] & bit(number), 0);
            words[word(number) as usize] |= bit(number);
        }
        assert!(words.iter().all(|&word| word == u64::MAX));
    }
}
