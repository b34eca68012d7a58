//! ICMP errors of our own: built in the place of the packet they are about, and sent back where it came from.
//!
//! They quote the packet as its sender sent it, that is untranslated, for only so it finds the socket: as much of it
//! as fits into 576 bytes (RFC 1812, 4.3.2.3) or 1280 (RFC 4443, 2.4c).
//!
//! A quoted packet whose checksum the hardware was to complete (`CHECKSUM_PARTIAL`) goes back to the virtual device
//! it came from, whose other end takes such a packet for intact, whatever its checksums say.

use lb_common::{checksum::Sum, conntrack::TcpFlags, family::Address as _, verdict::Verdict};

use crate::{
    allowance,
    answer::{Answer, FamilyAnswer, ICMP_LEN, IcmpHeader, Message, send_back},
    hook::Back,
    maps::DEVICES,
    packet::{CHUNK, Packet, Refused},
    parse::{Fragment, Headers},
};

/// Answers a packet that the program could not send on; `verdict` says why, `mtu` how much the next hop takes.
///
/// A packet without "don't fragment" is answered like any other: the program cannot split it, and a sender that
/// hears of the MTU does. Of a datagram's fragments the first, the largest, speaks for all.
#[inline(always)]
pub fn complain<F: FamilyAnswer, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    answer: &mut Answer<F>,
    (verdict, mtu, back): (Verdict, u16, Back),
) -> Verdict {
    if headers.fragment == Fragment::Later || headers.tcp_flags.has(TcpFlags::RST) {
        return Verdict::RefusedSilently;
    }
    if !allowance::take() {
        return Verdict::RefusalLimit;
    }
    answer.from = source(packet, headers, back);
    let message = if verdict == Verdict::TooBig { F::too_big(mtu) } else { F::TIME_EXCEEDED };
    match tell(packet, headers, answer, message).and_then(|()| send_back(packet, headers.l3, back)) {
        Ok(()) => verdict,
        Err(Refused) => Verdict::RefusalFailed,
    }
}

/// Who complains: this node, by the device's address, as a router would. To its own processes, which would drop what
/// comes in with an address of their own, whom they dialled.
#[inline(always)]
fn source<F: FamilyAnswer, P: Packet>(packet: &P, headers: &Headers<F>, back: Back) -> F::Addr {
    let dialled = headers.flow.tuple.dst;
    if back == Back::Socket {
        return dialled;
    }
    // SAFETY: replaced whole by the agent; read within this run.
    let Some(device) = (unsafe { DEVICES.get(packet.ifindex()) }) else { return dialled };
    let own = F::snat_address(device);
    if own.is_unspecified() { dialled } else { own }
}

/// Turns the packet into an ICMP error from `answer.from` that quotes it.
#[inline(always)]
pub fn tell<F: FamilyAnswer, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    answer: &mut Answer<F>,
    message: Message,
) -> Result<(), Refused> {
    let there = (packet.len() as usize).wrapping_sub(headers.l3);
    let whole = if (headers.ip_len as usize) < there { headers.ip_len as usize } else { there };
    let quoted = if whole < F::QUOTED_MAX { whole } else { F::QUOTED_MAX };
    let sum = quotation::<F, P>(packet, headers.l3, quoted, &mut answer.chunk)?
        .add16(u16::from_ne_bytes(message.type_code))
        .add(u32::from_ne_bytes(message.rest));
    let len = (ICMP_LEN + quoted) as u16;
    let pseudo = F::icmp_pseudo_header(headers, answer.from, len);
    answer.ip = F::header((answer.from, headers.flow.tuple.src), F::FIRST_WORD, F::ICMP, len);
    answer.icmp = IcmpHeader {
        type_code: message.type_code,
        checksum: Sum(sum.0 + pseudo.0).checksum(),
        rest: message.rest,
    };
    packet.resize((headers.l3 + quoted) as u32)?;
    packet.make_room((F::HEADER_LEN + ICMP_LEN) as u32)?;
    packet.write(headers.l3, &answer.ip)?;
    packet.write(headers.l3 + F::HEADER_LEN, &answer.icmp)
}

/// Sum of the `len` bytes at `offset`, chunk by chunk.
#[inline(always)]
fn quotation<F: FamilyAnswer, P: Packet>(
    packet: &P,
    offset: usize,
    len: usize,
    chunk: &mut [u32; CHUNK / 4],
) -> Result<Sum, Refused> {
    let mut sum = Sum::default();
    let mut done = 0;
    while done < F::QUOTED_MAX {
        if done >= len {
            break;
        }
        let left = len - done;
        let bytes = if left < CHUNK { left } else { CHUNK };
        sum = sum.add(packet.sum(offset + done, bytes, chunk)?);
        done += CHUNK;
    }
    Ok(sum)
}
