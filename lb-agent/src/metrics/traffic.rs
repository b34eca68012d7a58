//! What the datapath counted for each service port and backend. Its counters are per-CPU arrays under ids; they are
//! read in batches, and only where an id is in use: a whole array is gigabytes on a large machine.

use std::{fmt, io, os::fd::AsFd as _, path::Path};

use lb_common::{counters::TrafficCounter, maps};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::{encode_counters, snapshot::ControlSnapshot};
use crate::{datapath::bpf, desired::census::ServicePort, model::backend::BackendAddress};

/// Bytes of counters read at once, about.
const BATCH_BYTES: usize = 1 << 20;
/// Unused ids that are read rather than begin another batch.
const GAP_MAX: u32 = 16;

/// Counters by what they count.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Of service ports.
    pub service_ports: Vec<(ServicePort, TrafficCounter)>,
    /// Of backends.
    pub backends: Vec<(BackendAddress, TrafficCounter)>,
}

impl Traffic {
    /// Reads the counters of everything in `known` from the maps pinned in `dir`.
    pub fn read(dir: &Path, known: ControlSnapshot) -> io::Result<Self> {
        let ports = known.service_ports.into_iter().map(|port| (port.id.0, port)).collect();
        let backends = known.backends.into_iter().map(|(id, backend)| (id.0, backend)).collect();
        Ok(Self {
            service_ports: counted(&dir.join(maps::SERVICE_COUNTERS), ports)?,
            backends: counted(&dir.join(maps::BACKEND_COUNTERS), backends)?,
        })
    }
}

/// Each owner of an id with its counter, the CPUs added up.
fn counted<T>(map: &Path, mut owners: Vec<(u32, T)>) -> io::Result<Vec<(T, TrafficCounter)>> {
    owners.sort_unstable_by_key(|(id, _)| *id);
    let map = bpf::open_pin(map)?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let ids: Vec<u32> = owners.iter().map(|(id, _)| *id).collect();
    let count_max = (BATCH_BYTES / (cpus * size_of::<TrafficCounter>())).max(1);
    let mut owners = owners.into_iter().peekable();
    let mut found = Vec::with_capacity(ids.len());
    for (first, count) in batches(&ids, u32::try_from(count_max).unwrap_or(u32::MAX)) {
        let values: Vec<TrafficCounter> = bpf::read_per_cpu(map.as_fd(), cpus, first, count)?;
        while let Some((id, owner)) = owners.next_if(|(id, _)| *id < first + count) {
            let at = (id - first) as usize * cpus;
            // An id that the map does not have was counted nowhere.
            let own = values.get(at..at + cpus).unwrap_or_default();
            found.push((owner, own.iter().fold(TrafficCounter::default(), add)));
        }
    }
    Ok(found)
}

fn add(sum: TrafficCounter, one: &TrafficCounter) -> TrafficCounter {
    TrafficCounter {
        connections: sum.connections + one.connections,
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
        refused: sum.refused + one.refused,
    }
}

/// Stretches (first id, count) that cover the sorted `ids`.
fn batches(ids: &[u32], count_max: u32) -> Vec<(u32, u32)> {
    let mut batches: Vec<(u32, u32)> = Vec::new();
    for &id in ids {
        match batches.last_mut() {
            Some((first, count)) if id - *first < count_max && id - (*first + *count - 1) <= GAP_MAX => {
                *count = id - *first + 1;
            }
            _ => batches.push((id, 1)),
        }
    }
    batches
}

type Field = fn(&TrafficCounter) -> u64;

const SERVICE_COUNTERS: [(&str, &str, Field); 4] = [
    ("lb_service_connections", "Connections and flows given a backend", |counter| counter.connections),
    ("lb_service_packets", "Packets translated, both directions", |counter| counter.packets),
    ("lb_service_bytes", "Bytes translated, both directions", |counter| counter.bytes),
    ("lb_service_refused", "Connections and flows refused or dropped", |counter| counter.refused),
];
const BACKEND_COUNTERS: [(&str, &str, Field); 3] = [
    ("lb_backend_connections", "Connections and flows given this backend", |counter| counter.connections),
    ("lb_backend_packets", "Packets translated, both directions", |counter| counter.packets),
    ("lb_backend_bytes", "Bytes translated, both directions", |counter| counter.bytes),
];

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, field) in SERVICE_COUNTERS {
            let rows =
                self.service_ports.iter().map(|(port, counter)| (service_labels(port), field(counter)));
            encode_counters(&mut encoder, (name, help), rows)?;
        }
        let names: Vec<String> = self.backends.iter().map(|(backend, _)| backend_name(backend)).collect();
        for (name, help, field) in BACKEND_COUNTERS {
            let rows = self.backends.iter().zip(&names).map(|((backend, counter), name)| {
                ([("backend", name.as_str()), ("protocol", backend.protocol.name())], field(counter))
            });
            encode_counters(&mut encoder, (name, help), rows)?;
        }
        Ok(())
    }
}

fn service_labels(port: &ServicePort) -> [(&'static str, &str); 4] {
    [
        ("namespace", &port.service.namespace),
        ("service", &port.service.name),
        ("port", &port.port.name),
        ("protocol", port.port.protocol.name()),
    ]
}

fn backend_name(backend: &BackendAddress) -> String {
    std::net::SocketAddr::new(backend.addr, backend.port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_the_ids_in_use_and_little_else() {
        for (ids, count_max, expected) in [
            (vec![], 100, vec![]),
            (vec![7], 100, vec![(7, 1)]),
            (vec![1, 2, 3, 4, 5], 2, vec![(1, 2), (3, 2), (5, 1)]),
            (vec![1, 17, 34], 100, vec![(1, 17), (34, 1)]),
            (vec![1, 60_000], 100, vec![(1, 1), (60_000, 1)]),
        ] {
            assert_eq!(batches(&ids, count_max), expected, "{ids:?}");
        }
    }
}
