//! Plans between random contents reach what is wanted, and each of their prefixes is safe.

use lb_common::{
    backend::{BackendFlags, BackendState, MemberSets},
    family::{Addr4, Be16, Protocol},
    frontend::FrontendKind,
};
use proptest::prelude::*;

use super::*;
use crate::maps::fake::{FakeMaps, Faults};

/// Who serves one service port: the members, of which the first `serving` are in its run.
type Port = (Vec<u8>, usize);

/// Contents in which service port `i` has the members `ports[i]`; its run begins at `bases[i]`, so that two contents
/// whose bases differ share no run, as a real plan never does.
fn contents(ports: &[Port], offset: u32) -> MapState {
    let mut state = MapState::default();
    for (index, (members, serving)) in
        ports.iter().enumerate().filter(|(_, (members, _))| !members.is_empty())
    {
        let service_port = ServicePortId(index as u32 + 1);
        let members: BTreeSet<_> = members.iter().map(|member| BackendId(u32::from(*member) + 1)).collect();
        let base = offset + index as u32 * 16;
        for (slot, backend) in members.iter().take(*serving).enumerate() {
            state.slots.insert(base + slot as u32, *backend);
        }
        for backend in &members {
            state.members.insert(
                MemberKey { service_port, backend: *backend },
                MemberValue::new(BackendState::ACTIVE, MemberSets::CLUSTER),
            );
            let value = BackendValue {
                addr: Addr4([10, 0, 0, backend.0 as u8]),
                port: Be16::new(80),
                protocol: Protocol::TCP,
                state: BackendState::ACTIVE,
                flags: BackendFlags::default(),
                node: Addr4::default(),
            };
            state.v4.backends.insert(*backend, value);
        }
        let count = members.len().min(*serving) as u32;
        let run = if count == 0 { Run::default() } else { Run { base, count } };
        let key = FrontendKey::new(Addr4([10, 96, 0, index as u8]), Be16::new(80), Protocol::TCP);
        let kind = FrontendKind::CLUSTER_IP;
        state.v4.vips.insert(VipKey { addr: key.addr }, VipValue { used: 1 });
        state.v4.frontends.insert(
            key,
            FrontendValue { service_port, kind, internal: run, external: run, ..FrontendValue::default() },
        );
        state.generations.insert(service_port, offset);
    }
    state
}

fn ports() -> impl Strategy<Value = Vec<Port>> {
    prop::collection::vec((prop::collection::vec(0u8..12, 0..6), 0usize..6), 0..6)
}

/// VIPs of `state` that refuse, although nothing is amiss, what a frontend of `have` or `want` serves: a VIP comes after
/// all its frontends and goes before the first of them.
fn refused_in_error(state: &MapState, have: &MapState, want: &MapState) -> Vec<VipKey<V4>> {
    let lacks = |key: &VipKey<V4>, of: &MapState| {
        let mut frontends = of.v4.frontends.keys().filter(|frontend| frontend.addr == key.addr);
        frontends.any(|frontend| !state.v4.frontends.contains_key(frontend))
    };
    let early = |key: &VipKey<V4>| !have.v4.vips.contains_key(key) && lacks(key, want);
    let late = |key: &VipKey<V4>| !want.v4.vips.contains_key(key) && lacks(key, have);
    state.v4.vips.keys().filter(|key| early(key) || late(key)).copied().collect()
}

/// What the maps hold for `want` after everything: generations are never deleted.
fn expected(have: &MapState, want: &MapState) -> MapState {
    let mut expected = want.clone();
    for (id, generation) in &have.generations {
        expected.generations.entry(*id).or_insert(*generation);
    }
    expected
}

proptest! {
    #[test]
    fn a_plan_reaches_what_is_wanted_and_every_prefix_of_it_is_safe(have in ports(), want in ports()) {
        let (have, want) = (contents(&have, 1), contents(&want, 1000));
        let mut state = have.clone();
        for write in diff(&have, &want) {
            state.apply(&write);
            prop_assert_eq!(state.inconsistencies(), Vec::<String>::new(), "after {}", write);
            prop_assert_eq!(refused_in_error(&state, &have, &want), Vec::new(), "after {}", write);
        }
        state.forget_dead_slots();
        prop_assert_eq!(state, expected(&have, &want));
    }

    #[test]
    fn with_faults_every_write_is_still_safe_and_trying_again_gets_there(
        have in ports(),
        want in ports(),
        percent in 1u64..60,
        seed: u64,
    ) {
        let (mut have, want) = (contents(&have, 1), contents(&want, 1000));
        let expected = expected(&have, &want);
        let mut maps = FakeMaps::default();
        maps.state = have.clone();
        maps.set_faults(Faults { percent, seed });
        let mut delta = Delta::between(&have, &want);
        for _ in 0..1000 {
            let plan = delta.plan(&have);
            maps.writes.clear();
            let mut replayed = maps.state.clone();
            let outcome = apply(&mut maps, &mut have, &mut delta, &plan);
            for write in &maps.writes {
                replayed.apply(write);
                prop_assert_eq!(replayed.inconsistencies(), Vec::<String>::new(), "after {}", write);
            }
            prop_assert_eq!(&maps.state, &have, "the mirror holds confirmed writes only");
            if outcome.is_ok() {
                break;
            }
        }
        prop_assert!(delta.is_empty());
        have.forget_dead_slots();
        prop_assert_eq!(have, expected);
    }
}

#[test]
fn the_order_is_the_one_the_module_describes() {
    let have = contents(&[(vec![1, 2], 2), (vec![3], 1)], 1);
    let want = contents(&[(vec![2, 4], 2)], 1000);
    let plan: Vec<_> = diff(&have, &want).iter().map(ToString::to_string).collect();
    assert_eq!(
        plan,
        [
            "delete VIP 10.96.0.1",
            "BACKEND id=5 10.0.0.5:80/TCP active",
            "MEMBER service-port=1 backend=5 active cluster",
            "SLOT 1000 backend=3",
            "SLOT 1001 backend=5",
            "FRONTEND 10.96.0.0:80/TCP ClusterIP service-port=1 internal=2@1000 external=2@1000",
            "delete FRONTEND 10.96.0.1:80/TCP",
            "delete MEMBER service-port=1 backend=2",
            "delete MEMBER service-port=2 backend=4",
            "GENERATION service-port=1 1000",
            "delete BACKEND id=2 (IPv4)",
            "delete BACKEND id=4 (IPv4)",
        ]
    );
}

#[test]
fn a_full_map_costs_what_does_not_fit_and_nothing_else() {
    let want = contents(&[(vec![1], 1), (vec![2], 1), (vec![1], 1)], 1);
    let mut maps = FakeMaps::default();
    maps.entries_max.insert("BACKENDS4".to_owned(), 1);
    let (mut have, mut delta) = (MapState::default(), Delta::between(&MapState::default(), &want));
    let plan = delta.plan(&have);
    let failed = apply(&mut maps, &mut have, &mut delta, &plan).unwrap_err();
    let expected =
        "write BACKEND id=3 10.0.0.3:80/TCP active: map BACKENDS4 is full (1 entries); raise --max-backends";
    assert_eq!((failed.count, failed.first.to_string().as_str()), (1, expected));
    assert_eq!(have.v4.frontends.len(), 2, "the other two services work");
    assert!(have.inconsistencies().is_empty());
}
