//! Reads the pinned maps for operators: how full they are, what was counted, which connections there are. Called by
//! the admin socket and the CLI; writes nothing.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::maps::{Map, MapData, MapError, MapInfo, PerCpuArray};
use bytemuck::Pod;
use lb_common::{
    conntrack::{Coarse, ConnectionFlags, ConnectionValue},
    counters::VerdictCounter,
    family::{Address, Be16, Family},
    flow::{FlowKey, Tuple},
    maps::{self, MAPS, MapSpec, MapType},
    peer::TunnelCounter,
    verdict::Verdict,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    conntrack_gc::{Connections, GcError},
    datapath::bpf,
};

/// What can go wrong while reading.
#[derive(Debug, Error)]
pub enum InspectError {
    /// A map cannot be opened or read.
    #[error("read map {name}: {source}")]
    Map {
        /// The map.
        name: String,
        /// What the kernel said.
        source: MapError,
    },
    /// A map cannot be walked.
    #[error("walk map {name}: {source}")]
    Walk {
        /// The map.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connections.
    #[error(transparent)]
    Connections(#[from] GcError),
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFill {
    /// Its name.
    pub name: String,
    /// Entries in it.
    pub entries: usize,
    /// Entries there is room for.
    pub max: u32,
}

/// How often something was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCount {
    /// The verdict's name.
    pub verdict: String,
    /// Packets, or socket calls.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What came in tunnels for frontends with direct server return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelCount {
    /// Packets unwrapped.
    pub unwrapped: u64,
    /// Packets left to the stack because their sender is nobody from whom tunnels are expected.
    pub strangers: u64,
}

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Source as it arrives.
    pub source: String,
    /// Destination as it arrives.
    pub destination: String,
    /// What the source becomes.
    pub to_source: String,
    /// What the destination becomes.
    pub to_destination: String,
    /// `forward` or `reply`.
    pub direction: String,
    /// Service port id.
    pub service_port: u32,
    /// Backend id.
    pub backend: u32,
    /// How far it has come.
    pub phase: String,
    /// Seconds since its last packet.
    pub age_s: u64,
}

/// The fill of every hash map pinned in `dir`. Arrays are always full and not listed.
pub fn map_fill(dir: &Path) -> Result<Vec<MapFill>, InspectError> {
    MAPS.iter()
        .filter(|map| matches!(map.map_type, MapType::Hash | MapType::LruHash | MapType::LpmTrie))
        .map(|map| fill(dir, map))
        .collect()
}

fn fill(dir: &Path, map: &MapSpec) -> Result<MapFill, InspectError> {
    let error = |source| InspectError::Map { name: map.name.to_owned(), source };
    let path = dir.join(map.name);
    let max = MapInfo::from_pin(&path).map_err(error)?.max_entries();
    let data = MapData::from_pin(&path).map_err(error)?;
    let (key_size, value_size) = (map.key_size as usize, map.value_size as usize);
    let entries = bpf::count_entries(data.fd().as_fd(), key_size, value_size, max)
        .map_err(|source| InspectError::Walk { name: map.name.to_owned(), source })?;
    Ok(MapFill { name: map.name.to_owned(), entries, max })
}

/// The verdict counters pinned in `dir`, the CPUs added up.
pub fn verdicts(dir: &Path) -> Result<Vec<VerdictCount>, InspectError> {
    let error = |source| InspectError::Map { name: maps::COUNTERS.to_owned(), source };
    let data = MapData::from_pin(dir.join(maps::COUNTERS)).map_err(error)?;
    let counters: PerCpuArray<MapData, VerdictCounter> =
        PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(error)?;
    Verdict::ALL
        .iter()
        .map(|&verdict| {
            let values = counters.get(&(verdict as u32), 0).map_err(error)?;
            Ok(VerdictCount {
                verdict: verdict.name().to_owned(),
                packets: values.iter().map(|value| value.packets).sum(),
                bytes: values.iter().map(|value| value.bytes).sum(),
            })
        })
        .collect()
}

/// The counters of tunnels pinned in `dir`, the CPUs added up.
pub fn tunnels(dir: &Path) -> Result<TunnelCount, InspectError> {
    let error = |source| InspectError::Map { name: maps::TUNNELS.to_owned(), source };
    let data = MapData::from_pin(dir.join(maps::TUNNELS)).map_err(error)?;
    let counters: PerCpuArray<MapData, TunnelCounter> =
        PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(error)?;
    let values = counters.get(&0, 0).map_err(error)?;
    Ok(TunnelCount {
        unwrapped: values.iter().map(|value| value.unwrapped).sum(),
        strangers: values.iter().map(|value| value.strangers).sum(),
    })
}

/// The connections of one family pinned in `dir`.
pub fn connections<F: Family>(dir: &Path, now: Coarse) -> Result<Vec<ConnectionReport>, InspectError>
where
    FlowKey<F>: Pod + aya::Pod,
    ConnectionValue<F>: Pod + aya::Pod,
{
    let mut found = Vec::new();
    Connections::<F>::open(dir)?.walk(|keys, values| {
        found.extend(keys.iter().zip(values).map(|(key, value)| connection(key, value, now)));
    })?;
    Ok(found)
}

fn connection<F: Family>(key: &FlowKey<F>, value: &ConnectionValue<F>, now: Coarse) -> ConnectionReport {
    let [source, destination] = ends(&key.tuple);
    let [to_source, to_destination] = ends(&value.to);
    let direction = match value.flags {
        flags if flags.has(ConnectionFlags::REPLY) => "reply",
        flags if flags.has(ConnectionFlags::TUNNEL) => "tunnel",
        _ => "forward",
    };
    ConnectionReport {
        protocol: key.protocol.name().to_owned(),
        source,
        destination,
        to_source,
        to_destination,
        direction: direction.to_owned(),
        service_port: value.service_port.0,
        backend: value.backend.0,
        phase: value.phase.name().to_owned(),
        age_s: value.last_seen.age_s(now),
    }
}

fn ends<F: Family>(tuple: &Tuple<F>) -> [String; 2] {
    let end = |addr: F::Addr, port: Be16| std::net::SocketAddr::new(addr.to_ip(), port.get()).to_string();
    [end(tuple.src, tuple.src_port), end(tuple.dst, tuple.dst_port)]
}
