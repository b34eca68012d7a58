//! Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
//! 3.4): which backend stands in each slot of a run.
//!
//! Every node builds the same table for the same backends, and a backend that comes or goes moves few flows of the
//! others. What must stay true: the table depends on addresses and ports alone. Ids, the order of arrival and
//! everything else that is a node's own stay out of it, and the seeds never change.

use lb_common::{flow::hash_words, id::BackendId};
use thiserror::Error;

use crate::model::backend::BackendAddress;

/// Slots of a table: a prime, so that every stride through the table visits every slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

/// A number of slots that no table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{size} is not a prime from {min} to {max}; the nearest: {nearest}", min = TableSize::MIN, max = TableSize::MAX, nearest = nearest(*size))]
pub struct NotATableSize {
    size: u32,
}

impl TableSize {
    /// The smallest.
    pub const MIN: u32 = 251;
    /// The largest, 2^17 - 1.
    pub const MAX: u32 = 131_071;

    /// The size, if tables may have it.
    pub fn new(size: u32) -> Result<Self, NotATableSize> {
        let is_size = (Self::MIN..=Self::MAX).contains(&size) && is_prime(size);
        if is_size { Ok(Self(size)) } else { Err(NotATableSize { size }) }
    }

    /// Number of slots.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for TableSize {
    /// More than a hundred slots for each of 160 backends: shares differ by less than one percent.
    fn default() -> Self {
        Self(16_381)
    }
}

impl std::str::FromStr for TableSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
        Self::new(size).map_err(|error| error.to_string())
    }
}

impl std::fmt::Display for TableSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

/// The permitted sizes next to `size`, in words.
fn nearest(size: u32) -> String {
    let is_size = |size: &u32| TableSize::new(*size).is_ok();
    let below = (TableSize::MIN..=size.min(TableSize::MAX)).rev().find(is_size);
    let above = (size.max(TableSize::MIN)..=TableSize::MAX).find(is_size);
    let found: Vec<_> = below.into_iter().chain(above).map(|size| size.to_string()).collect();
    found.join(" and ")
}

/// Seeds of the two hashes. Part of the contract between nodes.
const OFFSET_SEED: u32 = 0x6d61_676c;
const STRIDE_SEED: u32 = 0x6576_3136;

/// A backend's way through the table: the permutation of all slots in which it prefers them.
struct Walk {
    id: BackendId,
    at: u32,
    stride: u32,
}

impl Walk {
    fn new(address: &BackendAddress, id: BackendId, size: u32) -> Self {
        let hash = |seed| hash_words(words(address), seed);
        Self { id, at: hash(OFFSET_SEED) % size, stride: hash(STRIDE_SEED) % (size - 1) + 1 }
    }

    /// Takes the first slot on the way that is free.
    fn take(&mut self, table: &mut [BackendId]) {
        let size = table.len() as u32;
        while table[self.at as usize] != BackendId::NONE {
            self.at += self.stride;
            if self.at >= size {
                self.at -= size;
            }
        }
        table[self.at as usize] = self.id;
    }
}

/// What identifies a backend on every node: address (IPv4 as mapped IPv6) and port.
fn words(address: &BackendAddress) -> impl Iterator<Item = u32> {
    let ip = match address.addr {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    let bits = ip.to_bits();
    let words = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
    words.into_iter().chain([u32::from(address.port)])
}

/// The table of `backends` in whatever order. Each stands in as many slots as any other, or in one more; those beyond
/// `size`, in the order of their addresses, in none.
pub fn build(mut backends: Vec<(BackendAddress, BackendId)>, size: TableSize) -> Vec<BackendId> {
    backends.sort_unstable();
    let mut table = vec![BackendId::NONE; size.0 as usize];
    let mut walks: Vec<_> = backends.iter().map(|(address, id)| Walk::new(address, *id, size.0)).collect();
    let mut free = if walks.is_empty() { 0 } else { table.len() };
    while free > 0 {
        let turns = free.min(walks.len());
        walks[..turns].iter_mut().for_each(|walk| walk.take(&mut table));
        free -= turns;
    }
    table
}

#[cfg(test)]
mod tests;
