//! The real maps, opened by their pins.

use std::{collections::BTreeMap, fmt::Display, io, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError as AyaError, lpm_trie::Key},
};
use lb_common::{
    backend::{BackendValue, MemberKey, MemberValue},
    cidr::CidrValue,
    family::{Family, V4, V6},
    frontend::{FrontendKey, FrontendValue},
    id::{BackendId, ServicePortId},
    maps,
    peer::{PeerKey, PeerValue},
    source_range::{SourceRangeData, SourceRangeKey, SourceRangeValue},
    vip::{self, VipKey, VipValue},
};

use crate::maps::{
    Capacity, FamilyState, FamilyWrite, MapError, MapState, Maps, Write, bit_set::BitSet, family_map_name,
};

/// [`Maps`] in the kernel.
pub struct BpfMaps {
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
    members: Table<HashMap<MapData, MemberKey, MemberValue>>,
    slots: Table<Array<MapData, u32>>,
    generations: Table<Array<MapData, u32>>,
    ports: BitSet,
    target_ports: BitSet,
    vip_hashes: BitSet,
}

/// A map with its size.
pub(super) struct Table<M> {
    pub(super) map: M,
    entries_max: u32,
}

struct FamilyMaps<F: Family>
where
    CidrValue<F>: Pod,
    F::Addr: Pod,
{
    frontends: Table<HashMap<MapData, FrontendKey<F>, FrontendValue>>,
    backends: Table<HashMap<MapData, BackendId, BackendValue<F>>>,
    source_ranges: Table<LpmTrie<MapData, SourceRangeData<F>, SourceRangeValue>>,
    service_cidrs: Table<Array<MapData, CidrValue<F>>>,
    vips: Table<HashMap<MapData, VipKey<F>, VipValue>>,
    peers: Table<LpmTrie<MapData, F::Addr, PeerValue>>,
}

impl BpfMaps {
    /// Opens the maps pinned in `pin_dir`, the directory that is named after the ABI version.
    pub fn open(pin_dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            v4: FamilyMaps::open(pin_dir)?,
            v6: FamilyMaps::open(pin_dir)?,
            members: Table::open(pin_dir, maps::MEMBERS)?,
            slots: Table::open(pin_dir, maps::SLOTS)?,
            generations: Table::open(pin_dir, maps::GENERATIONS)?,
            ports: BitSet::open(pin_dir, maps::PORTS)?,
            target_ports: BitSet::open(pin_dir, maps::TARGET_PORTS)?,
            vip_hashes: BitSet::open(pin_dir, maps::VIP_HASHES)?,
        })
    }

    /// Only the slots that runs cover: reading the whole array would take a million calls.
    fn dump_slots(&self, state: &MapState) -> Result<BTreeMap<u32, BackendId>, MapError> {
        let mut slots = BTreeMap::new();
        for run in state.runs() {
            for index in run.base..run.base.saturating_add(run.count).min(self.slots.entries_max) {
                let backend =
                    self.slots.map.get(&index, 0).map_err(|error| read_error(maps::SLOTS, error))?;
                slots.insert(index, BackendId(backend));
            }
        }
        slots.retain(|_, backend| *backend != BackendId::NONE);
        Ok(slots)
    }

    fn dump_generations(&self) -> Result<BTreeMap<ServicePortId, u32>, MapError> {
        let all = (0u32..).zip(self.generations.map.iter());
        let all = all.map(|(id, generation)| {
            generation
                .map(|generation| (ServicePortId(id), generation))
                .map_err(|error| read_error(maps::GENERATIONS, error))
        });
        all.filter(|entry| !matches!(entry, Ok((_, 0)))).collect()
    }
}

impl BpfMaps {
    /// Sets the bit that `write` needs.
    fn add_bits<F: Family>(&mut self, write: &FamilyWrite<F>) -> Result<(), MapError> {
        match write {
            FamilyWrite::Frontend(key, Some(_)) => self.ports.add(key.port.get()),
            FamilyWrite::Backend(_, Some(backend)) => self.target_ports.add(backend.port.get()),
            FamilyWrite::Vip(key, Some(_)) => self.vip_hashes.add(vip::hash(&key.addr)),
            _ => Ok(()),
        }
    }

