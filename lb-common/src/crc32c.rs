//! CRC32c, the checksum of SCTP (RFC 9260, 6.8 and appendix A), updated incrementally.
//!
//! A CRC is linear: of two messages of one length, the CRCs differ by the CRC (without the constants it begins and ends
//! with) of where the messages differ. A rewrite changes the ports only, the first four bytes of an SCTP packet, and the
//! CRC covers no pseudo header. So the difference is that of the ports, followed by as many zero bytes as the packet is
//! longer: a number modulo the polynomial, multiplied by x once per bit. Nothing but the packet's length is needed of the
//! rest of it, and two multiplications reach any length.
//!
//! Polynomials are written as the CRC's register has them, reflected: the highest bit is the coefficient of x⁰.

/// The Castagnoli polynomial without x³², reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// 1.
const ONE: u32 = 1 << 31;

/// `value` · x modulo the polynomial.
#[inline(always)]
const fn times_x(value: u32) -> u32 {
    (value >> 1) ^ (POLYNOMIAL & (value & 1).wrapping_neg())
}

/// `a` · `b` modulo the polynomial; no branch but the loop's, so that the verifier walks one way.
#[inline(always)]
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < u32::BITS {
        product ^= b & (a >> 31).wrapping_neg();
        a <<= 1;
        b = times_x(b);
        bit += 1;
    }
    product
}

/// Powers of `base`, from the 0th on.
const fn powers(base: u32) -> [u32; 256] {
    let mut powers = [ONE; 256];
    let mut exponent = 1;
    while exponent < powers.len() {
        powers[exponent] = multiply(powers[exponent - 1], base);
        exponent += 1;
    }
    powers
}

/// Of x⁸: what one byte does.
static BYTES: [u32; 256] = powers(ONE >> 8);
/// Of what 256 bytes do.
static BLOCKS: [u32; 256] = powers(multiply(powers(ONE >> 8)[255], ONE >> 8));

/// What the CRC of a message of `len` bytes, fewer than 65,536, changes by (exclusive or) when its first four bytes
/// do. `changed` is what these change by; both are read from the wire as little endian integers.
#[inline(always)]
pub fn difference(changed: u32, len: u32) -> u32 {
    let bytes = BYTES[(len & 0xff) as usize];
    let blocks = BLOCKS[((len >> 8) & 0xff) as usize];
    multiply(multiply(changed, bytes), blocks)
}

/// The CRC of `bytes`, bit by bit: what tests compare with. On the wire it is a little endian integer.
pub fn of(bytes: &[u8]) -> u32 {
    let byte =
        |register: u32, byte: &u8| (0..u8::BITS).fold(register ^ *byte as u32, |value, _| times_x(value));
    !bytes.iter().fold(u32::MAX, byte)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// RFC 3720, B.4, and the check value of the catalogues.
    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(of(b"123456789"), 0xe306_9283);
        assert_eq!(of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(of(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(of(&core::array::from_fn::<u8, 32, _>(|index| index as u8)), 0x46dd_794e);
    }

    fn changed(message: &[u8], first: [u8; 4]) -> (u32, u32) {
        let mut other = message.to_vec();
        other[..4].copy_from_slice(&first);
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let changed = word(message) ^ word(&other);
        (of(message) ^ difference(changed, message.len() as u32), of(&other))
    }

    #[test]
    fn every_length_of_an_ip_packet_is_reached() {
        let bytes: Vec<u8> = (0..65_535u32).map(|index| ((index * 31) >> 3) as u8).collect();
        for len in [4, 5, 12, 16, 255, 256, 257, 1480, 1500, 9000, 32_768, 65_515, 65_535] {
            let (updated, anew) = changed(&bytes[..len], [0x9c, 0x40, 0x1f, 0x90]);
            assert_eq!(updated, anew, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn an_update_equals_a_computation_anew(
            message in proptest::collection::vec(any::<u8>(), 4..3000),
            first in any::<[u8; 4]>(),
        ) {
            let (updated, anew) = changed(&message, first);
            prop_assert_eq!(updated, anew);
        }

        #[test]
        fn what_changes_nothing_differs_by_nothing(len in 0..65_536u32) {
            prop_assert_eq!(difference(0, len), 0);
        }
    }
}
