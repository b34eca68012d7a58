//! Runs the real programs on packets: a node in a network namespace of the calling thread, the programs loaded into
//! the kernel, `BPF_PROG_TEST_RUN` for one packet at a time.
//!
//! Needs root, and says so. A test's thread enters a namespace of its own and never leaves it; the namespace goes
//! with the thread.

use std::{fmt::Debug, process::Command};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::{CgroupSockAddr, SchedClassifier},
};
use lb_common::{
    backend::{BackendFlags, BackendState, BackendValue, MemberKey, MemberValue},
    conntrack::ConnectionValue,
    counters::{TrafficCounter, VerdictCounter},
    device::{DeviceFlags, DeviceRole, DeviceValue, NodeAddressKey, NodeAddressValue},
    family::{Addr4, Addr6, Be16, Family},
    flow::FlowKey,
    frontend::{FrontendKey, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    maps::{MAPS, MapType},
    settings,
    source_range::SourceRangeValue,
    verdict::Verdict,
};

/// Entries of the larger maps in tests: enough, and quick to make.
const ENTRIES_MAX: u32 = 4096;

/// `TC_ACT_UNSPEC` as the program's return value.
pub const TC_UNSPEC: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
pub const TC_SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`.
pub const TC_REDIRECT: u32 = 7;

/// The tc programs.
pub const TC_PROGRAMS: [&str; 6] = [
    "tc_uplink_ingress",
    "tc_uplink_egress",
    "tc_workload_ingress",
    "tc_workload_egress",
    "tc_l3_ingress",
    "tc_l3_egress",
];

/// The socket programs.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeername4",
    "sock_getpeername6",
];

/// What a program made of a packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its return code.
    pub code: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

/// The datapath, loaded.
pub struct Datapath {
    ebpf: Ebpf,
}

impl Datapath {
    /// Loads the object with every program verified by this kernel.
    pub fn load() -> Self {
        Self::load_with(settings::FEATURE_SET_RETVAL, 1)
    }

    /// The same with other features and number of SNAT ports.
    pub fn load_with(features: u32, snat_port_count: u32) -> Self {
        let mut loader = EbpfLoader::new();
        for spec in MAPS {
            if spec.max_entries > ENTRIES_MAX && spec.map_type != MapType::RingBuf {
                loader.map_max_entries(spec.name, ENTRIES_MAX);
            }
        }
        loader.override_global(settings::FEATURES, &features, true);
        if snat_port_count > 1 {
            loader.override_global(settings::SNAT_PORT_COUNT, &snat_port_count, true);
        }
        let mut ebpf = loader.load(lb_agent::datapath::OBJECT).expect("load the BPF object (root is needed)");
        for name in TC_PROGRAMS {
            let program: &mut SchedClassifier = ebpf.program_mut(name).expect(name).try_into().expect(name);
            program.load().unwrap_or_else(|error| panic!("{name}: {error:?}"));
            eprintln!(
                "{name}: {:?} {:?}",
                program.info().unwrap().verified_instruction_count(),
                program.info().unwrap().size_jitted()
            );
        }
        for name in SOCKET_PROGRAMS {
            let program: &mut CgroupSockAddr = ebpf.program_mut(name).expect(name).try_into().expect(name);
            program.load().unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
        Self { ebpf }
    }
}
