//! What runs in the namespaces of the test cluster: `pod serve` answers who it is, `pod probe` asks.

mod client;
mod server;

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser;

/// A pod's server, or a client.
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
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Serve { name, http, udp } => server::serve(&name, &http, &udp),
        Arguments::Probe => client::converse(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
