//! The built object against `lb_common`: what aya and the kernel find out too late or not at all. Needs no root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

use aya_obj::{Object, ProgramSection};
use lb_common::{maps::MAPS, settings};
use lb_tests::prog::{SOCKET_PROGRAMS, TC_PROGRAMS, XDP_PROGRAMS};

fn object() -> Object {
    Object::parse(lb_agent::datapath::OBJECT).expect("a BPF object")
}

#[test]
fn every_map_is_as_lb_common_lists_it() {
    let object = object();
    for spec in MAPS {
        let map = object.maps.get(spec.name).unwrap_or_else(|| panic!("{} is not in the object", spec.name));
        assert_eq!(map.map_type(), spec.map_type as u32, "{}: type", spec.name);
        assert_eq!(map.key_size(), spec.key_size, "{}: key size", spec.name);
        assert_eq!(map.value_size(), spec.value_size, "{}: value size", spec.name);
        assert_eq!(map.max_entries(), spec.max_entries, "{}: entries", spec.name);
        assert_eq!(map.map_flags(), spec.flags, "{}: flags", spec.name);
    }
}

#[test]
fn the_object_has_no_other_maps() {
    let listed: BTreeSet<&str> = MAPS.iter().map(|spec| spec.name).collect();
    let object = object();
    let unlisted: Vec<&String> = object
        .maps
        .keys()
        .filter(|name| !listed.contains(name.as_str()) && !name.starts_with(".rodata"))
        .collect();
    assert_eq!(unlisted, Vec::<&String>::new());
}

/// `bpftool map dump` prints field names only for maps whose key and value have BTF types.
#[test]
fn every_map_has_btf() {
    let object = object();
    for spec in MAPS {
        assert!(matches!(object.maps[spec.name], aya_obj::Map::Btf(_)), "{}", spec.name);
    }
}

#[test]
fn every_program_is_there_and_no_other() {
    let object = object();
    let programs: BTreeSet<&str> = object.programs.keys().map(String::as_str).collect();
    let expected: BTreeSet<&str> =
        TC_PROGRAMS.into_iter().chain(XDP_PROGRAMS).chain(SOCKET_PROGRAMS).collect();
    assert_eq!(programs, expected);
    for name in TC_PROGRAMS {
        assert!(matches!(object.programs[name].section, ProgramSection::SchedClassifier), "{name}");
    }
    for name in XDP_PROGRAMS {
        let frags = name.ends_with("frags");
        let section = &object.programs[name].section;
        assert!(matches!(section, ProgramSection::Xdp { frags: found, .. } if *found == frags), "{name}");
    }
    for name in SOCKET_PROGRAMS {
        assert!(matches!(object.programs[name].section, ProgramSection::CgroupSockAddr { .. }), "{name}");
    }
}

/// The loader sets globals by name; a renamed one would be left at its default in silence.
#[test]
fn every_global_is_there() {
    let mut object = object();
    let (cookie, word) = (0u64.to_ne_bytes(), 0u32.to_ne_bytes());
    for (name, value) in [
        (settings::NODE_NETNS_COOKIE, cookie.as_slice()),
        (settings::SNAT_PORT_MIN, &word),
        (settings::SNAT_PORT_COUNT, &word),
        (settings::FEATURES, &word),
        (settings::DETECT_LOCAL, &word),
        (settings::MASQUERADE_ALL, &word),
        (settings::FORWARDS_PODS, &word),
        (settings::FLOOD_THRESHOLD, &word),
        (settings::STATELESS, &word),
    ] {
        let mut globals = std::collections::HashMap::new();
        globals.insert(name, (value, true));
        object.patch_map_data(globals).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
