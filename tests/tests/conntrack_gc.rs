//! The collection of dead connections on real BPF maps. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, path::Path};

use aya::maps::{Array, HashMap, Map, MapData};
use lb_agent::conntrack_gc::{Collected, Connections, KindLog};
use lb_common::{
    conntrack::{Coarse, ConnectionFlags, ConnectionValue, Phase},
    family::{Address as _, Be16, Family, Protocol, V4, V6},
    flow::{FlowKey, Tuple},
    id::{BackendId, ServicePortId},
    kind::{self, Kind, Kinds},
    maps,
};
use lb_tests::pinned_maps::PinnedMaps;

const NOW: Coarse = Coarse(200_000);
/// Connections of each kind: more than the kernel gives in one batch.
const COUNT: u16 = 700;

/// Phase and seconds of silence of one direction.
type Quiet = (Phase, u32);
type Entries<F> = BTreeMap<FlowKey<F>, ConnectionValue<F>>;

/// What may be in the maps: protocol, forward, reply (if it is there), and whether it is dead.
const KINDS: [(&str, Protocol, Quiet, Option<Quiet>, bool); 8] = [
    ("open", Protocol::TCP, (Phase::ESTABLISHED, 5), Some((Phase::ESTABLISHED, 5)), false),
    ("quiet one way", Protocol::UDP, (Phase::ESTABLISHED, 900), Some((Phase::ESTABLISHED, 1)), false),
    ("half closed", Protocol::TCP, (Phase::FINISHED, 900), Some((Phase::ESTABLISHED, 900)), false),
    ("alone and young", Protocol::TCP, (Phase::ESTABLISHED, 900), None, false),
    ("closed", Protocol::TCP, (Phase::FINISHED, 900), Some((Phase::FINISHED, 900)), true),
    ("quiet", Protocol::UDP, (Phase::ESTABLISHED, 900), Some((Phase::ESTABLISHED, 900)), true),
    ("reset by the server", Protocol::TCP, (Phase::ESTABLISHED, 1), Some((Phase::RESET, 1)), true),
    ("alone and old", Protocol::TCP, (Phase::OPENING, 900), None, true),
];

fn value<F: Family>(to: Tuple<F>, flags: ConnectionFlags, (phase, age_s): Quiet) -> ConnectionValue<F> {
    ConnectionValue {
        to,
        service_port: ServicePortId(1),
        backend: BackendId(1),
        generation: 1,
        last_seen: Coarse(NOW.0 - age_s),
        flags,
        phase,
        ..ConnectionValue::default()
    }
}

/// Every connection there shall be, and those of them that are alive.
fn entries<F: Family>(client: &str, vip: &str, backend: &str) -> (Entries<F>, Entries<F>) {
    let addr = |text: &str| F::Addr::from_ip(text.parse().unwrap()).unwrap();
    let (mut all, mut alive) = (Entries::<F>::new(), Entries::<F>::new());
    for (port, (_, protocol, forward, reply, is_dead)) in (20_000..).step_by(1000).zip(KINDS) {
        for src_port in (port..port + COUNT).map(Be16::new) {
            let tuple = |dst, dst_port| Tuple { src: addr(client), dst, src_port, dst_port };
            let dialled: Tuple<F> = tuple(addr(vip), Be16::new(80));
            let served: Tuple<F> = tuple(addr(backend), Be16::new(8080));
            let mut pair =
                vec![(FlowKey::new(dialled, protocol), value(served, ConnectionFlags::default(), forward))];
            pair.extend(reply.map(|quiet| {
                let back = value(dialled.reversed(), ConnectionFlags::REPLY, quiet);
                (FlowKey::new(served.reversed(), protocol), back)
            }));
            all.extend(pair.iter().copied());
            if !is_dead {
                alive.extend(pair);
            }
        }
    }
    (all, alive)
}

fn exactly_the_dead_go<F: Family>(dir: &Path, client: &str, vip: &str, backend: &str)
where
    FlowKey<F>: bytemuck::Pod + aya::Pod,
    ConnectionValue<F>: bytemuck::Pod + aya::Pod,
{
    let (all, alive) = entries::<F>(client, vip, backend);
    assert!(alive.len() > usize::from(COUNT) && alive.len() < all.len());
    let data = MapData::from_pin(dir.join(format!("{}{}", maps::CONNECTIONS, F::DIGIT))).unwrap();
    let mut map: HashMap<MapData, FlowKey<F>, ConnectionValue<F>> =
        HashMap::try_from(Map::LruHashMap(data)).unwrap();
    for (key, value) in &all {
        map.insert(key, value, 0).unwrap();
    }
    let mut connections = Connections::<F>::open(dir).unwrap();
    let collected = connections.collect(NOW).unwrap();
    let kinds = Kind::Kept.bit();
    assert_eq!(collected, Collected { entries: all.len(), removed: all.len() - alive.len(), kinds });
    assert_eq!(map.iter().collect::<Result<Entries<F>, _>>().unwrap(), alive);
    let again = connections.collect(NOW).unwrap();
    assert_eq!(again, Collected { entries: alive.len(), removed: 0, kinds }, "nothing more is dead");

    // A packet comes between the walk and the removal: what was read is not what is there.
    let (key, dead) = all.iter().find(|(key, _)| !alive.contains_key(key)).unwrap();
    let mut seen = *dead;
    seen.last_seen = NOW;
    map.insert(key, seen, 0).unwrap();
    assert_eq!(connections.remove_if_dead(key, dead, NOW).unwrap(), 0);
    assert_eq!(map.get(key, 0).unwrap(), seen, "what changed in between stays");
    map.insert(key, dead, 0).unwrap();
    assert_eq!(connections.remove_if_dead(key, dead, NOW).unwrap(), 1, "unchanged it goes");
    assert_eq!(map.iter().collect::<Result<Entries<F>, _>>().unwrap(), alive);
}

#[test]
fn exactly_the_dead_connections_go_with_both_directions() {
    let pins = PinnedMaps::create(&[]).unwrap();
    exactly_the_dead_go::<V4>(pins.dir(), "192.0.2.1", "10.96.0.1", "10.244.1.10");
    exactly_the_dead_go::<V6>(pins.dir(), "2001:db8::1", "fd00:96::1", "fd00:244:1::10");
}

#[test]
fn kinds_of_connections_are_forgotten_when_there_are_none() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let data = MapData::from_pin(pins.dir().join(maps::KINDS)).unwrap();
    let mut map: Array<MapData, Kinds> = Map::Array(data).try_into().unwrap();
    let recorded = Kinds { at: [Coarse(7); Kind::COUNT] };
    map.set(kind::RECORDED, recorded, 0).unwrap();
    let exist = || recorded.since(&map.get(&kind::FORGOTTEN, 0).unwrap());
    let mut log = KindLog::open(pins.dir()).unwrap();
    assert_eq!((log.recorded().unwrap(), exist()), (recorded, 0b1111));
    log.forget(&recorded, Kind::Forwarded.bit(), NOW).unwrap();
    assert_eq!(exist(), Kind::Forwarded.bit());
    log.forget(&recorded, 0, NOW).unwrap();
    assert_eq!(exist(), 0);
}
