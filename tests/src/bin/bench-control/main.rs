//! `cargo xtask bench control`: how long the agent needs for everything and for one change. The program `lb-agent run`
//! with a directory of manifests and with the test API server ([`agent_process`]), and its control plane's own share,
//! in this process on real BPF maps ([`in_process`]). Needs root.

mod agent_process;
mod feed;
mod in_process;
mod objects;
mod table;

use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use lb_tests::bench::{
    Output,
    row::{Row, Target},
};

use crate::{agent_process::Case, feed::Feed, objects::Scale};

/// Measures the control plane.
#[derive(Parser)]
struct Arguments {
    /// Only see that everything works: few Services, no targets
    #[arg(long)]
    quick: bool,
    /// Only the cases in whose names this stands (`10000 files`, `API server`, `alone`)
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    #[command(flatten)]
    output: Output,
}

/// The size that kube-proxy was measured with, and that has targets.
const MIDDLE: Scale = Scale { services: 10_000, endpoints: 10 };
const SMALL: Scale = Scale { services: 1_000, endpoints: 10 };
const LARGE: Scale = Scale { services: 50_000, endpoints: 5 };
const TINY: Scale = Scale { services: 20, endpoints: 3 };

fn main() -> Result<()> {
    let Arguments { quick, only, output } = Arguments::parse();
    let mut rows = Vec::new();
    for case in if quick { quick_cases() } else { cases() } {
        let name = format!("{}, {}", case.scale, case.feed.name(case.scale));
        if name.contains(&only) {
            eprintln!("{name}");
            rows.extend(agent_process::measure(case)?);
        }
    }
    if "control plane alone".contains(&only) {
        rows.extend(in_process::measure(if quick { TINY } else { MIDDLE }, !quick)?);
    }
    if "Maglev table".contains(&only) {
        rows.push(if quick {
            table::measure(3, Target::NotSet)
        } else {
            table::measure(1000, Target::AtMost(5.0))
        }?);
    }
    output.publish(&rows)
}

fn cases() -> Vec<Case> {
    let files = |services_per_file| Feed::Files { services_per_file };
    let case = |scale, feed| Case { scale, feed, runs: 5, changes: 40, has_targets: scale == MIDDLE };
    let large = |feed| Case { runs: 3, ..case(LARGE, feed) };
    vec![
        case(SMALL, files(100)),
        case(SMALL, Feed::Api),
        case(MIDDLE, files(1)),
        case(MIDDLE, files(100)),
        case(MIDDLE, Feed::Api),
        large(files(100)),
        large(Feed::Api),
    ]
}

fn quick_cases() -> Vec<Case> {
    let case = |feed| Case { scale: TINY, feed, runs: 1, changes: 2, has_targets: false };
    vec![case(Feed::Files { services_per_file: 7 }), case(Feed::Api)]
}

fn row(case: String, unit: &'static str, samples: Vec<f64>, target: Target) -> Row {
    Row::new("control", case, unit, samples, target)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
