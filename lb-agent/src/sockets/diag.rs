//! The sockets of one network namespace: lists and destroys them through the kernel's `sock_diag`.
//!
//! A netlink socket belongs to the namespace in which it was made, so [`Diag::open`] is called on a thread that has
//! entered it. `CONFIG_INET_DIAG_DESTROY` is needed to destroy (every distribution's kernel has it).

use std::{io, net::SocketAddr};

use lb_common::family::Protocol;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, TCP_TIME_WAIT},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

/// What can go wrong in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// The kernel did not answer.
    #[error("{what}: {source}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer was no `sock_diag` message.
    #[error("sock_diag answered what cannot be read: {0}")]
    Decode(String),
}

/// A socket as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Transport.
    pub protocol: Protocol,
    /// `AF_INET` or `AF_INET6`.
    family: u8,
    id: SocketId,
}

impl Listed {
    /// Its cookie, as socket hooks see it.
    pub fn cookie(&self) -> u64 {
        u64::from_ne_bytes(self.id.cookie)
    }

    /// Whom it is connected to: the unspecified address and port 0 if nobody. A mapped IPv4 address counts as IPv4.
    pub fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.id.destination_address.to_canonical(), self.id.destination_port)
    }
}

/// Access to the sockets of one namespace.
pub struct Diag(Socket);

impl Diag {
    /// Of the calling thread's namespace.
    pub fn open() -> Result<Self, DiagError> {
        let open = || {
            let socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.connect(&NetlinkAddr::new(0, 0))?;
            Ok(socket)
        };
        open().map(Self).map_err(failed("open a sock_diag socket"))
    }

    /// Shows every TCP and UDP socket of both families to `visit`, in whatever state but TIME_WAIT.
    pub fn list(&mut self, mut visit: impl FnMut(Listed)) -> Result<(), DiagError> {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            for family in [AF_INET, AF_INET6] {
                self.list_one(protocol, family, &mut visit)?;
            }
        }
        Ok(())
    }

    /// Destroys a listed socket: its process gets ECONNABORTED. False if it has gone meanwhile, or is another by now.
    pub fn destroy(&mut self, socket: &Listed) -> Result<bool, DiagError> {
        let request = request(socket.protocol, socket.family, socket.id.clone());
        self.send(SockDiagDestroy::new(SockDiagMessage::InetRequest(request)), NLM_F_REQUEST | NLM_F_ACK)?;
        let mut outcome = Ok(false);
        self.receive(|message| {
            if let NetlinkPayload::Error(error) = message {
                outcome = match error.code {
                    None => Ok(true),
                    Some(_) => Err(error.to_io()),
                };
                return Step::Done;
            }
            Step::More
        })?;
        match outcome {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(failed("destroy a socket (CONFIG_INET_DIAG_DESTROY, CAP_NET_ADMIN)")(error)),
            Ok(destroyed) => Ok(destroyed),
        }
    }

    fn list_one(
        &mut self,
        protocol: Protocol,
        family: u8,
        visit: &mut impl FnMut(Listed),
    ) -> Result<(), DiagError> {
        let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        let request = SockDiagMessage::InetRequest(request(protocol, family, any));
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut refused = None;
        self.receive(|message| match message {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                let InetResponseHeader { family, socket_id: id, .. } = response.header;
                visit(Listed { protocol, family, id });
                Step::More
            }
            NetlinkPayload::Error(error) => {
                refused = Some(error.to_io());
                Step::Done
            }
            NetlinkPayload::Done(_) => Step::Done,
            _ => Step::More,
        })?;
        match refused {
            // No module for this protocol, so no socket of it either.
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Some(error) => Err(failed("list sockets")(error)),
            None => Ok(()),
        }
    }

    fn send<T>(&mut self, message: T, flags: u16) -> Result<(), DiagError>
    where
        T: NetlinkSerializable + Into<NetlinkPayload<T>>,
    {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut packet = NetlinkMessage::new(header, message.into());
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.0.send(&buffer, 0).map(drop).map_err(failed("ask sock_diag"))
    }

    /// Gives the messages of an answer to `visit` until it has seen the last.
    fn receive(
        &mut self,
        mut visit: impl FnMut(NetlinkPayload<SockDiagMessage>) -> Step,
    ) -> Result<(), DiagError> {
        loop {
            let (datagram, _) = self.0.recv_from_full().map_err(failed("read from sock_diag"))?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = decode(rest)?;
                // Messages begin at multiples of four bytes (netlink(7)).
                let length = (message.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                if visit(message.payload) == Step::Done {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether an answer goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    More,
    Done,
}

fn decode(bytes: &[u8]) -> Result<NetlinkMessage<SockDiagMessage>, DiagError> {
    NetlinkMessage::deserialize(bytes).map_err(|error| DiagError::Decode(error.to_string()))
}

fn request(protocol: Protocol, family: u8, socket_id: SocketId) -> InetRequest {
    let mut states = StateFlags::all();
    states.remove(StateFlags::from_bits_truncate(1 << TCP_TIME_WAIT));
    InetRequest { family, protocol: protocol.0, extensions: ExtensionFlags::empty(), states, socket_id }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> DiagError {
    move |source| DiagError::Netlink { what, source }
}
