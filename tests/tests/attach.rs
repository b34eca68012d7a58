//! Attaching, replacing, following and removing the programs, in a network namespace, a cgroup and a bpffs of the
//! test's own. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on panics")]
#![allow(clippy::allow_attributes, reason = "the line above holds for every item")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::IpAddr,
    os::fd::AsFd as _,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use futures::TryStreamExt as _;
use lb_agent::datapath::{
    OBJECT,
    attach::{Attacher, CGROUP_PROGRAMS},
    bpf::{self, AttachType},
    cleanup::{Cleaned, cleanup},
    devices::{NodePortAddresses, Patterns, Receiver},
    follow::{FollowConfig, Follower},
    hook::{AttachMode, Hook, Mechanism},
    load::{self, LoadConfig, LoadError},
    local::DetectLocal,
    pins::{Pins, PinsError},
    xdp::{XdpMode, XdpPlace},
};
use lb_agent::model::node::NodeAddresses;
use lb_common::{
    cidr::CidrValue,
    device::{DeviceFlags, DeviceRole},
    family::{Address as _, V4},
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// A node to attach to: namespaces of the calling thread, which end with it, and a cgroup, which ends with this.
struct Node {
    cgroup: PathBuf,
    bpffs: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: unshare takes no pointers; the calling thread is the test's own and ends with it.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(unshared, 0, "needs root: {}", std::io::Error::last_os_error());
        run("mount", &["--make-rprivate", "/"]);
        let bpffs = tempfile::tempdir().unwrap();
        run("mount", &["-t", "bpf", "bpf", bpffs.path().to_str().unwrap()]);
        run("ip", &["link", "set", "lo", "up"]);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroup_root().join(format!("lb-attach-{}-{number}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        Self { cgroup, bpffs }
    }

    fn pin_dir(&self) -> PathBuf {
        self.bpffs.path().join("lb")
    }

    fn config(&self) -> LoadConfig {
        let small = ["CONNECTIONS4", "CONNECTIONS6"].map(|name| (name, 1024));
        LoadConfig {
            detect_local: lb_common::settings::DetectLocal::DEVICE_ROLE,
            masquerade_all: false,
            forwards_pods: false,
            flood_threshold: 0,
            stateless: false,
            pin_dir: self.pin_dir(),
            max_entries: BTreeMap::from(small),
            snat_port_min: 61_000,
            snat_port_count: 4_000,
        }
    }

    fn agent(&self, mode: AttachMode) -> Attacher {
        Attacher::new(load::load(OBJECT, &self.config()).unwrap(), mode)
    }

    fn cgroup_programs(&self) -> Vec<usize> {
        let dir = File::open(&self.cgroup).unwrap();
        CGROUP_PROGRAMS.iter().map(|(_, hook)| bpf::query_cgroup(dir.as_fd(), *hook).unwrap().len()).collect()
    }

    fn cleanup(&self) -> Cleaned {
        block_on(cleanup(&self.pin_dir())).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.cgroup);
        let _ = Command::new("umount").arg(self.bpffs.path()).status();
    }
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    PathBuf::from(mount.split(' ').nth(1).unwrap())
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// Runs `case` on a thread of its own, whose namespaces it may change.
fn isolated(case: impl FnOnce(Node) + Send + 'static) {
    std::thread::spawn(|| case(Node::new())).join().unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn add_veth(name: &str) -> u32 {
    run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("{name}p")]);
    ifindex(name)
}

fn ifindex(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name is NUL-terminated.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// Ids of the tcx programs on both hooks.
fn tcx_programs(ifindex: u32) -> [Vec<u32>; 2] {
    [AttachType::TCX_INGRESS, AttachType::TCX_EGRESS].map(|hook| {
        bpf::query_device(ifindex, hook).unwrap().into_iter().map(|(program, _)| program).collect()
    })
}

/// Mode (1: in the driver, 2: in the receive path) and id of a device's XDP program.
fn xdp_program(device: &str) -> Option<(u64, u64)> {
    let output = Command::new("ip").args(["-j", "link", "show", device]).output().unwrap().stdout;
    let links: serde_json::Value = serde_json::from_slice(&output).unwrap();
    let xdp = links[0].get("xdp")?;
    Some((xdp["mode"].as_u64()?, xdp["prog"]["id"].as_u64()?))
}

/// Filters on both clsact hooks, and whether there is a clsact qdisc.
fn clsact(ifindex: u32) -> ([usize; 2], bool) {
    block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let mut filters = handle.traffic_filter(ifindex as i32);
        let requests = [filters.get().ingress(), filters.get().egress()];
        let mut counts = [0; 2];
        for (count, request) in counts.iter_mut().zip(requests) {
            let found: Vec<_> = request.execute().try_collect().await.unwrap_or_default();
            // The kernel also tells of the priority itself, with handle zero.
            *count = found.iter().filter(|filter| u32::from(filter.header.handle) != 0).count();
        }
        let qdiscs: Vec<_> =
            handle.qdisc().get().index(ifindex as i32).execute().try_collect().await.unwrap();
        let clsact = qdiscs.iter().any(|qdisc| {
            qdisc.header.index == ifindex as i32 && format!("{:?}", qdisc.attributes).contains("clsact")
        });
        (counts, clsact)
    })
}

