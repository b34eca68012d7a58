//! Refusal: a TCP RST or an ICMP port unreachable in place of the packet nobody serves.
//!
//! The answer is built in the packet's own buffer and sent back where it came from. TCP gets a RST (RFC 9293,
//! 3.10.7.1) and not kube-proxy's ICMP: both end in ECONNREFUSED, but a RST is not rate limited or filtered on the
//! way. UDP gets port unreachable (RFC 792; RFC 4443, 3.1). A CPU sends so many answers a second and no more
//! (`lb_common::allowance`).
//!
//! A packet from a local socket may carry `CHECKSUM_PARTIAL`: the kernel has put only the pseudo header's sum into
//! the checksum field, and whoever sends the packet last adds the rest. tc cannot see that flag, but it can see the
//! sum, and must then answer in kind: a complete checksum would be added to once more.

use lb_common::{checksum::Sum, conntrack::TcpFlags, family::Protocol, verdict::Verdict};

use crate::{
    allowance,
    answer::{Answer, FamilyAnswer, TcpHeader, send_back},
    hook::Back,
    icmp_error,
    nat::pseudo_header,
    packet::{Packet, Refused},
    parse::{Fragment, Headers},
};

/// Length of a TCP header without options.
const TCP_LEN: usize = 20;

/// Answers a packet nobody serves: TCP by a RST, UDP and SCTP by a port unreachable, as kube-proxy's REJECT does.
#[inline(never)]
pub fn refuse<F: FamilyAnswer, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    answer: &mut Answer<F>,
    back: Back,
) -> Verdict {
    if headers.fragment == Fragment::Later || headers.tcp_flags.has(TcpFlags::RST) {
        return Verdict::RefusedSilently;
    }
    if !allowance::take() {
        return Verdict::RefusalLimit;
    }
    answer.from = headers.flow.tuple.dst;
    let built = if headers.flow.protocol == Protocol::TCP {
        reset(packet, headers, answer)
    } else {
        icmp_error::tell(packet, headers, answer, F::PORT_UNREACHABLE)
    };
    match built.and_then(|()| send_back(packet, headers.l3, back)) {
        Ok(()) => Verdict::Refused,
        Err(Refused) => Verdict::RefusalFailed,
    }
}

/// Turns the packet into a RST.
#[inline(always)]
fn reset<F: FamilyAnswer, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    answer: &mut Answer<F>,
) -> Result<(), Refused> {
    let refused = &mut answer.tcp;
    *refused = packet.read(headers.l4).ok_or(Refused)?;
    let partial = is_partial(headers, refused.checksum);
    let (seq, ack, flags) = if refused.flags.has(TcpFlags::ACK) {
        (refused.ack, [0; 4], TcpFlags::RST)
    } else {
        let ack = u32::from_be_bytes(refused.seq).wrapping_add(sequence_len(headers, refused));
        ([0; 4], ack.to_be_bytes(), TcpFlags(TcpFlags::RST.0 | TcpFlags::ACK.0))
    };
    let tuple = &headers.flow.tuple;
    answer.tcp = TcpHeader {
        src_port: tuple.dst_port,
        dst_port: tuple.src_port,
        seq,
        ack,
        data_offset: (TCP_LEN as u8 / 4) << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let pseudo = pseudo_header::<F>(tuple.dst, tuple.src, Protocol::TCP, TCP_LEN as u16);
    answer.tcp.checksum = if partial { pseudo.fold() } else { pseudo.add_tcp(&answer.tcp).checksum() };
    answer.ip = F::header((answer.from, tuple.src), F::FIRST_WORD, Protocol::TCP, TCP_LEN as u16);
    packet.resize((headers.l3 + F::HEADER_LEN + TCP_LEN) as u32)?;
    packet.write(headers.l3, &answer.ip)?;
    packet.write(headers.l3 + F::HEADER_LEN, &answer.tcp)
}

/// Sequence numbers a segment takes: its data, SYN and FIN (RFC 9293, 3.4).
#[inline(always)]
fn sequence_len<F: FamilyAnswer>(headers: &Headers<F>, tcp: &TcpHeader) -> u32 {
    let header_len = (headers.l4 - headers.l3) as u32 + (tcp.data_offset >> 4) as u32 * 4;
    let data = headers.ip_len.saturating_sub(header_len);
    data + tcp.flags.has(TcpFlags::SYN) as u32 + tcp.flags.has(TcpFlags::FIN) as u32
}

/// True if the checksum field holds no more than the pseudo header's sum: `CHECKSUM_PARTIAL`. A complete checksum
/// looks so once in 65,536 packets; that answer is then lost and the client's next SYN gets one.
#[inline(always)]
fn is_partial<F: FamilyAnswer>(headers: &Headers<F>, checksum: u16) -> bool {
    let tuple = &headers.flow.tuple;
    let len = headers.ip_len.wrapping_sub((headers.l4 - headers.l3) as u32) as u16;
    pseudo_header::<F>(tuple.src, tuple.dst, headers.flow.protocol, len).fold() == checksum
}

/// Sums a header word by word.
trait AddHeader {
    fn add_tcp(self, tcp: &TcpHeader) -> Self;
}

impl AddHeader for Sum {
    #[inline(always)]
    fn add_tcp(self, tcp: &TcpHeader) -> Self {
        self.add16(u16::from_ne_bytes(tcp.src_port.0))
            .add16(u16::from_ne_bytes(tcp.dst_port.0))
            .add(u32::from_ne_bytes(tcp.seq))
            .add(u32::from_ne_bytes(tcp.ack))
            .add16(u16::from_ne_bytes([tcp.data_offset, tcp.flags.0]))
    }
}
