//! The tc hook's packets: a socket buffer, changed through helpers that keep its checksum state true.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_redir_neigh,
    },
    helpers::{
        bpf_csum_diff, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_ecn_set_ce,
        bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use lb_common::{
    checksum::Sum,
    family::{Family, Protocol, V4},
    settings::FEATURE_CSUM_IPV6,
};

use super::{CHUNK, ChecksumChange, NextHop, OFFSET_MASK, Packet, Refused};
use crate::{
    globals::has_feature,
    parse::{ETHERNET_LEN, VLAN_ID},
};

/// Bytes made linear where some that are needed are not.
const PARSE_BYTES: usize = 128;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16): addresses of IPv6 change nothing in `CHECKSUM_COMPLETE`,
/// for IPv6 has no header checksum that would balance them.
const BPF_F_IPV6: u64 = 128;

/// `pkt_type` of a frame that is addressed to another device (`linux/if_packet.h`).
const PACKET_OTHERHOST: u32 = 3;

/// A packet at a tc hook.
pub struct TcPacket {
    context: TcContext,
}

impl TcPacket {
    /// The packet of `context`.
    #[inline(always)]
    pub const fn new(context: TcContext) -> Self {
        Self { context }
    }

    /// The hook's context.
    #[inline(always)]
    pub fn skb(&self) -> *mut __sk_buff {
        self.context.as_ptr().cast()
    }
}

/// `Err` for everything but 0, a helper's success.
#[inline(always)]
fn checked(result: i64) -> Result<(), Refused> {
    if result == 0 { Ok(()) } else { Err(Refused) }
}

/// `TC_ACT_REDIRECT`, what a redirect helper returns when it accepts.
const REDIRECT: i64 = 7;

/// `Err` for everything but `TC_ACT_REDIRECT`.
#[inline(always)]
fn redirected(result: i64) -> Result<(), Refused> {
    if result == REDIRECT { Ok(()) } else { Err(Refused) }
}

impl Packet for TcPacket {
    const HANDS_ON: bool = false;

