//! `cargo xtask bench sockets`: what a Service costs a client with real sockets, by each way of translating, as a
//! ratio to talking to the backend directly. Needs root; all of it happens in namespaces of its own.
//!
//! Every sample of a way stands between two samples of the direct one, and is compared with their mean: what slows
//! the machine down for a while slows down all three.

mod cpu;
mod floor;
mod kube_proxy;
mod lane;
mod load;
mod path;
mod services;
mod suite;

use std::{fs, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lb_tests::bench::Output;

use crate::load::{client, server};

/// Measures the ways from a client to a backend.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Only see that everything works: few Services, short samples, no targets
    #[arg(long)]
    quick: bool,
    /// Numbers of Services, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=20_000))]
    services: Vec<u16>,
    /// The object of the measuring programs
    #[arg(long)]
    object: Option<PathBuf>,
    /// Only ways whose name contains this; of several, one of them
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only measures whose name contains this; of several, one of them
    #[arg(long, value_name = "TEXT")]
    measure: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// What this program is in the namespaces it makes.
#[derive(Subcommand)]
enum Role {
    /// Takes requests on stdin
    #[command(hide = true)]
    Client { sources: Vec<Ipv4Addr> },
    /// Answers on these addresses
    #[command(hide = true)]
    Server { addresses: Vec<Ipv4Addr> },
}

fn main() -> Result<()> {
    let Arguments { role, quick, services, object, only, measure, output } = Arguments::parse();
    if role.is_some() {
        cpu::take_last()?;
    }
    match role {
        Some(Role::Client { sources }) => client::run(sources),
        Some(Role::Server { addresses }) => server::run(&addresses),
        None => {
            let plan = if quick { &suite::QUICK } else { &suite::FULL };
            let sizes = if services.is_empty() { plan.sizes.to_vec() } else { services };
            let object = fs::read(object.context("--object is missing")?).context("read the object")?;
            output.publish(&suite::measure(
                plan,
                &sizes,
                &suite::Selection { paths: only, measures: measure },
                &object,
            )?)
        }
    }
}
