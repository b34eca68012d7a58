//! The maps that say what this node is made of: `DEVICES`, `NODE_ADDRESSES`, `POD_CIDRS`. Written by `follow`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use ipnet::IpNet;
use lb_common::{
    cidr::CidrValue,
    device::{DeviceFlags, DeviceValue, NodeAddressKey, NodeAddressValue},
    family::{Address, Family, V4, V6},
    maps,
};
use thiserror::Error;

use super::{devices::NodeState, local::pod_cidr_entry};

/// A map cannot be opened or written.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub struct NodeMapError {
    /// What was tried.
    what: String,
    /// What the kernel said.
    source: MapError,
}

/// The maps, with what is in them.
pub struct NodeMaps {
    devices: Written<u32, DeviceValue>,
    pod_cidrs4: Written<u32, CidrValue<V4>>,
    pod_cidrs6: Written<u32, CidrValue<V6>>,
    addresses4: Written<NodeAddressKey<V4>, NodeAddressValue>,
    addresses6: Written<NodeAddressKey<V6>, NodeAddressValue>,
}

impl NodeMaps {
    /// Opens the maps pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, NodeMapError> {
        Ok(Self {
            devices: Written::open(dir, maps::DEVICES.to_owned())?,
            pod_cidrs4: Written::open(dir, format!("{}{}", maps::POD_CIDRS, V4::DIGIT))?,
            pod_cidrs6: Written::open(dir, format!("{}{}", maps::POD_CIDRS, V6::DIGIT))?,
            addresses4: Written::open(dir, format!("{}{}", maps::NODE_ADDRESSES, V4::DIGIT))?,
            addresses6: Written::open(dir, format!("{}{}", maps::NODE_ADDRESSES, V6::DIGIT))?,
        })
    }

    /// Writes devices and addresses. `native`: devices whose driver runs the XDP program.
    pub fn write(&mut self, state: &NodeState, native: &BTreeSet<u32>) -> Result<(), NodeMapError> {
        let devices = state.devices.iter().map(|(&ifindex, &(_, value))| {
            let xdp = if native.contains(&ifindex) { DeviceFlags::XDP } else { DeviceFlags::default() };
            (ifindex, DeviceValue { flags: value.flags.with(xdp), ..value })
        });
        let others = state.others.iter().map(|(&ifindex, value)| (ifindex, *value));
        self.devices.become_like(&devices.chain(others).collect())?;
        self.addresses4.become_like(&of_family::<V4>(&state.addresses))?;
        self.addresses6.become_like(&of_family::<V6>(&state.addresses))
    }

    /// Writes the networks of pods.
    pub fn write_pod_cidrs(&mut self, cidrs: &[IpNet]) -> Result<(), NodeMapError> {
        self.pod_cidrs4.become_like(&pod_cidr_entry(cidrs))?;
        self.pod_cidrs6.become_like(&pod_cidr_entry(cidrs))
    }
}

fn of_family<F: Family>(addresses: &BTreeMap<IpAddr, u32>) -> BTreeMap<NodeAddressKey<F>, NodeAddressValue> {
    addresses
        .iter()
        .filter_map(|(&ip, &ifindex)| {
            Some((NodeAddressKey { addr: F::Addr::from_ip(ip)? }, NodeAddressValue { ifindex }))
        })
        .collect()
}

/// A hash map and its contents.
struct Written<K: aya::Pod, V: aya::Pod> {
    name: String,
    map: HashMap<MapData, K, V>,
    have: BTreeMap<K, V>,
}

impl<K: aya::Pod + Ord, V: aya::Pod + PartialEq> Written<K, V> {
    fn open(dir: &Path, name: String) -> Result<Self, NodeMapError> {
        let error = |source| NodeMapError { what: format!("open map {name}"), source };
        let data = MapData::from_pin(dir.join(&name)).map_err(error)?;
        let map: HashMap<MapData, K, V> = HashMap::try_from(Map::HashMap(data)).map_err(error)?;
        let have = map.iter().collect::<Result<_, _>>().map_err(error)?;
        Ok(Self { name, map, have })
    }

    /// Writes the differences to `want`, additions first.
    fn become_like(&mut self, want: &BTreeMap<K, V>) -> Result<(), NodeMapError> {
        let error = |source| NodeMapError { what: format!("write map {}", self.name), source };
        for (key, value) in want {
            if self.have.get(key) != Some(value) {
                self.map.insert(key, value, 0).map_err(error)?;
                self.have.insert(*key, *value);
            }
        }
        let gone: Vec<K> = self.have.keys().filter(|key| !want.contains_key(*key)).copied().collect();
        for key in gone {
            match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(error(source)),
            }
            self.have.remove(&key);
        }
        Ok(())
    }
}
