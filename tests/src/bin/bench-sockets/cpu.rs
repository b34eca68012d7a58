//! Cores: the load has the last one, before whatever else wants it; everything of ours besides runs on the others. On a
//! machine with one core they share it.

use anyhow::{Result, ensure};

/// Which cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// The last.
    Load,
    /// The others.
    Rest,
}

/// Moves this process, and what it starts from here on, to cores; the load takes priority there.
pub(crate) fn pin(core: Core) -> Result<()> {
    let mut allowed = every()?;
    let numbers = || 0..usize::try_from(libc::CPU_SETSIZE).unwrap_or_default();
    // SAFETY: `number` is below CPU_SETSIZE.
    let last = numbers().rev().find(|&number| unsafe { libc::CPU_ISSET(number, &allowed) });
    // SAFETY: `allowed` is a whole cpu_set_t.
    let is_single = unsafe { libc::CPU_COUNT(&allowed) } < 2;
    for number in numbers().filter(|_| !is_single) {
        if (Some(number) == last) != (core == Core::Load) {
            // SAFETY: `number` is below CPU_SETSIZE.
            unsafe { libc::CPU_CLR(number, &mut allowed) };
        }
    }
    set(&allowed)?;
    if core == Core::Load {
        // SAFETY: no pointers; 0 is this process.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
        ensure!(result == 0, "take priority: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// All that this process may have, whatever its parent chose for itself.
fn every() -> Result<libc::cpu_set_t> {
    // SAFETY: integers only; the kernel leaves out what does not exist.
    let all: libc::cpu_set_t = unsafe { std::mem::transmute([u8::MAX; size_of::<libc::cpu_set_t>()]) };
    set(&all)?;
    // SAFETY: integers only, all zeroes is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes a whole cpu_set_t.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) };
    ensure!(result == 0, "which cores: {}", std::io::Error::last_os_error());
    Ok(allowed)
}

fn set(cores: &libc::cpu_set_t) -> Result<()> {
    // SAFETY: reads a whole cpu_set_t; 0 is this thread, and there is no other yet.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cores) };
    ensure!(result == 0, "choose a core: {}", std::io::Error::last_os_error());
    Ok(())
}
