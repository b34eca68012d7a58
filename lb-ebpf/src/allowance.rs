//! May this CPU send another answer?

use crate::{
    globals::now_ns,
    maps::{ALLOWANCES, SETTINGS},
};

/// Takes one answer from this CPU's allowance; false if there is none left.
#[inline(never)]
pub fn take() -> bool {
    let per_second = SETTINGS.get(0).map_or(0, |settings| settings.refusals_per_second);
    let Some(allowance) = ALLOWANCES.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own slot; programs do not preempt each other on it except by interrupt, where an answer
    // more or less is the worst.
    unsafe { (*allowance).take(now_ns(), per_second) }
}
