//! Who serves a new connection: affinity, else a slot of the run.

use lb_common::{
    affinity::{AffinityKey, AffinityValue, ClientKind},
    backend::{BackendValue, MemberKey},
    frontend::{FrontendFlags, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    limits, maglev,
};

use crate::{
    globals::now_ns,
    maps::{FamilyMaps, MEMBERS, SLOTS},
};

/// Who asks, and with which luck.
pub struct Choice<F: FamilyMaps> {
    /// The run to choose from; not empty.
    pub run: Run,
    /// The client as affinity knows it.
    pub client: F::Client,
    /// What `client` is.
    pub client_kind: ClientKind,
    /// Hash of the flow, for Maglev.
    pub flow_hash: u32,
    /// Random bits, else.
    pub random: u32,
}

/// A backend with its id.
#[derive(Clone, Copy)]
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

/// The backend `id`, if it exists.
#[inline(always)]
fn lookup<F: FamilyMaps>(id: BackendId) -> Option<Chosen<F>> {
    // SAFETY: copied at once.
    let value = unsafe { F::backends().get(id) }?;
    Some(Chosen { id, value: *value })
}

/// Chooses a backend for a new connection and remembers it where the frontend has affinity.
#[inline(always)]
pub fn choose<F: FamilyMaps>(frontend: &FrontendValue, choice: &Choice<F>) -> Option<Chosen<F>> {
    let slot = maglev::slot(choice.run, frontend.flags, choice.flow_hash, choice.random);
    let chosen = BackendId(*SLOTS.get(slot)?);
    if !frontend.flags.has(FrontendFlags::AFFINITY) {
        return lookup(chosen);
    }
    let key = AffinityKey::<F> {
        service_port: frontend.service_port,
        kind: choice.client_kind,
        client: choice.client,
    };
    let now_ns = now_ns();
    let bound = bound::<F>(frontend, choice.run, &key, now_ns, chosen);
    let chosen = lookup(bound)?;
    let value = AffinityValue { last_used_ns: now_ns, backend: bound, _pad: 0 };
    // Without room the client is merely not bound.
    let _ = F::affinity().insert(key, value, 0);
    Some(chosen)
}

/// The backend a fresh affinity entry binds the client to, else `chosen`.
///
/// The bound backend must stand in the run the client would get now: one that became unready, remote under policy
/// Local, or filtered by topology binds nobody (spec 3.8).
#[inline(always)]
fn bound<F: FamilyMaps>(
    frontend: &FrontendValue,
    run: Run,
    key: &AffinityKey<F>,
    now_ns: u64,
    chosen: BackendId,
) -> BackendId {
    // SAFETY: copied at once.
    let Some(entry) = (unsafe { F::affinity().get(key) }).copied() else { return chosen };
    if !entry.is_fresh(now_ns, frontend.affinity_timeout_s) {
        return chosen;
    }
    let eligible = if frontend.flags.has(FrontendFlags::MAGLEV) {
        serves(frontend.service_port, entry.backend)
    } else {
        in_run(run, entry.backend)
    };
    if eligible { entry.backend } else { chosen }
}

/// Halvings that reduce the longest run, all of `SLOTS`, to nothing.
const HALVINGS: u32 = limits::SLOTS_MAX.ilog2() + 1;

/// True if `backend` stands in `run`, whose slots ascend by backend id.
#[inline(always)]
fn in_run(run: Run, backend: BackendId) -> bool {
    let (mut low, mut len) = (run.base, run.count);
    let mut step = 0;
    while step < HALVINGS {
        if len == 0 {
            return false;
        }
        let half = len / 2;
        let Some(&id) = SLOTS.get(low + half) else { return false };
        if id == backend.0 {
            return true;
        }
        if id < backend.0 {
            low += half + 1;
            len -= half + 1;
        } else {
            len = half;
        }
        step += 1;
    }
    false
}
