//! ICMP that comes in: an error about a packet of a connection of ours is translated as that connection's other
//! direction is, so that whoever sent the packet understands what is quoted (RFC 5508, 4); an echo request to a VIP
//! is answered. Everything else is not ours.
//!
//! An error quotes the packet as it was seen on the way, that is translated. Turned round, its tuple is that of an
//! answer, and the entry of that answer's flow says what the client, or the backend, had sent.

use lb_common::{
    checksum::{self, Sum},
    conntrack::ConnectionFlags,
    family::{Be16, Protocol},
    flow::Tuple,
    fragment::FragmentValue,
    verdict::Verdict,
};

use crate::{
    answer::{TTL, send_back},
    balance::{belongs, is_sent_on},
    counters::{Seen, count_apart},
    forward::{self, Route, Way},
    hook::Hook,
    nat::{Hop, TCP_CHECKSUM, UDP_CHECKSUM},
    packet::{Packet, Refused},
    parse::{ETHERNET_LEN, Fragment, Headers},
    proof,
    quote::{self, Quote},
    tunnel, vip,
    work::{Balanced, Work},
};

/// Offset of the checksum in an ICMP header.
const CHECKSUM: usize = 2;
/// Bytes made linear: link layer, two IP headers with options or extensions, and what stands between and behind.
const PARSE_BYTES: u32 = 320;

/// Decides about the ICMP packet whose IP header stands in the scratch memory, does it and counts it; the verdict's
/// code.
#[inline(always)]
pub fn icmp<F: Balanced, P: Packet>(packet: &mut P, hook: u32) -> u32 {
    let (Some(work), Some(hook)) = (Work::<F>::new(), Hook::from_code(hook)) else {
        return Verdict::NotOurs as u32;
    };
    let (bytes, ifindex) = (packet.len(), packet.ifindex());
    packet.pull_to(PARSE_BYTES);
    work.opening.reset();
    let verdict = decide(packet, work, hook);
    if verdict != Verdict::NotOurs {
        count_apart(work.opening.outcome(verdict), &Seen { flow: &work.headers.flow, bytes, ifindex });
    }
    verdict as u32
}

#[inline(always)]
fn decide<F: Balanced, P: Packet>(packet: &mut P, work: &mut Work<F>, hook: Hook) -> Verdict {
    if work.headers.fragment == Fragment::Later {
        return echo(packet, &work.headers, hook);
    }
    let Some(kind) = packet.load::<u8>(work.headers.l4) else { return Verdict::NotOurs };
    if kind == F::ECHO_REQUEST {
        echo(packet, &work.headers, hook)
    } else if F::is_error(kind) && work.headers.fragment == Fragment::Whole {
        error(packet, work, hook)
    } else {
        Verdict::NotOurs
    }
}

/// Answers an echo request to a VIP in the packet's own buffer. Later fragments follow their first one's.
#[inline(never)]
fn echo<F: Balanced, P: Packet>(packet: &mut P, headers: &Headers<F>, hook: Hook) -> Verdict {
    if hook == Hook::WorkloadEgress || !vip::is_ours::<F>(&headers.flow.tuple.dst) {
        return Verdict::NotOurs;
    }
    if headers.fragment == Fragment::Later {
        // SAFETY: only asked whether it exists.
        if unsafe { F::fragments().get(headers.fragment_key()) }.is_none() {
            return Verdict::NotOurs;
        }
    } else if headers.fragment == Fragment::First {
        // Without room the later fragments stay untouched and the answer is never whole.
        let _ = F::fragments().insert(headers.fragment_key(), FragmentValue::default(), 0);
    }
    match answered(packet, headers).and_then(|()| send_back(packet, headers.l3, hook.back())) {
        Ok(()) => Verdict::Echoed,
        Err(Refused) => Verdict::RefusalFailed,
    }
}

/// Makes an echo reply of the request. Exchanged addresses leave the pseudo header of ICMPv6 as it was.
#[inline(always)]
fn answered<F: Balanced, P: Packet>(packet: &mut P, headers: &Headers<F>) -> Result<(), Refused> {
    if headers.fragment != Fragment::Later {
        let [kind, code]: [u8; 2] = packet.load(headers.l4).ok_or(Refused)?;
        let reply = [F::ECHO_REPLY, code];
        packet.write(headers.l4, &reply)?;
        let change = Sum::default().add16(u16::from_ne_bytes(reply)).add16(!u16::from_ne_bytes([kind, code]));
        update(packet, headers.l4 + CHECKSUM, change)?;
    }
    F::write(packet, headers, &headers.flow.tuple.reversed(), TTL)
}

/// Adds `change` to the checksum at `offset`.
#[inline(always)]
fn update<P: Packet>(packet: &mut P, offset: usize, change: Sum) -> Result<(), Refused> {
    let checksum: u16 = packet.load(offset).ok_or(Refused)?;
    packet.write(offset, &checksum::update(checksum, change))
}

