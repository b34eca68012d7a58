//! Is there a flood of new flows, and what became of its flows? `lb_common::flood`'s rules on `NEW_FLOWS`, `FLOOD_STATE`
//! and `FLOOD`. In peace a packet of a known connection comes nowhere near; an opening one is counted.

use lb_common::{
    conntrack::{Coarse, ConnectionFlags, ConnectionValue, Phase},
    family::Protocol,
    flood,
    flow::FlowKey,
    frontend::FrontendKey,
};

use crate::{
    backend, concern,
    conntrack::{self, NOEXIST, Opening},
    frontend,
    globals::{flood_threshold, now_ns},
    maps::{FLOOD_STATE, FamilyMaps, NEW_FLOWS},
    parse::Headers,
};

/// Counts a flow about to be opened; true if it is one of a flood.
#[inline(always)]
pub fn begins() -> bool {
    let threshold = flood_threshold();
    if threshold == 0 {
        return false;
    }
    let Some(flows) = NEW_FLOWS.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own slot; programs do not preempt each other on it except by interrupt, where a flow more or
    // less is the worst.
    unsafe { (*flows).count(Coarse::from_ns(now_ns()), threshold) }
}

/// Notes that a flow was recorded in `FLOOD` at `now`.
#[inline(always)]
pub fn recorded(now: Coarse) {
    if let Some(flows) = NEW_FLOWS.get_ptr_mut(0) {
        // SAFETY: as in `begins`.
        unsafe { (*flows).recorded += 1 };
    }
    let Some(state) = FLOOD_STATE.get_ptr_mut(0) else { return };
    // SAFETY: an aligned integer; other CPUs write the same number. Read first, so that the line stays shared.
    unsafe {
        if (*state).last != now {
            (*state).last = now;
        }
    }
}

/// True if `FLOOD` may hold flows that live.
#[inline(always)]
pub fn is_recent() -> bool {
    flood_threshold() != 0
        && FLOOD_STATE
            .get(0)
            .is_some_and(|state| state.last.0 != 0 && state.is_recent(Coarse::from_ns(now_ns())))
}

/// The entry of `flow` in `FLOOD`.
#[inline(always)]
pub fn lookup<F: FamilyMaps>(flow: &FlowKey<F>) -> Option<&'static mut ConnectionValue<F>> {
    let entry = F::flood().get_ptr_mut(flow)?;
    // SAFETY: as in `conntrack::lookup`.
    Some(unsafe { &mut *entry })
}

/// Copies the entry of `flow`, wherever it is recorded, to `entry`; false if it is nowhere.
///
/// A copy, so that the verifier need not walk what follows once for each of the two maps.
#[inline(never)]
pub fn read_anywhere<F: FamilyMaps>(flow: &FlowKey<F>, entry: &mut ConnectionValue<F>) -> bool {
    if let Some(found) = conntrack::lookup(flow) {
        *entry = *found;
        return true;
    }
    if is_recent()
        && let Some(found) = lookup(flow)
    {
        *entry = *found;
        return true;
    }
    false
}

/// The entry of the flow of `headers`, which `CONNECTIONS` does not know: in `FLOOD`, or, if this packet proves the flow,
/// in `CONNECTIONS` from here on.
#[inline(never)]
pub fn find<F: FamilyMaps>(
    opening: &mut Opening<F>,
    headers: &Headers<F>,
) -> Option<&'static mut ConnectionValue<F>> {
    let entry = lookup(&headers.flow)?;
    let protocol = headers.flow.protocol;
    opening.key.tuple.reverse_of(&entry.to);
    opening.key.protocol = protocol;
    opening.key._pad = [0; 3];
    let mut answered = false;
    if protocol != Protocol::TCP {
        if entry.flags.has(ConnectionFlags::REPLY) {
            entry.phase = Phase::ESTABLISHED;
        } else {
            // In a tunnel no answer passes here: that the flow lasts must do.
            answered = entry.flags.has(ConnectionFlags::TUNNEL)
                && entry.last_seen != Coarse::from_ns(now_ns())
                || lookup(&opening.key).is_some_and(|reply| reply.phase == Phase::ESTABLISHED);
        }
    }
    if !flood::proves(entry, protocol, headers.tcp_flags, answered) {
        return Some(entry);
    }
    promote(opening, headers, entry)
}

/// Moves a flow, whose packet with `headers` has `entry` and whose other direction's key is in `opening`, to
/// `CONNECTIONS`. A reply 5-tuple that another connection has taken meanwhile leaves it where it is.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, key and value would be copied to the stack first"
)]
#[inline(always)]
fn promote<F: FamilyMaps>(
    opening: &mut Opening<F>,
    headers: &Headers<F>,
    entry: &'static mut ConnectionValue<F>,
) -> Option<&'static mut ConnectionValue<F>> {
    concern::note(entry.flags, Coarse::from_ns(now_ns()));
    if !entry.flags.has(ConnectionFlags::TUNNEL) {
        flood::mirror(&mut opening.entry, entry, &headers.flow.tuple);
        if F::connections().insert(&opening.key, &opening.entry, NOEXIST).is_err() {
            return Some(entry);
        }
    }
    if F::connections().insert(&headers.flow, &*entry, NOEXIST).is_err() {
        return Some(entry);
    }
    let dialled =
        if entry.flags.has(ConnectionFlags::REPLY) { &opening.key.tuple } else { &headers.flow.tuple };
    let key = FrontendKey::<F>::new(dialled.dst, dialled.dst_port, headers.flow.protocol);
    if let Some(frontend) = frontend::lookup(&key)
        && frontend.service_port == entry.service_port
    {
        backend::bind::<F>(frontend, dialled.src, entry.backend);
    }
    // Gone already if the least recently used gave way.
    let _ = F::flood().remove(&opening.key);
    let _ = F::flood().remove(&headers.flow);
    if let Some(flows) = NEW_FLOWS.get_ptr_mut(0) {
        // SAFETY: as in `begins`.
        unsafe { (*flows).promoted += 1 };
    }
    conntrack::lookup(&headers.flow)
}
