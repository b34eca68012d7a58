//! What `lb-agent run` was asked to do, checked. Built by `cli`; everything below takes it as it is.
//!
//! What must stay true: every default is here or in the flags, none further down.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use lb_common::{
    limits,
    maps::{self, MAPS},
    settings::Settings,
};
use thiserror::Error;

use crate::{
    datapath::{
        devices::{NodePortAddresses, Patterns},
        hook::AttachMode,
        local::DetectLocal,
        xdp::XdpMode,
    },
    desired::maglev::TableSize,
    flood,
    model::service::{Algorithm, Forwarding},
    node_tuning::NodeTuning,
    sockets::Reach,
};

/// Which values do not make a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No name for the node.
    #[error("no node name: give --node-name or NODE_NAME")]
    NodeName,
    /// More than one source.
    #[error("--manifests and --kubeconfig exclude each other: the objects come from one source")]
    Sources,
    /// `--api-server` without a cluster.
    #[error("--api-server goes with --kubeconfig or a Pod's service account, not with --manifests")]
    ApiServers,
    /// No cgroup v2.
    #[error("no cgroup2 mount in /proc/mounts; mount one or give its path with --cgroup")]
    Cgroup,
    /// /proc cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// An address to listen on.
    #[error("{flag} {text:?}: must be ADDR:PORT or ADDR, or empty for nowhere")]
    Address {
        /// Which.
        flag: &'static str,
        /// What was given.
        text: String,
    },
    /// A size out of range.
    #[error("--max-{what} {value}: must be {min} to {max}")]
    Size {
        /// Which.
        what: &'static str,
        /// What was given.
        value: u32,
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// Every Service would have a Maglev table, and not even two fit.
    #[error(
        "--max-slots {slots} has no room for two Maglev tables of {size} slots, one in use and one being written"
    )]
    Tables {
        /// Slots.
        slots: u32,
        /// Slots of a table.
        size: TableSize,
    },
}

/// Where the Kubernetes objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// A cluster.
    Kubernetes {
        /// Credentials; `None`: those of the Pod's service account.
        kubeconfig: Option<PathBuf>,
        /// Addresses to use instead of the configured one.
        api_servers: Vec<String>,
    },
}

impl Source {
    /// From the flags.
    pub fn new(
        manifests: Option<PathBuf>,
        kubeconfig: Option<PathBuf>,
        api_servers: Vec<String>,
    ) -> Result<Self, ConfigError> {
        match (manifests, kubeconfig) {
            (Some(_), Some(_)) => Err(ConfigError::Sources),
            (Some(_), None) if !api_servers.is_empty() => Err(ConfigError::ApiServers),
            (Some(dir), None) => Ok(Self::Manifests(dir)),
            (None, kubeconfig) => Ok(Self::Kubernetes { kubeconfig, api_servers }),
        }
    }
}

/// SNAT source ports, first and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First.
    pub min: u16,
    /// Last.
    pub max: u16,
}

impl PortRange {
    /// Number of ports.
    pub const fn count(self) -> u16 {
        (self.max - self.min).saturating_add(1)
    }

    /// True if `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.min <= port && port <= self.max
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self { min: limits::SNAT_PORT_MIN, max: limits::SNAT_PORT_MIN + (limits::SNAT_PORT_COUNT - 1) }
    }
}

impl std::str::FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not MIN-MAX with 1 <= MIN <= MAX <= 65535");
        let (min, max) = text.split_once('-').ok_or_else(error)?;
        let (min, max) = (min.parse().map_err(|_| error())?, max.parse().map_err(|_| error())?);
        if min == 0 || min > max { Err(error()) } else { Ok(Self { min, max }) }
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

