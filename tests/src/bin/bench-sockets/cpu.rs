//! The load runs on the last core, before whatever else wants it.
//!
//! By niceness it would come before the processes of its own session only (autogroups).

use std::io;

use anyhow::{Result, ensure};

/// Moves this process to the last core it may use, with priority.
pub(crate) fn take_last() -> Result<()> {
    let allowed = allowed()?;
    let numbers = 0..usize::try_from(libc::CPU_SETSIZE)?;
    // SAFETY: `number` is below CPU_SETSIZE.
    let last = numbers.rev().find(|&number| unsafe { libc::CPU_ISSET(number, &allowed) });
    // SAFETY: integers only, all zeroes is the empty set.
    let mut cores: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number was found in a set of the same size.
    unsafe { libc::CPU_SET(last.unwrap_or_default(), &mut cores) };
    // SAFETY: reads a whole cpu_set_t; 0 is this thread, and there is no other yet.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cores) };
    ensure!(result == 0, "choose a core: {}", io::Error::last_os_error());
    let priority = libc::sched_param { sched_priority: 1 };
    // Refused where real-time priorities are shared out among cgroups: then the load takes its turn.
    // SAFETY: reads the parameter; 0 is this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    Ok(())
}

/// The cores this process may use.
fn allowed() -> Result<libc::cpu_set_t> {
    // SAFETY: integers only, all zeroes is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes a whole cpu_set_t.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) };
    ensure!(result == 0, "which cores: {}", io::Error::last_os_error());
    Ok(allowed)
}
