//! The way of a packet through the stages: its connection, or a frontend and a backend chosen for it.
//!
//! A client's packets are translated where they come in, the answers where they leave towards the client, so that
//! the stack in between sees addresses that belong where they are seen. What needs a node address as its source
//! (SNAT) is translated where it comes in, in both directions, and forwarded by the program itself.

use lb_common::{
    backend::BackendFlags,
    conntrack::{Coarse, ConnectionFlags, ConnectionValue},
    family::Address as _,
    flow::Tuple,
    fragment::FragmentValue,
    frontend::FrontendFlags,
    id::BackendId,
    maglev,
    next_hop::{Manner, NextHopValue},
    verdict::{DropReason, Verdict},
};

use crate::{
    concern, conntrack,
    counters::{Seen, count, count_apart, count_connection, count_verdict},
    flood,
    forward::{self, Route, Way},
    frontend,
    globals::{self, now_ns},
    hook::Hook,
    icmp_error,
    maps::SLOTS,
    nat::{self, Hop},
    packet::{Opens, Packet},
    parse::{ETHERNET_LEN, Fragment, Headers},
    tunnel,
    work::{Balanced, Work},
};

/// What [`known`] says of a packet that belongs to no connection: no verdict's code.
pub const UNKNOWN: u32 = u32::MAX;

/// Decides about a packet, does it and counts it.
///
/// The steps are BPF functions beside each other and not one inside the other: the stacks of functions that call
/// each other must fit 512 bytes together, each rounded up to 32 (Linux 6.1).
#[inline(always)]
pub fn balance<F: Balanced, P: Opens<F>>(packet: &mut P, work: &mut Work<F>, hook: Hook) -> Verdict {
    if P::HANDS_ON && !concern::xdp(work.headers.flow.tuple.dst_port) {
        return Verdict::NotOurs;
    }
    if !P::HANDS_ON && work.is_tunnelled == 0 && !concern::tc(&work.headers, hook) {
        count_verdict(Verdict::NotOurs, packet.len());
        return Verdict::NotOurs;
    }
    let bytes = packet.counted_len(work.headers.l3 as u32 + work.headers.ip_len);
    let ifindex = packet.ifindex();
    let mut code = UNKNOWN;
    if P::HANDS_ON && globals::has_stateless() {
        code = stateless(packet, work);
    }
    if code == UNKNOWN {
        code = known(packet, work, hook);
    }
    if code == UNKNOWN {
        code = packet.open(hook as u32);
    }
    if code == Verdict::TtlExceeded as u32 || code == Verdict::TooBig as u32 {
        code = packet.complain(hook as u32, code);
    }
    let verdict = match Verdict::from_code(code) {
        Some(verdict) => verdict,
        None => Verdict::NotOurs,
    };
    if matches!(verdict, Verdict::NotOurs | Verdict::HandedOn) {
        // What goes on to tc as it came is tc's to count.
        if !P::HANDS_ON || verdict == Verdict::HandedOn {
            count_verdict(verdict, bytes);
        }
    } else {
        let (outcome, seen) =
            (work.opening.outcome(verdict), Seen { flow: &work.headers.flow, bytes, ifindex });
        if P::HANDS_ON { count(outcome, &seen) } else { count_apart(outcome, &seen) }
    }
    verdict
}

