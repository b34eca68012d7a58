//! The load: one client and one server process, blocking sockets, one operation after the other, both on one core.
//! So a rate is the inverse of what an operation costs on its whole way, and nothing waits for another core to wake up.
//! This file holds the protocol and the parent's side.

pub(crate) mod client;
pub(crate) mod server;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    process::{ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::process::{Place, Process};
use serde::{Deserialize, Serialize};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Measure {
    /// Connect, one request, one answer, close.
    TcpConnect,
    /// A datagram from a socket of its own, and its answer.
    UdpFlow,
    /// A datagram and its answer on one socket.
    UdpRoundTrip,
    /// Bits on one connection, client to server.
    Bulk,
}

impl Measure {
    /// All, in the order in which they are shown.
    pub(crate) const ALL: [Self; 4] = [Self::TcpConnect, Self::UdpFlow, Self::UdpRoundTrip, Self::Bulk];

    /// In a row's case.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TcpConnect => "TCP connect-request-close",
            Self::UdpFlow => "UDP new flows",
            Self::UdpRoundTrip => "UDP round trips",
            Self::Bulk => "bulk TCP",
        }
    }

    /// Of the rate.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Bulk => "Gbit/s",
            _ => "1/s",
        }
    }

    /// Where the server answers it.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::TcpConnect => 8080,
            Self::UdpFlow | Self::UdpRoundTrip => 5353,
            Self::Bulk => 5201,
        }
    }
}

/// What the client is asked to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// What.
    pub(crate) measure: Measure,
    /// With whom.
    pub(crate) to: SocketAddrV4,
    /// How long.
    pub(crate) duration: Duration,
}

/// What it did.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Operations, or gigabits.
    pub(crate) amount: f64,
    /// Datagrams without an answer within a second.
    pub(crate) lost: u32,
    /// Time spent.
    pub(crate) seconds: f64,
}

/// A running client.
pub(crate) struct Client {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _process: Process,
}

impl Client {
    /// Starts one that uses these source addresses.
    pub(crate) fn start(place: &Place, sources: &[Ipv4Addr]) -> Result<Self> {
        let (process, stdin, stdout) = start(place, "client", sources)?;
        Ok(Self { stdin, stdout, _process: process })
    }

    /// The rate of one measure.
    pub(crate) fn rate(&mut self, request: Request) -> Result<f64> {
        writeln!(self.stdin, "{}", serde_json::to_string(&request)?).context("the client is gone")?;
        let mut answer = String::new();
        self.stdout.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "{} is not served: the client gave up on {request:?}", request.to);
        let done: Done =
            serde_json::from_str(&answer).with_context(|| format!("the client said {answer:?}"))?;
        ensure!(done.amount > 0.0, "nothing was served: {request:?}, {done:?}");
        // A core that something else holds for a second is no failure of the way.
        ensure!(
            f64::from(done.lost) <= 1.0 + done.amount / 100.0,
            "datagrams were lost: {request:?}, {done:?}"
        );
        Ok(done.amount / done.seconds)
    }
}

/// A running server: killed when dropped.
pub(crate) struct Server {
    _stdin: ChildStdin,
    _process: Process,
}

impl Server {
    /// Starts one on these addresses and waits until it listens.
    pub(crate) fn start(place: &Place, addresses: &[Ipv4Addr]) -> Result<Self> {
        let (process, stdin, mut stdout) = start(place, "server", addresses)?;
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        ensure!(line == "ready\n", "the server said {line:?}");
        Ok(Self { _stdin: stdin, _process: process })
    }
}

/// This program again, in another role.
fn start(
    place: &Place,
    role: &str,
    addresses: &[Ipv4Addr],
) -> Result<(Process, ChildStdin, BufReader<ChildStdout>)> {
    let own = std::env::current_exe().context("path of the running program")?;
    let mut command = place.command(own)?;
    command.arg(role).args(addresses.iter().map(Ipv4Addr::to_string));
    let mut process = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let child = process.child();
    let (stdin, stdout) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
    Ok((process, stdin, BufReader::new(stdout)))
}
