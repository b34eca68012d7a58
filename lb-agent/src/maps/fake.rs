//! Maps in memory, for tests and dry runs: as small as one likes, and failing as often as one likes.

use std::collections::BTreeMap;

use lb_common::{id::BackendId, limits, maps};

use crate::maps::{Capacity, MapError, MapState, Maps, Write};

/// [`Maps`] without a kernel.
#[derive(Clone, Debug)]
pub struct FakeMaps {
    /// Contents.
    pub state: MapState,
    /// Writes that were made.
    pub writes: Vec<Write>,
    /// Entries a map may hold, by its whole name; absent: no limit.
    pub entries_max: BTreeMap<String, usize>,
    /// Ids and slots there are.
    pub capacity: Capacity,
    faults: Faults,
}

/// Writes that fail, at random but reproducibly.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// How many of 100 writes fail.
    pub percent: u64,
    /// Where the sequence starts.
    pub seed: u64,
}

impl Default for FakeMaps {
    fn default() -> Self {
        Self {
            state: MapState::default(),
            writes: Vec::new(),
            entries_max: BTreeMap::new(),
            capacity: Capacity {
                service_ports: limits::SERVICE_PORTS_MAX,
                backends: limits::BACKENDS_MAX,
                slots: limits::SLOTS_MAX,
            },
            faults: Faults::default(),
        }
    }
}

impl FakeMaps {
    /// Makes writes fail from here on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Whether the next write fails: splitmix64 (Steele, Lea, Flood 2014).
    fn is_faulty(&mut self) -> bool {
        self.faults.seed = self.faults.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.faults.seed ^ (self.faults.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 100 < self.faults.percent
    }

    fn entries(&self, map: &str) -> usize {
        match map
            .strip_suffix('4')
            .map(|base| (base, 4))
            .or_else(|| map.strip_suffix('6').map(|base| (base, 6)))
        {
            Some((maps::FRONTENDS, 4)) => self.state.v4.frontends.len(),
            Some((maps::FRONTENDS, _)) => self.state.v6.frontends.len(),
            Some((maps::BACKENDS, 4)) => self.state.v4.backends.len(),
            Some((maps::BACKENDS, _)) => self.state.v6.backends.len(),
            Some((maps::SERVICE_CIDRS, 4)) => self.state.v4.service_cidrs.len(),
            Some((maps::SERVICE_CIDRS, _)) => self.state.v6.service_cidrs.len(),
            Some((maps::VIPS, 4)) => self.state.v4.vips.len(),
            Some((maps::VIPS, _)) => self.state.v6.vips.len(),
            Some((maps::PEERS, 4)) => self.state.v4.peers.len(),
            Some((maps::PEERS, _)) => self.state.v6.peers.len(),
            Some((_, 4)) => self.state.v4.source_ranges.len(),
            Some(_) => self.state.v6.source_ranges.len(),
            None if map == maps::MEMBERS => self.state.members.len(),
            None => 0,
        }
    }
}

impl Maps for FakeMaps {
    fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        if self.is_faulty() {
            return Err(MapError::Write { write: write.to_string(), reason: "injected fault".to_owned() });
        }
        let map = write.map();
        let before = self.entries(&map);
        let former = self.entries_max.get(&map).map(|max| (*max, self.state.clone()));
        self.state.apply(write);
        if let Some((max, former)) = former.filter(|(max, _)| self.entries(&map) > (*max).max(before)) {
            self.state = former;
            return Err(MapError::full(write, u32::try_from(max).unwrap_or(u32::MAX)));
        }
        self.writes.push(*write);
        Ok(())
    }

    fn apply_batch(&mut self, writes: &[Write]) -> usize {
        writes.iter().take_while(|write| self.apply(write).is_ok()).count()
    }

    fn dump(&mut self) -> Result<MapState, MapError> {
        let mut state = self.state.clone();
        state.slots.retain(|_, backend| *backend != BackendId::NONE);
        state.forget_dead_slots();
        Ok(state)
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }
}
