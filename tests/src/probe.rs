//! Clients with real sockets inside a namespace and cgroup. A probe is a child process (`pod probe`) that takes
//! [`Request`]s as JSON lines and answers each with a line: after it is started, a request costs microseconds.
//! This file holds the protocol and the parent's side; the sockets are in `tests/src/bin/pod/client.rs`.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::{ChildStdin, ChildStdout, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::{Place, Process, eventually};

/// What a pod says about a request it served: a JSON line over HTTP, a datagram over UDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The pod's name.
    pub pod: String,
    /// The client as the pod sees it.
    pub client: SocketAddr,
    /// The pod's own end of the connection.
    pub server: SocketAddr,
}

/// An answer, and the connection's ends as the client sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// What the pod said.
    pub answer: Answer,
    /// Who the client talks to: `getpeername`, or the source of the datagram. Behind a Service, the address dialled.
    pub peer: SocketAddr,
    /// The client's own end; of an unconnected UDP socket only the port is set.
    pub own: SocketAddr,
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ClientError {
    /// ECONNREFUSED: RST or ICMP port unreachable, or the socket hook said no.
    #[error("refused")]
    Refused,
    /// Silence.
    #[error("timed out")]
    TimedOut,
    /// The connection broke after it was made.
    #[error("connection broke")]
    Broken,
    /// Somebody destroyed the socket: ECONNABORTED, or for who sends first EDESTADDRREQ (UDP), ENOTCONN (TCP).
    #[error("socket destroyed")]
    Destroyed,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
                Self::Broken
            }
            io::ErrorKind::ConnectionAborted | io::ErrorKind::NotConnected => Self::Destroyed,
            _ if error.raw_os_error() == Some(libc::EDESTADDRREQ) => Self::Destroyed,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// How the client talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// HTTP over TCP, kept alive while the conversation lasts.
    Http,
    /// UDP after `connect()`.
    UdpConnected,
    /// UDP with `sendto()`.
    UdpUnconnected,
}

/// Whom to talk to, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// How.
    pub transport: Transport,
    /// Whom.
    pub to: SocketAddr,
    /// Local address and port; `None`: the kernel chooses.
    pub from: Option<SocketAddr>,
    /// Patience for each step (connect, each read), milliseconds.
    pub timeout_ms: u64,
    /// Payload bytes of a datagram, at most [`DATAGRAM_MAX`]; the answer has at least as many.
    pub datagram_len: usize,
}

/// Room for a datagram, in bytes.
pub const DATAGRAM_MAX: usize = 2048;

impl Target {
    /// With the kernel's choice of source and two seconds of patience.
    pub fn new(transport: Transport, to: SocketAddr) -> Self {
        Self { transport, to, from: None, timeout_ms: 2000, datagram_len: 16 }
    }

    /// HTTP to `to`, as in `10.96.0.10:80` or `[fd00::1]:80`.
    pub fn http(to: &str) -> Result<Self> {
        Ok(Self::new(Transport::Http, to.parse().with_context(|| format!("address {to}"))?))
    }

    /// UDP to `to`, connected.
    pub fn udp(to: &str) -> Result<Self> {
        Ok(Self::new(Transport::UdpConnected, to.parse().with_context(|| format!("address {to}"))?))
    }

    /// From this local address and port (0: any port).
    #[must_use]
    pub fn from(self, from: SocketAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    /// From this port of whatever local address the kernel chooses.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        let any: IpAddr =
            if self.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.from(SocketAddr::new(any, port))
    }

    /// With datagrams of this many bytes.
    #[must_use]
    pub fn sized(self, datagram_len: usize) -> Self {
        Self { datagram_len, ..self }
    }

    /// With this much patience.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), ..self }
    }
}

/// What a probe can be asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// One question on a socket of its own.
    Once(Target),
    /// Opens a socket and keeps it.
    Open(Target),
    /// One more question on a kept socket.
    Ask(u64),
    /// Connects a kept UDP socket to another peer.
    Redial(u64, SocketAddr),
    /// Closes a kept socket.
    Close(u64),
    /// Fetches an HTTP path and counts the body's bytes.
    Fetch(Target, String),
    /// Begins asking without pause, each time on a socket of its own, from this many threads.
    StartLoad(Target, usize),
    /// The load's tally so far.
    LoadSoFar,
    /// Ends the load and returns the tally.
    StopLoad,
}

/// What a probe says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    /// To `Once` and `Ask`.
    Reply(Reply),
    /// To `Open`: the id.
    Opened(u64),
    /// To `Close`, `Redial` and `StartLoad`.
    Done,
    /// To `Fetch`.
    Bytes(usize),
    /// To `LoadSoFar` and `StopLoad`.
    Tally(Tally),
    /// It failed.
    Error(ClientError),
}

/// Outcome of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Pod → answers.
    pub answers: BTreeMap<String, u64>,
    /// Error → occurrences.
    pub failures: BTreeMap<String, u64>,
}

