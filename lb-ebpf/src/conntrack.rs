//! Reads and writes of `CONNECTIONS` around `lb_common::conntrack`'s rules.

use core::ffi::c_void;

use lb_common::{
    conntrack::{Coarse, ConnectionFlags, ConnectionValue, Membership, Phase, Reuse, reuse},
    family::{Address as _, Be16},
    flow::{FlowKey, Tuple, slot_index},
    id::{BackendId, ServicePortId},
    limits,
    verdict::{DropReason, Verdict},
};

use crate::{
    backend,
    counters::Outcome,
    flood,
    globals::{now_ns, random, snat_ports},
    host_socket, kinds,
    maps::{FamilyMaps, GENERATIONS},
    parse::Headers,
};

/// `BPF_NOEXIST`: insert only where nothing is.
pub const NOEXIST: u64 = 1;
/// `BPF_ANY`: insert or replace.
const ANY: u64 = 0;

/// The entry of `flow`.
#[inline(always)]
pub fn lookup<F: FamilyMaps>(flow: &FlowKey<F>) -> Option<&'static mut ConnectionValue<F>> {
    let entry = F::connections().get_ptr_mut(flow)?;
    // SAFETY: a map value stays readable and writable for this run of the program. Other CPUs may write its plain
    // integer fields at the same time: the last one wins, which is as good.
    Some(unsafe { &mut *entry })
}

/// Generation of a service port's membership.
#[inline(always)]
pub fn generation(service_port: ServicePortId) -> u32 {
    GENERATIONS.get(service_port.0).copied().unwrap_or(0)
}

/// Whether a client → backend entry still holds for a packet; renews its generation when it does.
#[inline(always)]
pub fn holds<F: FamilyMaps>(entry: &mut ConnectionValue<F>, headers: &Headers<F>) -> bool {
    let generation = generation(entry.service_port);
    let membership = if entry.generation == generation || backend::serves(entry.service_port, entry.backend) {
        Membership::Serves
    } else {
        Membership::Gone
    };
    let now = Coarse::from_ns(now_ns());
    if reuse(entry, headers.flow.protocol, headers.tcp_flags, now, membership) == Reuse::Reselect {
        return false;
    }
    if membership == Membership::Serves && entry.generation != generation {
        entry.generation = generation;
    }
    entry.note(headers.flow.protocol, headers.tcp_flags, now);
    true
}

/// A connection about to be recorded, with the memory to do it in.
#[repr(C)]
pub struct Opening<F: FamilyMaps> {
    /// The client's packet → backend; its source port may yet change.
    pub to: Tuple<F>,
    /// What was dialled.
    pub service_port: ServicePortId,
    /// Who serves.
    pub backend: BackendId,
    /// How it is translated (without [`ConnectionFlags::REPLY`]).
    pub flags: ConnectionFlags,
    /// One of a flood: to be recorded in `FLOOD`.
    pub in_flood: bool,
    /// Room for a key.
    pub key: FlowKey<F>,
    /// Room for an entry.
    pub entry: ConnectionValue<F>,
}

impl<F: FamilyMaps> Opening<F> {
    /// Nothing found yet.
    #[inline(always)]
    pub fn reset(&mut self) {
        self.service_port = ServicePortId::NONE;
        self.backend = BackendId::NONE;
        self.in_flood = false;
    }

    /// `verdict` with what was found.
    #[inline(always)]
    pub fn outcome(&self, verdict: Verdict) -> Outcome {
        Outcome { verdict, service_port: self.service_port, backend: self.backend }
    }
}

