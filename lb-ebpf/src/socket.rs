//! Socket hooks: a backend is chosen once, at `connect()` or per datagram, and packets need nothing afterwards.
//!
//! The hooks cannot know the client's address before the socket is bound, nor replace it, nor be silent. Where a rule
//! needs one of these (source ranges, `--masquerade-all`, policy Local without a local backend) they leave the destination alone and the packet programs
//! apply the rule.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use lb_common::{
    affinity::ClientKind,
    family::{Addr4, Addr6, Address as _, Be16, Protocol, V4, V6},
    flow::{FlowKey, Tuple, hash_u64},
    frontend::{Empty, FrontendFlags, FrontendKey, FrontendKind, FrontendValue},
    rev_nat::{SockRevNatKey, SockRevNatValue},
    settings::FEATURE_SET_RETVAL,
    verdict::Verdict,
};

use crate::{
    backend::{self, Choice, Chosen},
    client::process_scope,
    counters::{Outcome, Seen, count, count_connection},
    frontend,
    globals::{has_feature, masquerades_all, node_netns_cookie, random},
    maps::FamilyMaps,
    service_cidr, vip,
};

/// What a hook returns: the call goes on.
pub const ALLOW: i32 = 1;
/// What a hook returns: the call fails (EPERM, or what `bpf_set_retval` says).
const DENY: i32 = 0;
/// `ECONNREFUSED` as Linux numbers it.
const ECONNREFUSED: i32 = 111;
/// `IPPROTO_MPTCP`: such a socket dials TCP (RFC 8684).
const MPTCP: u32 = 262;

/// An address and port as a socket hook has them.
#[derive(Clone, Copy)]
pub struct Endpoint<F: FamilyMaps> {
    pub addr: F::Addr,
    pub port: Be16,
}

/// A socket call: one that dials or answers in family `F`. An IPv6 socket that dials a mapped IPv4 address is a
/// call of `V4`.
pub trait Call<F: FamilyMaps> {
    /// The peer the caller named or would see.
    fn peer(&self) -> Endpoint<F>;
    /// Replaces it.
    fn set_peer(&mut self, peer: Endpoint<F>);
    /// The hook's context.
    fn context(&self) -> &SockAddrContext;
}

/// The context with typed access. The verifier wants each field read and written in one piece of its own size;
/// volatile keeps it so.
struct Fields(*mut bpf_sock_addr);

impl Fields {
    #[inline(always)]
    fn new(context: &SockAddrContext) -> Self {
        Self(context.sock_addr)
    }

    #[inline(always)]
    fn ip4(&self) -> u32 {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { read_volatile(addr_of!((*self.0).user_ip4)) }
    }

    #[inline(always)]
    fn set_ip4(&self, word: u32) {
        // SAFETY: as in `ip4`; writable in these hooks.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_ip4), word) }
    }

    #[inline(always)]
    fn ip6(&self) -> [u32; 4] {
        // SAFETY: as in `ip4`.
        unsafe {
            [
                read_volatile(addr_of!((*self.0).user_ip6[0])),
                read_volatile(addr_of!((*self.0).user_ip6[1])),
                read_volatile(addr_of!((*self.0).user_ip6[2])),
                read_volatile(addr_of!((*self.0).user_ip6[3])),
            ]
        }
    }

    #[inline(always)]
    fn set_ip6(&self, words: [u32; 4]) {
        // SAFETY: as in `set_ip4`.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).user_ip6[0]), words[0]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[1]), words[1]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[2]), words[2]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[3]), words[3]);
        }
    }

    #[inline(always)]
    fn port(&self) -> Be16 {
        // SAFETY: as in `ip4`. The port stands in network order in the low half.
        Be16((unsafe { read_volatile(addr_of!((*self.0).user_port)) } as u16).to_ne_bytes())
    }

    #[inline(always)]
    fn set_port(&self, port: Be16) {
        // SAFETY: as in `set_ip4`.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_port), u16::from_ne_bytes(port.0) as u32) }
    }

    #[inline(always)]
    fn protocol(&self) -> u32 {
        // SAFETY: as in `ip4`.
        unsafe { read_volatile(addr_of!((*self.0).protocol)) }
    }
}

/// A call on an IPv4 socket.
pub struct Call4(pub SockAddrContext);
/// A call on an IPv6 socket, IPv6 peer.
pub struct Call6(pub SockAddrContext);
/// A call on an IPv6 socket, mapped IPv4 peer (`::ffff:a.b.c.d`).
pub struct CallMapped(pub SockAddrContext);

/// The third word of a mapped address, network order.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Call<V4> for Call4 {
    #[inline(always)]
    fn peer(&self) -> Endpoint<V4> {
        let fields = Fields::new(&self.0);
        Endpoint { addr: Addr4(fields.ip4().to_ne_bytes()), port: fields.port() }
    }

    #[inline(always)]
    fn set_peer(&mut self, peer: Endpoint<V4>) {
        let fields = Fields::new(&self.0);
        fields.set_ip4(peer.addr.word(0));
        fields.set_port(peer.port);
    }

    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        &self.0
    }
}

