//! Which pods have ended? An address that terminated and then left the slices belongs to a pod that is no more; one
//! that left without terminating may belong to a pod that lives on under other labels.
//!
//! Asked by the reconciler for TCP sockets, whose connections to a living pod must go on (spec 12A 63, 7.15). What
//! must stay true: an address that a slice names again has not ended. What is forgotten merely spares sockets.

use std::{
    collections::{HashSet, VecDeque},
    net::IpAddr,
};

use crate::model::backend::{Host, Slice};

/// Addresses remembered; the oldest gives way.
const ADDRESSES_MAX: usize = 65_536;

/// The addresses of pods that ended.
#[derive(Debug, Default)]
pub struct Ended {
    addresses: HashSet<IpAddr>,
    order: VecDeque<IpAddr>,
}

impl Ended {
    /// Takes in that a slice was replaced: `former` by `current`, beside `others` of the same Service.
    pub fn note<'a>(&mut self, former: &Slice, current: &'a Slice, others: impl Iterator<Item = &'a Slice>) {
        self.note_first(current);
        let listed: HashSet<IpAddr> =
            hosts(current).chain(others.flat_map(hosts)).map(|host| host.addr).collect();
        let gone = hosts(former).filter(|host| host.conditions.terminating && !listed.contains(&host.addr));
        gone.for_each(|host| self.add(host.addr));
    }

    /// Takes in that a slice came.
    pub fn note_first(&mut self, slice: &Slice) {
        for host in hosts(slice) {
            self.addresses.remove(&host.addr);
        }
    }

    /// True if the pod that had this address has ended, and nobody has it since.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    fn add(&mut self, address: IpAddr) {
        if !self.addresses.insert(address) {
            return;
        }
        self.order.push_back(address);
        if self.order.len() > ADDRESSES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.addresses.remove(&oldest);
        }
    }
}

fn hosts(slice: &Slice) -> impl Iterator<Item = &Host> {
    slice.groups.iter().flat_map(|group| &group.hosts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::backend::{Conditions, Group};

    fn slice(hosts: &[(&str, bool)]) -> Slice {
        let host = |(addr, terminating): &(&str, bool)| Host {
            addr: addr.parse().unwrap(),
            conditions: Conditions { ready: !terminating, serving: true, terminating: *terminating },
            node: None,
            hints: None,
        };
        let group = Group { ports: Box::default(), hosts: hosts.iter().map(host).collect() };
        Slice { service: "web".into(), groups: [group].into() }
    }

    fn ended(former: &[(&str, bool)], current: &[(&str, bool)], others: &[(&str, bool)]) -> bool {
        let mut ended = Ended::default();
        ended.note(&slice(former), &slice(current), [slice(others)].iter());
        ended.contains("10.0.0.1".parse().unwrap())
    }

    #[test]
    fn a_pod_has_ended_when_it_terminated_and_is_listed_no_more() {
        let (here, leaving) = (&[("10.0.0.1", false)][..], &[("10.0.0.1", true)][..]);
        assert!(ended(leaving, &[], &[]), "terminated, gone");
        assert!(!ended(here, &[], &[]), "gone without terminating: its labels may have changed");
        assert!(!ended(here, leaving, &[]), "still terminating");
        assert!(!ended(leaving, &[], leaving), "moved to another slice");
    }

    #[test]
    fn an_address_that_is_named_again_has_not_ended() {
        let mut ended = Ended::default();
        let address = "10.0.0.1".parse().unwrap();
        ended.note(&slice(&[("10.0.0.1", true)]), &slice(&[]), std::iter::empty());
        assert!(ended.contains(address));
        ended.note_first(&slice(&[("10.0.0.1", false)]));
        assert!(!ended.contains(address));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ended = Ended::default();
        for number in 0..=ADDRESSES_MAX as u32 {
            ended.add(IpAddr::V4(number.into()));
        }
        assert_eq!((ended.addresses.len(), ended.order.len()), (ADDRESSES_MAX, ADDRESSES_MAX));
        assert!(!ended.contains(IpAddr::V4(0.into())), "the oldest gave way");
    }
}
