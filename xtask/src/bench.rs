//! The measurements: programs `bench-*` of crate lb-tests, built in release mode.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    run::{command, require_root, run},
    setup,
};

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Subject {
    /// Sync time, update latency and memory of the agent at 10,000 Services
    Control,
    /// Nanoseconds and throughput per packet path
    Packets,
    /// Cost of a connect through the socket hooks
    Sockets,
}

/// Runs one measurement; JSON rows are {suite, case, unit, median, min, max, target, met}.
pub fn bench(subject: Subject, json: Option<&Path>) -> Result<()> {
    require_root("a measurement")?;
    setup::setup()?;
    run(&mut command(
        "cargo",
        &["build", "--release", "--package", "lb-agent", "--package", "lb-tests", "--bins"],
    ))?;
    let name = match subject {
        Subject::Control => "bench-control",
        Subject::Packets => "bench-packets",
        Subject::Sockets => "bench-sockets",
    };
    let mut bench = command("cargo", &["run", "--release", "--package", "lb-tests", "--bin", name, "--"]);
    if let Some(json) = json {
        bench.arg("--json").arg(std::path::absolute(json)?);
    }
    run(&mut bench)
}