/// Translates an error about a packet of a connection of ours.
#[inline(always)]
fn error<F: Balanced, P: Packet>(packet: &mut P, work: &mut Work<F>, hook: Hook) -> Verdict {
    let Work { headers, way, opening, quote, answer, .. } = work;
    if quote::read(packet, headers, quote).is_none() {
        return Verdict::NotOurs;
    }
    if !proof::read_anywhere(&quote.answer, &mut opening.entry) || !belongs(&opening.entry, hook) {
        return Verdict::NotOurs;
    }
    let entry = &opening.entry;
    opening.service_port = entry.service_port;
    opening.backend = entry.backend;
    if entry.flags.has(ConnectionFlags::TUNNEL) {
        return match forward::route_added(packet, &entry.to, headers.ip_len as u16, F::HEADER_LEN as u16, way)
        {
            Ok(Route::Via) => tunnel::send(packet, headers, &entry.to, way, answer),
            _ => Verdict::RefusedSilently,
        };
    }
    quote.to = entry.to.reversed();
    quote.outer = Tuple { src_port: Be16::default(), dst_port: Be16::default(), ..entry.to };
    // What keeps its source, as clients do without SNAT, leaves the router its own.
    if entry.to.src == quote.answer.tuple.src {
        quote.outer.src = headers.flow.tuple.src;
    }
    if is_sent_on(entry.flags) {
        forwarded(packet, headers, quote, way)
    } else if entry.flags.has(ConnectionFlags::HOST) && hook == Hook::WorkloadIngress {
        received(packet, headers, quote, way)
    } else {
        translated(packet, headers, quote)
    }
}

/// Rewrites and leaves the rest to the stack.
#[inline(always)]
fn translated<F: Balanced, P: Packet>(packet: &mut P, headers: &Headers<F>, quote: &Quote<F>) -> Verdict {
    match rewrite(packet, headers, quote, Hop::No) {
        Ok(()) => Verdict::Translated,
        Err(Refused) => Verdict::RewriteFailed,
    }
}

/// Rewrites and sends on. An error is never answered by another (RFC 1122, 3.2.2; RFC 4443, 2.4e).
#[inline(always)]
fn forwarded<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    quote: &Quote<F>,
    way: &mut Way<F>,
) -> Verdict {
    match forward::route(packet, &quote.outer, headers.ip_len as u16, way) {
        Ok(Route::Via) if headers.ttl <= 1 => Verdict::RefusedSilently,
        Ok(Route::Via) => match rewrite(packet, headers, quote, Hop::Yes) {
            Ok(()) => forward::send(packet, headers.l3, way),
            Err(Refused) => Verdict::RewriteFailed,
        },
        Ok(Route::Local) => translated(packet, headers, quote),
        Err(Verdict::TooBig) => Verdict::RefusedSilently,
        Err(reason) => reason,
    }
}

/// Rewrites and lets the error come in by the device towards the VIP, as the answers of pods to the node's own
/// processes do ([`crate::balance`]).
#[inline(always)]
fn received<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    quote: &Quote<F>,
    way: &mut Way<F>,
) -> Verdict {
    if forward::route(packet, &quote.to, 0, way) != Ok(Route::Via) {
        return translated(packet, headers, quote);
    }
    if rewrite(packet, headers, quote, Hop::No).is_err() {
        return Verdict::RewriteFailed;
    }
    let addressed = headers.l3 < ETHERNET_LEN || packet.write(0, way.device_mac()).is_ok();
    match addressed && packet.receive(way.ifindex()).is_ok() {
        true => Verdict::Redirected,
        false => Verdict::RewriteFailed,
    }
}

/// Rewrites the quotation, the ICMP checksum and the error's own addresses.
///
/// Whatever changes in the message goes into the ICMP checksum as a difference. The quoted IPv4 header changes
/// nothing there, for its own checksum balances its addresses; nor does, where it is quoted, the transport checksum
/// together with what it covers. The sum of the whole packet stays the same, and with it `CHECKSUM_COMPLETE`.
#[inline(never)]
fn rewrite<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    quote: &Quote<F>,
    hop: Hop,
) -> Result<(), Refused> {
    let (inner, to) = (&quote.headers, &quote.to);
    let from = &inner.flow.tuple;
    write(packet, inner, to, inner.ttl)?;
    packet.write::<[Be16; 2]>(inner.l4, &[to.src_port, to.dst_port])?;
    let addresses = address_difference(from, to);
    let ports = checksum::port_difference(from, to);
    let mut change = if F::IPV6 { Sum(addresses.0 + ports.0) } else { ports };
    change.0 += transport(packet, inner, Sum(addresses.0 + ports.0))?.0;
    if F::IPV6 {
        change.0 += address_difference(&headers.flow.tuple, &quote.outer).0;
    }
    update(packet, headers.l4 + CHECKSUM, change)?;
    let ttl = if hop == Hop::Yes { headers.ttl - 1 } else { headers.ttl };
    write(packet, headers, &quote.outer, ttl)
}

/// [`crate::nat::FamilyRewrite::write`], with a stack frame of its own: two of them do not fit one.
#[inline(never)]
fn write<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    ttl: u8,
) -> Result<(), Refused> {
    F::write(packet, headers, to, ttl)
}

/// [`checksum::address_difference`], likewise.
#[inline(never)]
fn address_difference<F: Balanced>(from: &Tuple<F>, to: &Tuple<F>) -> Sum {
    checksum::address_difference(from, to)
}

/// Updates the quoted transport checksum, where the quotation is long enough to have it; what changes by that. SCTP's
/// stays: it covers the whole packet, so nobody who has but a quotation can check it (RFC 9260, 10, asks for the tag).
#[inline(always)]
fn transport<F: Balanced, P: Packet>(
    packet: &mut P,
    inner: &Headers<F>,
    difference: Sum,
) -> Result<Sum, Refused> {
    if inner.flow.protocol == Protocol::SCTP {
        return Ok(Sum::default());
    }
    let is_tcp = inner.flow.protocol == Protocol::TCP;
    let offset = inner.l4 + if is_tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
    let Some(former) = packet.load::<u16>(offset) else { return Ok(Sum::default()) };
    let updated =
        if is_tcp { checksum::update(former, difference) } else { checksum::update_udp(former, difference) };
    packet.write(offset, &updated)?;
    Ok(Sum::default().add16(updated).add16(!former))
}
