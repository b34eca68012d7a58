//! The networks ClusterIPs are taken from, as the maps should hold them: `limits::SERVICE_CIDRS_MAX` of each family,
//! the lowest first; the rest is refused. Networks that several objects name count once (spec 5.13).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lb_common::{
    cidr::CidrValue,
    family::{Address as _, V4, V6},
    limits,
};

use crate::{
    desired::Target,
    diff::DeltaFamily,
    model::Model,
    source::{Kind, ObjectRef, Refusal},
};

/// Wants the networks of the model's ServiceCIDR objects and no other.
pub fn want(model: &Model, target: &mut Target<'_>) {
    let cidrs = model.service_cidrs();
    want_family::<V4>(&cidrs, target);
    want_family::<V6>(&cidrs, target);
}

fn want_family<F: DeltaFamily>(cidrs: &BTreeSet<IpNet>, target: &mut Target<'_>) {
    let entries = place(select::<F>(cidrs), &F::of(target.have).service_cidrs);
    for index in 0..limits::SERVICE_CIDRS_MAX {
        target.delta.want_service_cidr::<F>(target.have, index, entries.get(&index).copied());
    }
}

/// The entries of a family's map.
fn select<F: DeltaFamily>(cidrs: &BTreeSet<IpNet>) -> Vec<CidrValue<F>> {
    let entries = cidrs.iter().filter_map(|cidr| {
        let (network, mask) = (F::Addr::from_ip(cidr.network())?, F::Addr::from_ip(cidr.netmask())?);
        Some(CidrValue { network, mask, used: 1 })
    });
    entries.zip(0..limits::SERVICE_CIDRS_MAX).map(|(entry, _)| entry).collect()
}

/// Entries by their place: the first ones, without a gap, because the datapath stops at an unused one. Those that are
/// in such a place stay there, so that a change of the list touches no network that stays but the ones behind the
/// new end; and they are written to their new place before the old one goes (`diff`).
fn place<F: DeltaFamily>(
    entries: Vec<CidrValue<F>>,
    have: &BTreeMap<u32, CidrValue<F>>,
) -> BTreeMap<u32, CidrValue<F>> {
    let places = 0..u32::try_from(entries.len()).unwrap_or(limits::SERVICE_CIDRS_MAX);
    let (mut placed, mut waiting) = (BTreeMap::new(), Vec::new());
    for entry in entries {
        match have.iter().find(|(index, known)| **known == entry && places.contains(index)) {
            Some((index, _)) => drop(placed.insert(*index, entry)),
            None => waiting.push(entry),
        }
    }
    let free: Vec<u32> = places.filter(|index| !placed.contains_key(index)).collect();
    placed.extend(free.into_iter().zip(waiting));
    placed
}

/// The networks there is no place for, by the objects that name them.
pub fn refusals(model: &Model) -> BTreeSet<Refusal> {
    let cidrs = model.service_cidrs();
    let max = usize::try_from(limits::SERVICE_CIDRS_MAX).unwrap_or(usize::MAX);
    let v4 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).skip(max);
    let v6 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv6()).skip(max);
    let surplus: BTreeSet<&IpNet> = v4.chain(v6).collect();
    let named = model.service_cidr_objects();
    named.filter(|(_, cidr)| surplus.contains(cidr)).map(|(name, cidr)| refusal(name, cidr)).collect()
}

fn refusal(name: &str, cidr: &IpNet) -> Refusal {
    let id = ObjectRef { kind: Kind::ServiceCidr, namespace: String::new(), name: name.to_owned() };
    Refusal {
        object: id.to_string(),
        field: "spec.cidrs".to_owned(),
        reason: format!(
            "{cidr}: only {} networks of a family are used; what this one holds is not refused",
            limits::SERVICE_CIDRS_MAX
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diff::Delta,
        maps::{MapFamily as _, MapState},
    };

    const NETWORKS: [&str; 5] = ["10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"];

    fn subset(bits: usize) -> BTreeSet<IpNet> {
        let chosen = NETWORKS.iter().enumerate().filter(|(index, _)| bits & (1 << index) != 0);
        chosen.map(|(_, network)| network.parse().unwrap()).collect()
    }

    /// The networks the datapath would find: up to the first unused place.
    fn found(state: &MapState) -> BTreeSet<CidrValue<V4>> {
        (0..).map_while(|index| V4::of(state).service_cidrs.get(&index).copied()).collect()
    }

    /// Goes over to `cidrs` and checks every state on the way.
    fn go(state: &mut MapState, cidrs: &BTreeSet<IpNet>) {
        let before = found(state);
        let mut delta = Delta::default();
        want_family::<V4>(cidrs, &mut Target { have: state, delta: &mut delta });
        let after: BTreeSet<_> = select::<V4>(cidrs).into_iter().collect();
        for write in delta.plan(state) {
            state.apply(&write);
            let found = found(state);
            assert!(found.is_superset(&(&before & &after)), "a network that stays is lost at {write}");
            assert!(found.is_subset(&(&before | &after)));
        }
        assert_eq!(found(state), after);
        assert_eq!(V4::of(state).service_cidrs.len(), after.len());
    }

    #[test]
    fn a_network_that_stays_is_refused_at_every_moment_of_a_change() {
        for first in 0..32 {
            for second in 0..32 {
                for third in 0..32 {
                    let mut state = MapState::default();
                    for bits in [first, second, third] {
                        go(&mut state, &subset(bits));
                    }
                }
            }
        }
    }
}
