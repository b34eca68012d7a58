//! An object of its own for `cargo xtask bench packets`: programs that put the packet back before each iteration, vary
//! its flow, and tail-call the program under measurement, which is the one of the ordinary object; and floors, the least
//! that any such program costs.
#![no_std]
#![no_main]

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup, xdp_action},
    btf_maps::SkStorage,
    helpers::{
        self, bpf_get_prandom_u32, bpf_jiffies64, bpf_redirect_neigh, bpf_redirect_peer, bpf_sk_release,
        bpf_skb_adjust_room, bpf_skc_lookup_tcp, bpf_xdp_adjust_head,
    },
    macros::{btf_map, cgroup_sock_addr, classifier, map, xdp},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray},
    programs::{SockAddrContext, TcContext, XdpContext},
};

/// Bytes restored: Ethernet, IPv6 and TCP headers.
const PACKET_LEN: usize = 74;
/// Bytes restored of what is in a tunnel: another IPv6 header.
const TUNNEL_LEN: usize = 114;
/// Bytes restored where IPv4 suffices.
const PACKET4_LEN: usize = 54;

/// What an iteration starts from.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Plan {
    /// 0: one flow; 1: a random source port; 2: another flow each time.
    vary: u32,
    /// Flows made so far.
    counter: u32,
    /// Offset of the source port.
    port_at: u32,
    /// Offset of the last two bytes of the source address.
    addr_at: u32,
    /// Bytes of the packet.
    len: u32,
    /// Zero.
    _pad: u32,
    /// The packet's head, and room for the last word of it.
    packet: [u64; 15],
}

/// `BPF_F_NO_COMMON_LRU`, as `CONNECTIONS` have it; so are their entries' size and number.
const NO_COMMON_LRU: u32 = 2;

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static FLOOR_HASH: HashMap<[u64; 2], [u64; 8]> = HashMap::with_max_entries(131_072, 0);
#[map]
static FLOOR_LRU: LruHashMap<[u64; 2], [u64; 4]> = LruHashMap::with_max_entries(1_048_576, NO_COMMON_LRU);
#[btf_map]
static FLOOR_STORAGE: SkStorage<[u64; 4]> = SkStorage::new();
#[map]
static FLOOR_COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(4, 0);

/// Restores the packet between `data` and `end`; the number that makes its flow differ.
#[inline(always)]
fn restore(data: usize, end: usize) -> Option<u32> {
    let plan = PLAN.get_ptr_mut(0)?;
    if data + PACKET4_LEN > end {
        return None;
    }
    // SAFETY: an array element stays; only this CPU runs the measurement.
    let plan = unsafe { &mut *plan };
    let from = core::ptr::from_ref(&plan.packet) as usize;
    // SAFETY: both ranges hold the bytes, as checked above and by the size of `packet`.
    unsafe {
        *(data as *mut [u64; 6]) = *(from as *const [u64; 6]);
        *((data + 48) as *mut u32) = *((from + 48) as *const u32);
        *((data + 52) as *mut u16) = *((from + 52) as *const u16);
    }
    if data + PACKET_LEN <= end {
        // SAFETY: as above.
        unsafe {
            *((data + 54) as *mut [u16; 10]) = *((from + 54) as *const [u16; 10]);
        }
    }
    if data + TUNNEL_LEN <= end {
        // SAFETY: as above.
        unsafe {
            *((data + 74) as *mut [u16; 20]) = *((from + 74) as *const [u16; 20]);
        }
    }
    let number = match plan.vary {
        0 => return Some(0),
        // SAFETY: a helper without arguments.
        1 => unsafe { bpf_get_prandom_u32() },
        _ => {
            plan.counter = plan.counter.wrapping_add(1);
            plan.counter
        }
    };
    let port = data + (plan.port_at & 0x3f) as usize;
    if port + size_of::<u16>() > end {
        return None;
    }
    // SAFETY: inside the packet, as just checked.
    unsafe { *(port as *mut u16) = number as u16 };
    if plan.vary == 2 {
        let addr = data + (plan.addr_at & 0x3f) as usize;
        if addr + size_of::<u16>() > end {
            return None;
        }
        // SAFETY: as above.
        unsafe { *(addr as *mut u16) = (number >> 16) as u16 };
    }
    Some(number)
}

