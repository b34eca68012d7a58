//! The command line: what an operator can ask of an agent, of its pins and of the node.
//!
//! What must stay true: exit code 0 for success and 1 for failure, answers on stdout, messages on stderr.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

mod backends;
mod background;
mod check;
mod cleanup;
mod connections;
mod crash;
mod dump;
mod events;
mod node_args;
mod run;
mod run_args;
mod servers;
mod services;
mod settings;
mod status;

const EXAMPLES: &str = "\
Examples:
  lb-agent check                                   can this node run the agent?
  lb-agent run --manifests /etc/lb/manifests       Services from a directory, no cluster needed
  lb-agent run --kubeconfig /root/.kube/config     Services from a cluster
  lb-agent services                                what is load balanced, and to where
  lb-agent connections                             who talks to whom through it
  lb-agent cleanup                                 remove every trace (stop the agent first)";

/// Kubernetes service load balancer: ClusterIP, NodePort, externalIPs and LoadBalancer through eBPF, in place of
/// kube-proxy, beside any CNI.
#[derive(Debug, Parser)]
#[command(
    name = "lb-agent",
    version,
    after_help = EXAMPLES,
    long_about = "Kubernetes service load balancer in eBPF, in place of kube-proxy, beside any CNI.\n\n\
        `run` loads eBPF programs, attaches them to a cgroup (connections of the node and its pods are pointed at a \
        backend when they are opened) and to network devices (packets from outside are translated), and keeps the \
        maps these programs read as the Services and EndpointSlices of a cluster, or of a directory, want them. \
        Programs and maps are pinned: stopping the agent changes nothing on the wire, starting it again replaces the \
        programs without a gap. The other commands show what is there, or remove it."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load balance until stopped; what is attached stays attached.
    Run(Box<run_args::RunArgs>),
    /// Show service ports: frontends, backends, policies; what was refused, and why.
    Services(ListArgs),
    /// Show backends.
    Backends(ListArgs),
    /// Show connections, from the pinned maps; works without a running agent.
    Connections(ListArgs),
    /// Print the service maps, one sorted line per entry; works without a running agent.
    Dump(Dirs),
    /// Show the agent's state: sync, source, attachments, map fill, errors, verdicts.
    Status(ListArgs),
    /// Say what this kernel, this node and these privileges allow, and what to do about the rest.
    Check(check::CheckArgs),
    /// Detach every program and remove every pin; service connections of the node end. Or remove kube-proxy's rules.
    Cleanup(cleanup::CleanupArgs),
    /// Print verdicts as they are made.
    Events(events::EventsArgs),
}

/// Where an agent keeps its things.
#[derive(Clone, Debug, Args)]
struct Dirs {
    /// Directory on a bpffs for maps and links; agents on one machine need one each.
    #[arg(long, default_value = "/sys/fs/bpf/lb", value_name = "DIR")]
    pin_dir: PathBuf,
    /// Directory for the admin socket (agent.sock); agents on one machine need one each.
    #[arg(long, default_value = "/run/lb-agent", value_name = "DIR")]
    run_dir: PathBuf,
}

impl Dirs {
    /// The pins of this agent's layouts.
    fn maps(&self) -> PathBuf {
        crate::datapath::pins::Pins::new(&self.pin_dir).dir().to_owned()
    }
}

/// How to list.
#[derive(Clone, Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    dirs: Dirs,
    /// A table to read, or JSON to process.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Parses the arguments and does as they say.
pub fn main() -> ExitCode {
    match settings::parse(std::env::args_os().collect()).and_then(execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lets `lb-agent services | head` end in silence: Rust programs ignore SIGPIPE and would report a broken pipe.
fn end_with_the_reader() {
    // SAFETY: the default action needs no handler, and no other thread runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn execute(parsed: settings::Parsed) -> anyhow::Result<()> {
    let settings::Parsed { cli: Cli { command }, matches, notes } = parsed;
    match &command {
        Command::Run(args) if args.write_config_to.is_some() => return write_config(args, &matches),
        Command::Run(_) => {}
        _ => end_with_the_reader(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    match command {
        Command::Run(args) => {
            let result = runtime.block_on(run::run(*args, &notes));
            // A runtime that shuts down makes a task panic that sets a timer just then, and a panic aborts
            // (`crash`). The end of the process ends its tasks as well, which may be cut off anywhere: a kill does so too.
            std::mem::forget(runtime);
            result
        }
        Command::Services(args) => runtime.block_on(services::list(&args)),
        Command::Backends(args) => runtime.block_on(backends::list(&args)),
        Command::Connections(args) => connections::list(&args),
        Command::Dump(dirs) => dump::dump(&dirs),
        Command::Status(args) => runtime.block_on(status::show(&args)),
        Command::Check(args) => check::check(&args),
        Command::Cleanup(args) => runtime.block_on(cleanup::cleanup(&args)),
        Command::Events(args) => runtime.block_on(events::follow(&args)),
    }
}

/// `run --write-config-to`: the flags in force, as a file; `-` is stdout.
fn write_config(args: &run_args::RunArgs, matches: &ArgMatches) -> anyhow::Result<()> {
    let text = matches.subcommand_matches("run").map(settings::render).transpose()?.unwrap_or_default();
    match args.write_config_to.as_deref() {
        Some(path) if path != Path::new("-") => {
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
        }
        _ => {
            print!("{text}");
            Ok(())
        }
    }
}

fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header).add_rows(rows);
    table
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_explains_itself() {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        for argument in run.get_arguments() {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
    }
}
