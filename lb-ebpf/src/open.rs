//! Opens connections: what becomes of a packet that no connection knows. A frontend and a backend are found for it, both
//! directions are recorded, and it goes the way that those after it will go; or it is refused, or none of ours.

use lb_common::{
    affinity::ClientKind,
    backend::{BackendFlags, MemberSets},
    conntrack::{Coarse, ConnectionFlags},
    device::NodeAddressKey,
    family::Address as _,
    flow::Tuple,
    frontend::{Empty, FrontendFlags, FrontendKind, FrontendValue, Run},
    kind::Kind,
    verdict::{DropReason, Verdict},
};

use crate::{
    backend::{self, Choice, Chosen},
    balance::{UNKNOWN, applied, remember_fragment, sent, translated},
    client::{self, Source},
    concern,
    conntrack::{self, Opening},
    counters::count_connection,
    flood,
    forward::{self, Route, Way},
    frontend,
    globals::{forwards_pods, now_ns, random},
    hook::Hook,
    host_socket, kinds,
    packet::{Opens, Packet},
    parse::{ETHERNET_LEN, Headers},
    proof, reject, service_cidr, tunnel, vip,
    work::{Balanced, Work},
};

/// Opens a connection for the packet whose headers stand in the scratch memory, or refuses to, unless its flow is one of a
/// flood and known as such; the verdict's code.
///
/// Runs as a global BPF function: the verifier checks it once by itself and not once more for every way of parsing
/// that leads here, and the rare way gets a stack frame of its own.
#[inline(always)]
pub fn open<F: Balanced, P: Opens<F>>(packet: &mut P, hook: u32) -> u32 {
    let (Some(work), Some(hook)) = (Work::<F>::new(), Hook::from_code(hook)) else {
        return Verdict::NotOurs as u32;
    };
    packet.pull();
    if flood::is_recent() {
        let code = flooded(packet, work, hook);
        if code != UNKNOWN {
            return code;
        }
    }
    if hook == Hook::WorkloadEgress || (P::HANDS_ON && !concern::is_addressed(packet)) {
        return Verdict::NotOurs as u32;
    }
    opened(packet, work, hook) as u32
}

/// [`known`] of a flow that is one of a flood.
#[inline(never)]
fn flooded<F: Balanced, P: Packet>(packet: &mut P, work: &mut Work<F>, hook: Hook) -> u32 {
    match proof::find(&mut work.opening, &work.headers) {
        Some(entry) => applied::<F, P, false>(packet, work, entry, hook),
        None => UNKNOWN,
    }
}

/// Opens a connection if there is a frontend to it.
#[inline(always)]
fn opened<F: Balanced, P: Opens<F>>(packet: &mut P, work: &mut Work<F>, hook: Hook) -> Verdict {
    let headers = &work.headers;
    if work.is_tunnelled == 0 {
        frontend::dial(headers, &mut work.dialled);
    }
    let Some(frontend) = frontend::lookup(&work.dialled) else {
        return unknown(packet, work, hook);
    };
    if frontend.flags.has(FrontendFlags::HOST_ONLY)
        || (hook == Hook::UplinkEgress && !is_node_address::<F>(&headers.flow.tuple.src))
    {
        return Verdict::NotOurs;
    }
    if hook.is_ingress() && answers_node(packet, headers, frontend) {
        return Verdict::NotOurs;
    }
    work.opening.service_port = frontend.service_port;
    if !frontend::allows::<F>(frontend, &headers.flow.tuple.src) {
        return Verdict::SourceRange;
    }
    let scope = client::scope::<F, P>(packet, &headers.flow.tuple.src, hook);
    let (run, set, empty, source) = if work.is_tunnelled == 0 {
        let source = client::source(scope, frontend, hook);
        (frontend.run(scope), frontend.member_set(scope), frontend.when_empty(scope), source)
    } else {
        // The node that sent it here knows of a backend that has just gone, or is not yet known here.
        (frontend.own, MemberSets::LOCAL, Empty::Drop, Source::KeptHere)
    };
    ask(&work.headers, run, set, &mut work.choice);
    if flood::begins() {
        work.opening.in_flood = true;
        work.choice.random = work.choice.flow_hash;
        work.choice.binds = false;
    }
    if !backend::choose(frontend, &work.choice, &mut work.chosen) {
        return unserved(packet, work, empty, hook);
    }
    match connected(packet, work, source, hook) {
        Ok(verdict) => {
            remember_fragment(&work.headers);
            verdict
        }
        Err(reason) => reason,
    }
}

/// Notes who asks for a backend, and with which luck.
#[inline(never)]
fn ask<F: Balanced>(headers: &Headers<F>, run: Run, set: MemberSets, choice: &mut Choice<F>) {
    *choice = Choice {
        run,
        set,
        client: F::client_from_addr(headers.flow.tuple.src),
        client_kind: ClientKind::ADDRESS,
        flow_hash: headers.flow.hash(0),
        random: random(),
        binds: true,
    };
}

