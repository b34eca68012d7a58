//! The measurements: programs `bench-*` of crate lb-tests, built in release mode.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use ebpf_build::{Build, Toolchain};

use crate::{
    run::{command, require_root, run, workspace},
    setup,
};

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Subject {
    /// Sync time, update latency and memory of the agent at 1,000, 10,000 and 50,000 Services
    Control,
    /// Nanoseconds per packet of the XDP and tc programs
    Packets,
    /// Connections, datagrams and throughput by each way to a Service, as a ratio to none
    Sockets,
}

/// Where figures go, and how much is measured.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Write the rows as JSON too: {suite, case, unit, median, min, max, target, met}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the rows as SVG too, into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Only see that everything works: half a minute, figures without meaning
    #[arg(long)]
    quick: bool,
    /// Only cases (packets) or ways (sockets) whose name contains this; of several, one of them
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
}

/// Runs one measurement.
pub fn bench(subject: Subject, options: &Options) -> Result<()> {
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
    if !matches!(subject, Subject::Control) {
        let build = Build { workspace: workspace(), toolchain: Toolchain::detect()?, log: false };
        bench.arg("--object").arg(build.run_bench()?);
    }
    for (flag, path) in [("--json", &options.json), ("--svg", &options.svg)] {
        if let Some(path) = path {
            bench.arg(flag).arg(std::path::absolute(path)?);
        }
    }
    bench.args(options.quick.then_some("--quick"));
    bench.args(options.only.iter().flat_map(|text| ["--only", text]));
    run(&mut bench)
}
