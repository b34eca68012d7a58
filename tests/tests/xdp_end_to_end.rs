//! XDP in the driver of veth devices, with real sockets, in a two-node cluster of network namespaces. Needs root.
//!
//! A veth device hands frames to XDP as their sender left them, and takes frames from XDP only while it runs a program of
//! its own: so the router's ends of the nodes' devices compute checksums themselves and run one that lets all through.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_agent::datapath::bpf::{self, AttachType, PROG_TYPE_XDP};
use lb_common::{
    family::{Family, V4, V6},
    next_hop::NextHopValue,
};
use lb_tests::{
    cluster::{At, CLIENT_V4, CLIENT_V6, Cluster, NODES, PodSpec},
    netns,
    packet::{self, Packet, SYN},
    probe::{ClientError, Target, Transport},
    process::eventually,
};

const SERVICES: &str = include_str!("../testdata/e2e/services.yaml");
const QUESTIONS: usize = 40;

/// A cluster whose agents run with given flags.
struct Wired {
    cluster: Cluster,
    /// XDP programs of the router's ends.
    _links: Vec<OwnedFd>,
}

fn cluster(flags: &[&str]) -> Result<Wired> {
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
        cluster.agent(node.name)?.set_extra_args(flags);
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

/// Ways of family `F` by which XDP sent packets on by itself on node-a: it alone remembers them.
fn sent_by_xdp<F: Family>(cluster: &mut Cluster) -> Result<usize>
where
    NextHopValue<F>: aya::Pod,
{
    let name = format!("{}{}", lb_common::maps::NEXT_HOPS, F::DIGIT);
    let pin = cluster.agent("node-a")?.pins().join(lb_common::ABI_VERSION.to_string()).join(name);
    let map = Map::from_map_data(MapData::from_pin(pin)?)?;
    let hops: PerCpuArray<MapData, NextHopValue<F>> = map.try_into()?;
    let cpus: Vec<_> = hops.iter().collect::<Result<_, _>>()?;
    Ok(cpus.iter().flat_map(|hops| hops.iter()).filter(|hop| hop.ifindex != 0).count())
}

/// Local and remote backends, TCP and UDP, both families; refusals, which XDP leaves to tc, are as quick as ever.
#[test]
fn outside_clients_reach_every_backend_through_xdp() -> Result<()> {
    let Wired { mut cluster, _links } = cluster(&["--xdp", "native"])?;
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
    ensure!(sent_by_xdp::<V4>(&mut cluster)? > 0, "tc did it all");
    for refused in ["192.0.2.11:31081", "[2001:db8:2::11]:31081"] {
        let outcome = cluster.probe(&At::Client)?.once(Target::http(refused)?)?;
        ensure!(outcome.is_err(), "{refused}: {outcome:?}");
    }
    Ok(())
}

/// Tunnels as a node counted them, in packets.
struct Tunnels {
    wrapped: u64,
    handed_on: u64,
    unwrapped: u64,
    strangers: u64,
}

fn tunnels(cluster: &mut Cluster, node: &str) -> Result<Tunnels> {
    let text = cluster.agent(node)?.cli_text("status", &["-o", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&text)?;
    let counted = |name: &str| status["tunnels"][name].as_u64().context("a number of packets");
    let verdict = |name: &str| {
        let row = status["verdicts"].as_array()?.iter().find(|row| row["verdict"] == name)?;
        row["packets"].as_u64()
    };
    Ok(Tunnels {
        wrapped: verdict("tunnelled").unwrap_or(0),
        handed_on: verdict("handed-on").unwrap_or(0),
        unwrapped: counted("unwrapped")?,
        strangers: counted("strangers")?,
    })
}

/// XDP on the dialled node's uplink wraps what clients send, TCP and UDP of both families; the backend's node unwraps it,
/// pods see the client, and large transfers arrive whole in both directions.
#[test]
fn xdp_sends_a_clients_packets_in_tunnels() -> Result<()> {
    let Wired { mut cluster, _links } = cluster(&["--xdp", "native", "--forwarding", "dsr"])?;
    let http = ["192.0.2.11:31080", "[2001:db8:2::11]:31080", "203.0.113.20:80", "[2001:db8:feed::20]:80"];
    for vip in ["203.0.113.20", "2001:db8:feed::20"] {
        cluster.route_to(vip.parse()?, "node-a")?;
    }
    let udp = ["192.0.2.11:31053", "[2001:db8:2::11]:31053"];
    let targets = http.into_iter().map(Target::http).chain(udp.into_iter().map(Target::udp));
    // Below those that the kernel chooses: a port from which the same backend was dialled by another VIP would be replaced.
    let mut ports = 20_000..;
    for target in targets.collect::<Result<Vec<_>>>()? {
        let client = cluster.probe(&At::Client)?;
        let tally = client.tally(target, QUESTIONS)?;
        let answered: Vec<&str> = tally.answers.keys().map(String::as_str).collect();
        ensure!(tally.failed() == 0 && answered == ["a1", "b1"], "{}: {tally:?}", target.to);
        for port in ports.by_ref().take(8) {
            let reply = client.once(target.from_port(port))??;
            ensure!(reply.answer.client == reply.own && reply.peer == target.to, "{target:?}: {reply:?}");
        }
    }
    let path = format!("/bytes?count=3000000&ignored={}", "x".repeat(60_000));
    for to in &http[..2] {
        for _ in 0..8 {
            let fetched = cluster.probe(&At::Client)?.fetch(Target::http(to)?, &path)?;
            ensure!(fetched == Ok(3_000_000), "{to}: {fetched:?}");
        }
    }
    ensure!(sent_by_xdp::<V4>(&mut cluster)? > 0 && sent_by_xdp::<V6>(&mut cluster)? > 0, "tc did it all");
    let Tunnels { wrapped, handed_on, .. } = tunnels(&mut cluster, "node-a")?;
    ensure!(wrapped > 1000 && handed_on < wrapped / 2, "XDP: {wrapped} wrapped, {handed_on} left to tc");
    let serving = tunnels(&mut cluster, "node-b")?;
    ensure!(serving.unwrapped >= wrapped && serving.strangers == 0, "{} unwrapped", serving.unwrapped);
    let status = cluster.agent("node-b")?.cli_text("status", &[])?;
    ensure!(
        status.contains("every node known: 1 others") && status.contains("packets unwrapped"),
        "{status}"
    );
    Ok(())
}

/// Issue 4.1: XDP is attached, and its program replaced, while datagrams and connections go on.
#[test]
fn attaching_and_upgrading_xdp_loses_no_packet() -> Result<()> {
    let Wired { mut cluster, _links } = cluster(&["--xdp", "off"])?;
    let (client, outsider) = (cluster.probe(&At::Client)?, cluster.probe(&At::Outsider)?);
    let kept = client.open(Target::http("192.0.2.11:31080")?)??;
    client.start_load(Target::http("[2001:db8:2::11]:31080")?, 1)?;
    outsider.start_load(Target::udp("192.0.2.11:31053")?, 1)?;
    for round in ["attached", "replaced", "replaced again"] {
        let agent = cluster.agent("node-a")?;
        agent.stop()?;
        agent.set_extra_args(&["--xdp", "native"]);
        agent.start()?;
        agent.wait_until_ready()?;
        ensure!(agent.cli_text("status", &[])?.contains("--xdp native"), "{round}");
        kept.ask()?.with_context(|| round.to_owned())?;
        [&client, &outsider].iter().try_for_each(|probe| probe.load_goes_on(40))?;
    }
    for (probe, name) in [(&client, "connections"), (&outsider, "datagrams")] {
        let tally = probe.stop_load()?;
        ensure!(tally.failed() == 0, "{name}: {tally:?}");
    }
    Ok(())
}

/// Frames for another device, as a switch floods them and a promiscuous device receives them, are nobody's here, nor are those of a
/// VLAN that the node does not know.
#[test]
fn frames_belong_to_the_device_they_are_addressed_to() -> Result<()> {
    let Wired { mut cluster, _links } = cluster(&["--xdp", "native"])?;
    let router = cluster.place(&At::Router)?.namespace.clone();
    let vips = [("203.0.113.20", "192.0.2.99"), ("2001:db8:feed::20", "2001:db8:2::99")];
    for (vip, via) in vips {
        cluster.route_to(vip.parse()?, "node-a")?;
        is_answered(&cluster, vip)?;
        // Nobody has this address: the bridge floods.
        router.ip(&[
            format!("neigh replace {via} lladdr 02:00:00:00:00:99 dev nodes nud permanent"),
            format!("route replace {vip} via {via} dev nodes"),
        ])?;
        is_silent(&cluster, vip)?;
    }

    // The kernels that this is tested with know no VLAN devices, so no frame of a VLAN is anybody's.
    let mac = cluster.place(&At::host("node-a"))?.namespace.run(|| netns::mac_of("eth0"))??;
    for (client, node) in [(CLIENT_V4, NODES[0].v4), (CLIENT_V6, NODES[0].v6)] {
        for (port, in_vlan) in [(IN_VLAN, true), (OUTSIDE, false)] {
            let mut frame = Packet::tcp((client.parse()?, port), (node.parse()?, 31_080), SYN).bytes();
            frame[..6].copy_from_slice(&mac);
            let frame = if in_vlan { packet::in_vlan(&frame) } else { frame };
            router.run(|| send_frame("node-a", &frame))??;
        }
        let outside = SocketAddr::new(client.parse()?, OUTSIDE).to_string();
        eventually("is the frame outside of the VLAN ours", PATIENCE, || {
            Ok(cluster.agent("node-a")?.cli_text("connections", &[])?.contains(&outside))
        })?;
    }
    let listing = cluster.agent("node-a")?.cli_text("connections", &[])?;
    ensure!(!listing.contains(&format!(":{IN_VLAN}")), "{listing}");
    Ok(())
}

/// Source ports of frames: in a VLAN, and outside of it.
const IN_VLAN: u16 = 4_242;
const OUTSIDE: u16 = 4_243;

/// Sends a frame by a device of this thread's namespace, as it is.
fn send_frame(device: &str, frame: &[u8]) -> io::Result<()> {
    let name = std::ffi::CString::new(device)?;
    // SAFETY: integers and bytes, all zeroes is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    // SAFETY: the name is NUL-terminated and outlives the call.
    to.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None)?;
    let len = size_of_val(&to) as libc::socklen_t;
    // SAFETY: frame and address live during the call, and are as long as is said.
    match unsafe {
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), len)
    } {
        sent if sent == frame.len() as isize => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Long enough for neighbours to be found, and for the listing of connections.
const PATIENCE: Duration = Duration::from_secs(15);

/// Both pods answer a client outside.
fn is_answered(cluster: &Cluster, ip: &str) -> Result<()> {
    let target = Target::new(Transport::Http, SocketAddr::new(ip.parse()?, 80));
    let mut last = None;
    eventually("do both pods answer", PATIENCE, || {
        let tally = cluster.probe(&At::Client)?.tally(target.within(Duration::from_secs(1)), QUESTIONS)?;
        let both = tally.failed() == 0 && tally.answers.keys().eq(["a1", "b1"]);
        last = Some(tally);
        Ok(both)
    })
    .with_context(|| format!("{target:?}: {last:?}"))
}

fn is_silent(cluster: &Cluster, ip: &str) -> Result<()> {
    let target = Target::new(Transport::Http, SocketAddr::new(ip.parse()?, 80));
    for _ in 0..3 {
        let outcome = cluster.probe(&At::Client)?.once(target.within(Duration::from_millis(300)))?;
        ensure!(outcome == Err(ClientError::TimedOut), "{target:?}: {outcome:?}");
    }
    Ok(())
}