/// Sends a packet to the node that its flow finds in a Maglev table, whatever connections there are; the verdict's code,
/// or [`UNKNOWN`] if it needs a connection: towards a backend of this node, or of a node that nobody knows, and where
/// fragments have to find their ports.
#[inline(never)]
fn stateless<F: Balanced, P: Packet>(packet: &mut P, work: &mut Work<F>) -> u32 {
    frontend::dial(&work.headers, &mut work.dialled);
    let Some(frontend) = frontend::lookup(&work.dialled) else { return UNKNOWN };
    let Work { headers, way, opening, answer, .. } = work;
    let run = frontend.external;
    if !frontend.flags.has(FrontendFlags::STATELESS)
        || run.count == 0
        || headers.fragment != Fragment::Whole
        || headers.l3 != ETHERNET_LEN
    {
        return UNKNOWN;
    }
    let Some(&id) = SLOTS.get(maglev::slot(run, FrontendFlags::MAGLEV, headers.flow.hash(0), 0)) else {
        return UNKNOWN;
    };
    // SAFETY: the agent replaces values whole; read within this run.
    let Some(backend) = (unsafe { F::backends().get(BackendId(id)) }) else { return UNKNOWN };
    if backend.flags.has(BackendFlags::LOCAL) || backend.node.is_unspecified() {
        return UNKNOWN;
    }
    opening.service_port = frontend.service_port;
    opening.backend = BackendId(id);
    // The way depends on the node alone: whose address the header gets is known when the way is.
    opening.to = Tuple { dst: backend.node, ..Tuple::default() };
    let verdict =
        match routed(packet, headers, (&opening.to, Coarse::from_ns(now_ns())), F::HEADER_LEN as u16, way) {
            // A device that answers by itself has its address in the way; another is asked for.
            Ok(Route::Via) if !(way.starts_at(packet) || concern::is_addressed(packet)) => Verdict::NotOurs,
            Ok(Route::Via) if way.node.is_unspecified() => Verdict::SnatAddress,
            Ok(Route::Via) => {
                opening.to.src = way.node;
                tunnel::send(packet, headers, &opening.to, way, answer)
            }
            Ok(Route::Local) => return UNKNOWN,
            Err(reason) => reason,
        };
    if verdict == Verdict::Tunnelled && headers.tcp_flags.opens() {
        count_connection(opening.service_port, opening.backend);
    }
    verdict as u32
}

/// Does what a packet's connection says; the verdict's code, or [`UNKNOWN`].
///
/// A BPF function of its own, so that whatever way of parsing led here, the verifier sees the same registers: the
/// headers come from memory it knows nothing about.
#[inline(never)]
fn known<F: Balanced, P: Packet>(packet: &mut P, work: &mut Work<F>, hook: Hook) -> u32 {
    work.opening.reset();
    if let Some(entry) = conntrack::lookup(&work.headers.flow) {
        let code = applied::<F, P, true>(packet, work, entry, hook);
        if code != UNKNOWN {
            return code;
        }
    }
    if hook == Hook::WorkloadEgress && !flood::is_recent() { Verdict::NotOurs as u32 } else { UNKNOWN }
}

/// Does what the entry of a packet's flow says; the verdict's code, or [`UNKNOWN`] if it says nothing any more. `HERE`: the way
/// that most packets take, where a hook that is to be fast rewrites in line.
#[inline(always)]
pub fn applied<F: Balanced, P: Packet, const HERE: bool>(
    packet: &mut P,
    work: &mut Work<F>,
    entry: &mut ConnectionValue<F>,
    hook: Hook,
) -> u32 {
    if !belongs(entry, hook) {
        return Verdict::NotOurs as u32;
    }
    // What came in a tunnel goes into no other: two nodes could send it to each other for ever.
    if work.is_tunnelled != 0 && entry.flags.has(ConnectionFlags::TUNNEL) {
        return UNKNOWN;
    }
    let headers = &work.headers;
    let holds = if entry.flags.has(ConnectionFlags::REPLY) {
        entry.note(headers.flow.protocol, headers.tcp_flags, Coarse::from_ns(now_ns()));
        true
    } else {
        conntrack::holds(entry, headers)
    };
    if !holds {
        return UNKNOWN;
    }
    work.opening.service_port = entry.service_port;
    work.opening.backend = entry.backend;
    continued::<F, P, HERE>(packet, work, entry, hook) as u32
}

/// True if an entry is applied at `hook`.
#[inline(always)]
pub fn belongs<F: Balanced>(entry: &ConnectionValue<F>, hook: Hook) -> bool {
    let flags = entry.flags;
    let reply = flags.has(ConnectionFlags::REPLY);
    if flags.has(ConnectionFlags::FORWARDED) {
        hook.is_ingress()
    } else if flags.has(ConnectionFlags::HOST) {
        reply == hook.is_ingress()
    } else {
        reply != hook.is_ingress()
    }
}