    #[inline(always)]
    fn len(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn counted_len(&self, _len: u32) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*self.skb()).ifindex }
    }

    #[inline(always)]
    fn is_in_vlan(&self) -> bool {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*self.skb()).vlan_present != 0 && (*self.skb()).vlan_tci & VLAN_ID as u32 != 0 }
    }

    #[inline(always)]
    fn is_addressed_elsewhere(&self) -> bool {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*self.skb()).pkt_type == PACKET_OTHERHOST }
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context.as_ptr()
    }

    /// What the stack sends has its headers in the linear part and nothing else: to pull payload there would copy it, keep
    /// its receiver from merging it with what came before, and have the headers copied too where the buffer is a clone.
    #[inline(always)]
    fn reach(&mut self, end: usize) {
        let end = end & OFFSET_MASK;
        if self.context.data() + end > self.context.data_end() {
            self.pull_to(if end < PARSE_BYTES { PARSE_BYTES } else { end } as u32);
        }
    }

    #[inline(always)]
    fn pull(&mut self) {
        let len = self.len() as usize;
        self.reach(if len < PARSE_BYTES { len } else { PARSE_BYTES });
    }

    #[inline(always)]
    fn pull_to(&mut self, len: u32) {
        let want = if self.len() < len { self.len() } else { len };
        // SAFETY: valid context. A failure shows as failing reads.
        unsafe { bpf_skb_pull_data(self.skb(), want) };
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*self.skb()).gso_size }
    }

    #[inline(always)]
    fn sum(&self, offset: usize, len: usize, chunk: &mut [u32; CHUNK / 4]) -> Result<u32, Refused> {
        *chunk = [0; CHUNK / 4];
        let (to, size) = (chunk.as_mut_ptr(), CHUNK as u32);
        if len == 0 || len > CHUNK {
            return Err(Refused);
        }
        // The verifier must see both bounds in the value it passes on, and that of Linux 6.1 learns nothing from
        // `len == 0`; the compiler knows them and would drop the mask.
        let len = (core::hint::black_box(len - 1) & (CHUNK - 1)) + 1;
        // SAFETY: valid context; `len` is at most the size of `chunk`.
        checked(unsafe { bpf_skb_load_bytes(self.context(), offset as u32, to.cast(), len as u32) })?;
        // SAFETY: all of `chunk` is initialised, what lies behind `len` with zeroes.
        Ok(unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, to, size, 0) } as u32)
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let at = self.context.data() + (offset & OFFSET_MASK);
        if at + size_of::<T>() > self.context.data_end() {
            return None;
        }
        // SAFETY: the bytes lie inside the packet, as just checked, and any bytes are a `T`. Alignment: the kernel
        // aligns IP headers where the machine needs it (NET_IP_ALIGN); elsewhere unaligned loads are cheap, and the
        // verifier refuses what is neither.
        Some(unsafe { *(at as *const T) })
    }

    #[inline(always)]
    fn load<T: Copy + Default>(&self, offset: usize) -> Option<T> {
        let mut value = T::default();
        let to = (&raw mut value).cast();
        // SAFETY: valid context; `to` points to `size_of::<T>()` writable bytes.
        let result = unsafe { bpf_skb_load_bytes(self.context(), offset as u32, to, size_of::<T>() as u32) };
        if result == 0 { Some(value) } else { None }
    }

    #[inline(always)]
    fn write<T>(&mut self, offset: usize, value: &T) -> Result<(), Refused> {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: valid context; `from` points to `size_of::<T>()` initialised bytes.
        checked(unsafe { bpf_skb_store_bytes(self.skb(), offset as u32, from, size_of::<T>() as u32, 0) })
    }

    #[inline(always)]
    fn update_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused> {
        let offset = change.offset as u32;
        let mangled = if change.protocol == Protocol::UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let mut pseudo = mangled | BPF_F_PSEUDO_HDR as u64;
        if change.ipv6 && has_feature(FEATURE_CSUM_IPV6) {
            pseudo |= BPF_F_IPV6;
        }
        // SAFETY: valid context; the helper checks the offset. A size of 0 in the flags: `to` is a difference.
        checked(unsafe { bpf_l4_csum_replace(self.skb(), offset, 0, difference(change.pseudo), pseudo) })?;
        let segment = difference(change.segment);
        if segment == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        checked(unsafe { bpf_l4_csum_replace(self.skb(), offset, 0, segment, mangled) })
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), Refused> {
        // SAFETY: valid context; the helper checks the length.
        checked(unsafe { bpf_skb_change_tail(self.skb(), len, 0) })
    }

    #[inline(always)]
    fn make_room(&mut self, len: u32) -> Result<(), Refused> {
        // SAFETY: valid context; the helper checks the length.
        checked(unsafe { bpf_skb_adjust_room(self.skb(), len as i32, BPF_ADJ_ROOM_MAC, 0) })
    }

    #[inline(always)]
    fn add_link(&mut self) -> Result<(), Refused> {
        // SAFETY: valid context; the helper checks the length.
        checked(unsafe { bpf_skb_change_head(self.skb(), ETHERNET_LEN as u32, 0) })
    }

    /// Segments the stack or the hardware will make keep their size: who wraps has seen to it that they fit.
    #[inline(always)]
    fn wrap<F: Family>(&mut self, len: usize) -> Result<(), Refused> {
        let family = if F::ETHERTYPE == V4::ETHERTYPE {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        } else {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
        };
        let flags = (family | BPF_F_ADJ_ROOM_FIXED_GSO) as u64;
        // SAFETY: valid context; the helper checks the length.
        checked(unsafe { bpf_skb_adjust_room(self.skb(), len as i32, BPF_ADJ_ROOM_MAC, flags) })
    }

    #[inline(always)]
    fn unwrap(&mut self, len: usize) -> Result<(), Refused> {
        let flags = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
        // SAFETY: valid context; the helper checks the length.
        checked(unsafe { bpf_skb_adjust_room(self.skb(), -(len as i32), BPF_ADJ_ROOM_MAC, flags) })
    }

    #[inline(always)]
    fn mark_congested(&mut self) {
        // SAFETY: valid context.
        unsafe { bpf_skb_ecn_set_ce(self.skb()) };
    }

    #[inline(always)]
    fn send(&mut self, next_hop: &mut NextHop) -> Result<(), Refused> {
        let len = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: `neighbour` is initialised and `len` bytes long.
        redirected(unsafe { bpf_redirect_neigh(next_hop.ifindex, &raw mut next_hop.neighbour, len, 0) })
    }

    #[inline(always)]
    fn enter(&mut self, ifindex: u32) -> Result<(), Refused> {
        // SAFETY: no pointers.
        redirected(unsafe { bpf_redirect_peer(ifindex, 0) })
    }

    #[inline(always)]
    fn send_raw(&mut self, ifindex: u32) -> Result<(), Refused> {
        // SAFETY: no pointers.
        redirected(unsafe { bpf_redirect(ifindex, 0) })
    }

    #[inline(always)]
    fn receive(&mut self, ifindex: u32) -> Result<(), Refused> {
        // SAFETY: no pointers.
        redirected(unsafe { bpf_redirect(ifindex, BPF_F_INGRESS as u64) })
    }
}

/// A change as the checksum helpers take it; 0 says that there is none.
#[inline(always)]
const fn difference(sum: Sum) -> u64 {
    match sum.fold() {
        // Ones' complement has two zeros: removing and adding the same words gives the other one.
        0xffff => 0,
        folded => folded as u64,
    }
}
