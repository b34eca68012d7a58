//! Ids: given out once, kept as long as their owner lives and across restarts, and not given away again soon.
//!
//! Counters, affinity and connections of the datapath carry ids. An id that meant another thing a moment ago would
//! mislead them, so a pool goes on from where it last gave one out ("next fit") and comes back to freed ids only
//! after a whole round.

use std::{collections::HashMap, net::IpAddr};

use lb_common::{
    backend::{BackendFlags, BackendState, BackendValue, MemberSets},
    family::{Address, Be16, Family},
    id::BackendId,
};

use crate::{
    diff::{Delta, DeltaFamily},
    maps::MapState,
    model::backend::BackendAddress,
};

/// Free and taken ids from 1 up to its size.
#[derive(Debug)]
pub struct IdPool {
    taken: Vec<u64>,
    next: u32,
    /// Ids lie below.
    end: u32,
    retired: Vec<u32>,
}

impl IdPool {
    /// A pool of the ids below `end`, of which the first one given out is near `first`.
    pub fn new(end: u32, first: u32) -> Self {
        let next = if end > 1 { 1 + first.wrapping_sub(1) % (end - 1) } else { 1 };
        Self { taken: vec![0; end.div_ceil(64) as usize], next, end, retired: Vec::new() }
    }

    /// Marks an id that is in the maps already.
    pub fn claim(&mut self, id: u32) {
        if let Some(word) = self.taken.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }

    /// The next free id, if there is one.
    pub fn allocate(&mut self) -> Option<u32> {
        let id = self.first_free(self.next, self.end).or_else(|| self.first_free(1, self.next))?;
        self.claim(id);
        self.next = if id + 1 < self.end { id + 1 } else { 1 };
        Some(id)
    }

    /// The id's owner is gone. It is free when [`reclaim`](Self::reclaim) says so.
    pub fn retire(&mut self, id: u32) {
        self.retired.push(id);
    }

    /// Frees the retired ids of which nothing `is_pending` in the maps.
    pub fn reclaim(&mut self, is_pending: impl Fn(u32) -> bool) {
        let taken = &mut self.taken;
        self.retired.retain(|id| {
            let keep = is_pending(*id);
            if let Some(word) = taken.get_mut(*id as usize / 64).filter(|_| !keep) {
                *word &= !(1 << (id % 64));
            }
            keep
        });
    }

    fn first_free(&self, start: u32, end: u32) -> Option<u32> {
        let mut id = start;
        while id < end {
            let free = !self.taken[id as usize / 64] >> (id % 64);
            if free != 0 {
                return Some(id + free.trailing_zeros()).filter(|id| *id < end);
            }
            id = (id / 64 + 1) * 64;
        }
        None
    }
}

/// A backend as a member of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Membership {
    /// The backend.
    pub backend: BackendId,
    /// Its state there.
    pub state: BackendState,
    /// The sets it stands in.
    pub sets: MemberSets,
    /// True if it runs on this node.
    pub is_local: bool,
}

/// Every backend with its id and how many service ports have it in which state.
#[derive(Debug)]
pub struct BackendTable {
    ids: HashMap<BackendAddress, BackendId>,
    records: HashMap<BackendId, Record>,
    pool: IdPool,
    /// Given out, joined or left since the last [`settle`](Self::settle).
    touched: Vec<BackendId>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    address: BackendAddress,
    /// Members by state: active, terminating, quarantined.
    members: [u32; 3],
    local_members: u32,
    /// Address of the node it runs on, of its family, where tunnels for it end.
    node: Option<IpAddr>,
}

impl BackendTable {
    /// The backends of the maps, still without members.
    pub fn restore(have: &MapState, pool: IdPool) -> Self {
        let mut table = Self { ids: HashMap::new(), records: HashMap::new(), pool, touched: Vec::new() };
        have.v4.backends.iter().for_each(|(id, value)| table.restore_one(*id, value));
        have.v6.backends.iter().for_each(|(id, value)| table.restore_one(*id, value));
        have.members.keys().for_each(|key| table.pool.claim(key.backend.0));
        table
    }

    fn restore_one<F: Family>(&mut self, id: BackendId, value: &BackendValue<F>) {
        let address =
            BackendAddress { addr: value.addr.to_ip(), port: value.port.get(), protocol: value.protocol };
        self.pool.claim(id.0);
        // Of two ids of one address only the first is used; the other is never a member and goes.
        self.ids.entry(address).or_insert(id);
        let node = Some(value.node).filter(|node| !node.is_unspecified()).map(Address::to_ip);
        self.records.insert(id, Record { address, members: [0; 3], local_members: 0, node });
    }

    /// The id of a backend, a fresh one if need be; `None` if there is none left.
    pub fn id(&mut self, address: BackendAddress) -> Option<BackendId> {
        if let Some(id) = self.ids.get(&address) {
            return Some(*id);
        }
        let id = BackendId(self.pool.allocate()?);
        self.ids.insert(address, id);
        self.records.insert(id, Record { address, members: [0; 3], local_members: 0, node: None });
        self.touched.push(id);
        Some(id)
    }

