//! The real maps, opened by their pins.

use std::{collections::BTreeMap, fmt::Display, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key},
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
    table::Table,
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
            let backends = self.slots.read::<u32>(run.base, run.count);
            let backends = backends.map_err(|error| read_error(maps::SLOTS, error))?;
            slots.extend((run.base..).zip(backends.into_iter().map(BackendId)));
        }
        slots.retain(|_, backend| *backend != BackendId::NONE);
        Ok(slots)
    }

    fn dump_generations(&self) -> Result<BTreeMap<ServicePortId, u32>, MapError> {
        let all = self.generations.read::<u32>(0, self.generations.entries_max);
        let all = all.map_err(|error| read_error(maps::GENERATIONS, error))?;
        let all = (0..).map(ServicePortId).zip(all);
        Ok(all.filter(|(_, generation)| *generation != 0).collect())
    }
}

impl BpfMaps {
    /// Sets the bit that `write` needs.
    fn mark(&mut self, write: &Write) -> Result<(), MapError> {
        match write {
            Write::V4(write) => self.mark_family(write),
            Write::V6(write) => self.mark_family(write),
            _ => Ok(()),
        }
    }

    fn mark_family<F: Family>(&mut self, write: &FamilyWrite<F>) -> Result<(), MapError> {
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
        self.mark(write)?;
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

    fn apply_batch(&mut self, writes: &[Write]) -> usize {
        if writes.iter().any(|write| self.mark(write).is_err()) {
            return 0;
        }
        match writes.first() {
            Some(Write::V4(_)) => self.v4.apply_batch(writes.iter().map_while(|write| match write {
                Write::V4(write) => Some(*write),
                _ => None,
            })),
            Some(Write::V6(_)) => self.v6.apply_batch(writes.iter().map_while(|write| match write {
                Write::V6(write) => Some(*write),
                _ => None,
            })),
            Some(Write::Member(..)) => self.members.put(writes.iter().map_while(|write| match *write {
                Write::Member(key, value) => Some((key, value?)),
                _ => None,
            })),
            Some(Write::Slot(..)) => self.slots.put(writes.iter().map_while(|write| match *write {
                Write::Slot(index, backend) => Some((index, backend)),
                _ => None,
            })),
            Some(Write::Generation(..)) => {
                self.generations.put(writes.iter().map_while(|write| match *write {
                    Write::Generation(id, generation) => Some((id, generation)),
                    _ => None,
                }))
            }
            None => 0,
        }
    }

    fn dump(&mut self) -> Result<MapState, MapError> {
        let mut state = MapState {
            v4: self.v4.dump()?,
            v6: self.v6.dump()?,
            members: self.members.entries().map_err(|error| read_error(maps::MEMBERS, error))?,
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
    FrontendKey<F>: Pod + bytemuck::Pod,
    BackendValue<F>: Pod + bytemuck::Pod,
    CidrValue<F>: Pod,
    VipKey<F>: Pod + bytemuck::Pod,
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

    /// [`Maps::apply_batch`].
    fn apply_batch(&self, writes: impl Iterator<Item = FamilyWrite<F>> + Clone) -> usize {
        match writes.clone().next() {
            Some(FamilyWrite::Frontend(..)) => self.frontends.put(writes.map_while(|write| match write {
                FamilyWrite::Frontend(key, value) => Some((key, value?)),
                _ => None,
            })),
            Some(FamilyWrite::Backend(..)) => self.backends.put(writes.map_while(|write| match write {
                FamilyWrite::Backend(id, value) => Some((id, value?)),
                _ => None,
            })),
            Some(FamilyWrite::SourceRange(..)) => {
                self.source_ranges.put(writes.map_while(|write| match write {
                    FamilyWrite::SourceRange(key, value) => Some((range_key(key), value?)),
                    _ => None,
                }))
            }
            Some(FamilyWrite::ServiceCidr(..)) => {
                self.service_cidrs.put(writes.map_while(|write| match write {
                    FamilyWrite::ServiceCidr(index, value) => Some((index, value?)),
                    _ => None,
                }))
            }
            Some(FamilyWrite::Vip(..)) => self.vips.put(writes.map_while(|write| match write {
                FamilyWrite::Vip(key, value) => Some((key, value?)),
                _ => None,
            })),
            Some(FamilyWrite::Peer(..)) => self.peers.put(writes.map_while(|write| match write {
                FamilyWrite::Peer(key, value) => Some((Key::new(key.prefix_len, key.addr), value?)),
                _ => None,
            })),
            None => 0,
        }
    }

    fn dump(&self) -> Result<FamilyState<F>, MapError> {
        fn failed<F: Family, E: Display>(base: &str) -> impl Fn(E) -> MapError {
            let map = family_map_name::<F>(base);
            move |error| read_error(&map, error)
        }
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
            frontends: self.frontends.entries().map_err(failed::<F, _>(maps::FRONTENDS))?,
            backends: self.backends.entries().map_err(failed::<F, _>(maps::BACKENDS))?,
            source_ranges: ranges.collect::<Result<_, _>>().map_err(failed::<F, _>(maps::SOURCE_RANGES))?,
            service_cidrs: used.collect::<Result<_, _>>().map_err(failed::<F, _>(maps::SERVICE_CIDRS))?,
            vips: self.vips.entries().map_err(failed::<F, _>(maps::VIPS))?,
            peers: peers.collect::<Result<_, _>>().map_err(failed::<F, _>(maps::PEERS))?,
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

fn read_error(map: &str, error: impl Display) -> MapError {
    MapError::Read { map: map.to_owned(), reason: error.to_string() }
}