impl Tally {
    /// Answers of all pods.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Failures of all kinds.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Counts one outcome.
    pub fn count(&mut self, outcome: &Result<Reply, ClientError>) {
        let counter = match outcome {
            Ok(reply) => self.answers.entry(reply.answer.pod.clone()),
            Err(error) => self.failures.entry(error.to_string()),
        };
        *counter.or_default() += 1;
    }
}

/// A running probe.
#[derive(Debug)]
pub struct Probe {
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _process: Process,
}

/// A socket that a probe keeps open. Closed when dropped.
#[derive(Debug)]
pub struct Conversation<'a> {
    probe: &'a Probe,
    id: u64,
}

/// A probe's failure is a bug of the tests, a client's error a result: hence two layers.
pub type Outcome<T> = Result<T, ClientError>;

impl Probe {
    /// Starts a probe.
    pub fn start(place: &Place) -> Result<Self> {
        let mut command = place.command(program("pod")?)?;
        let mut process = Process::spawn(command.arg("probe").stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let child = process.child();
        let (stdin, stdout) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        Ok(Self { pipes: Mutex::new((stdin, BufReader::new(stdout))), _process: process })
    }

    /// Sends a request and waits for its response.
    pub fn request(&self, request: &Request) -> Result<Response> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        pipes.0.write_all(line.as_bytes()).context("the probe is gone")?;
        let mut answer = String::new();
        pipes.1.read_line(&mut answer)?;
        serde_json::from_str(&answer).with_context(|| format!("the probe said {answer:?} to {request:?}"))
    }

    /// One question on a socket of its own.
    pub fn once(&self, target: Target) -> Result<Outcome<Reply>> {
        self.reply(&Request::Once(target))
    }

    /// Who answers `times` questions, each on a socket of its own.
    pub fn tally(&self, target: Target, times: usize) -> Result<Tally> {
        let mut tally = Tally::default();
        for _ in 0..times {
            tally.count(&self.once(target)?);
        }
        Ok(tally)
    }

    /// Opens a socket and keeps it.
    pub fn open(&self, target: Target) -> Result<Outcome<Conversation<'_>>> {
        match self.request(&Request::Open(target))? {
            Response::Opened(id) => Ok(Ok(Conversation { probe: self, id })),
            Response::Error(error) => Ok(Err(error)),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// Fetches an HTTP path of the pod behind `target` and counts the body's bytes.
    pub fn fetch(&self, target: Target, path: &str) -> Result<Outcome<usize>> {
        match self.request(&Request::Fetch(target, path.to_owned()))? {
            Response::Bytes(bytes) => Ok(Ok(bytes)),
            Response::Error(error) => Ok(Err(error)),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// Begins asking without pause from `threads` threads.
    pub fn start_load(&self, target: Target, threads: usize) -> Result<()> {
        match self.request(&Request::StartLoad(target, threads))? {
            Response::Done => Ok(()),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// Waits until the load has had `more` further answers: an error if it has not within twenty seconds.
    pub fn load_goes_on(&self, more: u64) -> Result<()> {
        let enough = self.load(&Request::LoadSoFar)?.answered() + more;
        eventually("does the load go on", Duration::from_secs(20), || {
            Ok(self.load(&Request::LoadSoFar)?.answered() >= enough)
        })
    }

    /// Ends the load.
    pub fn stop_load(&self) -> Result<Tally> {
        self.load(&Request::StopLoad)
    }

    fn load(&self, request: &Request) -> Result<Tally> {
        match self.request(request)? {
            Response::Tally(tally) => Ok(tally),
            other => bail!("unexpected {other:?}"),
        }
    }

    fn reply(&self, request: &Request) -> Result<Outcome<Reply>> {
        match self.request(request)? {
            Response::Reply(reply) => Ok(Ok(reply)),
            Response::Error(error) => Ok(Err(error)),
            other => bail!("unexpected {other:?}"),
        }
    }
}

impl Conversation<'_> {
    /// One more question.
    pub fn ask(&self) -> Result<Outcome<Reply>> {
        self.probe.reply(&Request::Ask(self.id))
    }

    /// Connects the UDP socket to another peer.
    pub fn redial(&self, to: SocketAddr) -> Result<Outcome<()>> {
        match self.probe.request(&Request::Redial(self.id, to))? {
            Response::Done => Ok(Ok(())),
            Response::Error(error) => Ok(Err(error)),
            other => bail!("unexpected {other:?}"),
        }
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        // Fails only if the probe is gone, and its sockets with it.
        drop(self.probe.request(&Request::Close(self.id)));
    }
}

/// Path of a program of this workspace, beside the running one.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("path of the running program")?;
    // Test programs are in `deps`, one below.
    let path =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    path.with_context(|| format!("{name} is not built: cargo build --workspace --bins"))
}
