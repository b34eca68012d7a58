//! Creates the maps and loads the programs: which exist already, which sizes they have, what the programs are told.
//! Called once at the start of `lb-agent run`; nothing is attached here. Maps come first ([`create`]) and programs
//! later ([`Datapath::load_programs`]): the verifier takes long enough to read the cluster meanwhile.
//!
//! What must stay true: maps that a former agent pinned are taken over as they are, so connections survive; a map
//! that does not fit is never replaced behind the operator's back.

use std::{collections::BTreeMap, io, path::PathBuf};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapError, MapInfo},
    programs::{Program, ProgramError},
};
use lb_common::{
    maps::{MAPS, MapSpec, NO_COMMON_LRU},
    settings,
};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    globals::Globals,
    kernel::{self, Capabilities, Release},
    pins::{Lock, Pins, PinsError},
};

/// What can go wrong before the datapath is loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// /proc or a socket refused an answer.
    #[error("ask the kernel for {what}: {source}")]
    Kernel {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// Too old.
    #[error("Linux {running} is too old; the datapath needs {oldest} or later", oldest = Release::OLDEST)]
    TooOld {
        /// The running kernel.
        running: Release,
    },
    /// Not privileged enough.
    #[error("missing capabilities: {}; run as root, or add them to the container's securityContext", .0.join(", "))]
    Capabilities(Vec<&'static str>),
    /// The pin directory.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A pinned map cannot be read.
    #[error("open pinned map {path}: {source}")]
    PinnedMap {
        /// Its pin.
        path: PathBuf,
        /// What the kernel said.
        source: MapError,
    },
    /// A pinned map does not fit.
    #[error(
        "map {name} is pinned at {path} with {what} {found}, this agent wants {wanted}; start with the former size, \
         or stop the agent and run `lb-agent cleanup` (which ends the node's service connections) to have it created anew"
    )]
    Mismatch {
        /// Name of the map.
        name: &'static str,
        /// Its pin.
        path: PathBuf,
        /// Which property differs.
        what: &'static str,
        /// Its value in the kernel.
        found: u32,
        /// Its value here.
        wanted: u32,
    },
    /// The object is not valid, or a map could not be created.
    #[error("load the datapath: {0}")]
    Object(#[from] EbpfError),
    /// The verifier or the kernel refused a program.
    #[error("load program {name}: {source}")]
    Program {
        /// Its name.
        name: String,
        /// Why.
        source: ProgramError,
    },
    /// The development log.
    #[error("read the datapath's log: {0}")]
    Log(String),
}

/// What to load with. Validated by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadConfig {
    /// Directory of pins, without the ABI version.
    pub pin_dir: PathBuf,
    /// Entries of maps that differ from [`MapSpec::max_entries`], by name.
    pub max_entries: BTreeMap<&'static str, u32>,
    /// First SNAT source port.
    pub snat_port_min: u16,
    /// Number of SNAT source ports.
    pub snat_port_count: u16,
    /// By what pods are known.
    pub detect_local: settings::DetectLocal,
    /// Whoever dials a ClusterIP gets a node address.
    pub masquerade_all: bool,
    /// What pods dial is sent on by the programs, past the stack.
    pub forwards_pods: bool,
    /// New flows a second and CPU that are a flood; 0: none are.
    pub flood_threshold: u32,
    /// XDP asks first whether a packet needs a connection.
    pub stateless: bool,
}

impl LoadConfig {
    /// Entries of `map`. The kernel gives each CPU the same share of a map without a common LRU list.
    pub fn entries(&self, map: &MapSpec) -> u32 {
        let entries = self.max_entries.get(map.name).copied().unwrap_or(map.max_entries);
        if map.flags & NO_COMMON_LRU == 0 { entries } else { entries.next_multiple_of(possible_cpus()) }
    }
}

/// The loaded datapath. Its maps are pinned; its programs live as long as this value or a link.
#[derive(Debug)]
pub struct Datapath {
    /// Programs and maps.
    pub ebpf: Ebpf,
    /// Where they are pinned.
    pub pins: Pins,
    /// The running kernel.
    pub release: Release,
    /// `lb_common::settings::FEATURE_…` in use.
    pub features: u32,
    /// True if a former agent's maps were taken over.
    pub restarted: bool,
    _lock: Lock,
}

/// Loads `object` (4-byte aligned), maps and programs, with maps pinned as `config` says.
pub fn load(object: &[u8], config: &LoadConfig) -> Result<Datapath, LoadError> {
    let mut datapath = create(object, config)?;
    datapath.load_programs()?;
    Ok(datapath)
}

impl Datapath {
    /// The XDP program for this kernel.
    pub const fn xdp_program_name(&self) -> &'static str {
        if self.features & settings::FEATURE_XDP_FRAGS != 0 { "xdp_uplink_frags" } else { "xdp_uplink" }
    }

    /// Has the verifier look at every program but those for XDP and for devices without link-layer header, which few nodes run: they are
    /// loaded with the first device that wants them. Takes a second or so of one core; once only.
    pub fn load_programs(&mut self) -> Result<(), LoadError> {
        load_programs(&mut self.ebpf)
    }
}

/// Creates or takes over the maps of `object` (4-byte aligned), pinned as `config` says. Its programs are not loaded.
pub fn create(object: &[u8], config: &LoadConfig) -> Result<Datapath, LoadError> {
    let release = check_kernel()?;
    let pins = Pins::new(&config.pin_dir);
    pins.create()?;
    let lock = pins.lock()?;
    let restarted = check_pinned_maps(&pins, config)?;
    let globals = globals(config)?;
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    for map in &MAPS {
        loader.map_pin_path(map.name, pins.map(map.name)).map_max_entries(map.name, config.entries(map));
    }
    let ebpf = loader.load(object)?;
    Ok(Datapath { ebpf, pins, release, features: globals.features, restarted, _lock: lock })
}

