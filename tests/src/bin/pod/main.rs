//! What runs in the namespaces of the test cluster: `pod serve` answers who it is, `pod probe` asks.

mod client;
mod server;

use std::{net::SocketAddr, process::ExitCode, thread, time::Duration};

use clap::Parser;
use lb_tests::cluster::Cluster;

/// A pod's server, a client, or a whole cluster of neither.
#[derive(Parser)]
enum Arguments {
    /// Answers on these addresses until stdin closes or SIGTERM comes; prints `ready` once all are bound
    Serve {
        /// The name in every answer
        #[arg(long)]
        name: String,
        /// Answer HTTP here
        #[arg(long)]
        http: Vec<SocketAddr>,
        /// Answer datagrams here
        #[arg(long)]
        udp: Vec<SocketAddr>,
    },
    /// Takes requests as JSON lines on stdin, answers on stdout
    Probe,
    /// Makes an empty cluster, prints its prefix and holds it until SIGINT or SIGTERM
    Cluster,
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Serve { name, http, udp } => server::serve(&name, &http, &udp),
        Arguments::Probe => client::converse(),
        Arguments::Cluster => hold_cluster(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold_cluster() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    println!("{}", cluster.prefix());
    loop {
        // A signal ends the process, after the cluster is removed: see `sweep`.
        thread::sleep(Duration::from_secs(3600));
    }
}
