//! Removes dead connections from `CONNECTIONS4` and `CONNECTIONS6`. Run by `cli::run` on a thread of its own.
//!
//! What must stay true: a live connection is never touched, and the two directions of a connection go together; the
//! maps are LRU, so a collection that is late or fails costs room, nothing else.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use bytemuck::Pod;
use lb_common::{
    conntrack::{Coarse, ConnectionValue, Phase},
    family::{Family, Protocol},
    flow::FlowKey,
    kind::{self, Kind, Kinds},
    maps,
};
use thiserror::Error;

use crate::datapath::bpf;

/// What can go wrong in a collection.
#[derive(Debug, Error)]
pub enum GcError {
    /// The map cannot be opened or written.
    #[error("{what} {name}: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map.
        name: String,
        /// What the kernel said.
        source: MapError,
    },
    /// The map cannot be walked.
    #[error("walk {name}: {source}")]
    Walk {
        /// The map.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries seen.
    pub entries: usize,
    /// Entries removed, both directions counted.
    pub removed: usize,
    /// Kinds of the entries seen, as [`Kind::bit`]s.
    pub kinds: u32,
}

/// What one direction of a connection last did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// How far it has come.
    pub phase: Phase,
    /// When it last sent a packet.
    pub last_seen: Coarse,
}

impl Direction {
    fn of<F: Family>(value: &ConnectionValue<F>) -> Self {
        Self { phase: value.phase, last_seen: value.last_seen }
    }

    fn is_over(self, protocol: Protocol, now: Coarse) -> bool {
        self.last_seen.is_older_than(now, self.phase.timeout_s(protocol))
    }

    fn is_reset(self) -> bool {
        self.phase == Phase::RESET
    }
}

/// Whether a connection is dead: one direction was reset, or each has been silent for longer than its phase allows
/// (60 s once both have sent FIN). `other` is `None` where the entry of the other direction is gone.
pub fn is_dead(protocol: Protocol, now: Coarse, one: Direction, other: Option<Direction>) -> bool {
    let directions = || std::iter::once(one).chain(other);
    directions().any(Direction::is_reset) || directions().all(|direction| direction.is_over(protocol, now))
}

/// The connections of one family.
pub struct Connections<F: Family> {
    name: String,
    map: HashMap<MapData, FlowKey<F>, ConnectionValue<F>>,
    fd: OwnedFd,
}

impl<F: Family> Connections<F>
where
    FlowKey<F>: Pod + aya::Pod,
    ConnectionValue<F>: Pod + aya::Pod,
{
    /// Opens the map pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, GcError> {
        let name = format!("{}{}", maps::CONNECTIONS, F::DIGIT);
        let error = |source| GcError::Map { what: "open", name: name.clone(), source };
        let data = MapData::from_pin(dir.join(&name)).map_err(error)?;
        let fd =
            bpf::open_pin(&dir.join(&name)).map_err(|source| GcError::Walk { name: name.clone(), source })?;
        let map = HashMap::try_from(Map::LruHashMap(data)).map_err(error)?;
        Ok(Self { name, map, fd })
    }

    /// Gives every entry to `visit`, in batches.
    pub fn walk(&self, visit: impl FnMut(&[FlowKey<F>], &[ConnectionValue<F>])) -> Result<(), GcError> {
        bpf::walk(self.fd.as_fd(), visit).map_err(|source| GcError::Walk { name: self.name.clone(), source })
    }

    /// Removes what is dead at `now`.
    pub fn collect(&mut self, now: Coarse) -> Result<Collected, GcError> {
        let mut collected = Collected::default();
        let mut candidates = Vec::new();
        self.walk(|keys, values| {
            collected.entries += keys.len();
            let kinds = values.iter().filter_map(|value| Kind::of(value.flags)).map(Kind::bit);
            collected.kinds |= kinds.fold(0, |set, kind| set | kind);
            // An entry that is alive by itself needs no look at its other direction, unless that one was reset:
            // then that one is a candidate.
            let found = keys.iter().zip(values).filter(|(key, value)| {
                let one = Direction::of(*value);
                one.is_reset() || one.is_over(key.protocol, now)
            });
            candidates.extend(found.map(|(key, value)| (*key, *value)));
        })?;
        for (key, value) in candidates {
            collected.removed += self.remove_if_dead(&key, &value, now)?;
        }
        Ok(collected)
    }

    /// A step of [`Self::collect`]. Removes both directions if the connection is dead and `key` still reads as it did; returns how many.
    pub fn remove_if_dead(
        &mut self,
        key: &FlowKey<F>,
        read: &ConnectionValue<F>,
        now: Coarse,
    ) -> Result<usize, GcError> {
        if self.lookup(key)? != Some(*read) {
            return Ok(0);
        }
        let other_key = FlowKey::new(read.to.reversed(), key.protocol);
        let other = self.lookup(&other_key)?.filter(|other| other.to == key.tuple.reversed());
        if !is_dead(key.protocol, now, Direction::of(read), other.as_ref().map(Direction::of)) {
            return Ok(0);
        }
        let mut removed = self.remove(key)?;
        if other.is_some() {
            removed += self.remove(&other_key)?;
        }
        Ok(removed)
    }

    fn lookup(&self, key: &FlowKey<F>) -> Result<Option<ConnectionValue<F>>, GcError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(GcError::Map { what: "read", name: self.name.clone(), source }),
        }
    }

    fn remove(&mut self, key: &FlowKey<F>) -> Result<usize, GcError> {
        match self.map.remove(key) {
            Ok(()) => Ok(1),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(source) => Err(GcError::Map { what: "write", name: self.name.clone(), source }),
        }
    }
}

