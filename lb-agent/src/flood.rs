//! Floods of new flows, as the datapath sees them (`lb_common::flood`): from which rate on it speaks of one, what it has
//! counted, and the log lines when one begins and ends. [`watch`] is run by `cli::run`; the rest is asked for.

use std::{path::Path, time::Duration};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use lb_common::{
    conntrack::Coarse,
    flood::{FloodState, NewFlows},
    limits, maps,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::conntrack_gc;

/// Between two looks at the state.
const PERIOD: Duration = Duration::from_secs(1);

/// What the datapath did about floods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloodReport {
    /// True while flows are recorded in `FLOOD`.
    pub active: bool,
    /// Flows recorded there since the maps were made.
    pub recorded: u64,
    /// Of these, flows that proved to be conversations and moved to `CONNECTIONS`.
    pub promoted: u64,
}

/// New flows a second and CPU that are a flood, where the operator says nothing: `connections` entries of `CONNECTIONS` are
/// shared by `cpus`.
pub fn default_threshold(connections: u32, cpus: u32) -> u32 {
    let share = connections / cpus.max(1) / limits::FLOOD_SHARE;
    share.clamp(limits::FLOOD_THRESHOLD_MIN, limits::FLOOD_THRESHOLD_MAX)
}

/// Reads the maps pinned in `dir`.
pub fn read(dir: &Path, now: Coarse) -> Result<FloodReport, MapError> {
    let rates = Map::PerCpuArray(MapData::from_pin(dir.join(maps::NEW_FLOWS))?);
    let rates = PerCpuArray::<MapData, NewFlows>::try_from(rates)?.get(&0, 0)?;
    Ok(FloodReport {
        active: open_state(dir)?.get(&0, 0)?.is_active(now),
        recorded: rates.iter().map(|cpu| cpu.recorded).sum(),
        promoted: rates.iter().map(|cpu| cpu.promoted).sum(),
    })
}

fn open_state(dir: &Path) -> Result<Array<MapData, FloodState>, MapError> {
    Array::try_from(Map::Array(MapData::from_pin(dir.join(maps::FLOOD_STATE))?))
}

/// Logs when a flood begins and ends, until `stop`.
pub async fn watch(dir: &Path, stop: CancellationToken) -> Result<(), MapError> {
    let state = open_state(dir)?;
    let mut begun = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(PERIOD) => {}
        }
        let active = state.get(&0, 0)?.is_active(conntrack_gc::now());
        match (active, begun) {
            (true, None) => {
                let before = read(dir, conntrack_gc::now())?;
                tracing::warn!("a flood of new flows: they are recorded apart from connections (FLOOD)");
                begun = Some(before);
            }
            (false, Some(before)) => {
                let FloodReport { recorded, promoted, .. } = read(dir, conntrack_gc::now())?;
                let (flows, promoted) = (recorded - before.recorded, promoted - before.promoted);
                tracing::warn!(flows, promoted, "the flood of new flows is over");
                begun = None;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_threshold_follows_a_cpus_share() {
        let rows =
            [(262_144, 2, 2048), (262_144, 64, 100), (1 << 24, 2, 10_000), (16, 1, 100), (262_144, 0, 4096)];
        for (connections, cpus, expected) in rows {
            assert_eq!(default_threshold(connections, cpus), expected, "{connections} {cpus}");
        }
    }
}
