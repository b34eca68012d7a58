//! The measurements run: every way serves, and every row is there. Figures are not looked at. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, reason = "tests")]

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ebpf_build::{Build, Toolchain};
use serde_json::Value;

/// Runs a measurement as `--quick`; its rows.
fn rows(program: &str, arguments: &[&OsStr]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("rows.json");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--quick")
        .arg("--json")
        .arg(&json)
        .arg("--svg")
        .arg(dir.path().join("plots"));
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(fs::read_dir(dir.path().join("plots")).unwrap().next().is_some(), "no plot was written");
    serde_json::from_slice(&fs::read(&json).unwrap()).unwrap()
}

/// Asserts that there is one row for each case, with figures, and no other.
fn assert_rows(rows: &[Value], suite: &str, mut cases: Vec<String>) {
    let mut found: Vec<&str> = rows.iter().map(|row| row["case"].as_str().unwrap()).collect();
    found.sort_unstable();
    cases.sort_unstable();
    assert_eq!(found, cases);
    for row in rows {
        let figure = |name: &str| row[name].as_f64().unwrap();
        assert!(0.0 < figure("min") && figure("min") <= figure("median"), "{row}");
        assert!(figure("median") <= figure("max") && row["suite"] == suite && row["met"].is_null(), "{row}");
    }
}

/// The object of the measuring programs is built here: it is part of no other.
fn bench_object() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    Build { workspace, toolchain: Toolchain::detect().unwrap(), log: false }.run_bench().unwrap()
}

#[test]
fn every_way_of_a_packet_is_measured() {
    let object = bench_object();
    let rows = rows(env!("CARGO_BIN_EXE_bench-packets"), &["--object".as_ref(), object.as_os_str()]);
    let count =
        |prefix: &str| rows.iter().filter(|row| row["case"].as_str().unwrap().starts_with(prefix)).count();
    assert!(count("floor: ") >= 10);
    assert_eq!((count("XDP, IPv4: "), count("tc, IPv4: ")), (count("XDP, IPv6: ") + 1, count("tc, IPv6: ")));
    assert_eq!(count("XDP, IPv4, 100000 services: "), 4);
    for row in &rows {
        let figure = |name: &str| row[name].as_f64().unwrap();
        assert!(0.0 < figure("min") && figure("min") <= figure("max") && row["met"].is_null(), "{row}");
    }
}

#[test]
fn every_way_to_a_service_serves_and_is_measured() {
    let mut cases = Vec::new();
    for measure in ["TCP connect-request-close", "UDP new flows", "UDP round trips", "bulk TCP"] {
        let floors = [
            "direct",
            "floor: empty programs",
            "floor: a connection recorded by its socket",
            "floor: a connection recorded in its socket's storage",
            "floor: forwarded by a program",
            "floor: forwarded by a program that records both directions",
        ];
        cases.extend(floors.map(|way| format!("{measure}, {way}")));
        let by = [
            "socket",
            "tc",
            "tc, sent on past the stack",
            "tc, sent on past the stack to another node",
            "nftables",
            "iptables",
        ]
        .map(|by| format!("ClusterIP by {by}"));
        let from_outside = ["tc", "XDP", "nftables"].map(|by| format!("NodePort by {by}"));
        for path in by.into_iter().chain(from_outside) {
            cases.extend([1, 50].map(|services| format!("{measure}, {path}, services: {services}")));
        }
    }
    let object = bench_object();
    let rows = rows(env!("CARGO_BIN_EXE_bench-sockets"), &["--object".as_ref(), object.as_os_str()]);
    assert_rows(&rows, "sockets", cases);
}

#[test]
fn both_sources_of_objects_are_measured() {
    let mut cases = Vec::new();
    let scale = "20 services, 60 endpoints";
    let of_processes =
        ["first sync from process start", "ready from process start", "one endpoint changes", "peak memory"];
    for what in of_processes {
        cases.extend(["3 files", "API server"].map(|feed| format!("{what}, {scale}, {feed}")));
    }
    cases.push(format!("first sync from the first file, {scale}, 3 files"));
    for what in ["first sync", "one endpoint changes", "full check", "restore ids", "sync after restart"] {
        cases.push(format!("{what}, {scale}, control plane alone"));
    }
    cases.push("build a Maglev table, 16381 slots, 100 backends".to_owned());
    assert_rows(&rows(env!("CARGO_BIN_EXE_bench-control"), &[]), "control", cases);
}
