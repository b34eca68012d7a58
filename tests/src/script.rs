//! Scripts for the control plane: manifests in, map dump out.
//!
//! A script is a text of sections, each a line `== command arguments` and what follows it up to the next:
//!
//! | command | does |
//! |---|---|
//! | `config KEY=VALUE…` | settings, first of all: `node-name`, `external-ip-cidrs`, `algorithm`, `forwarding`, `dsr-sources`, `maglev-table-size`, `max-slots` |
//! | `node-addresses IP…` | this node's addresses |
//! | `apply [FILE…]` | objects from files of `testdata/manifests` and from the section's own YAML |
//! | `delete KIND NAMESPACE/NAME…` | objects that go |
//! | `delete-unknown KIND NAMESPACE/NAME…` | the same of objects that never were |
//! | `restart` | a fresh control plane over the same maps |
//! | `maps [TABLE…]` | syncs; the section is the dump expected, of these tables (`FRONTEND`) or of all |
//! | `shares` | syncs; the section says how many slots of each run each backend has |
//! | `refused` | the section is what has been refused, as `object: field` |
//! | `unchanged` | syncs; not a single write may be needed |
//!
//! A script runs with the objects of each `apply` in order and reversed, without and with failing writes: the dump
//! is always the same. An unknown command is an error, and so is a script that checks nothing after its last change.
//! `BLESS=1` writes what was found into the file.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use lb_agent::{
    maps::{
        Maps,
        fake::{FakeMaps, Faults},
    },
    model::node::NodeAddresses,
    reconcile::{ReconcileConfig, Reconciler, SyncOutcome},
    source::{Change, Kind, Object, ObjectRef},
};
use serde::Deserialize as _;

/// One section of a script.
#[derive(Clone, Debug)]
pub struct Section {
    /// The word after `== `.
    pub command: String,
    /// The words after it.
    pub arguments: Vec<String>,
    /// What follows the line.
    pub body: String,
}

/// How a script is run.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Objects of one `apply` in reverse order.
    pub is_reversed: bool,
    /// Writes that fail.
    pub faults: Faults,
}

/// Every way in which a script must give the same result.
pub const MODES: [Mode; 4] = [
    Mode { is_reversed: false, faults: Faults { percent: 0, seed: 0 } },
    Mode { is_reversed: true, faults: Faults { percent: 0, seed: 0 } },
    Mode { is_reversed: false, faults: Faults { percent: 10, seed: 1 } },
    Mode { is_reversed: true, faults: Faults { percent: 10, seed: 2 } },
];

/// Tries to sync before a script gives up.
const SYNCS_MAX: usize = 500;

/// Runs the script in every mode.
pub fn run(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read script {}", path.display()))?;
    let (title, sections) = parse(&text)?;
    if std::env::var_os("BLESS").is_some() {
        let blessed = Run::new(&sections, MODES[0])?.bless(&sections)?;
        fs::write(path, render(&title, &blessed))
            .with_context(|| format!("write script {}", path.display()))?;
        return Ok(());
    }
    for mode in MODES {
        Run::new(&sections, mode)?
            .check(&sections)
            .with_context(|| format!("{}: {mode:?}", path.display()))?;
    }
    Ok(())
}

/// Directory of the scripts and manifests.
pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn parse(text: &str) -> Result<(String, Vec<Section>)> {
    let (title, sections) = sections(text)?;
    let last = sections.last().map(|section| section.command.as_str()).unwrap_or_default();
    ensure!(
        matches!(last, "maps" | "shares" | "refused" | "unchanged"),
        "nothing is checked after the last section"
    );
    Ok((title, sections))
}

/// The title of a script, which is comments, and its sections.
pub fn sections(text: &str) -> Result<(String, Vec<Section>)> {
    let (title, rest) = match text.find("== ") {
        Some(at) => text.split_at(at),
        None => bail!("no section"),
    };
    ensure!(
        title.lines().all(|line| line.is_empty() || line.starts_with('#')),
        "text before the first section"
    );
    let mut sections = Vec::new();
    for section in rest.split("\n== ").map(|section| section.trim_start_matches("== ")) {
        let (head, body) = section.split_once('\n').unwrap_or((section, ""));
        let mut words = head.split_whitespace().map(str::to_owned);
        let command = words.next().context("section without a command")?;
        sections.push(Section { command, arguments: words.collect(), body: body.trim_end().to_owned() });
    }
    Ok((title.to_owned(), sections))
}

fn render(title: &str, sections: &[Section]) -> String {
    let mut text = title.to_owned();
    for (index, section) in sections.iter().enumerate() {
        let separator = if index == 0 { "" } else { "\n" };
        let head = std::iter::once(&section.command)
            .chain(&section.arguments)
            .cloned()
            .collect::<Vec<_>>()
            .join(" ");
        let body = if section.body.is_empty() { String::new() } else { format!("{}\n", section.body) };
        let _ = write!(text, "{separator}== {head}\n{body}");
    }
    text
}

