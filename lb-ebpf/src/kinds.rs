//! Which kinds of connections there are: noted where one is recorded, forgotten by the agent (`lb_common::kind`).

use lb_common::{
    conntrack::{Coarse, ConnectionFlags},
    kind::{self, Kind},
};

use crate::maps::KINDS;

/// The kinds of connections that may exist.
#[inline(always)]
pub fn existing() -> u32 {
    match (KINDS.get(kind::RECORDED), KINDS.get(kind::FORGOTTEN)) {
        (Some(recorded), Some(forgotten)) => recorded.since(forgotten),
        _ => 0,
    }
}

/// Notes that a connection with `flags` is about to be recorded.
#[inline(always)]
pub fn note(flags: ConnectionFlags, now: Coarse) {
    if let Some(kind) = Kind::of(flags) {
        note_kind(kind, now);
    }
}

/// The same of a kind.
#[inline(always)]
pub fn note_kind(kind: Kind, now: Coarse) {
    let Some(recorded) = KINDS.get_ptr_mut(kind::RECORDED) else { return };
    // SAFETY: an aligned integer inside the element; other CPUs write the same number. Read first, so that the line stays
    // shared.
    unsafe {
        let at = &raw mut (*recorded).at[kind as usize];
        if *at != now {
            *at = now;
        }
    }
}
