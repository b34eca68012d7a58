//! What a developer runs: `cargo xtask <command>`. Every command first makes sure that the machine has what it needs.

mod bench;
mod ci;
mod demo;
mod object_file;
mod run;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ebpf_build::{Build, Toolchain};

/// Builds, shows and tests the load balancer.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Installs what the other commands need (they call it themselves); says what and why
    Setup,
    /// Builds the BPF object; prints its path and the size of each program
    BuildEbpf {
        /// Force a toolchain: debian or nightly
        #[arg(long)]
        toolchain: Option<Toolchain>,
        /// With the development log (aya-log)
        #[arg(long)]
        log: bool,
    },
    /// Shows the load balancer at work in a two-node cluster of network namespaces (root)
    Demo {
        /// Leave the cluster up and print commands to explore it, until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
    /// Runs the tests; without a group, all of them
    Test {
        /// fast needs no root; kernel loads BPF programs; e2e makes namespaces
        group: Option<test::Group>,
    },
    /// Measures, and compares with the targets
    Bench {
        /// What to measure
        subject: bench::Subject,
        #[command(flatten)]
        options: bench::Options,
    },
    /// What CI checks before the tests: format, lints of both workspaces, documentation
    Lint,
    /// Everything CI runs: format, lints, documentation, all tests
    Ci,
    /// Checks licences, advisories and sources of all dependencies (installs cargo-deny: several minutes once)
    Deny,
}

fn main() -> ExitCode {
    match execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute() -> Result<()> {
    match Arguments::parse().command {
        Subject::Setup => setup::setup(),
        Subject::BuildEbpf { toolchain, log } => build_ebpf(toolchain, log),
        Subject::Demo { keep } => demo::demo(keep),
        Subject::Test { group } => test::test(group),
        Subject::Bench { subject, options } => bench::bench(subject, &options),
        Subject::Lint => ci::check(),
        Subject::Ci => ci::ci(),
        Subject::Deny => ci::deny(),
    }
}

fn build_ebpf(toolchain: Option<Toolchain>, log: bool) -> Result<()> {
    setup::setup()?;
    let toolchain = match toolchain {
        Some(toolchain) => toolchain.check().map(|()| toolchain)?,
        None => Toolchain::detect()?,
    };
    let object = Build { workspace: run::workspace(), toolchain, log }.run()?;
    println!("{} ({toolchain} toolchain)", object.display());
    object_file::print_programs(&object)
}
