//! XDP in the driver of veth devices, with real sockets, in a two-node cluster of network namespaces. Needs root.
//!
//! A veth device hands frames to XDP as their sender left them, and takes frames from XDP only while it runs a program of
//! its own: so the router's ends of the nodes' devices compute checksums themselves and run one that lets all through.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_agent::datapath::bpf::{self, AttachType, PROG_TYPE_XDP};
use lb_common::{family::V4, next_hop::NextHopValue};
use lb_tests::{
    cluster::{At, Cluster, NODES, PodSpec},
    probe::Target,
};

const SERVICES: &str = include_str!("../testdata/e2e/services.yaml");
const QUESTIONS: usize = 40;

/// A cluster whose agents run with `--xdp MODE`.
struct Wired {
    cluster: Cluster,
    /// XDP programs of the router's ends.
    _links: Vec<OwnedFd>,
}

fn cluster(mode: &str) -> Result<Wired> {
    let mut cluster = Cluster::start()?;
    let pod = |name: &str, node: &str, v4: &str, v6: &str| {
        Ok::<_, anyhow::Error>(PodSpec::http(name, node, &[v4, v6], 8080)?.and_udp(5353))
    };
    cluster.add_pods(&[
        pod("a1", "node-a", "10.244.1.10", "fd00:244:1::10")?,
        pod("b1", "node-b", "10.244.2.10", "fd00:244:2::10")?,
    ])?;
    let router = &cluster.place(&At::Router)?.namespace;
    let links = router.run(|| NODES.iter().map(|node| like_a_wire(node.name)).collect::<Result<_>>())??;
    cluster.apply("services.yaml", SERVICES)?;
    cluster.prepare_agents()?;
    for node in NODES {
        cluster.agent(node.name)?.set_extra_args(&["--xdp", mode]);
    }
    cluster.start_agents()?;
    Ok(Wired { cluster, _links: links })
}

/// Lets a veth device of this thread's namespace send complete checksums and take frames, while the link is open.
fn like_a_wire(device: &str) -> Result<OwnedFd> {
    /// `ETHTOOL_STXCSUM`
    const TX_CHECKSUMS: u32 = 0x17;
    const XDP_FLAGS_DRV_MODE: u32 = 4;
    /// r0 = XDP_PASS; exit
    const PASS: [u64; 2] = [0x2_0000_00b7, 0x95];
    ethtool(device, TX_CHECKSUMS, 0).with_context(|| format!("turn tx checksums of {device} off"))?;
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let program = bpf::load_program(PROG_TYPE_XDP, AttachType::XDP, &PASS)?;
    bpf::link_xdp(program.as_fd(), ifindex, XDP_FLAGS_DRV_MODE).with_context(|| format!("XDP on {device}"))
}

fn ethtool(device: &str, command: u32, value: u32) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let mut setting = [command, value];
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = setting.as_mut_ptr().cast();
    // SAFETY: the name is NUL-terminated, and the data is a struct ethtool_value that lives during the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ways by which XDP sent packets on by itself on node-a: it alone remembers them.
fn sent_by_xdp(cluster: &mut Cluster) -> Result<usize> {
    let pin = cluster.agent("node-a")?.pins().join(lb_common::ABI_VERSION.to_string()).join("NEXT_HOPS4");
    let map = Map::from_map_data(MapData::from_pin(pin)?)?;
    let hops: PerCpuArray<MapData, NextHopValue<V4>> = map.try_into()?;
    let cpus: Vec<_> = hops.iter().collect::<Result<_, _>>()?;
    Ok(cpus.iter().flat_map(|hops| hops.iter()).filter(|hop| hop.ifindex != 0).count())
}

/// Local and remote backends, TCP and UDP, both families; refusals, which XDP leaves to tc, are as quick as ever.
#[test]
fn outside_clients_reach_every_backend_through_xdp() -> Result<()> {
    let Wired { mut cluster, _links } = cluster("native")?;
    let status = cluster.agent("node-a")?.cli_text("status", &[])?;
    ensure!(status.contains("native") && status.contains("--xdp native"), "{status}");
    let targets = [
        Target::http("192.0.2.11:31080")?,
        Target::http("[2001:db8:2::11]:31080")?,
        Target::udp("192.0.2.11:31053")?,
        Target::udp("[2001:db8:2::11]:31053")?,
    ];
    for target in targets {
        let tally = cluster.probe(&At::Client)?.tally(target, QUESTIONS)?;
        let answered: Vec<&str> = tally.answers.keys().map(String::as_str).collect();
        ensure!(tally.failed() == 0 && answered == ["a1", "b1"], "{}: {tally:?}", target.to);
    }
    ensure!(sent_by_xdp(&mut cluster)? > 0, "tc did it all");
    for refused in ["192.0.2.11:31081", "[2001:db8:2::11]:31081"] {
        let outcome = cluster.probe(&At::Client)?.once(Target::http(refused)?)?;
        ensure!(outcome.is_err(), "{refused}: {outcome:?}");
    }
    Ok(())
}

/// Issue 4.1: XDP is attached, and its program replaced, while datagrams and connections go on.
#[test]
fn attaching_and_upgrading_xdp_loses_no_packet() -> Result<()> {
    let Wired { mut cluster, _links } = cluster("off")?;
    let (client, outsider) = (cluster.probe(&At::Client)?, cluster.probe(&At::Outsider)?);
    let kept = client.open(Target::http("192.0.2.11:31080")?)??;
    client.start_load(Target::http("[2001:db8:2::11]:31080")?, 2)?;
    outsider.start_load(Target::udp("192.0.2.11:31053")?, 2)?;
    for round in ["attached", "replaced", "replaced again"] {
        let agent = cluster.agent("node-a")?;
        agent.stop()?;
        agent.set_extra_args(&["--xdp", "native"]);
        agent.start()?;
        agent.wait_until_ready()?;
        ensure!(agent.cli_text("status", &[])?.contains("--xdp native"), "{round}");
        kept.ask()?.with_context(|| round.to_owned())?;
    }
    for (probe, name) in [(&client, "connections"), (&outsider, "datagrams")] {
        let tally = probe.stop_load()?;
        ensure!(tally.failed() == 0, "{name}: {tally:?}");
        ensure!(tally.answered() > 100, "a load worth the name: {name}: {tally:?}");
    }
    Ok(())
}