/// Everything `lb-agent run` needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// This node's name, trimmed and in lower case (spec 2.3).
    pub node_name: String,
    /// Where objects come from.
    pub source: Source,
    /// The cgroup whose processes the socket programs serve.
    pub cgroup: PathBuf,
    /// Where maps and links are pinned.
    pub pin_dir: PathBuf,
    /// Where the admin socket is.
    pub run_dir: PathBuf,
    /// Device roles given by the operator.
    pub patterns: Patterns,
    /// tcx or clsact.
    pub attach: AttachMode,
    /// Where XDP is used.
    pub xdp: XdpMode,
    /// Attach the socket programs.
    pub socket_lb: bool,
    /// Algorithm of Services that name none.
    pub algorithm: Algorithm,
    /// How packets of Services that say nothing of it get to backends elsewhere.
    pub forwarding: Forwarding,
    /// What pods dial is sent on by the programs, past the stack.
    pub forwards_pods: bool,
    /// From where tunnels may come beside other nodes' addresses.
    pub dsr_sources: Vec<IpNet>,
    /// Slots of Maglev tables.
    pub table_size: TableSize,
    /// Where sockets are destroyed whose backend has left.
    pub destroy_sockets: Reach,
    /// Where NodePorts listen.
    pub nodeport_addresses: NodePortAddresses,
    /// By what pods are known.
    pub detect_local: DetectLocal,
    /// Whoever dials a ClusterIP gets a node address.
    pub masquerade_all: bool,
    /// Where externalIPs may lie; empty: anywhere.
    pub external_ip_cidrs: Vec<IpNet>,
    /// Where /healthz and /livez listen; `None`: nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where /metrics listens; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// A health or metrics address that cannot be listened on ends the agent.
    pub bind_address_hard_fail: bool,
    /// How long a change may wait to be written before the node counts as unhealthy.
    pub health_timeout: Duration,
    /// From one sync to the next.
    pub min_sync_period: Duration,
    /// The longest wait before a failed sync is tried again.
    pub retry_period_max: Duration,
    /// Between comparisons of maps with what was written.
    pub full_sync_period: Duration,
    /// Between collections of dead connections.
    pub gc_period: Duration,
    /// Between readings of the host's conntrack; zero: it is not read.
    pub host_conntrack_interval: Duration,
    /// Entries of maps, by name.
    pub max_entries: BTreeMap<&'static str, u32>,
    /// What is set in the kernel for the node as a whole.
    pub tuning: NodeTuning,
    /// SNAT source ports.
    pub snat_ports: PortRange,
    /// New flows a second and CPU that are a flood; 0: none are. `None`: [`flood::default_threshold`].
    pub flood_threshold: Option<u32>,
    /// One in this many verdicts is logged; 0: none.
    pub events_sample: u32,
    /// Answers a CPU may send a second; 0: any number.
    pub refusals_per_second: u32,
}

impl Config {
    /// What the programs are told at run time.
    pub fn settings(&self) -> Settings {
        Settings {
            events_sample: self.events_sample,
            refusals_per_second: self.refusals_per_second,
            ..Settings::default()
        }
    }

    /// New flows a second and CPU that are a flood, on a machine of `cpus`.
    pub fn flood_threshold(&self, cpus: u32) -> u32 {
        let connections = self.max_entries.get("CONNECTIONS4").copied().unwrap_or(limits::CONNECTIONS_MAX);
        self.flood_threshold.unwrap_or_else(|| flood::default_threshold(connections, cpus))
    }
}

/// Sizes given by the operator, by the name of the flag.
pub const SIZES: [(&str, &[&str]); 10] = [
    ("frontends", &["FRONTENDS4", "FRONTENDS6", "VIPS4", "VIPS6"]),
    ("backends", &["BACKENDS4", "BACKENDS6", "BACKEND_COUNTERS"]),
    ("service-ports", &["GENERATIONS", "SERVICE_COUNTERS"]),
    ("members", &["MEMBERS"]),
    ("slots", &["SLOTS"]),
    ("source-ranges", &["SOURCE_RANGES4", "SOURCE_RANGES6"]),
    ("connections", &["CONNECTIONS4", "CONNECTIONS6"]),
    ("flood", &["FLOOD4", "FLOOD6"]),
    ("affinity", &["AFFINITY4", "AFFINITY6"]),
    ("sock-rev-nat", &["SOCK_REV_NAT4", "SOCK_REV_NAT6"]),
];

/// The entries of the maps that `sizes` (in the order of [`SIZES`]) concern.
pub fn max_entries(sizes: [Option<u32>; 10]) -> Result<BTreeMap<&'static str, u32>, ConfigError> {
    const MIN: u32 = 16;
    const MAX: u32 = 1 << 24;
    let mut entries = BTreeMap::new();
    for ((what, names), size) in SIZES.into_iter().zip(sizes) {
        let Some(value) = size else { continue };
        if !(MIN..=MAX).contains(&value) {
            return Err(ConfigError::Size { what, value, min: MIN, max: MAX });
        }
        let maps = MAPS.iter().filter(|map| names.contains(&map.name));
        entries.extend(maps.map(|map| (map.name, value)));
    }
    Ok(entries)
}

/// Says so if the slots in `max_entries` cannot hold a Maglev table and its successor although every Service that names
/// no algorithm would have one.
pub fn check_tables(
    algorithm: Algorithm,
    size: TableSize,
    max_entries: &BTreeMap<&'static str, u32>,
) -> Result<(), ConfigError> {
    let slots = max_entries.get(maps::SLOTS).copied().unwrap_or(limits::SLOTS_MAX);
    match algorithm {
        Algorithm::Maglev if slots < 2 * size.get() => Err(ConfigError::Tables { slots, size }),
        _ => Ok(()),
    }
}

