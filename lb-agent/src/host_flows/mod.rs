//! Which source ports has the host's netfilter given to flows of its own? Read from its conntrack every few seconds and
//! written to `HOST_FLOWS4` and `HOST_FLOWS6`, so that the datapath gives none of them to a connection
//! (docs/decisions/0005). Run by `cli::run`.
//!
//! What must stay true: a dump that fails changes nothing; reading takes a twentieth of one CPU at most; no kernel module
//! of netfilter is loaded for it.

mod ctnetlink;

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use lb_common::{
    family::{Family, V4, V6},
    flow::FlowKey,
    limits, maps,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{config::PortRange, metrics::host_flows::HostFlowsMetrics};
pub use ctnetlink::ConntrackError;

/// Exists where `nf_conntrack` is; holds the number of entries of the reader's network namespace.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// The value of every entry.
const PRESENT: u32 = 1;
/// A round is followed by a pause of so many times its length at least.
const PAUSE_FACTOR: u32 = 20;

/// What can go wrong in a round.
#[derive(Debug, thiserror::Error)]
pub enum HostFlowsError {
    /// Conntrack cannot be read.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// Whether it is there cannot be told.
    #[error("read {COUNT}: {0}")]
    Count(io::Error),
    /// A map cannot be opened or written.
    #[error("{what} {map}: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map.
        map: String,
        /// What the kernel said.
        source: MapError,
    },
}

/// Answers that flows of the host wait for, keyed as in `CONNECTIONS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFlows {
    /// IPv4.
    pub v4: HashSet<FlowKey<V4>>,
    /// IPv6.
    pub v6: HashSet<FlowKey<V6>>,
    /// Flows there was no room for.
    pub left_out: usize,
}

/// How to go about it.
#[derive(Clone, Debug)]
pub struct HostFlowsConfig {
    /// From one round to the next; zero: no rounds, and nothing stays in the maps.
    pub interval: Duration,
    /// Flows with other ports do not matter.
    pub ports: PortRange,
    /// Where the maps are pinned.
    pub pins: PathBuf,
}

/// The two maps, and what is in them.
pub struct HostFlowsMaps {
    v4: Table<V4>,
    v6: Table<V6>,
}

struct Table<F: Family> {
    name: String,
    map: HashMap<MapData, FlowKey<F>, u32>,
    known: HashSet<FlowKey<F>>,
}

impl HostFlowsMaps {
    /// Opens the maps pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, HostFlowsError> {
        Ok(Self { v4: Table::open(dir)?, v6: Table::open(dir)? })
    }

    /// Leaves `flows` in the maps and nothing else.
    pub fn replace(&mut self, flows: HostFlows) -> Result<(), HostFlowsError> {
        self.v4.replace(flows.v4)?;
        self.v6.replace(flows.v6)
    }
}

impl<F: Family> Table<F>
where
    FlowKey<F>: Pod,
{
    fn open(dir: &Path) -> Result<Self, HostFlowsError> {
        let name = format!("{}{}", maps::HOST_FLOWS, F::DIGIT);
        let open = || -> Result<_, MapError> {
            let map = HashMap::try_from(Map::HashMap(MapData::from_pin(dir.join(&name))?))?;
            let known = map.keys().collect::<Result<_, _>>()?;
            Ok((map, known))
        };
        match open() {
            Ok((map, known)) => Ok(Self { name, map, known }),
            Err(source) => Err(HostFlowsError::Map { what: "open", map: name, source }),
        }
    }

    /// What goes makes room for what comes.
    fn replace(&mut self, flows: HashSet<FlowKey<F>>) -> Result<(), HostFlowsError> {
        let failed = |source| HostFlowsError::Map { what: "write", map: self.name.clone(), source };
        let gone: Vec<_> = self.known.difference(&flows).copied().collect();
        for key in gone {
            match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => drop(self.known.remove(&key)),
                Err(source) => return Err(failed(source)),
            }
        }
        for key in flows {
            if !self.known.contains(&key) {
                self.map.insert(key, PRESENT, 0).map_err(failed)?;
                self.known.insert(key);
            }
        }
        Ok(())
    }
}

/// Reads conntrack of this network namespace as often as `config` says, until `stop`.
pub async fn run(
    config: HostFlowsConfig,
    metrics: HostFlowsMetrics,
    stop: CancellationToken,
) -> Result<(), HostFlowsError> {
    let mut maps = HostFlowsMaps::open(&config.pins)?;
    if config.interval.is_zero() {
        return maps.replace(HostFlows::default());
    }
    let mut log = Log::default();
    loop {
        let begun = Instant::now();
        // Thousands of system calls where there is much to read: not on a thread that others wait for.
        let outcome = tokio::task::block_in_place(|| round(&mut maps, config.ports));
        let took = begun.elapsed();
        metrics.read(took, outcome.is_ok());
        log.note(outcome, took);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(config.interval.max(took * PAUSE_FACTOR)) => {}
        }
    }
}

/// Reads the host's flows and writes them to the maps. Returns how many were read, and how many had no room.
fn round(maps: &mut HostFlowsMaps, ports: PortRange) -> Result<[usize; 2], HostFlowsError> {
    let flows =
        if is_tracked()? { ctnetlink::dump(ports, limits::HOST_FLOWS_MAX)? } else { HostFlows::default() };
    let counts = [flows.v4.len() + flows.v6.len(), flows.left_out];
    maps.replace(flows)?;
    Ok(counts)
}

/// Whether conntrack has any entry. To ask ctnetlink would load its module, and with it that of conntrack.
fn is_tracked() -> Result<bool, HostFlowsError> {
    match std::fs::read_to_string(COUNT) {
        Ok(count) => Ok(count.trim() != "0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(HostFlowsError::Count(error)),
    }
}

/// Says each kind of trouble when it begins, not every few seconds.
#[derive(Default)]
struct Log {
    has_failed: bool,
    is_full: bool,
}

impl Log {
    fn note(&mut self, outcome: Result<[usize; 2], HostFlowsError>, took: Duration) {
        let had_failed = std::mem::replace(&mut self.has_failed, outcome.is_err());
        match outcome {
            Ok([flows, left_out]) => {
                tracing::debug!(flows, left_out, ?took, "host conntrack read");
                if left_out > 0 && !self.is_full {
                    tracing::warn!(
                        flows,
                        left_out,
                        "no room for more flows of the host: their ports may be given again"
                    );
                }
                self.is_full = left_out > 0;
            }
            Err(error) if had_failed => tracing::debug!("read host conntrack: {error}"),
            Err(error) => tracing::warn!(
                "flows that the host's netfilter masquerades are not known, their ports may be given again: {error}"
            ),
        }
    }
}