    /// Tunnels for the backend end at `node`; `None`: none leads there.
    pub fn set_node(&mut self, id: BackendId, node: Option<IpAddr>) {
        if let Some(record) = self.records.get_mut(&id).filter(|record| record.node != node) {
            record.node = node;
            self.touched.push(id);
        }
    }

    /// What an id stands for.
    pub fn address(&self, id: BackendId) -> Option<BackendAddress> {
        self.records.get(&id).map(|record| record.address)
    }

    /// Backends with their addresses.
    pub fn addresses<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a BackendId>,
    ) -> Vec<(BackendAddress, BackendId)> {
        ids.into_iter().filter_map(|id| Some((self.address(*id)?, *id))).collect()
    }

    /// A service port has the backend as a member.
    pub fn add(&mut self, member: &Membership) {
        self.touched.push(member.backend);
        if let Some(record) = self.records.get_mut(&member.backend) {
            record.members[rank(member.state)] += 1;
            record.local_members += u32::from(member.is_local);
        }
    }

    /// A service port has the backend no more.
    pub fn remove(&mut self, member: &Membership) {
        self.touched.push(member.backend);
        if let Some(record) = self.records.get_mut(&member.backend) {
            record.members[rank(member.state)] -= 1;
            record.local_members -= u32::from(member.is_local);
        }
    }

    /// Wants every backend in the maps as its members have it by now: in the best of its states, or not at all. Asked
    /// once all services are done, so that a backend that goes from one to another keeps its id.
    pub fn settle(&mut self, have: &MapState, delta: &mut Delta) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched.into_iter().for_each(|id| self.settle_one(id, have, delta));
    }

    fn settle_one(&mut self, id: BackendId, have: &MapState, delta: &mut Delta) {
        let Some(record) = self.records.get(&id).copied() else { return };
        if record.address.addr.is_ipv4() {
            want::<lb_common::family::V4>(id, &record, have, delta);
        } else {
            want::<lb_common::family::V6>(id, &record, have, delta);
        }
        if record.state().is_none() {
            self.records.remove(&id);
            if self.ids.get(&record.address) == Some(&id) {
                self.ids.remove(&record.address);
            }
            self.pool.retire(id.0);
        }
    }

    /// Lets the next [`settle`](Self::settle) look at every backend.
    pub fn touch_all(&mut self) {
        self.touched.extend(self.records.keys());
    }

    /// Frees ids of backends that have gone from the maps.
    pub fn reclaim(&mut self, is_pending: impl Fn(u32) -> bool) {
        self.pool.reclaim(is_pending);
    }
}

impl Record {
    fn state(&self) -> Option<BackendState> {
        let states = [BackendState::ACTIVE, BackendState::TERMINATING, BackendState::QUARANTINED];
        states.into_iter().zip(self.members).find(|(_, members)| *members > 0).map(|(state, _)| state)
    }
}

fn rank(state: BackendState) -> usize {
    match state {
        BackendState::ACTIVE => 0,
        BackendState::TERMINATING => 1,
        _ => 2,
    }
}

fn want<F: DeltaFamily>(id: BackendId, record: &Record, have: &MapState, delta: &mut Delta) {
    let value = record.state().zip(F::Addr::from_ip(record.address.addr)).map(|(state, addr)| BackendValue {
        addr,
        port: Be16::new(record.address.port),
        protocol: record.address.protocol,
        state,
        flags: if record.local_members > 0 { BackendFlags::LOCAL } else { BackendFlags::default() },
        node: record.node.and_then(F::Addr::from_ip).unwrap_or_default(),
    });
    delta.want_backend::<F>(have, id, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_id_waits_for_a_whole_round() {
        let mut pool = IdPool::new(5, 1);
        assert_eq!([pool.allocate(), pool.allocate()], [Some(1), Some(2)]);
        pool.retire(1);
        pool.reclaim(|_| false);
        assert_eq!([pool.allocate(), pool.allocate(), pool.allocate()], [Some(3), Some(4), Some(1)]);
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn a_retired_id_is_not_free_while_the_maps_still_know_it() {
        let mut pool = IdPool::new(2, 77);
        assert_eq!(pool.allocate(), Some(1));
        pool.retire(1);
        pool.reclaim(|id| id == 1);
        assert_eq!(pool.allocate(), None);
        pool.reclaim(|_| false);
        assert_eq!(pool.allocate(), Some(1));
    }

    #[test]
    fn claimed_ids_and_zero_are_never_given_out() {
        let mut pool = IdPool::new(200, 60);
        (60..=130).for_each(|id| pool.claim(id));
        let given: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        let expected: Vec<_> = (131..200).chain(1..60).collect();
        assert_eq!(given, expected);
    }
}
