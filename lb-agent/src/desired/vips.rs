//! The addresses that are ours whatever the port: those of every frontend but NodePorts, each as long as some service
//! port claims it. Which of them are the node's own too is the datapath's to ask, address by address, for that changes
//! without us.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    frontend::{FrontendKey, FrontendKind, FrontendValue},
    vip::VipKey,
};

use crate::{desired::Target, diff::DeltaFamily, maps::MapState};

/// The VIPs of one family with the number of frontends at each.
#[derive(Debug)]
pub struct Vips<F: DeltaFamily> {
    frontends: BTreeMap<VipKey<F>, usize>,
    /// Those whose number has changed, or whose entry nobody has asked for yet.
    touched: BTreeSet<VipKey<F>>,
}

impl<F: DeltaFamily> Vips<F> {
    /// Those of the maps' frontends; what the maps hold beside them goes at the first [`Self::settle`].
    pub fn restore(have: &MapState) -> Self {
        let family = F::of(have);
        let mut vips = Self { frontends: BTreeMap::new(), touched: family.vips.keys().copied().collect() };
        vips.add(&family.frontends);
        vips
    }

    /// A service port claims these frontends.
    pub fn add(&mut self, frontends: &BTreeMap<FrontendKey<F>, FrontendValue>) {
        for key in keys(frontends) {
            *self.frontends.entry(key).or_default() += 1;
            self.touched.insert(key);
        }
    }

    /// A service port claims these frontends no more.
    pub fn remove(&mut self, frontends: &BTreeMap<FrontendKey<F>, FrontendValue>) {
        for key in keys(frontends) {
            if let Some(count) = self.frontends.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.frontends.remove(&key);
                }
            }
            self.touched.insert(key);
        }
    }

    /// Wants what has changed in the maps.
    pub fn settle(&mut self, target: &mut Target<'_>) {
        for key in std::mem::take(&mut self.touched) {
            target.delta.want_vip(target.have, key, self.frontends.contains_key(&key));
        }
    }
}

fn keys<F: DeltaFamily>(
    frontends: &BTreeMap<FrontendKey<F>, FrontendValue>,
) -> impl Iterator<Item = VipKey<F>> {
    let vips = frontends.iter().filter(|(_, value)| value.kind != FrontendKind::NODE_PORT);
    vips.map(|(key, _)| VipKey { addr: key.addr })
}
