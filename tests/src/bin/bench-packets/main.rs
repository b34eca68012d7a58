//! `cargo xtask bench packets`: nanoseconds per packet of the XDP and tc programs (`BPF_PROG_TEST_RUN`), floors first,
//! and the size of each program. Needs root. Prints a table; `--json FILE` writes the rows as JSON.
//!
//! A program of the bench's own object puts the packet back before each iteration, varies its flow, and tail-calls the
//! program under measurement; what that costs by itself is a row. Rounds go through all cases in turn, so that what
//! disturbs the machine disturbs them alike.
#![allow(clippy::allow_attributes, clippy::expect_used, reason = "the bed is the tests', which panic")]

mod bed;
mod cases;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use lb_tests::bench::{Output, row::Row};

use crate::{
    bed::{Bench, Vary},
    cases::{Case, Nodes},
};

/// Measures the packet programs.
#[derive(Parser)]
struct Arguments {
    /// The object of the measuring programs
    #[arg(long)]
    object: PathBuf,
    /// Samples of each case
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Iterations of each sample
    #[arg(long, default_value_t = 20_000)]
    iterations: u32,
    /// Only see that everything works: few short samples, no targets
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this; of several, one of them
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    #[command(flatten)]
    output: Output,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.rounds, arguments.iterations) = (3, 1_000);
    }
    pin_to_one_cpu();
    let object = std::fs::read(&arguments.object)?;
    let mut nodes = Nodes::start();
    let mut bench = Bench::load(&object)?;
    let mut cases = cases::all(&mut nodes, &mut bench)?;
    let only = &arguments.only;
    cases.retain(|case| only.is_empty() || only.iter().any(|text| case.name.contains(text)));
    let samples = measure(&arguments, &mut nodes, &mut bench, &cases)?;
    let mut rows: Vec<Row> =
        cases.iter().zip(&samples).map(|(case, samples)| case.row(samples.clone())).collect();
    rows.extend(cases::ratios(&cases, &samples));
    rows.extend(nodes.program_sizes()?);
    if arguments.quick {
        rows.iter_mut().for_each(|row| (row.target, row.met) = (None, None));
    }
    arguments.output.publish(&rows)
}

/// The samples of each case, nanoseconds; one round more than asked for warms the caches. What makes flows comes last:
/// it drives others out of the map.
fn measure(
    arguments: &Arguments,
    nodes: &mut Nodes,
    bench: &mut Bench,
    cases: &[Case],
) -> Result<Vec<Vec<f64>>> {
    let mut samples = vec![Vec::new(); cases.len()];
    for makes_flows in [false, true] {
        for round in 0..=arguments.rounds {
            let chosen = cases.iter().zip(&mut samples);
            for (case, samples) in chosen.filter(|(case, _)| (case.vary == Vary::Each) == makes_flows) {
                let took = bench.run(case, nodes, arguments.iterations)?;
                if round > 0 {
                    samples.push(took);
                }
            }
        }
    }
    Ok(samples)
}

/// Per-CPU state stays in one cache.
fn pin_to_one_cpu() {
    // SAFETY: all zeroes is an empty set; the set lives during the call.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus);
    }
}
