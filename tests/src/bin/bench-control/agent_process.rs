//! The agent as it is deployed: its process in a namespace, a cgroup and a pin directory of its own, reading manifests.
//! The clock runs from the start of the process, and from the rename of a changed file, until the pinned maps say so.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use k8s_openapi::jiff::Timestamp;
use lb_agent::{datapath::pins::Pins, source::Object};
use lb_common::{
    backend::{MemberKey, MemberValue},
    family::{Addr4, Be16, Protocol, V4},
    frontend::{FrontendKey, FrontendValue},
};
use lb_tests::{agent::Agent, bench::row::Row, cgroup::Cgroup, netns::Namespace, process::Place, sweep};

use crate::{ENDPOINTS_PER_SERVICE, milliseconds, peak_memory_mib, row, service, slice};

/// First syncs, each by another process with other maps.
const RUNS: usize = 5;
/// Changes after the last of them.
const CHANGES: usize = 40;
/// Longer than the agent's `--min-sync-period`, so that a change does not wait for the one before.
const PAUSE: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(60);

/// What one start of the agent took.
struct FirstSync {
    /// From the start of the process.
    whole_ms: f64,
    /// From the first file, by the agent's log.
    from_first_file_ms: f64,
}

/// A node of its own; dropping it removes everything.
struct Node {
    prefix: String,
    pins: Pins,
    manifests: PathBuf,
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

/// First sync, one change and memory of the agent with so many services in each file.
pub(crate) fn measure(services: usize, services_per_file: usize) -> Result<Vec<Row>> {
    let layout = format!("agent, {} files", services.div_ceil(services_per_file));
    let (mut whole, mut from_first_file, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let mut changes = Vec::new();
    for run in 0..RUNS {
        let mut node = Node::new()?;
        node.write_manifests(services, services_per_file)?;
        let first = node.first_sync(services)?;
        whole.push(first.whole_ms);
        from_first_file.push(first.from_first_file_ms);
        if run == RUNS - 1 {
            node.agent.wait_until_ready()?;
            for round in 0..CHANGES {
                changes.push(node.change(services, services_per_file, round)?);
            }
        }
        let pid = node.agent.pid().context("the agent does not run")?;
        memory.push(peak_memory_mib(&pid.to_string())?);
    }
    Ok(vec![
        row(format!("first sync from process start, {layout}"), "ms", whole, 2000.0),
        row(format!("first sync from the first file, {layout}"), "ms", from_first_file, 2000.0),
        row(format!("one endpoint changes, {layout}"), "ms", changes, 10.0),
        row(format!("peak memory, {layout}"), "MiB", memory, 150.0),
    ])
}

impl Node {
    fn new() -> Result<Self> {
        let prefix = sweep::unique_prefix();
        let manifests = std::env::temp_dir().join(&prefix).join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("make {}", manifests.display()))?;
        let cgroup = Cgroup::create(&prefix)?;
        let namespace = Namespace::create(&[format!("{prefix}-bench")])?.remove(0);
        namespace.ip(&["link set lo up".to_owned()])?;
        let place = Place { namespace, cgroup: cgroup.child("agent")? };
        let mut agent = Agent::new("node-0", place, cgroup, &prefix, &manifests)?;
        agent.set_extra_args(&["--log-level", "info,lb_agent::reconcile=debug"]);
        let pins = Pins::new(agent.pins());
        Ok(Self { prefix, pins, manifests, agent })
    }

    fn write_manifests(&self, services: usize, services_per_file: usize) -> Result<()> {
        for first in (0..services).step_by(services_per_file) {
            let text = manifest(first..services.min(first + services_per_file), None)?;
            write(&self.file(first / services_per_file), &text)?;
        }
        Ok(())
    }

    fn file(&self, number: usize) -> PathBuf {
        self.manifests.join(format!("services-{number:05}.yaml"))
    }

    /// Starts the agent and waits until the frontend of the last service, and then all of them, are in the map.
    fn first_sync(&mut self, services: usize) -> Result<FirstSync> {
        let started = Instant::now();
        self.agent.start()?;
        let last = frontend_key(services - 1);
        loop {
            let there = self.frontends().ok().filter(|map| map.get(&last, 0).is_ok());
            if there.is_some_and(|map| map.keys().count() == services) {
                break;
            }
            ensure!(started.elapsed() < PATIENCE, "no first sync: {}", self.agent.log_tail());
            thread::sleep(Duration::from_millis(1));
        }
        let whole_ms = milliseconds(started);
        let members: HashMap<MapData, MemberKey, MemberValue> = self.map("MEMBERS")?;
        ensure!(members.keys().count() == services * ENDPOINTS_PER_SERVICE, "members are missing");
        self.agent.wait_until_ready()?;
        Ok(FirstSync { whole_ms, from_first_file_ms: self.logged_ms()? })
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

    /// Gives one endpoint another address by renaming a file into place, and waits for the frontend to lead to
    /// another run: the commit point.
    fn change(&self, services: usize, services_per_file: usize, round: usize) -> Result<f64> {
        thread::sleep(PAUSE);
        let changed = round * 7919 % services;
        let first = changed - changed % services_per_file;
        let text = manifest(first..services.min(first + services_per_file), Some((changed, round + 1)))?;
        let ready = self.manifests.with_file_name("changed.yaml");
        write(&ready, &text)?;
        let (frontends, key) = (self.frontends()?, frontend_key(changed));
        let former = frontends.get(&key, 0)?.internal;
        let started = Instant::now();
        fs::rename(&ready, self.file(changed / services_per_file)).context("rename the changed file")?;
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

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn frontend_key(index: usize) -> FrontendKey<V4> {
    let addr = Addr4([10, 96, (index / 256) as u8, (index % 256) as u8]);
    FrontendKey::new(addr, Be16::new(80), Protocol::TCP)
}

/// Services with their slices; `changed`: which service's last endpoint has moved, and how often.
fn manifest(services: std::ops::Range<usize>, changed: Option<(usize, usize)>) -> Result<String> {
    let mut text = String::new();
    for index in services {
        let round = changed.filter(|changed| changed.0 == index).map_or(0, |changed| changed.1);
        for object in [service(index), slice(index, round)] {
            let yaml = match &object {
                Object::Service(service) => serde_yaml_ng::to_string(service)?,
                Object::EndpointSlice(slice) => serde_yaml_ng::to_string(slice)?,
                _ => continue,
            };
            write!(text, "---\n{yaml}")?;
        }
    }
    Ok(text)
}