/// A script being run.
struct Run {
    mode: Mode,
    config: ReconcileConfig,
    addresses: NodeAddresses,
    /// Every object so far, for the next control plane.
    objects: Vec<Object>,
    reconciler: Option<Reconciler<FakeMaps>>,
}

impl Run {
    fn new(sections: &[Section], mode: Mode) -> Result<Self> {
        let mut config = ReconcileConfig { first_id: Some(1), ..ReconcileConfig::default() };
        let mut maps = FakeMaps::default();
        if let Some(section) = sections.first().filter(|section| section.command == "config") {
            for argument in &section.arguments {
                match argument.split_once('=') {
                    Some(("node-name", name)) => config.node_name = name.to_owned(),
                    Some(("external-ip-cidrs", cidrs)) => {
                        config.external_ip_cidrs =
                            cidrs.split(',').map(str::parse).collect::<Result<_, _>>()?;
                    }
                    Some(("algorithm", name)) => config.algorithm = name.parse().map_err(Error::msg)?,
                    Some(("forwarding", name)) => config.forwarding = name.parse().map_err(Error::msg)?,
                    Some(("dsr-sources", cidrs)) => {
                        config.dsr_sources = cidrs.split(',').map(str::parse).collect::<Result<_, _>>()?;
                    }
                    Some(("maglev-table-size", size)) => {
                        config.table_size = size.parse().map_err(Error::msg)?;
                    }
                    Some(("max-slots", slots)) => maps.capacity.slots = slots.parse()?,
                    _ => bail!("config: unknown setting {argument}"),
                }
            }
        }
        let mut run =
            Self { mode, config, addresses: NodeAddresses::default(), objects: Vec::new(), reconciler: None };
        maps.set_faults(mode.faults);
        run.start(maps)?;
        Ok(run)
    }

    fn start(&mut self, maps: FakeMaps) -> Result<()> {
        let mut reconciler = Reconciler::new(maps, self.config.clone())?;
        reconciler.set_node_addresses(self.addresses.clone());
        for object in &self.objects {
            reconciler.apply_change(Change::Applied(object.clone()));
        }
        reconciler.apply_change(Change::Synced(Kind::Service));
        reconciler.apply_change(Change::Synced(Kind::EndpointSlice));
        reconciler.apply_change(Change::EveryNode);
        self.reconciler = Some(reconciler);
        Ok(())
    }

    fn reconciler(&mut self) -> Result<&mut Reconciler<FakeMaps>> {
        self.reconciler.as_mut().ok_or_else(|| anyhow!("the control plane is stopped"))
    }

    fn check(mut self, sections: &[Section]) -> Result<()> {
        for section in sections {
            let found = self.step(section)?;
            if let Some(found) = found.filter(|found| *found != section.body) {
                bail!("== {}\nexpected:\n{}\nfound:\n{found}", section.command, section.body);
            }
        }
        Ok(())
    }

    fn bless(mut self, sections: &[Section]) -> Result<Vec<Section>> {
        let mut blessed = Vec::new();
        for section in sections {
            let found = self.step(section)?;
            blessed.push(Section { body: found.unwrap_or_else(|| section.body.clone()), ..section.clone() });
        }
        Ok(blessed)
    }

    /// Runs one section; returns what a section that checks should hold.
    fn step(&mut self, section: &Section) -> Result<Option<String>> {
        match section.command.as_str() {
            "config" => {}
            "node-addresses" => {
                self.addresses =
                    NodeAddresses(section.arguments.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?);
                let addresses = self.addresses.clone();
                self.reconciler()?.set_node_addresses(addresses);
            }
            "apply" => self.apply(section)?,
            "delete" => self.delete(section, true)?,
            "delete-unknown" => self.delete(section, false)?,
            "restart" => {
                let maps = self.reconciler.take().context("the control plane is stopped")?.into_maps();
                self.start(maps)?;
            }
            "maps" => return self.dump(&section.arguments).map(Some),
            "shares" => return self.shares().map(Some),
            "refused" => return self.refused().map(Some),
            "unchanged" => {
                ensure!(section.body.is_empty(), "unchanged: takes no text");
                ensure!(self.sync()? == 0, "unchanged: writes were needed");
            }
            other => bail!("unknown command {other}"),
        }
        let takes_text = matches!(section.command.as_str(), "apply" | "unchanged");
        ensure!(takes_text || section.body.is_empty(), "{}: takes no text", section.command);
        Ok(None)
    }

