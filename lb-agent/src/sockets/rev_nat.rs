//! `SOCK_REV_NAT4` and `SOCK_REV_NAT6` as the agent reads them: which socket was given which backend.

use std::{io, os::fd::AsFd as _, os::fd::OwnedFd, path::Path};

use aya::maps::{HashMap, Map, MapData, MapError};
use lb_common::{
    family::{Address as _, Family, Protocol, V4, V6},
    maps,
    rev_nat::{SockRevNatKey, SockRevNatValue},
};

use crate::{datapath::bpf, model::backend::BackendAddress, reconcile::standing::Claim};

/// The maps cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RevNatError {
    /// Opening or removing failed.
    #[error("{what} {map}: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map.
        map: String,
        /// What the kernel said.
        source: MapError,
    },
    /// Walking failed.
    #[error("walk {map}: {source}")]
    Walk {
        /// The map.
        map: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The socket.
    pub cookie: u64,
    /// What it dialled, and whom it was given.
    pub claim: Claim,
    stored: Stored,
}

/// An entry as it stands in its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stored {
    V4(SockRevNatKey<V4>, SockRevNatValue<V4>),
    V6(SockRevNatKey<V6>, SockRevNatValue<V6>),
}

impl Entry {
    fn new<F: Family>(
        key: &SockRevNatKey<F>,
        value: &SockRevNatValue<F>,
        stored: impl FnOnce(SockRevNatKey<F>, SockRevNatValue<F>) -> Stored,
    ) -> Self {
        let [low, high] = key.cookie;
        let backend = BackendAddress { addr: key.addr.to_ip(), port: key.port.get(), protocol: key.protocol };
        Self {
            cookie: u64::from(low) | u64::from(high) << 32,
            claim: Claim { service_port: value.service_port, backend },
            stored: stored(*key, *value),
        }
    }

    /// The socket's protocol.
    pub fn protocol(&self) -> Protocol {
        self.claim.backend.protocol
    }
}

/// Both maps.
pub struct RevNat {
    v4: Table<V4>,
    v6: Table<V6>,
}

struct Table<F: Family> {
    name: String,
    map: HashMap<MapData, SockRevNatKey<F>, SockRevNatValue<F>>,
    fd: OwnedFd,
}

impl RevNat {
    /// Opens the maps pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, RevNatError> {
        Ok(Self { v4: Table::open(dir)?, v6: Table::open(dir)? })
    }

    /// Every entry.
    pub fn entries(&self) -> Result<Vec<Entry>, RevNatError> {
        let mut entries = Vec::new();
        self.v4.walk(|key, value| entries.push(Entry::new(key, value, Stored::V4)))?;
        self.v6.walk(|key, value| entries.push(Entry::new(key, value, Stored::V6)))?;
        Ok(entries)
    }

    /// Removes an entry unless it has changed since it was read.
    pub fn remove(&mut self, entry: &Entry) -> Result<(), RevNatError> {
        match entry.stored {
            Stored::V4(key, value) => self.v4.remove(&key, &value),
            Stored::V6(key, value) => self.v6.remove(&key, &value),
        }
    }
}

impl<F: Family> Table<F>
where
    SockRevNatKey<F>: aya::Pod + bytemuck::Pod,
    SockRevNatValue<F>: aya::Pod + bytemuck::Pod,
{
    fn open(dir: &Path) -> Result<Self, RevNatError> {
        let name = format!("{}{}", maps::SOCK_REV_NAT, F::DIGIT);
        let failed = |source| RevNatError::Map { what: "open", map: name.clone(), source };
        let data = MapData::from_pin(dir.join(&name)).map_err(failed)?;
        let fd = bpf::open_pin(&dir.join(&name))
            .map_err(|source| RevNatError::Walk { map: name.clone(), source })?;
        let map = HashMap::try_from(Map::LruHashMap(data)).map_err(failed)?;
        Ok(Self { name, map, fd })
    }

    fn walk(&self, mut visit: impl FnMut(&SockRevNatKey<F>, &SockRevNatValue<F>)) -> Result<(), RevNatError> {
        let visit = |keys: &[SockRevNatKey<F>], values: &[SockRevNatValue<F>]| {
            keys.iter().zip(values).for_each(|(key, value)| visit(key, value));
        };
        bpf::walk(self.fd.as_fd(), visit)
            .map_err(|source| RevNatError::Walk { map: self.name.clone(), source })
    }

    fn remove(&mut self, key: &SockRevNatKey<F>, value: &SockRevNatValue<F>) -> Result<(), RevNatError> {
        let removed = match self.map.get(key, 0) {
            Ok(found) if found == *value => self.map.remove(key),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(RevNatError::Map { what: "write", map: self.name.clone(), source }),
        }
    }
}
