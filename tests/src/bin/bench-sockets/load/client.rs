//! The client's sockets. Each TCP connection and each UDP flow has a source address and port of its own, in turn, so
//! that no flow meets what is left of an earlier one, and no search for a free port is measured. The server closes
//! first: what waits in TIME_WAIT waits there.

use std::{
    io::{self, BufRead as _, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Done, Measure, Request};

/// Source ports of each address.
const PORTS: std::ops::Range<u16> = 10_000..60_000;
/// A request that takes longer ends the process.
const PATIENCE_S: u32 = 20;
const MESSAGE: [u8; 64] = [b'x'; 64];

/// Takes requests from stdin, as JSON lines, until it closes.
pub(crate) fn run(sources: Vec<Ipv4Addr>) -> Result<()> {
    let mut client = Client { sources, flows: 0 };
    for line in io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?).context("a request")?;
        alarm(PATIENCE_S);
        let done = client.measure(request)?;
        alarm(0);
        println!("{}", serde_json::to_string(&done)?);
    }
    Ok(())
}

/// Ends the process after so many seconds; 0: after all not.
fn alarm(seconds: u32) {
    // SAFETY: no pointers. The default action of SIGALRM is the end of the process.
    unsafe { libc::alarm(seconds) };
}

struct Client {
    sources: Vec<Ipv4Addr>,
    /// Flows so far.
    flows: usize,
}

impl Client {
    fn measure(&mut self, request: Request) -> io::Result<Done> {
        match request.measure {
            Measure::TcpConnect => self.repeat(request.duration, |client| client.connect(request.to)),
            Measure::UdpFlow => self.repeat(request.duration, |client| ask(&client.udp_socket(request.to)?)),
            Measure::UdpRoundTrip => {
                let socket = self.udp_socket(request.to)?;
                self.repeat(request.duration, |_| ask(&socket))
            }
            Measure::Bulk => self.bulk(request),
        }
    }

    /// Repeats an operation, which is true if it was answered, as long as asked for.
    fn repeat(
        &mut self,
        duration: Duration,
        mut operation: impl FnMut(&mut Self) -> io::Result<bool>,
    ) -> io::Result<Done> {
        let (mut served, mut lost) = (0_u32, 0);
        let started = Instant::now();
        while started.elapsed() < duration || (served == 0 && lost < PATIENCE_S / 2) {
            match operation(self)? {
                true => served += 1,
                false => lost += 1,
            }
        }
        Ok(Done { amount: served.into(), lost, seconds: started.elapsed().as_secs_f64() })
    }

    fn connect(&mut self, to: SocketAddrV4) -> io::Result<bool> {
        let mut stream = self.tcp_stream(to)?;
        let mut answer = [0; MESSAGE.len()];
        stream.write_all(&MESSAGE)?;
        stream.read_exact(&mut answer)?;
        // The server closes first.
        Ok(stream.read(&mut answer)? == 0)
    }

    fn bulk(&mut self, request: Request) -> io::Result<Done> {
        let mut stream = self.tcp_stream(request.to)?;
        let chunk = vec![0; 128 * 1024];
        let started = Instant::now();
        while started.elapsed() < request.duration {
            stream.write_all(&chunk)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut received = [0; 8];
        stream.read_exact(&mut received)?;
        let amount = u64::from_be_bytes(received) as f64 * 8.0 / 1e9;
        Ok(Done { amount, lost: 0, seconds: started.elapsed().as_secs_f64() })
    }

    fn tcp_stream(&mut self, to: SocketAddrV4) -> io::Result<TcpStream> {
        let socket = self.bound(Type::STREAM, Protocol::TCP)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    }

    fn udp_socket(&mut self, to: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.bound(Type::DGRAM, Protocol::UDP)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    }

    fn bound(&mut self, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let (round, port) = (self.flows / PORTS.len(), self.flows % PORTS.len());
        self.flows += 1;
        let source = SocketAddrV4::new(self.sources[round % self.sources.len()], PORTS.start + port as u16);
        let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
        Ok(socket)
    }
}

/// One datagram and its answer; false if none came.
fn ask(socket: &UdpSocket) -> io::Result<bool> {
    socket.send(&MESSAGE)?;
    match socket.recv(&mut [0; MESSAGE.len()]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