/// Translates a packet of a known connection.
#[inline(always)]
fn continued<F: Balanced, P: Packet, const HERE: bool>(
    packet: &mut P,
    work: &mut Work<F>,
    entry: &mut ConnectionValue<F>,
    hook: Hook,
) -> Verdict {
    let verdict = if entry.flags.has(ConnectionFlags::TUNNEL) {
        tunnelled(packet, work, entry)
    } else if entry.flags.has(ConnectionFlags::HOST) && hook == Hook::WorkloadIngress {
        received(packet, &work.headers, &entry.to, &mut work.way)
    } else {
        rewritten::<F, P, HERE>(packet, work, entry)
    };
    let headers = &work.headers;
    if headers.fragment == Fragment::First {
        remember_fragment(headers);
    }
    verdict
}

/// Rewrites, and sends on or leaves the rest to the stack.
#[inline(always)]
fn rewritten<F: Balanced, P: Packet, const HERE: bool>(
    packet: &mut P,
    work: &mut Work<F>,
    entry: &ConnectionValue<F>,
) -> Verdict {
    let Work { headers, way, .. } = work;
    let mut route = Route::Local;
    if is_sent_on(entry.flags) {
        route = match routed(packet, headers, (&entry.to, entry.last_seen), 0, way) {
            Ok(route) => route,
            Err(reason) => return reason,
        };
    }
    let hop = if route == Route::Via { Hop::Yes } else { Hop::No };
    if hop == Hop::Yes && headers.ttl <= 1 {
        return ttl_exceeded::<P>();
    }
    let rewritten = if P::HANDS_ON && HERE {
        nat::rewrite_here(packet, headers, &entry.to, hop)
    } else {
        nat::rewrite(packet, headers, &entry.to, hop)
    };
    match rewritten {
        Ok(()) if hop == Hop::Yes => forward::send(packet, headers.l3, way),
        Ok(()) => Verdict::Translated,
        Err(_) => Verdict::RewriteFailed,
    }
}

/// True if the program itself sends on what it translates: packets of forwarded connections, and those of the node's own
/// processes on their way out.
#[inline(always)]
pub const fn is_sent_on(flags: ConnectionFlags) -> bool {
    flags.has(ConnectionFlags::FORWARDED)
        || (flags.has(ConnectionFlags::HOST) && !flags.has(ConnectionFlags::REPLY))
}

/// Rewrites and leaves the rest to the stack.
#[inline(always)]
pub fn translated<F: Balanced, P: Packet>(packet: &mut P, headers: &Headers<F>, to: &Tuple<F>) -> Verdict {
    match nat::rewrite(packet, headers, to, Hop::No) {
        Ok(()) => Verdict::Translated,
        Err(_) => Verdict::RewriteFailed,
    }
}

/// Wraps and sends on.
#[inline(always)]
fn tunnelled<F: Balanced, P: Packet>(
    packet: &mut P,
    work: &mut Work<F>,
    entry: &ConnectionValue<F>,
) -> Verdict {
    let Work { headers, way, answer, .. } = work;
    if P::HANDS_ON && headers.l3 != ETHERNET_LEN {
        return Verdict::HandedOn;
    }
    match routed(packet, headers, (&entry.to, entry.last_seen), F::HEADER_LEN as u16, way) {
        Ok(Route::Via) => tunnel::send(packet, headers, &entry.to, way, answer),
        Ok(Route::Local) => Verdict::NoRoute,
        Err(reason) => reason,
    }
}

/// The verdict about a packet that may take no further hop.
#[inline(always)]
const fn ttl_exceeded<P: Packet>() -> Verdict {
    if P::HANDS_ON { Verdict::HandedOn } else { Verdict::TtlExceeded }
}

