//! The maps of the control plane as values: their contents ([`MapState`]), one write to them ([`Write`]), and the
//! trait behind which they are real ([`bpf`]) or in memory ([`fake`]).
//!
//! Of `SLOTS` and `GENERATIONS`, which are arrays, a [`MapState`] holds what means something: the slots that a
//! frontend's run covers, and the generations that ever moved.

mod bit_set;
pub mod bpf;
pub mod dump;
pub mod fake;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::{
    backend::{BackendValue, MemberKey, MemberValue},
    cidr::CidrValue,
    family::{Family, V4, V6},
    frontend::{FrontendKey, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    maps,
    peer::{PeerKey, PeerValue},
    source_range::{SourceRangeKey, SourceRangeValue},
    vip::{VipKey, VipValue},
};

/// Contents of the maps that exist per family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyState<F: Family> {
    /// `FRONTENDS`.
    pub frontends: BTreeMap<FrontendKey<F>, FrontendValue>,
    /// `BACKENDS`.
    pub backends: BTreeMap<BackendId, BackendValue<F>>,
    /// `SOURCE_RANGES`.
    pub source_ranges: BTreeMap<SourceRangeKey<F>, SourceRangeValue>,
    /// `SERVICE_CIDRS` by place, without unused entries.
    pub service_cidrs: BTreeMap<u32, CidrValue<F>>,
    /// `VIPS`.
    pub vips: BTreeMap<VipKey<F>, VipValue>,
    /// `PEERS`.
    pub peers: BTreeMap<PeerKey<F>, PeerValue>,
}

/// Contents of every map the control plane writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// IPv4.
    pub v4: FamilyState<V4>,
    /// IPv6.
    pub v6: FamilyState<V6>,
    /// `MEMBERS`.
    pub members: BTreeMap<MemberKey, MemberValue>,
    /// `SLOTS`.
    pub slots: BTreeMap<u32, BackendId>,
    /// `GENERATIONS`, without zeroes.
    pub generations: BTreeMap<ServicePortId, u32>,
}

/// One write to a map of family `F`. `None` deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyWrite<F: Family> {
    /// To `FRONTENDS`: the commit point.
    Frontend(FrontendKey<F>, Option<FrontendValue>),
    /// To `BACKENDS`.
    Backend(BackendId, Option<BackendValue<F>>),
    /// To `SOURCE_RANGES`.
    SourceRange(SourceRangeKey<F>, Option<SourceRangeValue>),
    /// To `SERVICE_CIDRS`, an array: `None` marks the entry unused.
    ServiceCidr(u32, Option<CidrValue<F>>),
    /// To `VIPS`.
    Vip(VipKey<F>, Option<VipValue>),
    /// To `PEERS`.
    Peer(PeerKey<F>, Option<PeerValue>),
}

/// One write to a map. `None` deletes; array entries cannot be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// To an IPv4 map.
    V4(FamilyWrite<V4>),
    /// To an IPv6 map.
    V6(FamilyWrite<V6>),
    /// To `MEMBERS`.
    Member(MemberKey, Option<MemberValue>),
    /// To `SLOTS`.
    Slot(u32, BackendId),
    /// To `GENERATIONS`.
    Generation(ServicePortId, u32),
}

/// A family with its share of a [`MapState`] and of the [`Write`]s. Lets everything else be written once.
pub trait MapFamily: Family {
    /// This family's maps.
    fn of(state: &MapState) -> &FamilyState<Self>;
    /// This family's maps, to change them.
    fn of_mut(state: &mut MapState) -> &mut FamilyState<Self>;
    /// A write to one of this family's maps.
    fn write(write: FamilyWrite<Self>) -> Write;
}

impl MapFamily for V4 {
    fn of(state: &MapState) -> &FamilyState<Self> {
        &state.v4
    }
    fn of_mut(state: &mut MapState) -> &mut FamilyState<Self> {
        &mut state.v4
    }
    fn write(write: FamilyWrite<Self>) -> Write {
        Write::V4(write)
    }
}

impl MapFamily for V6 {
    fn of(state: &MapState) -> &FamilyState<Self> {
        &state.v6
    }
    fn of_mut(state: &mut MapState) -> &mut FamilyState<Self> {
        &mut state.v6
    }
    fn write(write: FamilyWrite<Self>) -> Write {
        Write::V6(write)
    }
}

