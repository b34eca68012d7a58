//! Choice of a slot: at random, or by the flow's hash when the run is a Maglev table (Eisenbud et al., NSDI 2016).
//! The datapath's code is the same; only the hash differs.

use crate::{
    flow::slot_index,
    frontend::{FrontendFlags, Run},
};

/// Index into `SLOTS` for a new connection. `run.count` must not be 0.
#[inline(always)]
pub const fn slot(run: Run, flags: FrontendFlags, flow_hash: u32, random: u32) -> u32 {
    let hash = if flags.has(FrontendFlags::MAGLEV) { flow_hash } else { random };
    run.base + slot_index(hash, run.count)
}