#[test]
fn tcx_links_survive_the_agent_and_are_replaced_in_place() {
    isolated(|node| {
        let device = add_veth("up0");
        let mut first = node.agent(AttachMode::Auto);
        first.attach_cgroup(&node.cgroup).unwrap();
        first.attach_device(device, "up0", DeviceRole::UPLINK, DeviceFlags::default()).unwrap();
        assert_eq!(first.attachments().next().unwrap().mechanism, Mechanism::Tcx);
        let before = tcx_programs(device);
        assert_eq!(before.each_ref().map(Vec::len), [1, 1]);
        drop(first);
        assert_eq!(tcx_programs(device), before, "an agent that ends changes nothing");
        assert_eq!(node.cgroup_programs(), [1; 8]);

        let mut second = node.agent(AttachMode::Auto);
        assert!(second.datapath().restarted);
        second.attach_cgroup(&node.cgroup).unwrap();
        second.attach_device(device, "up0", DeviceRole::UPLINK, DeviceFlags::default()).unwrap();
        let after = tcx_programs(device);
        assert_eq!(after.each_ref().map(Vec::len), [1, 1]);
        assert!(after[0] != before[0] && after[1] != before[1], "other programs run");
        assert_eq!(node.cgroup_programs(), [1; 8]);
    });
}

#[test]
fn clsact_filters_survive_the_agent_and_are_replaced_in_place() {
    isolated(|node| {
        let device = add_veth("up0");
        for role in [DeviceRole::UPLINK, DeviceRole::WORKLOAD] {
            let mut agent = node.agent(AttachMode::Clsact);
            agent.attach_device(device, "up0", role, DeviceFlags::default()).unwrap();
            drop(agent);
            assert_eq!(clsact(device), ([1, 1], true), "{}", role.name());
        }
        let cleaned = node.cleanup();
        assert_eq!(cleaned.failed, Vec::<String>::new());
        assert_eq!(clsact(device), ([0, 0], false));
    });
}

#[test]
fn a_change_of_mechanism_leaves_one_program_per_hook() {
    isolated(|node| {
        let device = add_veth("up0");
        node.agent(AttachMode::Clsact)
            .attach_device(device, "up0", DeviceRole::UPLINK, DeviceFlags::default())
            .unwrap();
        node.agent(AttachMode::Tcx)
            .attach_device(device, "up0", DeviceRole::UPLINK, DeviceFlags::default())
            .unwrap();
        assert_eq!((tcx_programs(device).map(|found| found.len()), clsact(device).0), ([1, 1], [0, 0]));
        node.agent(AttachMode::Clsact)
            .attach_device(device, "up0", DeviceRole::UPLINK, DeviceFlags::default())
            .unwrap();
        assert_eq!((tcx_programs(device).map(|found| found.len()), clsact(device).0), ([0, 0], [1, 1]));
        node.cleanup();
        assert_eq!(clsact(device), ([0, 0], false), "the qdisc is known to be ours throughout");
    });
}

