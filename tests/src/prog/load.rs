//! How the datapath of a test is loaded: which maps it has, what its programs are told.

use std::path::Path;

use aya::{Ebpf, EbpfLoader, programs::ProgramError};
use lb_agent::datapath::{globals::Globals, kernel::Jiffies};
use lb_common::{
    maps::{self, MAPS, MapType},
    settings,
};

/// Entries of the larger maps in tests: enough, and quick to make.
pub const ENTRIES_MAX: u32 = 4096;

/// How to load the datapath.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions<'a> {
    /// Number of SNAT ports; `None`: as released.
    pub snat_ports: Option<u32>,
    /// Maps to use, pinned in this directory; `None`: maps of its own.
    pub pins: Option<&'a Path>,
    /// By what pods are known.
    pub detect_local: settings::DetectLocal,
    /// Whoever dials a ClusterIP gets a node address.
    pub masquerade_all: bool,
    /// What pods dial is sent on past the stack.
    pub forwards_pods: bool,
    /// New flows a second and CPU that are a flood; 0: none are.
    pub flood_threshold: u32,
    /// XDP asks first whether a packet needs a connection.
    pub stateless: bool,
}

/// Creates the object's maps.
pub(super) fn create(options: &LoadOptions<'_>) -> Ebpf {
    let globals = globals(options);
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    for spec in MAPS {
        if let Some(dir) = options.pins {
            loader.map_pin_path(spec.name, dir.join(spec.name));
        }
        if spec.max_entries > ENTRIES_MAX && spec.map_type != MapType::RingBuf {
            loader.map_max_entries(spec.name, ENTRIES_MAX);
        }
    }
    loader.load(lb_agent::datapath::OBJECT).expect("load the BPF object (root is needed)")
}

/// Entries of each `CONNECTIONS` of full size.
const CONNECTIONS_FULL_SIZE: u32 = 1_048_576;

/// Creates the object's maps in the sizes of `lb_common`, but for service ports, and room for the flows of a measurement.
pub(super) fn create_full_size(service_ports: u32, options: &LoadOptions<'_>) -> Ebpf {
    let globals = globals(options);
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    for name in [maps::GENERATIONS, maps::SERVICE_COUNTERS] {
        loader.map_max_entries(name, service_ports);
    }
    for name in ["CONNECTIONS4", "CONNECTIONS6"] {
        loader.map_max_entries(name, CONNECTIONS_FULL_SIZE);
    }
    loader.load(lb_agent::datapath::OBJECT).expect("load the BPF object (root is needed)")
}

fn globals(options: &LoadOptions<'_>) -> Globals {
    let released = Globals::default();
    Globals {
        snat_port_count: options.snat_ports.unwrap_or(released.snat_port_count),
        detect_local: options.detect_local,
        masquerade_all: options.masquerade_all.into(),
        forwards_pods: options.forwards_pods.into(),
        flood_threshold: options.flood_threshold,
        stateless: options.stateless.into(),
        jiffies: Jiffies::probe(),
        features: settings::FEATURE_SET_RETVAL | settings::FEATURE_XDP_FRAGS,
        ..released
    }
}

/// Loads a program again when the kernel broke off verification for a signal (EAGAIN), as libbpf does.
pub(super) fn patiently(name: &str, mut load: impl FnMut() -> Result<(), ProgramError>) {
    for _ in 0..10 {
        match load() {
            Ok(()) => return,
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
    panic!("{name}: verification interrupted ten times");
}