impl Call<V4> for CallMapped {
    #[inline(always)]
    fn peer(&self) -> Endpoint<V4> {
        let fields = Fields::new(&self.0);
        Endpoint { addr: Addr4(fields.ip6()[3].to_ne_bytes()), port: fields.port() }
    }

    #[inline(always)]
    fn set_peer(&mut self, peer: Endpoint<V4>) {
        let fields = Fields::new(&self.0);
        fields.set_ip6([0, 0, MAPPED, peer.addr.word(0)]);
        fields.set_port(peer.port);
    }

    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        &self.0
    }
}

impl Call<V6> for Call6 {
    #[inline(always)]
    fn peer(&self) -> Endpoint<V6> {
        let fields = Fields::new(&self.0);
        let [a, b, c, d] = fields.ip6();
        let low = (a as u64 | (b as u64) << 32).to_ne_bytes();
        let high = (c as u64 | (d as u64) << 32).to_ne_bytes();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low);
        bytes[8..].copy_from_slice(&high);
        Endpoint { addr: Addr6(bytes), port: fields.port() }
    }

    #[inline(always)]
    fn set_peer(&mut self, peer: Endpoint<V6>) {
        let fields = Fields::new(&self.0);
        let addr = peer.addr;
        fields.set_ip6([addr.word(0), addr.word(1), addr.word(2), addr.word(3)]);
        fields.set_port(peer.port);
    }

    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        &self.0
    }
}

/// True if an IPv6 socket's peer is a mapped IPv4 address.
#[inline(always)]
pub fn is_mapped(context: &SockAddrContext) -> bool {
    let [a, b, c, _] = Fields::new(context).ip6();
    a == 0 && b == 0 && c == MAPPED
}

/// How a call chooses among backends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Luck {
    /// At random, once per connection.
    Connection,
    /// By the socket: the datagrams of an unconnected socket stay together while the run does.
    Socket,
}

/// The transport protocol of a call, if it is one we balance.
#[inline(always)]
fn protocol(context: &SockAddrContext) -> Option<Protocol> {
    match Fields::new(context).protocol() {
        6 | MPTCP => Some(Protocol::TCP),
        17 => Some(Protocol::UDP),
        _ => None,
    }
}

#[inline(always)]
fn socket_cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: valid context.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

#[inline(always)]
fn netns_cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: valid context.
    unsafe { bpf_get_netns_cookie(context.as_ptr()) }
}

/// `connect()`, and `sendto()` or `sendmsg()` with a destination: gives the socket a backend for the VIP it names.
#[inline(never)]
pub fn dial<F: FamilyMaps, C: Call<F>>(call: &mut C, luck: Luck) -> i32 {
    let Some(protocol) = protocol(call.context()) else { return ALLOW };
    let peer = call.peer();
    let Some(frontend) = dialled::<F, C>(call, &peer, protocol) else { return unknown(&peer, protocol) };
    let outcome = connected(call, &peer, protocol, frontend, luck);
    if outcome.verdict == Verdict::NotOurs {
        return ALLOW;
    }
    count_dial(outcome, &peer, protocol);
    if outcome.verdict == Verdict::Refused { refuse() } else { ALLOW }
}

/// What becomes of a call that names no frontend: to a VIP, or in a service CIDR, it is refused.
#[inline(never)]
fn unknown<F: FamilyMaps>(peer: &Endpoint<F>, protocol: Protocol) -> i32 {
    let is_ours = || service_cidr::contains::<F>(&peer.addr) || vip::is_ours::<F>(&peer.addr);
    if peer.addr.is_loopback() || peer.addr.is_unspecified() || !is_ours() {
        return ALLOW;
    }
    count_dial(Outcome::of(Verdict::Refused), peer, protocol);
    refuse()
}

/// Counts what became of a call that dialled `peer`.
#[inline(always)]
fn count_dial<F: FamilyMaps>(outcome: Outcome, peer: &Endpoint<F>, protocol: Protocol) {
    let tuple = Tuple { dst: peer.addr, dst_port: peer.port, ..Tuple::default() };
    count::<F>(outcome, &Seen { flow: &FlowKey::new(tuple, protocol), bytes: 0, ifindex: 0 });
}

/// The frontend a call names. NodePorts on a loopback address are for processes of the node itself only; any
/// loopback address, and the unspecified one, which `connect()` takes for it, is listed as 127.0.0.1 or ::1.
#[inline(never)]
fn dialled<F: FamilyMaps, C: Call<F>>(
    call: &C,
    peer: &Endpoint<F>,
    protocol: Protocol,
) -> Option<&'static FrontendValue> {
    let loopback = peer.addr.is_loopback() || peer.addr.is_unspecified();
    let addr = if loopback { F::Addr::loopback() } else { peer.addr };
    let frontend = frontend::lookup::<F>(&FrontendKey::new(addr, peer.port, protocol))?;
    if frontend.flags.has(FrontendFlags::HOST_ONLY) && netns_cookie(call.context()) != node_netns_cookie() {
        return None;
    }
    Some(frontend)
}

