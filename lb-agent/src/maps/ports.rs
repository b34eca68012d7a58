//! `PORTS`, written along with the frontends: a port's bit is set before its first frontend is written, and cleared when
//! a dump finds none left. In between it merely costs a lookup; without its bit a frontend is not found.

use std::{collections::BTreeSet, fmt::Display, path::Path};

use aya::maps::{Array, MapData};
use lb_common::{family::Be16, limits::PORT_WORDS, maps, port_set};

use super::{MapError, bpf::Table};

/// The map and what is in it.
pub(super) struct Ports {
    map: Table<Array<MapData, u64>>,
    words: Vec<u64>,
}

impl Ports {
    pub(super) fn open(pin_dir: &Path) -> Result<Self, MapError> {
        let map: Table<Array<MapData, u64>> = Table::open(pin_dir, maps::PORTS)?;
        Ok(Self { words: read(&map)?, map })
    }

    /// Sets a port's bit.
    pub(super) fn add(&mut self, port: Be16) -> Result<(), MapError> {
        let index = port_set::word(port);
        let word = self.words[index as usize] | port_set::bit(port);
        self.set(index, word)
    }

    /// Leaves the bits of these ports only, whatever the map has.
    pub(super) fn become_like(&mut self, ports: &BTreeSet<Be16>) -> Result<(), MapError> {
        self.words = read(&self.map)?;
        let mut words = vec![0; PORT_WORDS as usize];
        for &port in ports {
            words[port_set::word(port) as usize] |= port_set::bit(port);
        }
        (0..).zip(words).try_for_each(|(index, word)| self.set(index, word))
    }

    fn set(&mut self, index: u32, word: u64) -> Result<(), MapError> {
        let known = &mut self.words[index as usize];
        if *known != word {
            self.map.map.set(index, word, 0).map_err(failed)?;
            *known = word;
        }
        Ok(())
    }
}

fn read(map: &Table<Array<MapData, u64>>) -> Result<Vec<u64>, MapError> {
    map.read(0, PORT_WORDS).map_err(failed)
}

fn failed(error: impl Display) -> MapError {
    MapError::Write { write: format!("map {}", maps::PORTS), reason: error.to_string() }
}
