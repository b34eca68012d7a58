//! Who serves a new connection: affinity, else a slot of the run.

use lb_common::{
    affinity::{AffinityKey, AffinityValue, ClientKind},
    backend::{BackendValue, MemberKey, MemberSets},
    frontend::{FrontendFlags, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    maglev,
};

use crate::{
    globals::now_ns,
    maps::{FamilyMaps, MEMBERS, SLOTS},
};

/// Who asks, and with which luck.
#[repr(C)]
pub struct Choice<F: FamilyMaps> {
    /// The run to choose from.
    pub run: Run,
    /// The set of members it holds.
    pub set: MemberSets,
    /// The client as affinity knows it.
    pub client: F::Client,
    /// What `client` is.
    pub client_kind: ClientKind,
    /// Hash of the flow, for Maglev.
    pub flow_hash: u32,
    /// Random bits, else; the hash too in a flood, so that whoever sends again gets the same backend.
    pub random: u32,
    /// The client is bound to its backend at once, and not only when its flow has proved itself ([`bind`]).
    pub binds: bool,
}

/// A backend with its id.
#[derive(Default)]
#[repr(C)]
pub struct Chosen<F: FamilyMaps> {
    /// Its id.
    pub id: BackendId,
    /// Its address and state.
    pub value: BackendValue<F>,
}

/// True if `backend` still serves `service_port` in any state.
#[inline(always)]
pub fn serves(service_port: ServicePortId, backend: BackendId) -> bool {
    // SAFETY: read at once.
    unsafe { MEMBERS.get(MemberKey { service_port, backend }) }.is_some()
}

/// Chooses a backend for a new connection and remembers it where the frontend has affinity; false if nobody serves.
#[inline(never)]
pub fn choose<F: FamilyMaps>(frontend: &FrontendValue, choice: &Choice<F>, chosen: &mut Chosen<F>) -> bool {
    let run = choice.run;
    if run.count == 0 {
        return false;
    }
    let slot = maglev::slot(run, frontend.flags, choice.flow_hash, choice.random);
    let Some(&id) = SLOTS.get(slot) else { return false };
    chosen.id = BackendId(id);
    if frontend.flags.has(FrontendFlags::AFFINITY) {
        chosen.id = sticky(frontend, choice, chosen.id);
    }
    // SAFETY: copied at once.
    let Some(value) = (unsafe { F::backends().get(chosen.id) }) else { return false };
    chosen.value = *value;
    true
}

/// The backend the client is bound to, else `chosen`, to which it is bound from here on.
#[inline(always)]
fn sticky<F: FamilyMaps>(frontend: &FrontendValue, choice: &Choice<F>, chosen: BackendId) -> BackendId {
    let key = AffinityKey::<F> {
        service_port: frontend.service_port,
        kind: choice.client_kind,
        client: choice.client,
    };
    let now_ns = now_ns();
    let backend = bound::<F>(frontend, choice.set, &key, now_ns, chosen);
    if choice.binds {
        remember(key, AffinityValue { last_used_ns: now_ns, backend, _pad: 0 });
    }
    backend
}

/// Binds a client that sends packets from `addr` to `backend`, if the frontend has affinity.
#[inline(always)]
pub fn bind<F: FamilyMaps>(frontend: &FrontendValue, addr: F::Addr, backend: BackendId) {
    if frontend.flags.has(FrontendFlags::AFFINITY) {
        let key = AffinityKey::<F> {
            service_port: frontend.service_port,
            kind: ClientKind::ADDRESS,
            client: F::client_from_addr(addr),
        };
        remember(key, AffinityValue { last_used_ns: now_ns(), backend, _pad: 0 });
    }
}

#[inline(always)]
fn remember<F: FamilyMaps>(key: AffinityKey<F>, value: AffinityValue) {
    // Without room the client is merely not bound.
    let _ = F::affinity().insert(key, value, 0);
}

/// The backend a fresh affinity entry binds the client to, else `chosen`.
///
/// The bound backend must stand in the set the client would get now: one that became unready, remote under policy
/// Local, or filtered by topology binds nobody (spec 3.8).
#[inline(always)]
fn bound<F: FamilyMaps>(
    frontend: &FrontendValue,
    set: MemberSets,
    key: &AffinityKey<F>,
    now_ns: u64,
    chosen: BackendId,
) -> BackendId {
    // SAFETY: copied at once.
    let Some(entry) = (unsafe { F::affinity().get(key) }).copied() else { return chosen };
    if !entry.is_fresh(now_ns, frontend.affinity_timeout_s) {
        return chosen;
    }
    let key = MemberKey { service_port: frontend.service_port, backend: entry.backend };
    // SAFETY: read at once.
    match unsafe { MEMBERS.get(key) } {
        Some(member) if member.sets.has(set) => entry.backend,
        _ => chosen,
    }
}