    /// Sets the bits that `state` needs, whatever the maps have.
    fn restore_bits(&mut self, state: &MapState) -> Result<(), MapError> {
        let (v4, v6) = (&state.v4, &state.v6);
        let (of_v4, of_v6) = (v4.frontends.keys(), v6.frontends.keys());
        self.ports.restore(of_v4.map(|key| key.port.get()).chain(of_v6.map(|key| key.port.get())))?;
        let (of_v4, of_v6) = (v4.backends.values(), v6.backends.values());
        self.target_ports.restore(
            of_v4.map(|backend| backend.port.get()).chain(of_v6.map(|backend| backend.port.get())),
        )?;
        let (of_v4, of_v6) = (v4.vips.keys(), v6.vips.keys());
        self.vip_hashes
            .restore(of_v4.map(|key| vip::hash(&key.addr)).chain(of_v6.map(|key| vip::hash(&key.addr))))
    }
}

impl Maps for BpfMaps {
    fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        match *write {
            Write::V4(write) => self.add_bits(&write)?,
            Write::V6(write) => self.add_bits(&write)?,
            _ => {}
        }
        match *write {
            Write::V4(family_write) => self.v4.apply(family_write, write),
            Write::V6(family_write) => self.v6.apply(family_write, write),
            Write::Member(key, Some(value)) => self.members.check(write, |map| map.insert(key, value, 0)),
            Write::Member(key, None) => self.members.check(write, |map| map.remove(&key)),
            Write::Slot(index, backend) => self.slots.check(write, |map| map.set(index, backend.0, 0)),
            Write::Generation(id, generation) => {
                self.generations.check(write, |map| map.set(id.0, generation, 0))
            }
        }
    }

    fn dump(&mut self) -> Result<MapState, MapError> {
        let members = self.members.map.iter().collect::<Result<_, _>>();
        let mut state = MapState {
            v4: self.v4.dump()?,
            v6: self.v6.dump()?,
            members: members.map_err(|error| read_error(maps::MEMBERS, error))?,
            slots: BTreeMap::new(),
            generations: self.dump_generations()?,
        };
        state.slots = self.dump_slots(&state)?;
        self.restore_bits(&state)?;
        Ok(state)
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            service_ports: self.generations.entries_max,
            backends: self.v4.backends.entries_max.min(self.v6.backends.entries_max),
            slots: self.slots.entries_max,
        }
    }
}