/// Lets the datapath know of which kinds of connections there are none any more (`KINDS`).
pub struct KindLog(Array<MapData, Kinds>);

impl KindLog {
    /// Opens the map pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, GcError> {
        let data = MapData::from_pin(dir.join(maps::KINDS)).map_err(|error| Self::error("open", error))?;
        Ok(Self(Array::try_from(Map::Array(data)).map_err(|error| Self::error("open", error))?))
    }

    /// What the datapath has recorded: to be read before a collection of both families.
    pub fn recorded(&self) -> Result<Kinds, GcError> {
        self.0.get(&kind::RECORDED, 0).map_err(|error| Self::error("read", error))
    }

    /// Forgets the kinds of which a collection of both families found none; it began at `begun`, when `recorded` was read.
    pub fn forget(&mut self, recorded: &Kinds, found: u32, begun: Coarse) -> Result<(), GcError> {
        let mut forgotten = self.0.get(&kind::FORGOTTEN, 0).map_err(|error| Self::error("read", error))?;
        forgotten.forget(recorded, found, begun);
        self.0.set(kind::FORGOTTEN, forgotten, 0).map_err(|error| Self::error("write", error))
    }

    fn error(what: &'static str, source: MapError) -> GcError {
        GcError::Map { what, name: maps::KINDS.to_owned(), source }
    }
}

/// The datapath's clock: CLOCK_MONOTONIC.
pub fn now() -> Coarse {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable for the duration of the call; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Coarse::from_ns(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 100_000;

    fn quiet_for(phase: Phase, age: u32) -> Direction {
        Direction { phase, last_seen: Coarse(NOW - age) }
    }

    #[test]
    fn connections_die_as_a_whole() {
        use Phase as P;
        let (tcp, udp, sctp) = (Protocol::TCP, Protocol::UDP, Protocol::SCTP);
        let rows = [
            ("established", tcp, (P::ESTABLISHED, 10), Some((P::ESTABLISHED, 10)), false),
            (
                "established, quiet for an hour",
                tcp,
                (P::ESTABLISHED, 3600),
                Some((P::ESTABLISHED, 3600)),
                false,
            ),
            (
                "established, quiet for more than a day",
                tcp,
                (P::ESTABLISHED, 90_000),
                Some((P::ESTABLISHED, 90_000)),
                true,
            ),
            ("one direction still sends", tcp, (P::ESTABLISHED, 90_000), Some((P::ESTABLISHED, 1)), false),
            ("reset by the server", tcp, (P::ESTABLISHED, 1), Some((P::RESET, 1)), true),
            ("reset by the client", tcp, (P::RESET, 1), Some((P::ESTABLISHED, 1)), true),
            ("closed just now", tcp, (P::FINISHED, 5), Some((P::FINISHED, 5)), false),
            ("closed a minute ago", tcp, (P::FINISHED, 70), Some((P::FINISHED, 70)), true),
            ("half closed", tcp, (P::FINISHED, 3600), Some((P::ESTABLISHED, 3600)), false),
            ("never answered", tcp, (P::OPENING, 70), Some((P::OPENING, 70)), true),
            ("without its other direction", tcp, (P::ESTABLISHED, 3600), None, false),
            ("without its other direction, too old", tcp, (P::OPENING, 70), None, true),
            ("SCTP", sctp, (P::ESTABLISHED, 150), Some((P::ESTABLISHED, 150)), false),
            ("SCTP without heartbeats", sctp, (P::ESTABLISHED, 250), Some((P::ESTABLISHED, 250)), true),
            ("SCTP, shut down", sctp, (P::FINISHED, 40), Some((P::FINISHED, 40)), true),
            ("SCTP, aborted", sctp, (P::ESTABLISHED, 1), Some((P::RESET, 1)), true),
            ("UDP", udp, (P::ESTABLISHED, 60), Some((P::ESTABLISHED, 60)), false),
            ("UDP, quiet", udp, (P::ESTABLISHED, 150), Some((P::ESTABLISHED, 150)), true),
            ("UDP that is answered only", udp, (P::ESTABLISHED, 150), Some((P::ESTABLISHED, 1)), false),
        ];
        for (name, protocol, one, other, expected) in rows {
            let one = quiet_for(one.0, one.1);
            let other = other.map(|(phase, age)| quiet_for(phase, age));
            assert_eq!(is_dead(protocol, Coarse(NOW), one, other), expected, "{name}");
        }
    }
}
