//! `PORTS`, `TARGET_PORTS` and `VIP_HASHES`, written along with what their bits stand for (`lb_common::bit_set`).

use std::{fmt::Display, path::Path};

use aya::maps::{Array, MapData};
use lb_common::{bit_set, limits::BIT_SET_WORDS};

use super::{MapError, table::Table};

/// One of the maps, and what is in it.
pub(super) struct BitSet {
    name: &'static str,
    map: Table<Array<MapData, u64>>,
    words: Vec<u64>,
}

impl BitSet {
    pub(super) fn open(pin_dir: &Path, name: &'static str) -> Result<Self, MapError> {
        let mut set = Self { name, map: Table::open(pin_dir, name)?, words: Vec::new() };
        set.read()?;
        Ok(set)
    }

    /// Sets the bit of a number.
    pub(super) fn add(&mut self, number: u16) -> Result<(), MapError> {
        let index = bit_set::word(number);
        let known = &mut self.words[index as usize];
        let word = *known | bit_set::bit(number);
        if *known != word {
            self.map.map.set(index, word, 0).map_err(|error| failed(self.name, &error))?;
            *known = word;
        }
        Ok(())
    }

    /// Sets the bits of these numbers, whatever the map has.
    pub(super) fn restore(&mut self, numbers: impl IntoIterator<Item = u16>) -> Result<(), MapError> {
        self.read()?;
        numbers.into_iter().try_for_each(|number| self.add(number))
    }

    fn read(&mut self) -> Result<(), MapError> {
        self.words = self.map.read(0, BIT_SET_WORDS).map_err(|error| failed(self.name, &error))?;
        Ok(())
    }
}

fn failed(name: &str, error: &dyn Display) -> MapError {
    MapError::Write { write: format!("map {name}"), reason: error.to_string() }
}
