//! The test cluster itself, without any Service: the ground on which the end-to-end tests stand. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lb_tests::{
    cgroup::v2_root,
    cluster::{At, CLIENT_V4, Cluster, PodSpec},
    probe::{ClientError, Target, Transport},
    process::Process,
};

fn two_pods() -> Vec<PodSpec> {
    vec![
        PodSpec::http("one", "node-a", &["10.244.1.2", "fd00:244:1::2"], 8080).unwrap().and_udp(5353),
        PodSpec::http("two", "node-b", &["10.244.2.2", "fd00:244:2::2"], 8080).unwrap().and_udp(5353),
    ]
}

fn targets(address: &str, port: u16, transports: &[Transport]) -> Vec<Target> {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    transports.iter().map(|transport| Target::new(*transport, to)).collect()
}

#[test]
fn pods_hosts_and_the_client_reach_pods_and_keep_their_addresses() {
    let begin = Instant::now();
    let mut cluster = Cluster::start().unwrap();
    cluster.add_pods(&two_pods()).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "set-up took {:?}", begin.elapsed());
    cluster.route_to("10.244.2.2".parse().unwrap(), "node-b").unwrap();
    let rows = [
        (At::pod("one"), "10.244.2.2", "10.244.1.2"),
        (At::pod("one"), "fd00:244:2::2", "fd00:244:1::2"),
        (At::host("node-a"), "10.244.2.2", "192.0.2.11"),
        (At::host("node-b"), "10.244.2.2", "192.0.2.12"),
        (At::host("node-a"), "fd00:244:2::2", "2001:db8:2::11"),
        (At::Client, "10.244.2.2", CLIENT_V4),
    ];
    for (at, to, from) in rows {
        let mut all = targets(to, 8080, &[Transport::Http]);
        all.extend(targets(to, 5353, &[Transport::UdpConnected, Transport::UdpUnconnected]));
        for target in all {
            let reply = cluster.probe(&at).unwrap().once(target).unwrap();
            let reply = reply.unwrap_or_else(|error| panic!("{at:?} -> {target:?}: {error}"));
            assert_eq!(reply.answer.pod, "two", "{at:?}");
            assert_eq!(reply.answer.client.ip().to_string(), from, "{at:?} -> {to}");
            assert_eq!((reply.peer, reply.answer.server), (target.to, target.to), "{at:?}");
            assert_eq!(reply.own.port(), reply.answer.client.port(), "{at:?}");
        }
    }
}

#[test]
fn clients_tell_refusal_from_silence() {
    let mut cluster = Cluster::start().unwrap();
    cluster.add_pods(&two_pods()).unwrap();
    let probe = cluster.probe(&At::pod("one")).unwrap();
    for transport in [Transport::Http, Transport::UdpConnected] {
        let closed = targets("10.244.2.2", 9, &[transport])[0];
        assert_eq!(probe.once(closed).unwrap(), Err(ClientError::Refused), "{transport:?}");
    }
    // The router drops what no neighbour answers for only after a second: a blackhole is silent at once.
    let router = &cluster.place(&At::Router).unwrap().namespace;
    router.ip(&["route add blackhole 192.0.2.77".to_owned()]).unwrap();
    let silent = targets("192.0.2.77", 80, &[Transport::UdpConnected])[0].within(Duration::from_millis(100));
    assert_eq!(cluster.probe(&At::Client).unwrap().once(silent).unwrap(), Err(ClientError::TimedOut));
}

#[test]
fn conversations_loads_and_large_bodies_work() {
    let mut cluster = Cluster::start().unwrap();
    cluster.add_pods(&two_pods()).unwrap();
    let probe = cluster.probe(&At::pod("one")).unwrap();
    let target = Target::http("10.244.2.2:8080").unwrap();
    let conversation = probe.open(target).unwrap().unwrap();
    let first = conversation.ask().unwrap().unwrap();
    assert_eq!(conversation.ask().unwrap().unwrap(), first, "same connection, same ports");
    assert_eq!(probe.fetch(target, "/bytes?count=3000000").unwrap(), Ok(3_000_000));
    assert_eq!(probe.fetch(target, "/slow?chunks=3&interval_ms=1").unwrap(), Ok(24));
    probe.start_load(target, 2).unwrap();
    assert_eq!(conversation.ask().unwrap().unwrap().answer.pod, "two", "the probe serves beside its load");
    probe.load_goes_on(10).unwrap();
    let tally = probe.stop_load().unwrap();
    assert_eq!(tally.failed(), 0, "{tally:?}");
    cluster.remove_pod("two").unwrap();
    assert!(conversation.ask().unwrap().is_err(), "nobody is left to answer");
    cluster.add_pods(&two_pods()[1..]).unwrap();
    assert_eq!(probe.once(target).unwrap().unwrap().answer.pod, "two", "a pod can come back");
}

#[test]
fn a_dropped_cluster_leaves_nothing() {
    let mut cluster = Cluster::start().unwrap();
    cluster.add_pods(&two_pods()).unwrap();
    cluster.probe(&At::pod("two")).unwrap();
    let prefix = cluster.prefix().to_owned();
    assert!(traces(&prefix) >= 8, "namespaces, a cgroup and a directory");
    assert!(Path::new("/run/netns").join(format!("{prefix}-pod-two")).exists());
    drop(cluster);
    assert_eq!(traces(&prefix), 0);
}

#[test]
fn ctrl_c_leaves_nothing_and_the_next_start_sweeps_up_after_a_kill() {
    let (mut interrupted, prefix) = held_cluster();
    assert!(traces(&prefix) >= 6, "namespaces, a cgroup and a directory");
    let pid = libc::pid_t::try_from(interrupted.child().id()).unwrap();
    // SAFETY: the pid is our child's, not yet reaped.
    unsafe { libc::kill(pid, libc::SIGINT) };
    assert_eq!(interrupted.child().wait().unwrap().code(), Some(130));
    assert_eq!(traces(&prefix), 0);

    let (mut killed, prefix) = held_cluster();
    killed.kill().unwrap();
    assert!(traces(&prefix) >= 6, "a killed process cannot clean up");
    let (mut next, _) = held_cluster();
    assert_eq!(traces(&prefix), 0);
    assert_eq!(next.terminate(Duration::from_secs(10)).unwrap().code(), Some(130));
}

/// Another process that holds an empty cluster, and the cluster's prefix.
fn held_cluster() -> (Process, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pod"));
    let mut process = Process::spawn(command.arg("cluster").stdout(Stdio::piped())).unwrap();
    let mut line = String::new();
    BufReader::new(process.child().stdout.take().unwrap()).read_line(&mut line).unwrap();
    (process, line.trim_end().to_owned())
}

/// How many names with this prefix there are where clusters leave names.
fn traces(prefix: &str) -> usize {
    let places = [v2_root().unwrap(), "/run/netns".into(), "/sys/fs/bpf".into(), std::env::temp_dir()];
    let names = |place: &PathBuf| {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let all: Vec<String> = places.iter().flat_map(names).collect();
    all.into_iter().filter(|name| name.starts_with(&format!("{prefix}-")) || name == prefix).count()
}
