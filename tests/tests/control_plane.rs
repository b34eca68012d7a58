//! Manifests in, map dump out: every script of `testdata/control_plane`, in both orders of the objects, without and
//! with failing writes. See `lb_tests::script` for the language.

use std::{collections::BTreeSet, fs};

use lb_tests::script;

#[test]
fn every_script_gives_its_dump_in_every_mode() {
    let dir = script::testdata().join("control_plane");
    let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let failures: Vec<_> =
        paths.iter().filter_map(|path| script::run(path).err()).map(|error| format!("{error:#}")).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_shared_manifest_is_in_a_script() {
    let scripts = fs::read_dir(script::testdata().join("control_plane")).unwrap();
    let used: String = scripts.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let manifests = fs::read_dir(script::testdata().join("manifests")).unwrap();
    let unused: BTreeSet<_> = manifests
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !used.contains(&format!("apply {name}")))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}
