//! Is there a flood of new flows? `lb_common::flood`'s rules on `NEW_FLOWS` and `FLOOD_STATE`. In peace a packet of a known connection comes nowhere near; an opening one is counted.

use lb_common::{
    conntrack::{Coarse, ConnectionValue},
    flow::FlowKey,
};

use crate::{
    globals::{flood_threshold, now_ns},
    maps::{FLOOD_STATE, FamilyMaps, NEW_FLOWS},
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

/// Notes that a flow was moved from `FLOOD` to `CONNECTIONS`.
#[inline(always)]
pub fn promoted() {
    if let Some(flows) = NEW_FLOWS.get_ptr_mut(0) {
        // SAFETY: as in `begins`.
        unsafe { (*flows).promoted += 1 };
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