    fn apply(&mut self, section: &Section) -> Result<()> {
        let mut objects = Vec::new();
        for file in &section.arguments {
            let path = testdata().join("manifests").join(file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("read manifest {}", path.display()))?;
            objects.extend(parse_objects(&text)?);
        }
        objects.extend(parse_objects(&section.body)?);
        ensure!(!objects.is_empty(), "apply: no object");
        if self.mode.is_reversed {
            objects.reverse();
        }
        for object in objects {
            self.objects.retain(|known| known.object_ref() != object.object_ref());
            self.objects.push(object.clone());
            self.reconciler()?.apply_change(Change::Applied(object));
        }
        Ok(())
    }

    /// `known`: whether the objects must be there.
    fn delete(&mut self, section: &Section, known: bool) -> Result<()> {
        let (kind, names) = section.arguments.split_first().context("delete: no kind")?;
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Endpoints, Kind::Node, Kind::ServiceCidr];
        let kind =
            kinds.into_iter().find(|known| known.to_string() == *kind).context("delete: unknown kind")?;
        ensure!(!names.is_empty(), "delete: no name");
        for name in names {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            let id = ObjectRef { kind, namespace: namespace.to_owned(), name: name.to_owned() };
            let found = self.objects.iter().any(|object| object.object_ref() == id);
            ensure!(found == known, "{}: {id} is there: {found}", section.command);
            self.objects.retain(|object| object.object_ref() != id);
            self.reconciler()?.apply_change(Change::Deleted(id));
        }
        Ok(())
    }

    /// Syncs until nothing fails any more. Every state on the way must be safe. Returns the number of writes.
    fn sync(&mut self) -> Result<usize> {
        let before = self.reconciler()?.maps().writes.len();
        let mut replay = self.reconciler()?.maps_mut().dump()?;
        for _ in 0..SYNCS_MAX {
            let outcome = self.reconciler()?.sync();
            if let Ok(outcome) = outcome {
                ensure!(outcome != SyncOutcome::Waiting, "the control plane waits for its sources");
                for write in &self.reconciler()?.maps().writes[before..] {
                    replay.apply(write);
                    ensure!(
                        replay.inconsistencies().is_empty(),
                        "after {write}: {:?}",
                        replay.inconsistencies()
                    );
                }
                if self.reconciler()?.needs_sync() {
                    continue;
                }
                ensure!(!self.reconciler()?.verify()?, "the mirror differs from the maps");
                return Ok(self.reconciler()?.maps().writes.len() - before);
            }
        }
        bail!("not synced after {SYNCS_MAX} tries")
    }

    /// The dump, of `tables` if any are named.
    fn dump(&mut self, tables: &[String]) -> Result<String> {
        self.sync()?;
        let state = self.reconciler()?.maps_mut().dump()?;
        let text = state.to_string();
        ensure!(text.parse().as_ref() == Ok(&state), "the dump does not read back");
        let is_asked = |line: &&str| tables.is_empty() || tables.iter().any(|table| line.starts_with(table));
        Ok(text.lines().filter(is_asked).collect::<Vec<_>>().join("\n"))
    }

    fn shares(&mut self) -> Result<String> {
        self.sync()?;
        let state = self.reconciler()?.maps_mut().dump()?;
        let mut lines = Vec::new();
        for run in state.runs() {
            let mut shares: BTreeMap<u32, u32> = BTreeMap::new();
            let slots = state.slots.range(run.base..run.base + run.count);
            slots.for_each(|(_, backend)| *shares.entry(backend.0).or_default() += 1);
            let shares = shares.iter().map(|(backend, slots)| format!(" backend={backend}:{slots}"));
            lines.push(format!("{}@{}{}", run.count, run.base, shares.collect::<String>()));
        }
        Ok(lines.join("\n"))
    }

    fn refused(&mut self) -> Result<String> {
        self.sync()?;
        let refusals = self.reconciler()?.refusals();
        let mut lines: Vec<_> =
            refusals.iter().map(|refusal| format!("{}: {}", refusal.object, refusal.field)).collect();
        lines.sort();
        Ok(lines.join("\n"))
    }
}

/// The objects of a YAML text that the control plane knows; others are a source's to refuse.
pub fn parse_objects(text: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_yaml_ng::Value::deserialize(document)?;
        let kind = value.get("kind").and_then(|kind| kind.as_str()).unwrap_or_default().to_owned();
        match kind.as_str() {
            "Service" => objects.push(Object::Service(Box::new(serde_yaml_ng::from_value(value)?))),
            "EndpointSlice" => {
                objects.push(Object::EndpointSlice(Box::new(serde_yaml_ng::from_value(value)?)))
            }
            "Endpoints" => objects.push(Object::Endpoints(Box::new(serde_yaml_ng::from_value(value)?))),
            "Node" => objects.push(Object::Node(Box::new(serde_yaml_ng::from_value(value)?))),
            "ServiceCIDR" => objects.push(Object::ServiceCidr(Box::new(serde_yaml_ng::from_value(value)?))),
            "" if value.is_null() => {}
            _ => ensure!(kind == "Deployment", "an object of kind {kind:?}"),
        }
    }
    Ok(objects)
}
