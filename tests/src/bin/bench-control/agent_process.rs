//! The agent as it is deployed: its process in a namespace, a cgroup and a pin directory of its own. The clock runs from
//! the start of the process, and from the moment a change is there to be seen, until the pinned maps say so.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use k8s_openapi::jiff::Timestamp;
use lb_agent::datapath::pins::Pins;
use lb_common::{
    backend::{MemberKey, MemberValue},
    family::V4,
    frontend::{FrontendKey, FrontendValue},
};
use lb_tests::{
    agent::Agent,
    bench::row::{Row, Target},
    cgroup::Cgroup,
    netns::Namespace,
    process::Place,
    sweep,
};

use crate::{
    feed::{Feed, Objects},
    milliseconds,
    objects::{Move, NODE, Scale, frontend_key},
    row,
};

/// Longer than the agent's `--min-sync-period`, so that a change does not wait for the one before.
const PAUSE: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(120);

/// What is measured, how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Objects.
    pub(crate) scale: Scale,
    /// Their source.
    pub(crate) feed: Feed,
    /// First syncs, each by another process with other maps.
    pub(crate) runs: usize,
    /// Changes after the last of them.
    pub(crate) changes: usize,
    /// Whether the figures have targets.
    pub(crate) has_targets: bool,
}

/// Samples of a case.
#[derive(Default)]
struct Samples {
    /// From the start of the process to the last frontend, ms.
    first_sync: Vec<f64>,
    /// From the start of the process until it is ready: programs attached, ms.
    ready: Vec<f64>,
    /// The same from the first file, by the agent's log, ms.
    from_first_file: Vec<f64>,
    /// From a change to its frontend, ms.
    change: Vec<f64>,
    /// `VmHWM` of the process, MiB.
    memory: Vec<f64>,
}

/// A node of its own; dropping it removes everything.
struct Node {
    prefix: String,
    pins: Pins,
    objects: Box<dyn Objects>,
    agent: Agent,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Links are released before the pins go.
        drop(self.agent.kill());
        if let Err(error) = sweep::remove(&self.prefix) {
            eprintln!("{error:#}");
        }
    }
}

/// First sync, one change and memory of the agent.
pub(crate) fn measure(case: Case) -> Result<Vec<Row>> {
    let mut samples = Samples::default();
    for run in 0..case.runs {
        let mut node = Node::new(case)?;
        let [first_sync, ready] = node.first_sync(case.scale)?;
        samples.first_sync.push(first_sync);
        samples.ready.push(ready);
        if matches!(case.feed, Feed::Files { .. }) {
            samples.from_first_file.push(node.logged_ms()?);
        }
        if run == case.runs - 1 {
            for round in 1..=case.changes {
                samples.change.push(node.change(Move::nth(round, case.scale))?);
            }
        }
        let pid = node.agent.pid().context("the agent does not run")?;
        samples.memory.push(peak_memory_mib(pid)?);
    }
    Ok(rows(case, samples))
}

fn rows(case: Case, samples: Samples) -> Vec<Row> {
    let Case { scale, feed, .. } = case;
    let figures = [
        ("first sync from process start", "ms", samples.first_sync, 2000.0),
        ("ready from process start", "ms", samples.ready, f64::INFINITY),
        ("first sync from the first file", "ms", samples.from_first_file, 2000.0),
        ("one endpoint changes", "ms", samples.change, 10.0),
        ("peak memory", "MiB", samples.memory, 150.0),
    ];
    let measured = figures.into_iter().filter(|(_, _, samples, _)| !samples.is_empty());
    let to_row = |(what, unit, samples, limit): (_, _, _, f64)| {
        let has_target = case.has_targets && limit.is_finite();
        let target = if has_target { Target::AtMost(limit) } else { Target::NotSet };
        row(format!("{what}, {scale}, {}", feed.name(scale)), unit, samples, target)
    };
    measured.map(to_row).collect()
}

impl Node {
    fn new(case: Case) -> Result<Self> {
        let prefix = sweep::unique_prefix();
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let cgroup = Cgroup::create(&prefix)?;
        let namespace = Namespace::create(&[format!("{prefix}-bench")])?.remove(0);
        namespace.ip(&["link set lo up".to_owned()])?;
        let objects = case.feed.start(case.scale, &namespace, &dir)?;
        let place = Place { namespace, cgroup: cgroup.child("agent")? };
        let mut agent = Agent::new(NODE, place, cgroup, &prefix, &dir.join("manifests"))?;
        if let Some(kubeconfig) = objects.kubeconfig() {
            agent.set_kubeconfig(kubeconfig);
        }
        agent.set_extra_args(&["--log-level", "info,lb_agent::reconcile=debug"]);
        let pins = Pins::new(agent.pins());
        Ok(Self { prefix, pins, objects, agent })
    }

    /// Starts the agent and waits until the frontend of the last service, and then all of them, are in the map;
    /// frontends are written last; then until it is ready. Both in milliseconds.
    fn first_sync(&mut self, scale: Scale) -> Result<[f64; 2]> {
        let started = Instant::now();
        self.agent.start()?;
        let last = frontend_key(scale.services - 1);
        loop {
            let there = self.frontends().ok().filter(|map| map.get(&last, 0).is_ok());
            if there.is_some_and(|map| map.keys().count() == scale.services) {
                break;
            }
            ensure!(started.elapsed() < PATIENCE, "no first sync: {}", self.agent.log_tail());
            thread::sleep(Duration::from_millis(1));
        }
        let synced = milliseconds(started);
        self.agent.wait_until_ready()?;
        let ready = milliseconds(started);
        let members: HashMap<MapData, MemberKey, MemberValue> = self.map("MEMBERS")?;
        ensure!(members.keys().count() == scale.services * scale.endpoints, "members are missing");
        Ok([synced, ready])
    }

    /// From "reading manifests" to the first "synced".
    fn logged_ms(&self) -> Result<f64> {
        let path = self.agent.run_dir().with_file_name("agent.log");
        let log = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let time = |what: &str| -> Result<Timestamp> {
            let line = log.lines().find(|line| line.contains(what));
            let line = line.with_context(|| format!("{what:?} is not in the log:\n{log}"))?;
            Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
        };
        let spent = time(" synced services=")?.duration_since(time("reading manifests")?);
        Ok(spent.as_secs_f64() * 1e3)
    }

    /// Gives one endpoint another address and waits for the frontend to lead to another run: the commit point.
    fn change(&self, change: Move) -> Result<f64> {
        thread::sleep(PAUSE);
        let show = self.objects.prepare(change)?;
        let (frontends, key) = (self.frontends()?, frontend_key(change.service));
        let former = frontends.get(&key, 0)?.internal;
        let started = Instant::now();
        show()?;
        while frontends.get(&key, 0)?.internal == former {
            ensure!(started.elapsed() < PATIENCE, "the change is not seen: {}", self.agent.log_tail());
        }
        Ok(milliseconds(started))
    }

    fn frontends(&self) -> Result<HashMap<MapData, FrontendKey<V4>, FrontendValue>> {
        self.map("FRONTENDS4")
    }

    fn map<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        Ok(Map::from_map_data(MapData::from_pin(self.pins.map(name))?)?.try_into()?)
    }
}

/// The largest resident size a process had, from `/proc/PID/status` (`VmHWM`). Maps are the kernel's and not in it.
fn peak_memory_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