/// Chooses a backend and rewrites the call to it.
#[inline(always)]
fn connected<F: FamilyMaps, C: Call<F>>(
    call: &mut C,
    peer: &Endpoint<F>,
    protocol: Protocol,
    frontend: &FrontendValue,
    luck: Luck,
) -> Outcome {
    let netns = netns_cookie(call.context());
    let is_node = netns == node_netns_cookie();
    if is_left_to_packets(frontend, is_node) {
        return Outcome::of(Verdict::NotOurs);
    }
    let cookie = socket_cookie(call.context());
    let scope = process_scope(is_node);
    let choice = Choice::<F> {
        run: frontend.run(scope),
        set: frontend.member_set(scope),
        client: F::client_from_cookie(netns),
        client_kind: ClientKind::NETNS_COOKIE,
        flow_hash: hash_u64(cookie, 0),
        random: if luck == Luck::Socket { hash_u64(cookie, 0) } else { random() },
        binds: true,
    };
    let mut chosen = Chosen::<F>::default();
    if !backend::choose(frontend, &choice, &mut chosen) {
        return match frontend.when_empty(scope) {
            Empty::Drop => Outcome::of(Verdict::NotOurs),
            Empty::Refuse => Outcome::about(Verdict::Refused, frontend.service_port),
        };
    }
    let backend = Endpoint::<F> { addr: chosen.value.addr, port: chosen.value.port };
    // By reference: by value, both would be copied to the stack once more (Linux 6.1).
    let key = &SockRevNatKey::<F>::new(cookie, backend.addr, backend.port, protocol);
    let dialled = &SockRevNatValue::<F> {
        addr: peer.addr,
        port: peer.port,
        _pad: 0,
        service_port: frontend.service_port,
    };
    if luck == Luck::Connection || !is_remembered(key, dialled) {
        // Without room the socket sees the backend's address; its data flows all the same.
        let _ = F::sock_rev_nat().insert(key, dialled, 0);
        count_connection(frontend.service_port, chosen.id);
    }
    call.set_peer(backend);
    Outcome { verdict: Verdict::SocketTranslated, service_port: frontend.service_port, backend: chosen.id }
}

/// True if the packet programs must serve a call: they know the client's address (source ranges), and can replace it
/// by the node's (`--masquerade-all`). With affinity all frontends of a service port go one way, for packets know a
/// client by its address and sockets by its network namespace.
///
/// The node's own processes have its addresses anyway. They are served here whenever the ranges allow that: packets
/// of theirs to a backend that is the node itself never pass a packet program twice.
#[inline(always)]
fn is_left_to_packets(frontend: &FrontendValue, is_node: bool) -> bool {
    let flags = frontend.flags;
    if is_node {
        return flags.has(FrontendFlags::SOURCE_RANGES) && !flags.has(FrontendFlags::NODE_ALLOWED);
    }
    let is_masqueraded = frontend.kind == FrontendKind::CLUSTER_IP || flags.has(FrontendFlags::AFFINITY);
    flags.has(FrontendFlags::SOURCE_RANGES)
        || flags.has(FrontendFlags::BY_PACKET)
        || (masquerades_all() && is_masqueraded)
}

/// True if the socket is known to have `dialled` that.
#[inline(always)]
fn is_remembered<F: FamilyMaps>(key: &SockRevNatKey<F>, dialled: &SockRevNatValue<F>) -> bool {
    // SAFETY: compared at once.
    (unsafe { F::sock_rev_nat().get(key) }) == Some(dialled)
}

/// Lets the call fail as a closed port would.
#[inline(always)]
fn refuse() -> i32 {
    if has_feature(FEATURE_SET_RETVAL) {
        // SAFETY: no pointers; exists, as the feature says.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    DENY
}

/// `recvfrom()`, `recvmsg()` and `getpeername()`: shows the VIP the socket dialled in place of the backend.
#[inline(never)]
pub fn answer<F: FamilyMaps, C: Call<F>>(call: &mut C) -> i32 {
    let Some(protocol) = protocol(call.context()) else { return ALLOW };
    let peer = call.peer();
    let cookie = socket_cookie(call.context());
    // SAFETY: copied at once.
    let entry =
        unsafe { F::sock_rev_nat().get(SockRevNatKey::<F>::new(cookie, peer.addr, peer.port, protocol)) };
    let Some(dialled) = entry.copied() else { return ALLOW };
    call.set_peer(Endpoint { addr: dialled.addr, port: dialled.port });
    let tuple = Tuple { src: peer.addr, src_port: peer.port, ..Tuple::default() };
    let outcome = Outcome::about(Verdict::SocketReply, dialled.service_port);
    count::<F>(outcome, &Seen { flow: &FlowKey::new(tuple, protocol), bytes: 0, ifindex: 0 });
    ALLOW
}
