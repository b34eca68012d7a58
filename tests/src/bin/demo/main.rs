//! The demo: a two-node cluster whose Services work through eBPF, shown line by line. Every line is asserted; the exit
//! code is non-zero if one fails. `cargo xtask demo` builds and runs it.

mod line;
mod steps;

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use lb_tests::{
    cluster::{At, Cluster, NODES},
    sweep,
};
use line::Line;
use steps::Demo;

/// Shows the load balancer at work.
#[derive(Parser)]
struct Arguments {
    /// Leave the cluster up and print commands to explore it, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match demo(Arguments::parse().keep) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every line held.
fn demo(keep: bool) -> Result<bool> {
    let begin = Instant::now();
    let mut demo = Demo { cluster: steps::start_cluster()?, lines: Vec::new() };
    println!(
        "cluster {} is up, both agents ready, after {:.1} s",
        demo.cluster.prefix(),
        begin.elapsed().as_secs_f64()
    );
    demo.run();
    let Demo { mut cluster, lines } = demo;
    print_table(&lines);
    let failed = lines.iter().filter(|line| line.fault.is_some()).count();
    println!(
        "{} lines hold, {failed} do not, in {:.1} s",
        lines.len() - failed,
        begin.elapsed().as_secs_f64()
    );
    if failed > 0 {
        for node in NODES {
            eprintln!("{}", cluster.agent(node.name)?.log_tail());
        }
    }
    if keep {
        explain(&mut cluster)?;
        sweep::set_exit_code_on_signal(i32::from(failed > 0));
        loop {
            // Ctrl-C ends the process, after the cluster is removed: see `sweep`.
            thread::sleep(Duration::from_secs(3600));
        }
    }
    Ok(failed == 0)
}

fn print_table(lines: &[Line]) {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["", "what", "client", "dials", "who answered how often", "client as seen by the pod"]);
    for line in lines {
        let mark = if line.fault.is_none() { "ok" } else { "FAILED" };
        table.add_row([mark, &line.what, &line.client, &line.dialled, &line.answered, &line.seen_as]);
    }
    println!("{table}");
    for line in lines {
        if let Some(fault) = &line.fault {
            println!("FAILED {}: {fault}", line.what);
        }
    }
}

/// Commands to type in another terminal.
fn explain(cluster: &mut Cluster) -> Result<()> {
    let agent_program = lb_tests::probe::program("lb-agent")?;
    println!("\nThe cluster stays up until Ctrl-C. In another terminal, as root:\n");
    for node in NODES {
        let agent = cluster.agent(node.name)?;
        let (run_dir, pins) = (agent.run_dir(), agent.pins().to_owned());
        println!("  # {}", node.name);
        for subcommand in ["services", "status", "connections"] {
            let program = agent_program.display();
            println!("  {program} {subcommand} --run-dir {} --pin-dir {}", run_dir.display(), pins.display());
        }
        println!("  find {} -name FRONTENDS4 -exec bpftool map dump pinned {{}} \\;", pins.display());
    }
    let client = cluster.place(&At::Client)?.namespace.name();
    println!(
        "  # the external client: NodePort and LoadBalancer IP\n  ip netns exec {client} curl -s 192.0.2.11:30583"
    );
    println!("  ip netns exec {client} curl -s 203.0.113.50:8080");
    let shell = cluster.place(&At::pod(steps::SHELL))?;
    println!("  # a pod: its cgroup first, because socket programs look at that");
    println!("  sh -c 'echo $$ > {}/cgroup.procs;", shell.cgroup.path().display());
    println!("    nsenter --net={} curl -s 10.111.34.177:8080'", shell.namespace.path().display());
    println!("  # change a manifest and watch\n  ls {}", cluster.manifests().display());
    Ok(())
}