/// How many ids and slots the maps have room for. Ids start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of `GENERATIONS`.
    pub service_ports: u32,
    /// Entries of `BACKENDS`: ids lie below.
    pub backends: u32,
    /// Entries of `SLOTS`.
    pub slots: u32,
}

/// Why a map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The pin is missing, or is not the map it should be.
    #[error("open map {map} at {path}: {reason}")]
    Open {
        /// Name of the map.
        map: String,
        /// Its pin.
        path: String,
        /// What the kernel or aya said.
        reason: String,
    },
    /// No room for another entry.
    #[error("write {write}: map {map} is full ({entries} entries); raise --max-{flag}")]
    Full {
        /// What was to be written.
        write: String,
        /// Name of the map.
        map: String,
        /// Its size.
        entries: u32,
        /// Which size to raise.
        flag: String,
    },
    /// The kernel refused a write.
    #[error("write {write}: {reason}")]
    Write {
        /// What was to be written.
        write: String,
        /// What the kernel said.
        reason: String,
    },
    /// The kernel refused to list a map.
    #[error("read map {map}: {reason}")]
    Read {
        /// Name of the map.
        map: String,
        /// What the kernel said.
        reason: String,
    },
}

impl MapError {
    /// `write` found its map full.
    pub fn full(write: &Write, entries: u32) -> Self {
        let map = write.map();
        let flag = write.map_base().to_ascii_lowercase().replace('_', "-");
        Self::Full { write: write.to_string(), map, entries, flag }
    }
}

/// Somewhere to write to.
pub trait Maps {
    /// Makes one write, atomically for the datapath.
    fn apply(&mut self, write: &Write) -> Result<(), MapError>;

    /// Makes writes of which each [`puts_beside`](Write::puts_beside) the one before, in order, and returns how many
    /// were made. Why not the next one, [`apply`](Self::apply) says.
    fn apply_batch(&mut self, writes: &[Write]) -> usize;

    /// Reads everything back.
    fn dump(&mut self) -> Result<MapState, MapError>;

    /// How many ids and slots there are.
    fn capacity(&self) -> Capacity;
}

impl MapState {
    /// What a successful `write` makes of the contents.
    pub fn apply(&mut self, write: &Write) {
        match *write {
            Write::V4(write) => self.v4.apply(write),
            Write::V6(write) => self.v6.apply(write),
            Write::Member(key, value) => set(&mut self.members, key, value),
            Write::Slot(index, backend) => set(&mut self.slots, index, Some(backend)),
            Write::Generation(id, generation) => set(&mut self.generations, id, Some(generation)),
        }
    }

    /// The runs of every frontend, empty ones left out.
    pub fn runs(&self) -> BTreeSet<Run> {
        let values = self.v4.frontends.values().chain(self.v6.frontends.values());
        values.flat_map(|value| value.runs()).filter(|run| run.count > 0).collect()
    }

    /// Forgets the slots that no run covers: whatever they hold, nobody reads it.
    pub fn forget_dead_slots(&mut self) {
        let mut live = BTreeMap::new();
        for run in self.runs() {
            live.extend(self.slots.range(run.base..run.base.saturating_add(run.count)));
        }
        self.slots = live;
    }

    /// What would mislead the datapath, or nothing: every run of a live frontend must cover written slots, whose
    /// backends exist in the frontend's family and are members of its service port.
    pub fn inconsistencies(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.family_inconsistencies::<V4>(&mut found);
        self.family_inconsistencies::<V6>(&mut found);
        found
    }

    fn family_inconsistencies<F: MapFamily>(&self, found: &mut Vec<String>) {
        let state = F::of(self);
        for (key, value) in &state.frontends {
            for run in value.runs() {
                for index in run.base..run.base.saturating_add(run.count) {
                    let backend = self.slots.get(&index).copied().unwrap_or_default();
                    let member = MemberKey { service_port: value.service_port, backend };
                    if !state.backends.contains_key(&backend) || !self.members.contains_key(&member) {
                        found.push(format!("{key:?}: slot {index} holds {backend:?}, no backend of it"));
                    }
                }
            }
        }
    }
}

