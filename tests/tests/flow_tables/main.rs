//! Who reaches whom: kube-proxy's packet-tracing tables, and ours (`lb_tests::flow_table`). Needs root.
//!
//! Each table is a file of `testdata/flows` and one test of its name; the first lines of a file say which of kube-proxy's
//! tests it answers, and which statements of the specification its rows prove.

#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use lb_tests::{
    flow_table::{AgentFlags, FlowFamily, FlowNode, Outcome, Sender, run},
    packet::Packet,
    prog::through_xdp,
};

mod affinity;
mod own_connections;

/// One test per table.
macro_rules! tables {
    ($($name:ident: $file:literal;)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                run($file)
            }
        )+

        const FILES: &[&str] = &[$($file),+];
    };
}

tables! {
    bad_ips: "bad-ips.txt";
    cluster_ip_general: "cluster-ip-general.txt";
    detect_local_bridge_interface: "detect-local-bridge-interface.txt";
    detect_local_cluster_cidr: "detect-local-cluster-cidr.txt";
    detect_local_device_role: "detect-local-device-role.txt";
    detect_local_interface_name_prefix: "detect-local-interface-name-prefix.txt";
    detect_local_node_cidr: "detect-local-node-cidr.txt";
    external_traffic_policy_cluster: "external-traffic-policy-cluster.txt";
    external_traffic_policy_local: "external-traffic-policy-local.txt";
    internal_traffic_policy: "internal-traffic-policy.txt";
    load_balancer: "load-balancer.txt";
    load_balancer_ip_mode: "load-balancer-ip-mode.txt";
    masquerade_all: "masquerade-all.txt";
    masquerade_all_no_detector: "masquerade-all-no-detector.txt";
    masquerade_base: "masquerade-base.txt";
    masquerade_no_detector: "masquerade-no-detector.txt";
    no_endpoints_reject: "no-endpoints-reject.txt";
    node_ports_all: "node-ports-all.txt";
    node_ports_listed: "node-ports-listed.txt";
    node_ports_other_family: "node-ports-other-family.txt";
    node_ports_primary: "node-ports-primary.txt";
    sctp: "sctp.txt";
    terminating_endpoints_cluster: "terminating-endpoints-cluster.txt";
    terminating_endpoints_local: "terminating-endpoints-local.txt";
}

/// Where the driver can, what comes in by an uplink meets the XDP program first.
#[test]
fn tables_of_outside_clients_hold_with_xdp() {
    through_xdp(|| {
        for file in
            ["masquerade-base.txt", "external-traffic-policy-local.txt", "load-balancer.txt", "sctp.txt"]
        {
            run(file).unwrap();
        }
    });
}

#[test]
fn every_table_is_run() -> Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(lb_tests::script::testdata().join("flows"))? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.retain(|name| name.ends_with(".txt"));
    found.sort_unstable();
    let mut listed = FILES.to_vec();
    listed.sort_unstable();
    assert_eq!(found, listed);
    Ok(())
}

const FAMILIES: [FlowFamily; 2] = [FlowFamily::V4, FlowFamily::V6];
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 99);