/// What becomes of a packet that no connection and no frontend knows: to a VIP, or in a service CIDR, it is refused. Of
/// what leaves by an uplink that concerns the node's own packets only.
#[inline(always)]
fn unknown<F: Balanced, P: Opens<F>>(packet: &mut P, work: &mut Work<F>, hook: Hook) -> Verdict {
    if hook.is_ingress() && conntrack::is_taken(&mut work.opening, &work.headers) {
        return beside(packet, work);
    }
    let tuple = &work.headers.flow.tuple;
    if !(service_cidr::contains::<F>(&tuple.dst) || vip::is_ours::<F>(&tuple.dst))
        || (hook == Hook::UplinkEgress && !is_node_address::<F>(&tuple.src))
    {
        return Verdict::NotOurs;
    }
    unserved(packet, work, Empty::Refuse, hook)
}

/// Lets a client talk to a backend directly from a port from which it talks to it through a frontend: the answers of the
/// two could not be told apart, so this flow takes another source port, as netfilter has it do.
#[inline(always)]
fn beside<F: Balanced, P: Opens<F>>(packet: &mut P, work: &mut Work<F>) -> Verdict {
    work.opening.to = work.headers.flow.tuple;
    work.opening.flags = ConnectionFlags(0);
    kinds::note_kind(Kind::Beside, Coarse::from_ns(now_ns()));
    match recorded(packet, work) {
        Ok(()) => translated(packet, &work.headers, &work.opening.to),
        Err(reason) => reason,
    }
}

/// What [`record`] says when it has: no verdict's code.
const RECORDED: u32 = u32::MAX;

/// Records the connection being opened in the scratch memory; [`RECORDED`], or the code of the reason why not.
///
/// Runs as a global BPF function: the verifier walks the search for a port once, and not once for every way of opening.
#[inline(always)]
pub fn record<F: Balanced, P: Opens<F>>(packet: &mut P) -> u32 {
    let Some(work) = Work::<F>::new() else { return Verdict::SnatPorts as u32 };
    let claims = |opening: &mut Opening<F>, how| {
        // As in `recorded`.
        core::hint::black_box(opening);
        packet.claim(how as u32) != 0
    };
    match conntrack::record(&mut work.opening, &work.headers, claims) {
        Ok(()) => RECORDED,
        Err(reason) => reason as u32,
    }
}

/// Takes the reply 5-tuple of the connection being opened in the scratch memory, as [`Claim`]'s code says; 1 if it could.
///
/// Runs as a global BPF function, or the verifier would walk it anew for every port that is tried.
#[inline(always)]
pub fn claim<F: Balanced, P: Packet>(packet: &mut P, how: u32) -> u32 {
    let Some(work) = Work::<F>::new() else { return 0 };
    conntrack::claim(packet.context(), &mut work.opening, how) as u32
}

/// Has [`record`] record it.
#[inline(always)]
fn recorded<F: Balanced, P: Opens<F>>(packet: &mut P, work: &mut Work<F>) -> Result<(), DropReason> {
    // The function finds the same memory by itself: the compiler must not think that `work` alone leads there.
    core::hint::black_box(&mut *work);
    match packet.record() {
        RECORDED => Ok(()),
        code => Err(Verdict::from_code(code).unwrap_or(Verdict::SnatPorts)),
    }
}

/// True if a packet that dials a frontend on an address of this node answers a process of the node instead.
#[inline(always)]
fn answers_node<F: Balanced, P: Packet>(packet: &P, headers: &Headers<F>, frontend: &FrontendValue) -> bool {
    let tuple = &headers.flow.tuple;
    frontend.kind != FrontendKind::CLUSTER_IP
        && is_node_address::<F>(&tuple.dst)
        && host_socket::is_peer(packet, tuple, headers.flow.protocol, headers.tcp_flags)
}

/// True if `addr` is this node's own. Like all questions about whole addresses a BPF function of its own: the copy it asks
/// with takes none of its caller's stack.
#[inline(never)]
fn is_node_address<F: Balanced>(addr: &F::Addr) -> bool {
    // SAFETY: only asked whether it exists.
    unsafe { F::node_addresses().get(NodeAddressKey { addr: *addr }) }.is_some()
}

/// The answer to a client that nobody serves.
#[inline(always)]
fn unserved<F: Balanced, P: Packet>(packet: &mut P, work: &mut Work<F>, empty: Empty, hook: Hook) -> Verdict {
    if empty == Empty::Drop {
        return Verdict::PolicyLocal;
    }
    if P::HANDS_ON {
        return Verdict::HandedOn;
    }
    reject::refuse(packet, &work.headers, &mut work.answer, hook.back())
}