/// The way, at `now`, of a packet that becomes `to`, with `added` bytes. The routing table is asked once a second and not for each
/// packet. tc then sends by a neighbour that the kernel finds, who is thereby known to be in use (RFC 4861, 7.3); for XDP
/// tc has to do that now and then.
#[inline(always)]
fn routed<F: Balanced, P: Packet>(
    packet: &P,
    headers: &Headers<F>,
    (to, now): (&Tuple<F>, Coarse),
    added: u16,
    way: &mut Way<F>,
) -> Result<Route, DropReason> {
    let from = packet.ifindex();
    let remembers = P::HANDS_ON || (way.comes_in != 0 && headers.l3 >= ETHERNET_LEN);
    let mut hop = if remembers { forward::remembered(to) } else { None };
    let is_ours =
        |hop: &&mut &mut NextHopValue<F>| hop.is_of(to, from) && (hop.manner == Manner::PLAIN) == P::HANDS_ON;
    if let Some(hop) = hop.as_mut().filter(is_ours) {
        if hop.holds(now, headers.ip_len + added as u32) {
            way.follow(hop);
            return Ok(Route::Via);
        }
        if P::HANDS_ON && hop.is_to_be_probed(now) {
            hop.asked = now;
            return Err(Verdict::HandedOn);
        }
    }
    let route = forward::route_added(packet, to, forward::wire_len(packet, headers), added, way)?;
    if let Some(hop) = hop.filter(|_| route == Route::Via && way.may_be_remembered::<P>()) {
        way.remember(hop, to, from, now);
    }
    Ok(route)
}

/// Rewrites and sends on by a known way.
#[inline(always)]
pub fn sent<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    way: &mut Way<F>,
) -> Verdict {
    if headers.ttl <= 1 {
        return ttl_exceeded::<P>();
    }
    match nat::rewrite(packet, headers, to, Hop::Yes) {
        Ok(()) => forward::send(packet, headers.l3, way),
        Err(_) => Verdict::RewriteFailed,
    }
}

/// Rewrites a pod's answer to a process of the node and lets it come in by the device towards the VIP: on the pod's
/// own device a packet from the VIP would fail reverse path filtering (RFC 3704).
#[inline(always)]
fn received<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    way: &mut Way<F>,
) -> Verdict {
    if forward::route(packet, &to.reversed(), 0, way) != Ok(Route::Via) {
        return translated(packet, headers, to);
    }
    if nat::rewrite(packet, headers, to, Hop::No).is_err() {
        return Verdict::RewriteFailed;
    }
    let addressed = headers.l3 < ETHERNET_LEN || packet.write(0, way.device_mac()).is_ok();
    match addressed && packet.receive(way.ifindex()).is_ok() {
        true => Verdict::Redirected,
        false => Verdict::RewriteFailed,
    }
}

/// Lets the later fragments of a datagram find its ports.
#[inline(never)]
pub fn remember_fragment<F: Balanced>(headers: &Headers<F>) {
    if headers.fragment == Fragment::First {
        let ports =
            FragmentValue { src_port: headers.flow.tuple.src_port, dst_port: headers.flow.tuple.dst_port };
        // Without room the later fragments pass untranslated and the datagram is lost, as any may be.
        let _ = F::fragments().insert(headers.fragment_key(), ports, 0);
    }
}

/// Tells a packet's sender why it was not sent on; the verdict's code. The packet is as it came, its headers stand in
/// the scratch memory, and beside them, for [`Verdict::TooBig`], the way that was too narrow.
#[inline(always)]
pub fn complain<F: Balanced, P: Packet>(packet: &mut P, hook: u32, code: u32) -> u32 {
    let (Some(work), Some(hook)) = (Work::<F>::new(), Hook::from_code(hook)) else {
        return Verdict::RefusalFailed as u32;
    };
    let verdict = if code == Verdict::TooBig as u32 { Verdict::TooBig } else { Verdict::TtlExceeded };
    let why = (verdict, work.way.mtu(), hook.back());
    icmp_error::complain(packet, &work.headers, &mut work.answer, why) as u32
}