impl<F: Family> FamilyMaps<F>
where
    SourceRangeData<F>: Pod,
    FrontendKey<F>: Pod,
    BackendValue<F>: Pod,
    CidrValue<F>: Pod,
    VipKey<F>: Pod,
    F::Addr: Pod,
{
    fn open(pin_dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            frontends: Table::open(pin_dir, &family_map_name::<F>(maps::FRONTENDS))?,
            backends: Table::open(pin_dir, &family_map_name::<F>(maps::BACKENDS))?,
            source_ranges: Table::open(pin_dir, &family_map_name::<F>(maps::SOURCE_RANGES))?,
            service_cidrs: Table::open(pin_dir, &family_map_name::<F>(maps::SERVICE_CIDRS))?,
            vips: Table::open(pin_dir, &family_map_name::<F>(maps::VIPS))?,
            peers: Table::open(pin_dir, &family_map_name::<F>(maps::PEERS))?,
        })
    }

    fn apply(&mut self, family_write: FamilyWrite<F>, write: &Write) -> Result<(), MapError> {
        match family_write {
            FamilyWrite::Frontend(key, Some(value)) => {
                self.frontends.check(write, |map| map.insert(key, value, 0))
            }
            FamilyWrite::Frontend(key, None) => self.frontends.check(write, |map| map.remove(&key)),
            FamilyWrite::Backend(id, Some(value)) => {
                self.backends.check(write, |map| map.insert(id, value, 0))
            }
            FamilyWrite::Backend(id, None) => self.backends.check(write, |map| map.remove(&id)),
            FamilyWrite::SourceRange(key, Some(value)) => {
                self.source_ranges.check(write, |map| map.insert(&range_key(key), value, 0))
            }
            FamilyWrite::SourceRange(key, None) => {
                self.source_ranges.check(write, |map| map.remove(&range_key(key)))
            }
            FamilyWrite::ServiceCidr(index, value) => {
                self.service_cidrs.check(write, |map| map.set(index, value.unwrap_or_default(), 0))
            }
            FamilyWrite::Vip(key, Some(value)) => self.vips.check(write, |map| map.insert(key, value, 0)),
            FamilyWrite::Vip(key, None) => self.vips.check(write, |map| map.remove(&key)),
            FamilyWrite::Peer(key, Some(value)) => {
                self.peers.check(write, |map| map.insert(&Key::new(key.prefix_len, key.addr), value, 0))
            }
            FamilyWrite::Peer(key, None) => {
                self.peers.check(write, |map| map.remove(&Key::new(key.prefix_len, key.addr)))
            }
        }
    }

    fn dump(&self) -> Result<FamilyState<F>, MapError> {
        let failed = |base| move |error| read_error(&family_map_name::<F>(base), error);
        let ranges = self
            .source_ranges
            .map
            .iter()
            .map(|entry| entry.map(|(key, value)| (source_range_key(key), value)));
        let peers = self.peers.map.iter().map(|entry| {
            entry.map(|(key, value)| (PeerKey { prefix_len: key.prefix_len(), addr: key.data() }, value))
        });
        let cidrs = (0u32..).zip(self.service_cidrs.map.iter());
        let cidrs = cidrs.map(|(index, cidr)| cidr.map(|cidr| (index, cidr)));
        let used = cidrs.filter(|entry| !matches!(entry, Ok((_, cidr)) if cidr.used == 0));
        Ok(FamilyState {
            frontends: self
                .frontends
                .map
                .iter()
                .collect::<Result<_, _>>()
                .map_err(failed(maps::FRONTENDS))?,
            backends: self.backends.map.iter().collect::<Result<_, _>>().map_err(failed(maps::BACKENDS))?,
            source_ranges: ranges.collect::<Result<_, _>>().map_err(failed(maps::SOURCE_RANGES))?,
            service_cidrs: used.collect::<Result<_, _>>().map_err(failed(maps::SERVICE_CIDRS))?,
            vips: self.vips.map.iter().collect::<Result<_, _>>().map_err(failed(maps::VIPS))?,
            peers: peers.collect::<Result<_, _>>().map_err(failed(maps::PEERS))?,
        })
    }
}

fn range_key<F: Family>(key: SourceRangeKey<F>) -> Key<SourceRangeData<F>>
where
    SourceRangeData<F>: Pod,
{
    Key::new(key.prefix_len, key.data)
}

fn source_range_key<F: Family>(key: Key<SourceRangeData<F>>) -> SourceRangeKey<F>
where
    SourceRangeData<F>: Pod,
{
    SourceRangeKey { prefix_len: key.prefix_len(), data: key.data() }
}

impl<M: TryFrom<Map, Error = AyaError>> Table<M> {
    pub(super) fn open(pin_dir: &Path, map: &str) -> Result<Self, MapError> {
        let path = pin_dir.join(map);
        let open = || -> Result<Self, AyaError> {
            let data = MapData::from_pin(&path)?;
            let entries_max = data.info()?.max_entries();
            Ok(Self { map: M::try_from(Map::from_map_data(data)?)?, entries_max })
        };
        open().map_err(|error| MapError::Open {
            map: map.to_owned(),
            path: path.display().to_string(),
            reason: with_source(&error),
        })
    }
}

impl<M> Table<M> {
    /// Makes a write and words its error. A deletion of what is not there is done already.
    fn check(
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

fn read_error(map: &str, error: impl Display) -> MapError {
    MapError::Read { map: map.to_owned(), reason: error.to_string() }
}