impl<F: Family> FamilyState<F> {
    fn apply(&mut self, write: FamilyWrite<F>) {
        match write {
            FamilyWrite::Frontend(key, value) => set(&mut self.frontends, key, value),
            FamilyWrite::Backend(id, value) => set(&mut self.backends, id, value),
            FamilyWrite::SourceRange(key, value) => set(&mut self.source_ranges, key, value),
            FamilyWrite::ServiceCidr(index, value) => set(&mut self.service_cidrs, index, value),
            FamilyWrite::Vip(key, value) => set(&mut self.vips, key, value),
            FamilyWrite::Peer(key, value) => set(&mut self.peers, key, value),
        }
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl Write {
    /// Whether both put an entry into the same map.
    pub fn puts_beside(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::V4(one), Self::V4(other)) => one.puts_beside(other),
            (Self::V6(one), Self::V6(other)) => one.puts_beside(other),
            (Self::Member(_, one), Self::Member(_, other)) => one.is_some() && other.is_some(),
            (Self::Slot(..), Self::Slot(..)) | (Self::Generation(..), Self::Generation(..)) => true,
            _ => false,
        }
    }

    /// Whole name of the map it goes to.
    pub fn map(&self) -> String {
        match self {
            Self::V4(_) => family_map_name::<V4>(self.map_base()),
            Self::V6(_) => family_map_name::<V6>(self.map_base()),
            _ => self.map_base().to_owned(),
        }
    }

    /// Name of the map it goes to, without the family.
    pub fn map_base(&self) -> &'static str {
        match self {
            Self::V4(write) => write.map_base(),
            Self::V6(write) => write.map_base(),
            Self::Member(..) => maps::MEMBERS,
            Self::Slot(..) => maps::SLOTS,
            Self::Generation(..) => maps::GENERATIONS,
        }
    }
}

impl<F: Family> FamilyWrite<F> {
    fn puts_beside(&self, other: &Self) -> bool {
        let is_same_map = std::mem::discriminant(self) == std::mem::discriminant(other);
        is_same_map && self.is_put() && other.is_put()
    }

    fn is_put(&self) -> bool {
        match self {
            Self::Frontend(_, value) => value.is_some(),
            Self::Backend(_, value) => value.is_some(),
            Self::SourceRange(_, value) => value.is_some(),
            Self::ServiceCidr(_, value) => value.is_some(),
            Self::Vip(_, value) => value.is_some(),
            Self::Peer(_, value) => value.is_some(),
        }
    }

    fn map_base(&self) -> &'static str {
        match self {
            Self::Frontend(..) => maps::FRONTENDS,
            Self::Backend(..) => maps::BACKENDS,
            Self::SourceRange(..) => maps::SOURCE_RANGES,
            Self::ServiceCidr(..) => maps::SERVICE_CIDRS,
            Self::Vip(..) => maps::VIPS,
            Self::Peer(..) => maps::PEERS,
        }
    }
}

/// `FRONTENDS` of IPv4 is `FRONTENDS4`.
pub fn family_map_name<F: Family>(base: &str) -> String {
    format!("{base}{}", F::DIGIT)
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(write) => write.fmt(f),
            Self::V6(write) => write.fmt(f),
            Self::Member(key, Some(value)) => dump::Member(key, value).fmt(f),
            Self::Member(key, None) => {
                write!(f, "delete MEMBER service-port={} backend={}", key.service_port.0, key.backend.0)
            }
            Self::Slot(index, backend) => dump::Slot(*index, *backend).fmt(f),
            Self::Generation(id, generation) => dump::Generation(*id, *generation).fmt(f),
        }
    }
}

impl<F: Family> fmt::Display for FamilyWrite<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(key, Some(value)) => dump::Frontend(key, value).fmt(f),
            Self::Frontend(key, None) => write!(f, "delete FRONTEND {}", dump::frontend_address(key)),
            Self::Backend(id, Some(value)) => dump::Backend(*id, value).fmt(f),
            Self::Backend(id, None) => write!(f, "delete BACKEND id={} ({})", id.0, F::NAME),
            Self::SourceRange(key, Some(_)) => dump::SourceRange(key).fmt(f),
            Self::SourceRange(key, None) => write!(f, "delete {}", dump::SourceRange(key)),
            Self::ServiceCidr(index, Some(value)) => dump::ServiceCidr(*index, value).fmt(f),
            Self::ServiceCidr(index, None) => write!(f, "delete SERVICE_CIDR {index} ({})", F::NAME),
            Self::Vip(key, Some(_)) => dump::Vip(key).fmt(f),
            Self::Vip(key, None) => write!(f, "delete {}", dump::Vip(key)),
            Self::Peer(key, Some(_)) => dump::Peer(key).fmt(f),
            Self::Peer(key, None) => write!(f, "delete {}", dump::Peer(key)),
        }
    }
}