/// Takes away what a program put before the packet, or gives back what it took.
#[inline(always)]
fn restore_len(context: &XdpContext) {
    let Some(plan) = PLAN.get(0) else { return };
    // Else the compiler adds the length to the pointer, which the verifier refuses to shift.
    let len = core::hint::black_box(context.data_end() - context.data());
    let added = len as i32 - plan.len as i32;
    if added != 0 {
        // SAFETY: valid context; the helper checks the length.
        unsafe { bpf_xdp_adjust_head(context.as_ptr().cast(), added) };
    }
}

/// Restores, then runs the XDP program under measurement.
#[xdp(frags)]
pub fn bench_xdp(context: XdpContext) -> u32 {
    restore_len(&context);
    if restore(context.data(), context.data_end()).is_some() {
        // SAFETY: valid context and index. Returns only if there is no program.
        unsafe { XDP_TARGET.tail_call(&context, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Gives the packet back what a program took from before its IP header.
#[inline(always)]
fn lengthen(context: &TcContext) {
    let Some(plan) = PLAN.get(0) else { return };
    let missing = plan.len as i32 - context.len() as i32;
    if missing > 0 {
        // SAFETY: valid context; the helper checks the length.
        unsafe { bpf_skb_adjust_room(context.as_ptr().cast(), missing, BPF_ADJ_ROOM_MAC, 0) };
    }
}

/// Restores, then runs the tc program under measurement.
#[classifier]
pub fn bench_tc(context: TcContext) -> i32 {
    lengthen(&context);
    if restore(context.data(), context.data_end()).is_some() {
        // SAFETY: valid context and index. Returns only if there is no program.
        unsafe { TC_TARGET.tail_call(&context, 0) };
    }
    -2
}

/// Nothing: what the loop costs.
#[xdp(frags)]
pub fn floor_return_xdp(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Nothing: what the loop costs.
#[classifier]
pub fn floor_return_tc(_context: TcContext) -> i32 {
    -1
}

/// Forwards without translating: a FIB lookup, and a redirect.
#[classifier]
pub fn floor_forward_tc(context: TcContext) -> i32 {
    forwarded(&context)
}

/// The same, and records both directions of a flow that it does not know.
#[classifier]
pub fn floor_record_tc(context: TcContext) -> i32 {
    let Some(key @ [addresses, ports]) = tuple(context.data(), context.data_end()) else { return -1 };
    // SAFETY: only asked whether it exists.
    if unsafe { FLOOR_LRU.get(key) }.is_none() {
        let _ = FLOOR_LRU.insert(key, [0u64; 4], 0);
        let reply_ports = ((ports >> 32) as u32).rotate_left(16);
        let reply = [addresses.rotate_left(32), u64::from(reply_ports) << 32 | ports & 0xffff_ffff];
        let _ = FLOOR_LRU.insert(reply, [0u64; 4], 0);
    }
    forwarded(&context)
}

#[inline(always)]
fn forwarded(context: &TcContext) -> i32 {
    const IPV4: u32 = (0x0800_u16).to_be() as u32;
    // SAFETY: the context is valid for the whole run of the program.
    if unsafe { (*context.skb.skb).protocol } != IPV4 {
        return -1;
    }
    // SAFETY: integers only, all zeroes is a value.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    let (Ok(src), Ok(dst)) = (context.load::<u32>(26), context.load::<u32>(30)) else { return -1 };
    params.family = 2;
    // SAFETY: as above.
    params.ifindex = unsafe { (*context.skb.skb).ifindex };
    params.__bindgen_anon_3.ipv4_src = src;
    params.__bindgen_anon_4.ipv4_dst = dst;
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: valid context; `params` is initialised and `size` bytes long.
    let found = unsafe { helpers::bpf_fib_lookup(context.as_ptr(), &raw mut params, size, 0) };
    match found {
        // SAFETY: no pointers.
        0 if context.store(0, &[params.dmac, params.smac], 0).is_ok() => unsafe {
            bpf_redirect_peer(params.ifindex, 0) as i32
        },
        // SAFETY: no parameters: the kernel finds the neighbour.
        0 | 7 => unsafe { bpf_redirect_neigh(params.ifindex, core::ptr::null_mut(), 0, 0) as i32 },
        _ => -1,
    }
}

/// Nothing, at a hook of `connect()`.
#[cgroup_sock_addr(connect4)]
pub fn floor_connect4(_context: SockAddrContext) -> i32 {
    1
}

/// Looks up what is dialled, and records it for the socket: a new key in an LRU map.
#[cgroup_sock_addr(connect4)]
pub fn floor_record_connect4(context: SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the whole run of the program.
    let (addr, port, cookie) = unsafe {
        let fields = &*context.sock_addr;
        (fields.user_ip4, fields.user_port, helpers::bpf_get_socket_cookie(context.as_ptr()))
    };
    let dialled = u64::from(addr) << 32 | u64::from(port);
    // SAFETY: the value is read at once.
    if unsafe { FLOOR_HASH.get([dialled, 0]) }.is_none() {
        let _ = FLOOR_LRU.insert([cookie, dialled], [0u64; 4], 0);
    }
    1
}

/// The same in the socket's own storage.
#[cgroup_sock_addr(connect4)]
pub fn floor_store_connect4(context: SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the whole run of the program.
    let (addr, port) = unsafe { ((*context.sock_addr).user_ip4, (*context.sock_addr).user_port) };
    let dialled = u64::from(addr) << 32 | u64::from(port);
    // SAFETY: the value is read at once.
    if unsafe { FLOOR_HASH.get([dialled, 0]) }.is_none() {
        // SAFETY: the socket of the context lives; the value is initialised.
        unsafe { FLOOR_STORAGE.get_or_insert_ptr_mut(&context, Some(&mut [dialled, 0, 0, 0])) };
    }
    1
}

/// Nothing, at a hook of `recvmsg()`.
#[cgroup_sock_addr(recvmsg4)]
pub fn floor_recvmsg4(_context: SockAddrContext) -> i32 {
    1
}

/// Reads what a 5-tuple needs from the packet between `data` and `end`: Ethernet, IPv4, ports.
#[inline(always)]
fn tuple(data: usize, end: usize) -> Option<[u64; 2]> {
    if data + PACKET4_LEN > end {
        return None;
    }
    // SAFETY: inside the packet, as just checked; alignment does not matter where programs run in a JIT.
    let (ethertype, version, protocol, addresses, ports) = unsafe {
        (
            *((data + 12) as *const u16),
            *((data + 14) as *const u8),
            *((data + 23) as *const u8),
            *((data + 26) as *const [u32; 2]),
            *((data + 34) as *const u32),
        )
    };
    if ethertype != 0x0800u16.to_be() || version != 0x45 {
        return None;
    }
    let [src, dst] = addresses;
    Some([u64::from(src) << 32 | u64::from(dst), u64::from(ports) << 32 | u64::from(protocol)])
}

/// Parses Ethernet, IPv4 and TCP.
#[xdp(frags)]
pub fn floor_parse(context: XdpContext) -> u32 {
    match tuple(context.data(), context.data_end()) {
        Some([addresses, ports]) if addresses ^ ports != 1 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// Parses, and looks the 5-tuple up in a hash map.
#[xdp(frags)]
pub fn floor_hash(context: XdpContext) -> u32 {
    let Some(key) = tuple(context.data(), context.data_end()) else { return xdp_action::XDP_DROP };
    // SAFETY: the value is read at once.
    match unsafe { FLOOR_HASH.get(key) } {
        Some(value) if value[0] != 1 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// Parses, and looks the 5-tuple up in an LRU hash map.
#[xdp(frags)]
pub fn floor_lru(context: XdpContext) -> u32 {
    let Some(key) = tuple(context.data(), context.data_end()) else { return xdp_action::XDP_DROP };
    // SAFETY: the value is read at once.
    match unsafe { FLOOR_LRU.get(key) } {
        Some(value) if value[0] != 1 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// Parses, and inserts the 5-tuple into an LRU hash map twice: what two directions of a connection cost.
#[xdp(frags)]
pub fn floor_insert_two(context: XdpContext) -> u32 {
    let Some([addresses, ports]) = tuple(context.data(), context.data_end()) else {
        return xdp_action::XDP_DROP;
    };
    let value = [0u64; 4];
    for key in [[addresses, ports], [ports, addresses]] {
        if FLOOR_LRU.insert(key, value, 0).is_err() {
            return xdp_action::XDP_DROP;
        }
    }
    xdp_action::XDP_TX
}

/// Asks the routing table where packets to the sender go.
#[xdp(frags)]
pub fn floor_route(context: XdpContext) -> u32 {
    let Some([addresses, _]) = tuple(context.data(), context.data_end()) else { return xdp_action::XDP_DROP };
    // SAFETY: integers only, all zeroes is a value.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.family = 2;
    params.ifindex = context.ingress_ifindex() as u32;
    params.__bindgen_anon_3.ipv4_src = addresses as u32;
    params.__bindgen_anon_4.ipv4_dst = (addresses >> 32) as u32;
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: valid context; `params` is initialised and `size` bytes long.
    match unsafe { helpers::bpf_fib_lookup(context.as_ptr(), &raw mut params, size, 0) } {
        0 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// Asks whether a TCP socket waits for the packet.
#[xdp(frags)]
pub fn floor_socket(context: XdpContext) -> u32 {
    let Some([addresses, ports]) = tuple(context.data(), context.data_end()) else {
        return xdp_action::XDP_DROP;
    };
    let (src, dst) = ((addresses >> 32) as u32, addresses as u32);
    let mut tuple = [src, dst, (ports >> 32) as u32];
    let (from, len) = ((&raw mut tuple).cast(), size_of::<[u32; 3]>() as u32);
    // SAFETY: valid context; `from` points to `len` readable bytes.
    let socket = unsafe { bpf_skc_lookup_tcp(context.as_ptr(), from, len, u64::MAX, 0) };
    if socket.is_null() {
        return xdp_action::XDP_TX;
    }
    // SAFETY: not null, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    xdp_action::XDP_DROP
}

/// The least that translating a packet of a known connection costs: its lookup, a clock, the bytes that DNAT, SNAT and a
/// known next hop change, both checksums by difference, and three counters. No rules, no phases, no other packet.
#[xdp(frags)]
pub fn floor_translate(context: XdpContext) -> u32 {
    let Some(key) = tuple(context.data(), context.data_end()) else { return xdp_action::XDP_DROP };
    let Some(entry) = FLOOR_LRU.get_ptr_mut(key) else {
        let _ = FLOOR_LRU.insert(key, [0u64; 4], 0);
        return xdp_action::XDP_DROP;
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() } >> 8;
    // SAFETY: a map value stays readable and writable for this run; only this CPU runs the measurement.
    let entry = unsafe { &mut *entry };
    if entry[0] != now {
        entry[0] = now;
    }
    let (data, end) = (context.data(), context.data_end());
    if data + PACKET4_LEN > end {
        return xdp_action::XDP_DROP;
    }
    let (addresses, ports) = (entry[1] | 0x0a00_0001_0a00_0002, entry[2] as u32 | 0x1f90_8000);
    // SAFETY: inside the packet, as just checked.
    unsafe {
        let old = *((data + 26) as *const u64);
        let words = |value: u64| (value & 0xffff_ffff) + (value >> 32);
        let moved = words(!old) + words(addresses);
        *(data as *mut [u32; 3]) = [entry[3] as u32, (entry[3] >> 32) as u32, entry[2] as u32];
        *((data + 22) as *mut u8) -= 1;
        *((data + 24) as *mut u16) = folded(u64::from(!*((data + 24) as *const u16)) + moved + 0xfffe);
        let old_ports = *((data + 34) as *const u32);
        let sum = u64::from(!*((data + 50) as *const u16)) + moved + u64::from(!old_ports) + u64::from(ports);
        *((data + 50) as *mut u16) = folded(sum);
        *((data + 26) as *mut u64) = addresses;
        *((data + 34) as *mut u32) = ports;
    }
    let mut index = 0;
    while index < 3 {
        if let Some(counter) = FLOOR_COUNTERS.get_ptr_mut(index) {
            // SAFETY: this CPU's own slot.
            unsafe { *counter = [(*counter)[0] + 1, (*counter)[1] + PACKET4_LEN as u64] };
        }
        index += 1;
    }
    xdp_action::XDP_TX
}

/// The ones' complement of a ones' complement sum.
#[inline(always)]
fn folded(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Lets the kernel grant helpers that want a GPL-compatible program.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

/// Never reached: nothing here can panic, and the linker fails if it could.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
