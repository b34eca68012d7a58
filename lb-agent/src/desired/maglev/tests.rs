use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::family::Protocol;
use proptest::{prelude::*, sample::Index};

use super::*;

/// Sizes of tests: small, the default, and the paper's small one.
const SIZES: [u32; 4] = [251, 4093, 16_381, 65_537];

fn address(bits: u64) -> BackendAddress {
    let (host, port) = ((bits >> 16) as u32, (bits as u16).max(1));
    let addr = match bits >> 63 {
        0 => IpAddr::V4(Ipv4Addr::from_bits(host)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(u128::from(bits) << 32 | 0xfd00 << 112)),
    };
    BackendAddress { addr, port, protocol: Protocol::TCP }
}

/// Backends with ids in order, from `first_id` on.
fn backends(addresses: &[BackendAddress], first_id: u32) -> Vec<(BackendAddress, BackendId)> {
    addresses.iter().copied().zip((first_id..).map(BackendId)).collect()
}

/// The table in terms of addresses: what a client sees.
fn seen(backends: Vec<(BackendAddress, BackendId)>, size: u32) -> Vec<BackendAddress> {
    let names: BTreeMap<_, _> = backends.iter().map(|(address, id)| (*id, *address)).collect();
    build(backends, TableSize::new(size).unwrap()).iter().map(|id| names[id]).collect()
}

/// Addresses as pods have them: neighbours of each other, one port.
fn pods(count: u32) -> Vec<BackendAddress> {
    (0..count).map(|index| address(u64::from(0x0af4_0000 + index) << 16 | 8080)).collect()
}

fn addresses(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<BackendAddress>> {
    prop::collection::btree_set(any::<u64>().prop_map(address), count)
        .prop_map(|addresses| addresses.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Section 3.4: the backends take turns.
    #[test]
    fn every_backend_is_present_as_often_as_any_other_or_once_more(
        addresses in addresses(1..251), size in prop::sample::select(&SIZES[..]),
    ) {
        let mut shares: BTreeMap<_, u32> = BTreeMap::new();
        seen(backends(&addresses, 1), size).into_iter().for_each(|address| *shares.entry(address).or_default() += 1);
        prop_assert_eq!(shares.len(), addresses.len());
        let fair = size / addresses.len() as u32;
        prop_assert!(shares.values().all(|share| *share == fair || *share == fair + 1), "{shares:?}");
    }

    #[test]
    fn nodes_with_other_ids_and_another_order_of_arrival_have_the_same_table(
        (addresses, shuffled) in addresses(1..100).prop_flat_map(|addresses| {
            (Just(addresses.clone()), Just(addresses).prop_shuffle())
        }),
        first_id in 2u32..100_000,
    ) {
        prop_assert_eq!(seen(backends(&addresses, 1), 4093), seen(backends(&shuffled, first_id), 4093));
    }

    /// Section 5.3 finds that few flows of backends that stay are moved when one goes, and fewer in larger tables
    /// (Figure 12). Read backwards the same holds for one that comes.
    #[test]
    fn one_backend_less_moves_few_flows_of_the_others(addresses in addresses(2..100), gone: Index) {
        let before = seen(backends(&addresses, 1), 16_381);
        let gone = addresses[gone.index(addresses.len())];
        let left: Vec<_> = addresses.into_iter().filter(|address| *address != gone).collect();
        let after = seen(backends(&left, 1), 16_381);
        let stayed = before.iter().zip(&after).filter(|(before, _)| **before != gone);
        let moved = stayed.filter(|(before, after)| before != after).count();
        let limit = before.len() / 20;
        prop_assert!(moved <= limit, "{moved} of {} flows moved, {limit} may", before.len());
    }
}

/// Section 5.3 asks it of Maglev hashing: with tables of 65537 slots and 1000 backends a failure of one in a hundred
/// moves few flows beyond those that must be; a larger table fewer.
#[test]
fn a_larger_table_is_less_disturbed() {
    let moved = |size: u32| {
        let before = seen(backends(&pods(1000), 1), size);
        let gone: BTreeSet<_> = pods(1000).into_iter().step_by(100).collect();
        let left: Vec<_> = pods(1000).into_iter().filter(|address| !gone.contains(address)).collect();
        let after = seen(backends(&left, 1), size);
        let moved =
            before.iter().zip(&after).filter(|(before, after)| !gone.contains(before) && before != after);
        moved.count() as f64 / f64::from(size)
    };
    let (small, large) = (moved(16_381), moved(131_071));
    assert!(
        large < small && large < 0.05,
        "{large} of the flows move with the large table, {small} with the small"
    );
}

/// The bound of section 3.4 for tables a hundred times as large as the set: shares differ by at most one percent.
#[test]
fn a_hundred_slots_for_each_backend_make_shares_equal_within_one_percent() {
    let mut shares: BTreeMap<_, f64> = BTreeMap::new();
    seen(backends(&pods(163), 1), 16_381)
        .into_iter()
        .for_each(|address| *shares.entry(address).or_default() += 1.0);
    let (least, most) =
        shares.values().fold((f64::MAX, 0f64), |(least, most), share| (least.min(*share), most.max(*share)));
    assert!(most / least <= 1.01, "{least} to {most}");
}

/// A table is a contract between nodes of different releases: these slots never change.
#[test]
fn the_table_of_three_pods_is_the_one_it_always_was() {
    let addresses = pods(3);
    let table = seen(backends(&addresses, 1), 251);
    let places: Vec<_> = table[..24]
        .iter()
        .map(|address| addresses.iter().position(|other| other == address).unwrap())
        .collect();
    assert_eq!(places, [0, 1, 2, 2, 0, 1, 1, 1, 0, 1, 1, 0, 2, 0, 1, 2, 0, 1, 2, 2, 2, 1, 1, 1]);
}

#[test]
fn more_backends_than_slots_leave_some_without() {
    let distinct: BTreeSet<_> = seen(backends(&pods(300), 1), 251).into_iter().collect();
    assert_eq!(distinct.len(), 251);
}

#[test]
fn nobody_stands_in_a_table_of_nobody() {
    assert!(build(Vec::new(), TableSize::default()).iter().all(|id| *id == BackendId::NONE));
}

#[test]
fn a_size_is_a_prime_within_the_limits() {
    for size in [251, 16_381, 65_537, 131_071] {
        assert_eq!(TableSize::new(size).map(TableSize::get), Ok(size));
    }
    for (size, nearest) in [
        ("16384", "16384 is not a prime from 251 to 131071; the nearest: 16381 and 16411"),
        ("250", "250 is not a prime from 251 to 131071; the nearest: 251"),
        ("131101", "131101 is not a prime from 251 to 131071; the nearest: 131071"),
        ("0", "0 is not a prime from 251 to 131071; the nearest: 251"),
        ("x", "\"x\" is not a number"),
    ] {
        assert_eq!(size.parse::<TableSize>(), Err(nearest.to_owned()));
    }
    assert_eq!(TableSize::new(TableSize::default().get()), Ok(TableSize::default()));
}