#[test]
fn a_qdisc_that_was_there_stays() {
    isolated(|node| {
        let device = add_veth("up0");
        aya::programs::tc::qdisc_add_clsact("up0").unwrap();
        node.agent(AttachMode::Clsact)
            .attach_device(device, "up0", DeviceRole::UPLINK, DeviceFlags::default())
            .unwrap();
        node.cleanup();
        assert_eq!(clsact(device), ([0, 0], true));
    });
}

#[test]
fn a_link_of_another_device_with_the_same_ifindex_is_not_taken_for_ours() {
    isolated(|node| {
        let device = add_veth("up0");
        node.agent(AttachMode::Tcx)
            .attach_device(device, "up0", DeviceRole::UPLINK, DeviceFlags::default())
            .unwrap();
        run("ip", &["link", "del", "up0"]);
        run("ip", &["link", "add", "up1", "index", &device.to_string(), "type", "veth"]);
        assert_eq!(ifindex("up1"), device);
        node.agent(AttachMode::Tcx)
            .attach_device(device, "up1", DeviceRole::UPLINK, DeviceFlags::default())
            .unwrap();
        assert_eq!(tcx_programs(device).map(|found| found.len()), [1, 1]);
    });
}

#[test]
fn a_cgroup_made_anew_is_attached_anew() {
    isolated(|node| {
        node.agent(AttachMode::Auto).attach_cgroup(&node.cgroup).unwrap();
        fs::remove_dir(&node.cgroup).unwrap();
        fs::create_dir(&node.cgroup).unwrap();
        assert_eq!(node.cgroup_programs(), [0; 8]);
        node.agent(AttachMode::Auto).attach_cgroup(&node.cgroup).unwrap();
        assert_eq!(node.cgroup_programs(), [1; 8]);
    });
}

#[test]
fn cleanup_leaves_no_trace_and_may_be_repeated() {
    isolated(|node| {
        let (first, second) = (add_veth("up0"), add_veth("up1"));
        let mut agent = node.agent(AttachMode::Tcx);
        agent.attach_cgroup(&node.cgroup).unwrap();
        agent.attach_device(first, "up0", DeviceRole::UPLINK, DeviceFlags::default()).unwrap();
        let in_use = block_on(cleanup(&node.pin_dir()));
        assert!(matches!(in_use, Err(PinsError::InUse { .. })), "{in_use:?}");
        drop(agent);
        node.agent(AttachMode::Clsact)
            .attach_device(second, "up1", DeviceRole::WORKLOAD, DeviceFlags::default())
            .unwrap();
        // What an agent with other layouts would have left.
        fs::create_dir_all(node.pin_dir().join("0/links")).unwrap();

        let cleaned = node.cleanup();
        assert_eq!(cleaned.failed, Vec::<String>::new());
        assert!(cleaned.removed.iter().any(|line| line == "map DEVICES"), "{:?}", cleaned.removed);
        assert!(
            cleaned.removed.iter().any(|line| line
                == "link tc-{first}-ingress on up0".replace("{first}", &first.to_string()).as_str())
        );
        assert_eq!(tcx_programs(first).map(|found| found.len()), [0, 0]);
        assert_eq!(clsact(second), ([0, 0], false));
        assert_eq!(node.cgroup_programs(), [0; 8]);
        assert!(!node.pin_dir().exists());
        assert_eq!(node.cleanup(), Cleaned::default());
    });
}

#[test]
fn detaching_a_device_removes_both_programs_and_both_pins() {
    isolated(|node| {
        let device = add_veth("pod0");
        let mut agent = node.agent(AttachMode::Tcx);
        agent.attach_device(device, "pod0", DeviceRole::WORKLOAD, DeviceFlags::default()).unwrap();
        assert_eq!(agent.pinned_devices(), [device]);
        agent.detach_device(device).unwrap();
        assert_eq!(tcx_programs(device).map(|found| found.len()), [0, 0]);
        assert_eq!(agent.pinned_devices(), Vec::<u32>::new());
    });
}

