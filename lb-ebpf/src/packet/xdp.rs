//! The XDP hook's packets: a frame in the driver's memory, read and written in place. Its checksums are complete, as
//! they came over the wire; a sender of this machine must not leave them to the hardware (veth, `ethtool -K DEV tx off`).
//!
//! Only headers are touched, and they lie in the first buffer, so packets of several buffers need nothing more
//! (`xdp.frags`, Linux 5.18). What needs a packet of another length, tunnels apart, or a neighbour not yet known, is left to tc.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::{
    checksum::{self, Sum},
    family::{Be16, Family, Protocol},
    settings::FEATURE_XDP_FRAGS,
};

use super::{CHUNK, ChecksumChange, NextHop, OFFSET_MASK, Packet, Refused};
use crate::{globals::has_feature, parse::ETHERNET_LEN};

/// A packet at an XDP hook.
pub struct XdpPacket {
    context: XdpContext,
}

impl XdpPacket {
    /// The packet of `context`.
    #[inline(always)]
    pub const fn new(context: XdpContext) -> Self {
        Self { context }
    }

    /// The hook's context.
    #[inline(always)]
    pub fn md(&self) -> *mut xdp_md {
        self.context.as_ptr().cast()
    }

    /// Address of `size` bytes at `offset`, if they lie inside the first buffer.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> Option<usize> {
        let at = self.context.data() + (offset & OFFSET_MASK);
        if at + size > self.context.data_end() { None } else { Some(at) }
    }
}

impl Packet for XdpPacket {
    const HANDS_ON: bool = true;

    #[inline(always)]
    fn len(&self) -> u32 {
        if has_feature(FEATURE_XDP_FRAGS) {
            // SAFETY: valid context.
            unsafe { bpf_xdp_get_buff_len(self.md()) as u32 }
        } else {
            (self.context.data_end() - self.context.data()) as u32
        }
    }

    /// What the headers say: asking the kernel for the length of all buffers costs a call.
    #[inline(always)]
    fn counted_len(&self, len: u32) -> u32 {
        len
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    /// The tag, where it was not taken off, is read with the headers.
    #[inline(always)]
    fn is_in_vlan(&self) -> bool {
        false
    }

    /// Nobody says; [`crate::concern::is_addressed`] compares.
    #[inline(always)]
    fn is_addressed_elsewhere(&self) -> bool {
        false
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context.as_ptr()
    }

    /// Headers that a driver keeps outside the first buffer cannot be read; such a packet is left to tc.
    #[inline(always)]
    fn reach(&mut self, _end: usize) {}

    #[inline(always)]
    fn pull(&mut self) {}

    #[inline(always)]
    fn pull_to(&mut self, _len: u32) {}

    /// Answers are left to tc.
    #[inline(always)]
    fn sum(&self, _offset: usize, _len: usize, _chunk: &mut [u32; CHUNK / 4]) -> Result<u32, Refused> {
        Err(Refused)
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let at = self.at(offset, size_of::<T>())?;
        // SAFETY: the bytes lie inside the packet, as just checked, and any bytes are a `T`. Alignment: as in tc.
        Some(unsafe { *(at as *const T) })
    }

    #[inline(always)]
    fn load<T: Copy + Default>(&self, offset: usize) -> Option<T> {
        if offset > OFFSET_MASK {
            return None;
        }
        self.read(offset)
    }

    #[inline(always)]
    fn write<T>(&mut self, offset: usize, value: &T) -> Result<(), Refused> {
        let at = self.at(offset, size_of::<T>()).ok_or(Refused)?;
        // SAFETY: the bytes lie inside the packet, as just checked, which no reference of ours points into.
        unsafe { core::ptr::copy_nonoverlapping(value, at as *mut T, 1) };
        Ok(())
    }

    #[inline(always)]
    fn update_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused> {
        let present: u16 = self.read(change.offset).ok_or(Refused)?;
        let difference = Sum(change.pseudo.0 + change.segment.0);
        let updated = if change.protocol == Protocol::UDP {
            checksum::update_udp(present, difference)
        } else {
            checksum::update(present, difference)
        };
        self.write(change.offset, &updated)
    }

    #[inline(always)]
    fn resize(&mut self, _len: u32) -> Result<(), Refused> {
        Err(Refused)
    }

    #[inline(always)]
    fn make_room(&mut self, _len: u32) -> Result<(), Refused> {
        Err(Refused)
    }

    /// The frame begins anew: [`Self::send`] addresses it. Only of a packet whose IP header follows the Ethernet header.
    #[inline(always)]
    fn add_link(&mut self) -> Result<(), Refused> {
        Err(Refused)
    }

    #[inline(always)]
    fn wrap<F: Family>(&mut self, len: usize) -> Result<(), Refused> {
        // SAFETY: valid context; the helper checks the length.
        if unsafe { bpf_xdp_adjust_head(self.md(), -(len as i32)) } != 0 {
            return Err(Refused);
        }
        self.write(ETHERNET_LEN - 2, &Be16::new(F::ETHERTYPE))
    }

    /// Only of a packet whose IP header follows the Ethernet header, which moves along.
    #[inline(always)]
    fn unwrap(&mut self, len: usize) -> Result<(), Refused> {
        let link: [u16; ETHERNET_LEN / 2] = self.read(0).ok_or(Refused)?;
        // SAFETY: valid context; the helper checks the length.
        if unsafe { bpf_xdp_adjust_head(self.md(), len as i32) } != 0 {
            return Err(Refused);
        }
        self.write(0, &link)
    }

    #[inline(always)]
    fn mark_congested(&mut self) {}

    /// Addresses the frame; the entry point returns the action that sends it.
    #[inline(always)]
    fn send(&mut self, next_hop: &mut NextHop) -> Result<(), Refused> {
        self.write(0, &next_hop.macs)
    }

    #[inline(always)]
    fn enter(&mut self, _ifindex: u32) -> Result<(), Refused> {
        Err(Refused)
    }

    #[inline(always)]
    fn send_raw(&mut self, _ifindex: u32) -> Result<(), Refused> {
        Err(Refused)
    }

    #[inline(always)]
    fn receive(&mut self, _ifindex: u32) -> Result<(), Refused> {
        Err(Refused)
    }
}