/// Records a connection to the chosen backend and translates, or wraps, its first packet.
#[inline(always)]
fn connected<F: Balanced, P: Opens<F>>(
    packet: &mut P,
    work: &mut Work<F>,
    source: Source,
    hook: Hook,
) -> Result<Verdict, DropReason> {
    let Work { headers, way, chosen, opening, .. } = &mut *work;
    let source = match source {
        Source::KeptThere if !has_tunnel(chosen) => Source::KeptHere,
        // XDP sees a VLAN tag that the device takes off before tc; one that stays keeps the packet out of tunnels.
        Source::KeptThere if headers.l3 > ETHERNET_LEN && P::HANDS_ON => return Err(Verdict::HandedOn),
        Source::KeptThere if headers.l3 > ETHERNET_LEN => Source::KeptHere,
        source => source,
    };
    aim(headers, chosen, source, opening);
    let len = forward::wire_len(packet, headers);
    opening.flags = flags(packet, (&opening.to, len, chosen, source), hook, way)?;
    if opening.flags.has(ConnectionFlags::SNAT) || opening.flags.has(ConnectionFlags::TUNNEL) {
        send_from_node(way, &mut opening.to)?;
    }
    recorded(packet, work)?;
    let Work { headers, way, chosen, opening, answer, .. } = work;
    count_connection(opening.service_port, chosen.id);
    Ok(if opening.flags.has(ConnectionFlags::TUNNEL) {
        tunnel::send(packet, headers, &opening.to, way, answer)
    } else if opening.flags == ConnectionFlags(0) {
        translated(packet, headers, &opening.to)
    } else {
        sent(packet, headers, &opening.to, way)
    })
}

/// True if a backend is on another node whose address is known.
#[inline(never)]
fn has_tunnel<F: Balanced>(chosen: &Chosen<F>) -> bool {
    !chosen.value.flags.has(BackendFlags::LOCAL) && !chosen.value.node.is_unspecified()
}

/// Lets a connection go to the chosen backend, or to its node.
#[inline(never)]
fn aim<F: Balanced>(headers: &Headers<F>, chosen: &Chosen<F>, source: Source, opening: &mut Opening<F>) {
    opening.to = headers.flow.tuple;
    opening.backend = chosen.id;
    if source == Source::KeptThere {
        opening.to.dst = chosen.value.node;
    } else {
        opening.to.dst = chosen.value.addr;
        opening.to.dst_port = chosen.value.port;
    }
}

/// Gives a packet that leaves by `way` the source of this node's packets there.
#[inline(never)]
fn send_from_node<F: Balanced>(way: &Way<F>, to: &mut Tuple<F>) -> Result<(), DropReason> {
    let Some(device) = way.device() else { return Err(Verdict::SnatAddress) };
    to.src = F::snat_address(device);
    if to.src.is_unspecified() { Err(Verdict::SnatAddress) } else { Ok(()) }
}

/// True if a client is its own backend.
#[inline(never)]
fn is_hairpin<F: Balanced>(to: &Tuple<F>) -> bool {
    to.dst == to.src
}

/// How a connection's packets travel to `chosen`, and if not by the stack, the way.
///
/// The program sends on what gets a node address (SNAT), what goes in a tunnel, what the node's own processes sent
/// (HOST), and if it was told to what pods dial (FORWARDED). A backend that is the node itself sees the client whatever
/// was asked for: the stack takes no packet from its own address (spec 4.27).
#[inline(always)]
fn flags<F: Balanced, P: Packet>(
    packet: &P,
    (to, len, chosen, source): (&Tuple<F>, u16, &Chosen<F>, Source),
    hook: Hook,
    way: &mut Way<F>,
) -> Result<ConnectionFlags, DropReason> {
    let by_stack = match source {
        _ if hook == Hook::UplinkEgress => false,
        Source::Kept => !(is_hairpin(to) || forwards_pods() && hook == Hook::WorkloadIngress),
        Source::KeptHere => chosen.value.flags.has(BackendFlags::LOCAL),
        Source::KeptThere | Source::Replaced => false,
    };
    let added = if source == Source::KeptThere { F::HEADER_LEN as u16 } else { 0 };
    if by_stack || forward::route_added(packet, to, len, added, way)? == Route::Local {
        // Nobody wraps a packet for itself.
        return if source == Source::KeptThere { Err(Verdict::NoRoute) } else { Ok(ConnectionFlags(0)) };
    }
    Ok(match source {
        _ if hook == Hook::UplinkEgress => ConnectionFlags::HOST,
        Source::KeptThere => ConnectionFlags::TUNNEL,
        Source::KeptHere if way.leads_to_workload() => ConnectionFlags(0),
        Source::Kept if forwards_pods() && !is_hairpin(to) => ConnectionFlags::FORWARDED,
        _ => ConnectionFlags::SNAT,
    })
}