/// Records both directions of the flow that a packet with `headers` opens; `opening.to` then is what the packet becomes.
/// `claims` is [`claim`]. Of a flow that goes on in a tunnel only the one direction passes here.
///
/// The reply entry decides who owns a backend-side 5-tuple: it is inserted only where nothing is. Two VIPs with one
/// backend dialled from one client port, or two clients translated to one node address, would share it; the later
/// one then takes another source port.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, key and value would be copied to the stack first"
)]
#[inline(always)]
pub fn record<F: FamilyMaps>(
    opening: &mut Opening<F>,
    headers: &Headers<F>,
    mut claims: impl FnMut(&mut Opening<F>, Claim) -> bool,
) -> Result<(), DropReason> {
    let entry = &mut opening.entry;
    entry.to.reverse_of(&headers.flow.tuple);
    entry.service_port = opening.service_port;
    entry.backend = opening.backend;
    entry.generation = generation(opening.service_port);
    entry.last_seen = Coarse::from_ns(now_ns());
    kinds::note(opening.flags, entry.last_seen);
    entry.flags = opening.flags.with(ConnectionFlags::REPLY);
    entry.phase = Phase::OPENING;
    entry._pad = [0; 2];
    opening.key.tuple.reverse_of(&opening.to);
    opening.key.protocol = headers.flow.protocol;
    opening.key._pad = [0; 3];
    if !opening.flags.has(ConnectionFlags::TUNNEL) {
        let keeps_port = !opening.flags.has(ConnectionFlags::SNAT) && claims(opening, Claim::Kept);
        if !keeps_port && !find_port(opening, claims) {
            return Err(Verdict::SnatPorts);
        }
        opening.to.src_port = opening.key.tuple.dst_port;
    }
    opening.entry.to = opening.to;
    opening.entry.flags = opening.flags;
    if headers.flow.protocol.has_handshake() {
        opening.entry.phase = Phase::OPENING.after(headers.tcp_flags);
    }
    // Without the entry the next packet chooses anew; LRU maps have room.
    let _ = if opening.in_flood {
        flood::recorded(opening.entry.last_seen);
        F::flood().insert(&headers.flow, &opening.entry, ANY)
    } else {
        F::connections().insert(&headers.flow, &opening.entry, ANY)
    };
    Ok(())
}

/// True if the answers to the flow that `headers` open would be taken for those of a connection: the client dialled a
/// frontend from this port before, and got the backend that it dials by itself here.
///
/// The connection's own packets look the same where they are seen once more, behind XDP or on a VLAN device: those have
/// noted that they passed.
#[inline(always)]
pub fn is_taken<F: FamilyMaps>(opening: &mut Opening<F>, headers: &Headers<F>) -> bool {
    let protocol = headers.flow.protocol;
    if protocol.has_handshake() && !headers.tcp_flags.opens() {
        return false;
    }
    opening.key.tuple.reverse_of(&headers.flow.tuple);
    opening.key.protocol = protocol;
    opening.key._pad = [0; 3];
    let Some(owner) = lookup(&opening.key) else { return false };
    if !owner.flags.has(ConnectionFlags::REPLY) {
        return false;
    }
    opening.key.tuple.reverse_of(&owner.to);
    lookup(&opening.key).is_none_or(|client| client.last_seen.0 + 1 < Coarse::from_ns(now_ns()).0)
}

/// 2^32 divided by the golden ratio: multiples of it are spread evenly (Knuth, The Art of Computer Programming, 6.4).
const GOLDEN_RATIO: u32 = 0x9e37_79b9;

/// Finds a source port whose reply 5-tuple is free and takes it: a random one, else some far from it. No port follows
/// from another by a branch, or the verifier would walk every sequence of them.
#[inline(always)]
fn find_port<F: FamilyMaps>(
    opening: &mut Opening<F>,
    mut claims: impl FnMut(&mut Opening<F>, Claim) -> bool,
) -> bool {
    let (min, count) = snat_ports();
    let mut luck = random();
    let mut attempt = 0;
    while attempt < limits::SNAT_TRIES {
        opening.key.tuple.dst_port = Be16::new((min + slot_index(luck, count)) as u16);
        let how = if attempt < limits::FLOOD_TRIES { Claim::Free } else { Claim::Unproved };
        if claims(opening, how) {
            return true;
        }
        luck = luck.wrapping_add(GOLDEN_RATIO);
        attempt += 1;
    }
    false
}

