//! Packet memory: the one place that holds pointers into packets. [`Packet`] is what the stages see of a hook;
//! [`TcPacket`] is the tc hook's, [`XdpPacket`] the XDP hook's.

mod tc;
mod xdp;

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_redir_neigh;
use lb_common::{
    checksum::Sum,
    family::{Family, Protocol},
    next_hop::Macs,
    verdict::Verdict,
};

pub use self::{tc::TcPacket, xdp::XdpPacket};

/// Highest offset of anything read: Ethernet, a priority tag, IPv6 with extension headers, transport header. Bounds
/// variable offsets for the verifier.
pub const OFFSET_MASK: usize = 0x1ff;

/// Bytes summed at a time by [`Packet::sum`].
pub const CHUNK: usize = 64;

/// What changes in a transport checksum: the sums of what is added and of the complement of what is taken out.
#[derive(Clone, Copy)]
pub struct ChecksumChange {
    /// Offset of the checksum field.
    pub offset: usize,
    /// Part that comes from the pseudo header (addresses).
    pub pseudo: Sum,
    /// Part that comes from the segment (ports).
    pub segment: Sum,
    /// Transport protocol.
    pub protocol: Protocol,
    /// True for IPv6.
    pub ipv6: bool,
}

/// The kernel refused an operation on the packet.
pub struct Refused;

/// Where a packet goes that the program sends on itself.
#[repr(C)]
pub struct NextHop {
    /// The device it leaves by.
    pub ifindex: u32,
    /// To whom on the link, and from whom.
    pub macs: Macs,
    /// The neighbour's address, for hooks whose kernel finds the link-layer addresses itself.
    pub neighbour: bpf_redir_neigh,
}

/// A packet at a hook. Offsets count from the link-layer header (or the IP header where the device has none).
pub trait Packet {
    /// True where the tc program of the same device sees whatever this hook passes unchanged: what this hook cannot
    /// do ends in [`Verdict::HandedOn`], before anything was changed.
    const HANDS_ON: bool;
    /// Length in bytes.
    fn len(&self) -> u32;
    /// Payload bytes of each packet the hardware, or the stack, will make of this one; 0: it is one packet.
    fn gso_size(&self) -> u32;
    /// Length to count, of a packet whose headers say `len` bytes, link layer included.
    fn counted_len(&self, len: u32) -> u32;
    /// Device the hook belongs to.
    fn ifindex(&self) -> u32;
    /// True if the hook is told that the frame is in a VLAN.
    fn is_in_vlan(&self) -> bool;
    /// True if the hook is told that the frame is addressed to another than its device.
    fn is_addressed_elsewhere(&self) -> bool;
    /// The context, for helpers that want it.
    fn context(&self) -> *mut c_void;
    /// Makes the bytes before `end`, and others that may be headers, readable if these are not, as far as the packet has
    /// them. To be called before [`Self::read`], and again after every change.
    fn reach(&mut self, end: usize);
    /// The same, whatever of the headers is readable.
    fn pull(&mut self);
    /// Makes the first `len` bytes readable, or all there are: more than [`Self::pull`], for what is rare.
    fn pull_to(&mut self, len: u32);
    /// Internet checksum sum, not folded, of the 1 to [`CHUNK`] bytes at `offset`, with `chunk` as room to work in.
    fn sum(&self, offset: usize, len: usize, chunk: &mut [u32; CHUNK / 4]) -> Result<u32, Refused>;
    /// Reads a `T` at `offset`, if the packet has it. `T` is made of integers and byte arrays only.
    fn read<T: Copy>(&self, offset: usize) -> Option<T>;
    /// Copies a `T` from `offset`, wherever it lies: slower than [`Self::read`], for what is rare.
    fn load<T: Copy + Default>(&self, offset: usize) -> Option<T>;
    /// Overwrites bytes at `offset`. Checksums are the caller's business.
    fn write<T>(&mut self, offset: usize, value: &T) -> Result<(), Refused>;
    /// Updates a TCP or UDP checksum (SCTP's is another: [`crate::nat::rewrite`]), whatever of it the hardware has still to do.
    fn update_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused>;
    /// Cuts the packet to, or pads it to, `len` bytes.
    fn resize(&mut self, len: u32) -> Result<(), Refused>;
    /// Makes room of `len` bytes between link-layer and IP header.
    fn make_room(&mut self, len: u32) -> Result<(), Refused>;
    /// Puts room for an Ethernet header before a packet that has none; who sends it on fills it in.
    fn add_link(&mut self) -> Result<(), Refused>;
    /// Makes room for the `len` bytes of an outer header of family `F` before the IP header, which is of the same family.
    fn wrap<F: Family>(&mut self, len: usize) -> Result<(), Refused>;
    /// Takes the `len` bytes of an outer header before the IP header away.
    fn unwrap(&mut self, len: usize) -> Result<(), Refused>;
    /// Marks the packet as having met congestion, if its sender wants to hear of it (RFC 3168).
    fn mark_congested(&mut self);
    /// Sends the packet on.
    fn send(&mut self, next_hop: &mut NextHop) -> Result<(), Refused>;
    /// Hands the packet as it is to the other end of veth device `ifindex`, in another network namespace, as if received there.
    fn enter(&mut self, ifindex: u32) -> Result<(), Refused>;
    /// Sends the packet out of device `ifindex` as it is, link-layer header included.
    fn send_raw(&mut self, ifindex: u32) -> Result<(), Refused>;
    /// Lets the packet come in by device `ifindex`, as if received there.
    fn receive(&mut self, ifindex: u32) -> Result<(), Refused>;
}

/// A packet whose rarer stages are BPF functions of their own, one per family and hook type. A hook that hands on has
/// the first four only.
pub trait Opens<F>: Packet {
    /// Runs [`crate::open::open`] on the packet whose headers stand in the scratch memory; the verdict's code.
    fn open(&mut self, hook: u32) -> u32;

    /// Runs [`crate::open::record`] on the connection being opened there; its code.
    fn record(&mut self) -> u32;

    /// Runs [`crate::open::claim`] on its reply 5-tuple; 1 if that is taken.
    fn claim(&mut self, how: u32) -> u32;

    /// Runs [`crate::tunnel::unwrap`], or where the hook hands on [`crate::tunnel::unwrap_known`], on the tunnelled packet
    /// whose outer headers stand there; its code.
    fn unwrap_tunnel(&mut self) -> u32;

    /// Runs [`crate::icmp::icmp`] on the ICMP packet whose IP header stands there; the verdict's code.
    #[inline(always)]
    fn icmp(&mut self, _hook: u32) -> u32 {
        Verdict::HandedOn as u32
    }

    /// Runs [`crate::balance::complain`] about the packet whose headers stand there; the verdict's code.
    #[inline(always)]
    fn complain(&mut self, _hook: u32, _code: u32) -> u32 {
        Verdict::HandedOn as u32
    }
}
