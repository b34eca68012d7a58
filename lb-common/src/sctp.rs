//! SCTP (RFC 9260), as far as it concerns a packet's way: the common header, and what a packet says of its
//! association, in TCP's words, so that both have the same phases ([`crate::conntrack::Phase`]).

use crate::conntrack::TcpFlags;

/// Length of the common header: ports, verification tag, checksum.
pub const HEADER_LEN: usize = 12;
/// Offset of the checksum, a CRC32c over the whole SCTP packet and nothing else, little endian.
pub const CHECKSUM: usize = 8;
/// Offset of the first chunk's type.
pub const CHUNK: usize = HEADER_LEN;

/// Chunk types (RFC 9260, 3.2).
pub const DATA: u8 = 0;
/// Opens an association; always alone in its packet.
pub const INIT: u8 = 1;
/// The answer to it.
pub const INIT_ACK: u8 = 2;
/// Ends it at once.
pub const ABORT: u8 = 6;
/// No more data from the sender.
pub const SHUTDOWN: u8 = 7;
/// Nor from the other side.
pub const SHUTDOWN_ACK: u8 = 8;
/// Both know.
pub const SHUTDOWN_COMPLETE: u8 = 14;

/// What a packet says whose first chunk is of type `chunk`.
///
/// By a table in two words and not by branches: bit `chunk` of each says whether the type has the flag.
#[inline(always)]
pub const fn flags(chunk: u8) -> TcpFlags {
    const OPENS: u32 = (1 << INIT) | (1 << INIT_ACK);
    const ENDS: u32 = (1 << SHUTDOWN) | (1 << SHUTDOWN_ACK) | (1 << SHUTDOWN_COMPLETE);
    if chunk >= 16 {
        return TcpFlags::ACK;
    }
    TcpFlags(
        bit(OPENS, chunk) * TcpFlags::SYN.0
            + bit(ENDS, chunk) * TcpFlags::FIN.0
            + bit(1 << ABORT, chunk) * TcpFlags::RST.0
            + bit(!(1 << INIT), chunk) * TcpFlags::ACK.0,
    )
}

/// Bit `chunk`, below 16, of `set`.
#[inline(always)]
const fn bit(set: u32, chunk: u8) -> u8 {
    ((set >> chunk) & 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_init_opens() {
        for chunk in 0..=u8::MAX {
            assert_eq!(flags(chunk).opens(), chunk == INIT, "chunk type {chunk}");
            assert_eq!(flags(chunk).has(TcpFlags::RST), chunk == ABORT, "chunk type {chunk}");
            let ends = matches!(chunk, SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE);
            assert_eq!(flags(chunk).has(TcpFlags::FIN), ends, "chunk type {chunk}");
            assert_eq!(
                flags(chunk).has(TcpFlags::SYN),
                matches!(chunk, INIT | INIT_ACK),
                "chunk type {chunk}"
            );
        }
    }
}