/// Which reply 5-tuples a connection may take.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Claim {
    /// Those that are free, its own, or a dead connection's.
    Kept = 0,
    /// The same with a port that was chosen for it: where the source is an address of the node, no socket of the node and
    /// no flow that its netfilter masquerades may wait for the answers, or it would lose its own.
    Free = 1,
    /// One flow of a flood also those of others that have proved nothing.
    Unproved = 2,
}

/// Takes the reply 5-tuple of `opening` as `how`, a [`Claim`]'s code, allows, at the hook of `context`. A flow of a flood whose 5-tuple is in `CONNECTIONS` already is recorded there.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, key and value would be copied to the stack first"
)]
#[inline(always)]
pub fn claim<F: FamilyMaps>(context: *mut c_void, opening: &mut Opening<F>, how: u32) -> bool {
    let from_node = opening.flags.has(ConnectionFlags::SNAT) || opening.flags.has(ConnectionFlags::HOST);
    if how != Claim::Kept as u32 && from_node && is_hosts(context, &opening.key) {
        return false;
    }
    let how = if how == Claim::Unproved as u32 { Claim::Unproved } else { Claim::Free };
    if !opening.in_flood {
        if flood::is_recent()
            && let Some(owner) = flood::lookup(&opening.key)
            && !is_free(owner, opening)
        {
            return false;
        }
        return F::connections().insert(&opening.key, &opening.entry, NOEXIST).is_ok()
            || lookup(&opening.key).is_some_and(|owner| take(owner, opening, Claim::Free));
    }
    if let Some(owner) = lookup(&opening.key) {
        opening.in_flood = !take(owner, opening, Claim::Free);
        return !opening.in_flood;
    }
    F::flood().insert(&opening.key, &opening.entry, NOEXIST).is_ok()
        || flood::lookup(&opening.key).is_some_and(|owner| take(owner, opening, how))
}

/// True if the host waits for the answers of `flow`, which lies in map memory: one of its sockets, or a flow that its
/// netfilter masquerades.
#[inline(always)]
fn is_hosts<F: FamilyMaps>(context: *mut c_void, flow: &FlowKey<F>) -> bool {
    F::host_flows().get_ptr(flow).is_some() || host_socket::waits_for(context, flow)
}

/// True if the owner of a reply 5-tuple is the connection being opened, or dead.
#[inline(always)]
fn is_free<F: FamilyMaps>(owner: &ConnectionValue<F>, opening: &Opening<F>) -> bool {
    // One condition without branches of its own: the verifier walks every branch of the loop this is called from.
    let ours = same(&owner.to, &opening.entry.to) & (owner.flags == opening.entry.flags);
    ours | owner.is_expired(opening.key.protocol, opening.entry.last_seen)
}

/// Gives the entry of a reply 5-tuple to the connection being opened, if that may take it.
#[inline(always)]
fn take<F: FamilyMaps>(owner: &mut ConnectionValue<F>, opening: &Opening<F>, how: Claim) -> bool {
    if !is_free(owner, opening) && how == Claim::Free {
        return false;
    }
    owner.to = opening.entry.to;
    owner.flags = opening.entry.flags;
    owner.service_port = opening.entry.service_port;
    owner.backend = opening.entry.backend;
    owner.generation = opening.entry.generation;
    owner.last_seen = opening.entry.last_seen;
    owner.phase = opening.entry.phase;
    true
}

/// True if two tuples are equal, without a branch.
#[inline(always)]
fn same<F: FamilyMaps>(a: &Tuple<F>, b: &Tuple<F>) -> bool {
    let mut difference = (a.src_port.get() ^ b.src_port.get()) as u32;
    difference |= (a.dst_port.get() ^ b.dst_port.get()) as u32;
    let mut index = 0;
    while index < F::Addr::WORDS {
        difference |= a.src.word(index) ^ b.src.word(index);
        difference |= a.dst.word(index) ^ b.dst.word(index);
        index += 1;
    }
    difference == 0
}