/// Where to listen: empty is nowhere, and an address without a port takes `port`, as with kube-proxy.
pub fn listen_address(flag: &'static str, text: &str, port: u16) -> Result<Option<SocketAddr>, ConfigError> {
    let with_port = || text.trim_matches(['[', ']']).parse().ok().map(|ip| SocketAddr::new(ip, port));
    match text {
        "" => Ok(None),
        text => match text.parse().ok().or_else(with_port) {
            Some(address) => Ok(Some(address)),
            None => Err(ConfigError::Address { flag, text: text.to_owned() }),
        },
    }
}

/// The node's name: as given, else the host's; trimmed and in lower case (spec 2.3).
pub fn node_name(given: Option<&str>) -> Result<String, ConfigError> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => fs::read_to_string("/proc/sys/kernel/hostname")
            .map_err(|source| ConfigError::Read { path: "/proc/sys/kernel/hostname", source })?,
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() { Err(ConfigError::NodeName) } else { Ok(name) }
}

/// The cgroup: as given, else the cgroup2 mount.
pub fn cgroup(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let mounts = fs::read_to_string("/proc/mounts")
        .map_err(|source| ConfigError::Read { path: "/proc/mounts", source })?;
    cgroup2_mount(&mounts).ok_or(ConfigError::Cgroup)
}

/// Where /proc/mounts says a cgroup2 is.
pub fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_exactly_one_source() {
        let dir = || Some(PathBuf::from("/d"));
        assert_eq!(Source::new(dir(), None, vec![]).unwrap(), Source::Manifests("/d".into()));
        assert!(matches!(Source::new(dir(), dir(), vec![]), Err(ConfigError::Sources)));
        assert!(matches!(Source::new(dir(), None, vec!["x".into()]), Err(ConfigError::ApiServers)));
        assert!(matches!(Source::new(None, None, vec![]), Ok(Source::Kubernetes { kubeconfig: None, .. })));
    }

    #[test]
    fn a_node_name_is_trimmed_and_lower_case() {
        assert_eq!(node_name(Some(" Node-1 ")).unwrap(), "node-1");
        assert!(matches!(node_name(Some("  ")), Err(ConfigError::NodeName)));
    }

    #[test]
    fn an_address_to_listen_on_may_lack_its_port_or_be_empty() {
        for (text, expected) in [
            ("", None),
            ("127.0.0.1:9", Some("127.0.0.1:9")),
            ("0.0.0.0", Some("0.0.0.0:10249")),
            ("::1", Some("[::1]:10249")),
            ("[::]", Some("[::]:10249")),
            ("[::1]:9", Some("[::1]:9")),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(listen_address("--metrics-bind-address", text, 10249).unwrap(), expected, "{text:?}");
        }
        for text in ["localhost", "10249", ":10249", "127.0.0.1:65536"] {
            let error = listen_address("--metrics-bind-address", text, 10249).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("--metrics-bind-address"), "{error}");
        }
    }

    #[test]
    fn ports_are_read_as_a_range() {
        assert_eq!("1024-29999".parse(), Ok(PortRange::default()));
        assert_eq!(PortRange::default().count(), limits::SNAT_PORT_COUNT);
        for bad in ["", "1", "0-5", "9-5", "1-70000"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_concerns_every_map_of_its_kind() {
        let mut sizes = [None; 10];
        sizes[1] = Some(1000);
        let names: Vec<_> = max_entries(sizes).unwrap().into_keys().collect();
        assert_eq!(names, ["BACKENDS4", "BACKENDS6", "BACKEND_COUNTERS"]);
        sizes[1] = Some(0);
        assert!(matches!(max_entries(sizes), Err(ConfigError::Size { what: "backends", .. })));
        let known = SIZES.iter().flat_map(|(_, names)| names.iter());
        assert!(known.into_iter().all(|name| MAPS.iter().any(|map| map.name == *name)));
    }

    #[test]
    fn slots_must_hold_two_tables_when_every_service_has_one() {
        let slots = |slots| BTreeMap::from([("SLOTS", slots)]);
        let check = |algorithm, max_entries| check_tables(algorithm, TableSize::default(), &max_entries);
        assert!(matches!(
            check(Algorithm::Maglev, slots(32_761)),
            Err(ConfigError::Tables { slots: 32_761, .. })
        ));
        assert!(check(Algorithm::Maglev, slots(32_762)).is_ok());
        assert!(check(Algorithm::Maglev, BTreeMap::new()).is_ok());
        assert!(check(Algorithm::Random, slots(16)).is_ok());
    }

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mounts =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount("proc /proc proc rw 0 0\n"), None);
    }
}