impl Node {
    /// An agent that brings an uplink in line with `mode`, and what it says of it.
    fn xdp_agent(&self, mode: XdpMode, device: u32, name: &str) -> (Attacher, XdpPlace, String) {
        let mut agent = self.agent(AttachMode::Auto).with_xdp(mode);
        agent.attach_device(device, name, DeviceRole::UPLINK, DeviceFlags::default()).unwrap();
        let receiver = Receiver { kind: "veth".to_owned(), has_vlans: false };
        agent.attach_xdp(device, DeviceRole::UPLINK, &receiver).unwrap();
        let state = agent.attachments().next().unwrap().xdp.clone();
        (agent, state.place, state.reason)
    }
}

#[test]
fn an_xdp_link_survives_the_agent_and_is_replaced_in_place() {
    isolated(|node| {
        let device = add_veth("up0");
        let (first, place, reason) = node.xdp_agent(XdpMode::Native, device, "up0");
        assert_eq!((place, reason.as_str()), (XdpPlace::Native, "--xdp native"));
        let (mode, before) = xdp_program("up0").expect("attached");
        assert_eq!(mode, 1);
        drop(first);
        assert_eq!(xdp_program("up0"), Some((1, before)), "an agent that ends changes nothing");
        let (second, place, _) = node.xdp_agent(XdpMode::Native, device, "up0");
        assert_eq!(place, XdpPlace::Native);
        let (mode, after) = xdp_program("up0").expect("attached");
        assert!(mode == 1 && after != before, "another program in the same place");
        assert_eq!(tcx_programs(device).map(|found| found.len()), [1, 1], "tc stays");
        drop(second);
        let cleaned = node.cleanup();
        assert_eq!(cleaned.failed, Vec::<String>::new());
        assert!(
            cleaned.removed.contains(&format!("link xdp-{device}-native on up0")),
            "{:?}",
            cleaned.removed
        );
        assert_eq!(xdp_program("up0"), None);
    });
}

#[test]
fn an_xdp_link_of_another_version_is_taken_over() {
    isolated(|node| {
        let device = add_veth("up0");
        drop(node.xdp_agent(XdpMode::Native, device, "up0"));
        let before = xdp_program("up0").expect("attached");
        let links = node.pin_dir().join(lb_common::ABI_VERSION.to_string()).join("links");
        let theirs = node.pin_dir().join("0/links");
        fs::create_dir_all(&theirs).unwrap();
        let name = format!("xdp-{device}-native");
        fs::rename(links.join(&name), theirs.join(&name)).unwrap();
        let (_agent, place, _) = node.xdp_agent(XdpMode::Native, device, "up0");
        assert_eq!(place, XdpPlace::Native);
        assert_ne!(xdp_program("up0").expect("attached"), before);
        assert!(links.join(&name).exists() && !theirs.join(&name).exists());
    });
}

#[test]
fn the_place_of_xdp_follows_the_mode_and_a_busy_device_works_by_tc() {
    isolated(|node| {
        let device = add_veth("up0");
        drop(node.xdp_agent(XdpMode::Native, device, "up0"));
        drop(node.xdp_agent(XdpMode::Generic, device, "up0"));
        assert_eq!(xdp_program("up0").map(|(mode, _)| mode), Some(2));
        let (agent, place, reason) = node.xdp_agent(XdpMode::Auto, device, "up0");
        assert!(place == XdpPlace::Off && reason.contains("veth"), "{reason}");
        assert_eq!(xdp_program("up0"), None);
        drop(agent);

        let pin = node.bpffs.path().join("another");
        let probe = bpf::load_program(6, AttachType::XDP, &[0x2_0000_00b7, 0x95]).unwrap();
        bpf::pin(bpf::link_xdp(probe.as_fd(), device, 4).unwrap().as_fd(), &pin).unwrap();
        let (_agent, place, reason) = node.xdp_agent(XdpMode::Native, device, "up0");
        assert!(place == XdpPlace::Off && reason.contains("refused"), "{reason}");
        assert_eq!(tcx_programs(device).map(|found| found.len()), [1, 1], "by tc");
    });
}

