//! A probe: the sockets behind [`lb_tests::probe`]. Blocking sockets, so that each error is the kernel's own.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::probe::{
    Answer, ClientError, DATAGRAM_MAX, Outcome, Reply, Request, Response, Tally, Target, Transport,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Answers requests until stdin closes.
pub fn converse() -> Result<()> {
    let mut client = Client::default();
    for line in io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?).context("a request")?;
        let response = client.respond(request).unwrap_or_else(Response::Error);
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        io::stdout().write_all(&line)?;
    }
    Ok(())
}

#[derive(Default)]
struct Client {
    open: HashMap<u64, Conversation>,
    next_id: u64,
    load: Option<Load>,
}

impl Client {
    fn respond(&mut self, request: Request) -> Outcome<Response> {
        match request {
            Request::Once(target) => Conversation::open(target)?.ask().map(Response::Reply),
            Request::Open(target) => {
                self.next_id += 1;
                self.open.insert(self.next_id, Conversation::open(target)?);
                Ok(Response::Opened(self.next_id))
            }
            Request::Ask(id) => match self.open.get_mut(&id) {
                Some(conversation) => conversation.ask().map(Response::Reply),
                None => Err(ClientError::Other(format!("no conversation {id}"))),
            },
            Request::Redial(id, to) => match self.open.get(&id) {
                Some(Conversation::UdpConnected(socket, _)) => {
                    Ok(socket.connect(to).map(|()| Response::Done)?)
                }
                _ => Err(ClientError::Other(format!("no UDP socket {id}"))),
            },
            Request::Close(id) => {
                self.open.remove(&id);
                Ok(Response::Done)
            }
            Request::Fetch(target, path) => Ok(Response::Bytes(fetch(target, &path)?)),
            Request::StartLoad(target, threads) => {
                self.load = Some(Load::start(target, threads));
                Ok(Response::Done)
            }
            Request::LoadSoFar => self.load.as_ref().map(Load::so_far).ok_or_else(no_load),
            Request::StopLoad => self.load.take().map(Load::stop).ok_or_else(no_load),
        }
    }
}

fn no_load() -> ClientError {
    ClientError::Other("no load runs".to_owned())
}

/// Threads that ask without pause.
struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(target: Target, threads: usize) -> Self {
        let (stop, tally) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Tally>>::default());
        let ask = || {
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            thread::spawn(move || ask_until(&stop, target, &tally))
        };
        let threads = (0..threads).map(|_| ask()).collect();
        Self { stop, tally, threads }
    }

    fn so_far(&self) -> Response {
        Response::Tally(self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn stop(mut self) -> Response {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr; what it had counted stays counted.
            thread.join().ok();
        }
        self.so_far()
    }
}

fn ask_until(stop: &AtomicBool, target: Target, tally: &Mutex<Tally>) {
    while !stop.load(Ordering::Relaxed) {
        let outcome = Conversation::open(target).and_then(|mut conversation| conversation.ask());
        tally.lock().unwrap_or_else(PoisonError::into_inner).count(&outcome);
    }
}

/// A socket towards a target.
enum Conversation {
    Http(BufReader<TcpStream>),
    UdpConnected(UdpSocket, Question),
    UdpUnconnected(UdpSocket, SocketAddr, Question),
}

/// What a datagram asks: its length counts.
type Question = Box<[u8]>;

impl Conversation {
    fn open(target: Target) -> Outcome<Self> {
        let socket = bound_socket(target)?;
        let timeout = Duration::from_millis(target.timeout_ms);
        let question = vec![b'?'; target.datagram_len].into();
        Ok(match target.transport {
            Transport::Http => {
                socket.connect_timeout(&target.to.into(), timeout)?;
                let stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(timeout))?;
                stream.set_nodelay(true)?;
                Self::Http(BufReader::new(stream))
            }
            Transport::UdpConnected => {
                socket.connect(&target.to.into())?;
                socket.set_read_timeout(Some(timeout))?;
                Self::UdpConnected(socket.into(), question)
            }
            Transport::UdpUnconnected => {
                socket.set_read_timeout(Some(timeout))?;
                Self::UdpUnconnected(socket.into(), target.to, question)
            }
        })
    }

    fn ask(&mut self) -> Outcome<Reply> {
        let mut buffer = [0; DATAGRAM_MAX];
        match self {
            Self::Http(stream) => {
                let answer = parse(&http_get(stream, "/")?)?;
                let stream = stream.get_ref();
                Ok(Reply { answer, peer: stream.peer_addr()?, own: stream.local_addr()? })
            }
            Self::UdpConnected(socket, question) => {
                socket.send(question)?;
                let length = socket.recv(&mut buffer)?;
                let answer = parse_datagram(&buffer[..length], question)?;
                Ok(Reply { answer, peer: socket.peer_addr()?, own: socket.local_addr()? })
            }
            Self::UdpUnconnected(socket, to, question) => {
                socket.send_to(question, *to)?;
                let (length, peer) = socket.recv_from(&mut buffer)?;
                let answer = parse_datagram(&buffer[..length], question)?;
                Ok(Reply { answer, peer, own: socket.local_addr()? })
            }
        }
    }
}

fn bound_socket(target: Target) -> io::Result<Socket> {
    let (kind, protocol) = match target.transport {
        Transport::Http => (Type::STREAM, Protocol::TCP),
        Transport::UdpConnected | Transport::UdpUnconnected => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(target.to), kind, Some(protocol))?;
    if let Some(from) = target.from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    Ok(socket)
}

fn parse_datagram(body: &[u8], question: &Question) -> Outcome<Answer> {
    if body.len() < question.len() {
        return Err(ClientError::Other(format!("{} bytes for {}", body.len(), question.len())));
    }
    parse(body)
}

fn parse(body: &[u8]) -> Outcome<Answer> {
    serde_json::from_slice(body).map_err(|error| {
        ClientError::Other(format!("not an answer of a pod: {error}: {:?}", String::from_utf8_lossy(body)))
    })
}

fn fetch(target: Target, path: &str) -> Outcome<usize> {
    match Conversation::open(target)? {
        Conversation::Http(mut stream) => Ok(http_get(&mut stream, path)?.len()),
        _ => Err(ClientError::Other("only HTTP has paths".to_owned())),
    }
}

/// One HTTP/1.1 request on a connection that stays open; the body, chunked or with a length.
fn http_get(stream: &mut BufReader<TcpStream>, path: &str) -> io::Result<Vec<u8>> {
    let to = stream.get_ref().peer_addr()?;
    stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes())?;
    let mut headers = Vec::new();
    loop {
        match header_line(stream)? {
            line if line.is_empty() => break,
            line => headers.push(line.to_ascii_lowercase()),
        }
    }
    let value_of = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name).map(str::trim));
    if headers.first().is_none_or(|status| !status.starts_with("http/1.1 200")) {
        return Err(io::Error::other(format!("unexpected status {:?}", headers.first())));
    }
    match value_of("content-length:").and_then(|length| length.parse().ok()) {
        Some(length) => read_exactly(stream, length),
        None => read_chunks(stream),
    }
}

fn read_exactly(stream: &mut impl io::Read, length: usize) -> io::Result<Vec<u8>> {
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn read_chunks(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = header_line(stream)?;
        let length =
            usize::from_str_radix(&line, 16).map_err(|_| io::Error::other(format!("chunk size {line:?}")))?;
        body.extend(read_exactly(stream, length)?);
        header_line(stream)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// A line without its end; an error if the connection ends first.
fn header_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    // The bound keeps a broken server from filling our memory.
    if stream.take(8192).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}
