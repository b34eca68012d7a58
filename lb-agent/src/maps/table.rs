//! One map, opened by its pin.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError as AyaError},
};

use crate::{
    datapath::bpf,
    maps::{MapError, Write},
};

/// A map with its size.
pub(super) struct Table<M> {
    pub(super) map: M,
    /// For what aya does not offer.
    pub(super) fd: OwnedFd,
    pub(super) entries_max: u32,
}

impl<M: TryFrom<Map, Error = AyaError>> Table<M> {
    pub(super) fn open(pin_dir: &Path, map: &str) -> Result<Self, MapError> {
        let path = pin_dir.join(map);
        let open = || -> Result<Self, AyaError> {
            let data = MapData::from_pin(&path)?;
            let entries_max = data.info()?.max_entries();
            let fd = data.fd().as_fd().try_clone_to_owned()?;
            Ok(Self { map: M::try_from(Map::from_map_data(data)?)?, fd, entries_max })
        };
        open().map_err(|error| MapError::Open {
            map: map.to_owned(),
            path: path.display().to_string(),
            reason: with_source(&error),
        })
    }
}

impl<K: bytemuck::Pod + Ord, V: bytemuck::Pod> Table<HashMap<MapData, K, V>> {
    /// Everything in it.
    pub(super) fn entries(&self) -> io::Result<BTreeMap<K, V>> {
        let mut entries = Vec::new();
        bpf::walk(self.fd.as_fd(), |keys: &[K], values: &[V]| {
            entries.extend(keys.iter().copied().zip(values.iter().copied()));
        })?;
        Ok(entries.into_iter().collect())
    }
}

impl<M> Table<M> {
    /// Values of an array from index `first` on; fewer than `count` if it ends.
    pub(super) fn read<V: bytemuck::Pod>(&self, first: u32, count: u32) -> io::Result<Vec<V>> {
        bpf::read_array(self.fd.as_fd(), first, count)
    }

    /// Writes entries in order, and returns how many.
    pub(super) fn put<K: Pod, V: Pod>(&self, entries: impl Iterator<Item = (K, V)>) -> usize {
        let (keys, values): (Vec<K>, Vec<V>) = entries.unzip();
        bpf::update_batch(self.fd.as_fd(), &keys, &values)
    }

    /// Makes a write and words its error. A deletion of what is not there is done already.
    pub(super) fn check(
        &mut self,
        write: &Write,
        run: impl FnOnce(&mut M) -> Result<(), AyaError>,
    ) -> Result<(), MapError> {
        let Err(error) = run(&mut self.map) else { return Ok(()) };
        match system_error(&error).and_then(io::Error::raw_os_error) {
            Some(libc::ENOENT) => Ok(()),
            // A hash that is full says E2BIG, a trie ENOSPC (kernel/bpf/hashtab.c, lpm_trie.c).
            Some(libc::E2BIG | libc::ENOSPC) => Err(MapError::full(write, self.entries_max)),
            _ => Err(MapError::Write { write: write.to_string(), reason: with_source(&error) }),
        }
    }
}

fn system_error(error: &AyaError) -> Option<&io::Error> {
    match error {
        AyaError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    }
}

fn with_source(error: &AyaError) -> String {
    match system_error(error) {
        Some(system) => format!("{error}: {system}"),
        None => error.to_string(),
    }
}