#[test]
fn a_device_that_is_forgotten_loses_xdp_too() {
    isolated(|node| {
        let device = add_veth("up0");
        let (mut agent, ..) = node.xdp_agent(XdpMode::Native, device, "up0");
        agent.detach_device(device).unwrap();
        assert_eq!((xdp_program("up0"), agent.pinned_devices()), (None, vec![]));
    });
}

#[test]
fn a_map_of_another_size_is_refused_by_name() {
    isolated(|node| {
        drop(load::load(OBJECT, &node.config()).unwrap());
        let mut config = node.config();
        config.max_entries.insert("CONNECTIONS4", 2048);
        let error = load::load(OBJECT, &config).unwrap_err();
        assert!(
            matches!(error, LoadError::Mismatch { name: "CONNECTIONS4", found: 1024, wanted: 2048, .. }),
            "{error}"
        );
    });
}

#[test]
fn devices_are_followed_within_a_second() {
    isolated(|node| {
        block_on(async {
            let agent = Arc::new(Mutex::new(node.agent(AttachMode::Auto)));
            let pins = agent.lock().await.datapath().pins.clone();
            let config = FollowConfig {
                detect_local: DetectLocal::NodeCidr,
                patterns: Patterns { workload: vec!["pod*".to_owned()], ..Patterns::default() },
                nodeport_addresses: NodePortAddresses::All,
            };
            let (follower, mut addresses) = Follower::new(config, &pins, Arc::clone(&agent)).await.unwrap();
            let stop = CancellationToken::new();
            let (attached, _) = tokio::sync::watch::channel(false);
            let (node_cidrs, known_cidrs) = tokio::sync::watch::channel(None);
            let running = tokio::spawn(follower.run(attached, known_cidrs, stop.clone()));

            let device = add_veth("pod0");
            within_a_second("attached", async || tcx_programs(device).each_ref().map(Vec::len) == [1, 1])
                .await;
            run("ip", &["address", "add", "192.0.2.1/24", "dev", "pod0"]);
            run("ip", &["link", "set", "pod0", "up"]);
            let wanted = NodeAddresses(BTreeSet::from([IpAddr::from([192, 0, 2, 1])]));
            within_a_second("address known", async || *addresses.borrow_and_update() == wanted).await;

            run("ip", &["link", "del", "pod0"]);
            within_a_second("forgotten", async || agent.lock().await.pinned_devices().is_empty()).await;
            within_a_second("address gone", async || addresses.borrow_and_update().0.is_empty()).await;
            assert_eq!(agent.lock().await.attachments().count(), 0);

            for cidr in ["10.244.1.0", "10.244.7.0"] {
                node_cidrs.send_replace(Some(vec![format!("{cidr}/24").parse().unwrap()]));
                let known =
                    async || pod_cidr(&pins).is_some_and(|known| known.network.to_ip().to_string() == cidr);
                within_a_second("spec 4.52: the Node's network is known", known).await;
            }
            stop.cancel();
            running.await.unwrap();
        });
    });
}

/// The network of pods in the maps.
fn pod_cidr(pins: &Pins) -> Option<CidrValue<V4>> {
    let data = MapData::from_pin(pins.map("POD_CIDRS4")).unwrap();
    let map: HashMap<_, u32, CidrValue<V4>> = Map::HashMap(data).try_into().unwrap();
    map.get(&0, 0).ok()
}

/// Waits until `condition` holds.
async fn within_a_second(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(1), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn hooks_have_distinct_programs_per_role() {
    let names: std::collections::BTreeSet<_> = [DeviceRole::UPLINK, DeviceRole::WORKLOAD]
        .into_iter()
        .flat_map(|role| [DeviceFlags::default(), DeviceFlags::L3].map(|flags| (role, flags)))
        .flat_map(|(role, flags)| Hook::ALL.map(|hook| hook.program(role, flags)))
        .collect();
    assert_eq!(names.len(), 6);
}