/// As `config` says, on this kernel.
fn globals(config: &LoadConfig) -> Result<Globals, LoadError> {
    Ok(Globals {
        node_netns_cookie: kernel::netns_cookie()
            .map_err(|source| LoadError::Kernel { what: "SO_NETNS_COOKIE", source })?,
        snat_port_min: config.snat_port_min.into(),
        snat_port_count: config.snat_port_count.into(),
        detect_local: config.detect_local,
        masquerade_all: config.masquerade_all.into(),
        forwards_pods: config.forwards_pods.into(),
        flood_threshold: config.flood_threshold,
        stateless: config.stateless.into(),
        jiffies: kernel::Jiffies::probe(),
        features: kernel::features(),
    })
}

/// CPUs that the kernel has prepared for.
pub fn possible_cpus() -> u32 {
    aya::util::nr_cpus().ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1).max(1)
}

fn check_kernel() -> Result<Release, LoadError> {
    let release = Release::running().map_err(|source| LoadError::Kernel { what: "its release", source })?;
    if release < Release::OLDEST {
        return Err(LoadError::TooOld { running: release });
    }
    let held =
        Capabilities::effective().map_err(|source| LoadError::Kernel { what: "capabilities", source })?;
    let missing = held.missing(release);
    if !missing.is_empty() {
        return Err(LoadError::Capabilities(missing.iter().map(|capability| capability.1).collect()));
    }
    if release < Release::MEMCG_ACCOUNTING {
        kernel::raise_memlock().map_err(|source| LoadError::Kernel { what: "RLIMIT_MEMLOCK", source })?;
    }
    Ok(release)
}

/// Checks every map that is pinned already; true if there is any.
fn check_pinned_maps(pins: &Pins, config: &LoadConfig) -> Result<bool, LoadError> {
    let mut any = false;
    for map in &MAPS {
        let path = pins.map(map.name);
        if !path.exists() {
            continue;
        }
        any = true;
        let info =
            MapInfo::from_pin(&path).map_err(|source| LoadError::PinnedMap { path: path.clone(), source })?;
        if let Some((what, found, wanted)) = mismatch(map, config.entries(map), &PinnedMap::from(&info)) {
            return Err(LoadError::Mismatch { name: map.name, path, what, found, wanted });
        }
    }
    Ok(any)
}

/// The properties of a pinned map that must fit.
struct PinnedMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

impl From<&MapInfo> for PinnedMap {
    fn from(info: &MapInfo) -> Self {
        Self {
            map_type: info.map_type().map_or(0, |map_type| map_type as u32),
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
        }
    }
}

/// The first property in which `pinned` differs from `map` with `max_entries`: its name, the value found, the value
/// wanted.
fn mismatch(map: &MapSpec, max_entries: u32, pinned: &PinnedMap) -> Option<(&'static str, u32, u32)> {
    [
        ("type", pinned.map_type, map.map_type as u32),
        ("bytes of key", pinned.key_size, map.key_size),
        ("bytes of value", pinned.value_size, map.value_size),
        ("max_entries", pinned.max_entries, max_entries),
    ]
    .into_iter()
    .find(|(_, found, wanted)| found != wanted)
}

/// On a thread that gives way to the agent's others: what they write to the maps is wanted first, and where there is a
/// CPU to spare the verifier has it all the same.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            kernel::give_way();
            verify(ebpf)
        });
        loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn verify(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, program) in ebpf.programs_mut().filter(|(name, _)| !name.starts_with(L3_PREFIX)) {
        let loaded = match program {
            Program::CgroupSockAddr(program) => patiently(|| program.load()),
            Program::SchedClassifier(program) => patiently(|| program.load()),
            _ => continue,
        };
        loaded.map_err(|source| LoadError::Program { name: name.to_owned(), source })?;
    }
    Ok(())
}

/// How the names of programs for devices without link-layer header begin.
const L3_PREFIX: &str = "tc_l3_";

/// Tries at a program whose verification a signal broke off.
const VERIFY_TRIES: usize = 10;

/// Loads a program. The verifier gives up with EAGAIN when a signal is pending; libbpf tries again too.
pub(super) fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 1..VERIFY_TRIES {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            done => return done,
        }
    }
    load()
}

/// Forwards the datapath's development log to the `log` facade for as long as the runtime lives, if the object was
/// built with it (feature `log` of lb-ebpf); true if it was.
pub fn forward_log(ebpf: &mut Ebpf) -> Result<bool, LoadError> {
    if ebpf.map("AYA_LOGS").is_none() {
        return Ok(false);
    }
    let logger = aya_log::EbpfLogger::init(ebpf).map_err(|error| LoadError::Log(error.to_string()))?;
    // SAFETY: the logger owns the map whose descriptor `as_fd` returns, the same one until it is dropped.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.map_err(|error| LoadError::Log(error.to_string()))?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_map_of_another_shape_is_refused_by_what_differs() {
        let map = &MAPS[0];
        let fits = || PinnedMap {
            map_type: map.map_type as u32,
            key_size: map.key_size,
            value_size: map.value_size,
            max_entries: 100,
        };
        assert_eq!(mismatch(map, 100, &fits()), None);
        assert_eq!(mismatch(map, 200, &fits()), Some(("max_entries", 100, 200)));
        let other = PinnedMap { value_size: 1, ..fits() };
        assert_eq!(mismatch(map, 100, &other), Some(("bytes of value", 1, map.value_size)));
        let array = PinnedMap { map_type: 2, ..fits() };
        assert_eq!(mismatch(map, 100, &array), Some(("type", 2, 1)));
    }
}
