//! What an ICMP error quotes.

use lb_common::{
    family::Be16,
    flow::{FlowKey, Tuple},
};

use crate::{
    answer::ICMP_LEN,
    packet::{OFFSET_MASK, Packet},
    parse::{FamilyHeader, Fragment, Headers},
};

/// An error's quotation and what both become.
#[repr(C)]
pub struct Quote<F: FamilyHeader> {
    /// The quoted packet's headers.
    pub headers: Headers<F>,
    /// The flow of an answer to it.
    pub answer: FlowKey<F>,
    /// What the quoted packet's tuple becomes.
    pub to: Tuple<F>,
    /// What the error's own addresses become; no ports.
    pub outer: Tuple<F>,
}

/// Reads what an error quotes: a TCP, UDP or SCTP packet with its ports, sent by the one the error is addressed to.
#[inline(never)]
pub fn read<F: FamilyHeader, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    quote: &mut Quote<F>,
) -> Option<()> {
    let inner = &mut quote.headers;
    if headers.l4 > OFFSET_MASK - 128 {
        return None;
    }
    // The compiler must not know its bound, or it leaves out the mask that the verifier wants to see.
    inner.l3 = core::hint::black_box(headers.l4 + ICMP_LEN);
    F::parse(packet, inner)?;
    if !inner.flow.protocol.is_balanced()
        || inner.fragment == Fragment::Later
        || inner.flow.tuple.src != headers.flow.tuple.dst
    {
        return None;
    }
    let [src_port, dst_port]: [Be16; 2] = packet.load(inner.l4)?;
    inner.flow.tuple.src_port = src_port;
    inner.flow.tuple.dst_port = dst_port;
    quote.answer = FlowKey::new(inner.flow.tuple.reversed(), inner.flow.protocol);
    Some(())
}
