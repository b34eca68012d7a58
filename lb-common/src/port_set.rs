//! `PORTS`: the ports that frontends use, as a set of bits that stays in the CPU's nearest cache. XDP asks it before
//! anything else; what is not in it is left to tc, so a bit too many or too few costs time and nothing else.

use crate::family::Be16;

/// Element of `PORTS` that holds a port's bit.
#[inline(always)]
pub const fn word(port: Be16) -> u32 {
    port.get() as u32 / u64::BITS
}

/// A port's bit in its element.
#[inline(always)]
pub const fn bit(port: Be16) -> u64 {
    1 << (port.get() as u32 % u64::BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PORT_WORDS;

    #[test]
    fn every_port_has_a_bit_of_its_own() {
        let mut words = [0u64; PORT_WORDS as usize];
        for port in 0..=u16::MAX {
            let port = Be16::new(port);
            assert_eq!(words[word(port) as usize] & bit(port), 0);
            words[word(port) as usize] |= bit(port);
        }
        assert!(words.iter().all(|&word| word == u64::MAX));
    }
}
