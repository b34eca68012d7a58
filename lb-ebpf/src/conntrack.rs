//! Reads and writes of `CONNECTIONS` around `lb_common::conntrack`'s rules.

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
    globals::{now_ns, random, snat_ports},
    maps::{FamilyMaps, GENERATIONS},
    parse::Headers,
};

/// `BPF_NOEXIST`: insert only where nothing is.
const NOEXIST: u64 = 1;
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
    key: FlowKey<F>,
    entry: ConnectionValue<F>,
}

impl<F: FamilyMaps> Opening<F> {
    /// Nothing found yet.
    #[inline(always)]
    pub fn reset(&mut self) {
        self.service_port = ServicePortId::NONE;
        self.backend = BackendId::NONE;
    }

    /// `verdict` with what was found.
    #[inline(always)]
    pub fn outcome(&self, verdict: Verdict) -> Outcome {
        Outcome { verdict, service_port: self.service_port, backend: self.backend }
    }
}

/// Records both directions of the flow `headers` belongs to; `opening.to` then is what the packet becomes. Of a flow that
/// goes on in a tunnel only the one direction passes here.
///
/// The reply entry decides who owns a backend-side 5-tuple: it is inserted only where nothing is. Two VIPs with one
/// backend dialled from one client port, or two clients translated to one node address, would share it; the later
/// one then takes another source port.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, key and value would be copied to the stack first"
)]
#[inline(never)]
pub fn record<F: FamilyMaps>(opening: &mut Opening<F>, headers: &Headers<F>) -> Result<(), DropReason> {
    opening.entry = ConnectionValue {
        to: headers.flow.tuple.reversed(),
        service_port: opening.service_port,
        backend: opening.backend,
        generation: generation(opening.service_port),
        last_seen: Coarse::from_ns(now_ns()),
        flags: opening.flags.with(ConnectionFlags::REPLY),
        phase: Phase::OPENING,
        _pad: [0; 2],
    };
    opening.key = FlowKey::new(opening.to.reversed(), headers.flow.protocol);
    if !opening.flags.has(ConnectionFlags::TUNNEL) {
        let keeps_port = !opening.flags.has(ConnectionFlags::SNAT) && claim(opening);
        if !keeps_port && !find_port(opening) {
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
    let _ = F::connections().insert(&headers.flow, &opening.entry, ANY);
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
    opening.key = FlowKey::new(headers.flow.tuple.reversed(), protocol);
    let Some(owner) = lookup(&opening.key) else { return false };
    if !owner.flags.has(ConnectionFlags::REPLY) {
        return false;
    }
    opening.key = FlowKey::new(owner.to.reversed(), protocol);
    lookup(&opening.key).is_none_or(|client| client.last_seen.0 + 1 < Coarse::from_ns(now_ns()).0)
}

/// 2^32 divided by the golden ratio: multiples of it are spread evenly (Knuth, The Art of Computer Programming, 6.4).
const GOLDEN_RATIO: u32 = 0x9e37_79b9;

/// Finds a source port whose reply 5-tuple is free and takes it: a random one, else some far from it. No port follows
/// from another by a branch, or the verifier would walk every sequence of them.
///
/// A BPF function of its own, so that the verifier leaves all turns of the loop by one exit.
#[inline(never)]
fn find_port<F: FamilyMaps>(opening: &mut Opening<F>) -> bool {
    let (min, count) = snat_ports();
    let mut luck = random();
    let mut attempt = 0;
    while attempt < limits::SNAT_TRIES {
        opening.key.tuple.dst_port = Be16::new((min + slot_index(luck, count)) as u16);
        if claim(opening) {
            return true;
        }
        luck = luck.wrapping_add(GOLDEN_RATIO);
        attempt += 1;
    }
    false
}

/// Takes the reply 5-tuple of `opening`, if it is free, already this connection's, or a dead one's.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, key and value would be copied to the stack first"
)]
#[inline(always)]
fn claim<F: FamilyMaps>(opening: &Opening<F>) -> bool {
    if F::connections().insert(&opening.key, &opening.entry, NOEXIST).is_ok() {
        return true;
    }
    let Some(owner) = lookup(&opening.key) else { return false };
    // One condition without branches of its own: the verifier walks every branch of the loop this is called from.
    let ours = same(&owner.to, &opening.entry.to) & (owner.flags == opening.entry.flags);
    if !(ours | owner.is_expired(opening.key.protocol, opening.entry.last_seen)) {
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
