//! The bpf(2) calls that aya does not offer: links addressed by ifindex and replaced in place whatever their type,
//! what a link is attached to, two probes, and lookups and updates in batches. Called by the modules beside it, by
//! `conntrack_gc` and `maps::bpf`.
//!
//! What must stay true: this is the only module of the agent that calls bpf(2) itself. Layouts are those of
//! `union bpf_attr` in `include/uapi/linux/bpf.h`; the kernel takes bytes beyond the given size as zero.

use std::{
    ffi::{CString, c_long},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};

const BPF_MAP_GET_NEXT_KEY: c_long = 4;
const BPF_PROG_LOAD: c_long = 5;
const BPF_OBJ_PIN: c_long = 6;
const BPF_OBJ_GET: c_long = 7;
const BPF_PROG_TEST_RUN: c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: c_long = 15;
const BPF_PROG_QUERY: c_long = 16;
const BPF_MAP_LOOKUP_BATCH: c_long = 24;
const BPF_MAP_UPDATE_BATCH: c_long = 26;
const BPF_LINK_CREATE: c_long = 28;
const BPF_LINK_UPDATE: c_long = 29;
const BPF_LINK_DETACH: c_long = 34;

const LINK_TYPE_CGROUP: u32 = 3;
const LINK_TYPE_XDP: u32 = 6;
const LINK_TYPE_TCX: u32 = 11;

/// `BPF_PROG_TYPE_SCHED_CLS`
pub const PROG_TYPE_SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`
pub const PROG_TYPE_XDP: u32 = 6;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
pub const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;

/// Where a program hooks in (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct AttachType(pub u32);

impl AttachType {
    /// `BPF_CGROUP_INET4_CONNECT`
    pub const CONNECT4: Self = Self(10);
    /// `BPF_CGROUP_INET6_CONNECT`
    pub const CONNECT6: Self = Self(11);
    /// `BPF_CGROUP_UDP4_SENDMSG`
    pub const SENDMSG4: Self = Self(14);
    /// `BPF_CGROUP_UDP6_SENDMSG`
    pub const SENDMSG6: Self = Self(15);
    /// `BPF_CGROUP_UDP4_RECVMSG`
    pub const RECVMSG4: Self = Self(19);
    /// `BPF_CGROUP_UDP6_RECVMSG`
    pub const RECVMSG6: Self = Self(20);
    /// `BPF_CGROUP_INET4_GETPEERNAME`
    pub const GETPEERNAME4: Self = Self(29);
    /// `BPF_CGROUP_INET6_GETPEERNAME`
    pub const GETPEERNAME6: Self = Self(30);
    /// `BPF_XDP`
    pub const XDP: Self = Self(37);
    /// `BPF_TCX_INGRESS`
    pub const TCX_INGRESS: Self = Self(46);
    /// `BPF_TCX_EGRESS`
    pub const TCX_EGRESS: Self = Self(47);
}

/// What a link holds on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// A cgroup by its id, which is the inode of its directory; 0: the cgroup is gone.
    Cgroup(u64),
    /// A device by its ifindex; 0: the device is gone.
    Device(u32),
    /// Anything else.
    Other,
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Id of the link.
    pub id: u32,
    /// Id of the program it runs.
    pub program_id: u32,
    /// What it is attached to.
    pub target: LinkTarget,
    /// Which hook.
    pub attach_type: AttachType,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    _pad: u32,
    expected_revision: u64,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct Obj {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct InfoByFd {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_link_info`: the head, and the union of which a cgroup fills (u64, u32), a tcx link (u32, u32)
/// and an XDP link (u32).
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct RawLinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    words: [u32; 12],
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct ProgQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    _pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct NextKey {
    map_fd: u32,
    _pad: u32,
    key: u64,
    next_key: u64,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// bpf(2) with `attr`, which the kernel may write to.
///
/// # Safety
///
/// `A` is the layout that `command` expects, and every pointer in `attr` is valid for what the command does with it.
unsafe fn bpf<A: Pod>(command: c_long, attr: &mut A) -> io::Result<c_long> {
    // SAFETY: `attr` is a plain struct of the given size, alive and exclusively borrowed during the call; the
    // caller answers for the layout and the pointers inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The file descriptor a successful bpf(2) returned.
fn owned(fd: c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it; it fits an int.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

fn address<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>() as u64
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Attaches `program` to a cgroup (an open directory) and returns the link. Others' programs stay (links imply
/// `BPF_F_ALLOW_MULTI`). Linux 5.7.
pub fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    link_create(program, raw(cgroup), attach_type, 0)
}

/// Attaches `program` to a device, after the tcx programs already there, and returns the link. Linux 6.6.
pub fn link_device(program: BorrowedFd<'_>, ifindex: u32, attach_type: AttachType) -> io::Result<OwnedFd> {
    link_create(program, ifindex, attach_type, 0)
}

/// Attaches an XDP program to a device with `XDP_FLAGS_…` and returns the link. EBUSY: it has one. Linux 5.9.
pub fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    link_create(program, ifindex, AttachType::XDP, flags)
}

fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(program),
        target,
        attach_type: attach_type.0,
        flags,
        ..LinkCreate::zeroed()
    };
    // SAFETY: `LinkCreate` is the layout of BPF_LINK_CREATE and has no pointers.
    unsafe { bpf(BPF_LINK_CREATE, &mut attr) }.map(owned)
}

/// Makes `link` run `program` instead of what it runs: no packet or call sees neither or both.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link_fd: raw(link), new_prog_fd: raw(program), ..LinkUpdate::zeroed() };
    // SAFETY: `LinkUpdate` is the layout of BPF_LINK_UPDATE and has no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes `link` off its hook at once. Removing its last pin does so too, but later, from a kernel worker.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetach { link_fd: raw(link) };
    // SAFETY: `LinkDetach` is the layout of BPF_LINK_DETACH and has no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// What `link` is attached to.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::zeroed();
    let mut attr = InfoByFd {
        fd: raw(link),
        info_len: size_of::<RawLinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `InfoByFd` is the layout of BPF_OBJ_GET_INFO_BY_FD; `info` is writable for `info_len` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let [first, second, third, ..] = info.words;
    let (target, attach_type) = match info.link_type {
        LINK_TYPE_CGROUP => (LinkTarget::Cgroup(bytemuck::cast([first, second])), AttachType(third)),
        LINK_TYPE_TCX => (LinkTarget::Device(first), AttachType(second)),
        LINK_TYPE_XDP => (LinkTarget::Device(first), AttachType::XDP),
        _ => (LinkTarget::Other, AttachType(0)),
    };
    Ok(LinkInfo { id: info.id, program_id: info.prog_id, target, attach_type })
}

/// Programs that [`query_cgroup`] and [`query_device`] tell at most.
const QUERY_MAX: usize = 64;

/// Ids of the programs attached to a cgroup (an open directory) itself, not to its ancestors.
pub fn query_cgroup(cgroup: BorrowedFd<'_>, attach_type: AttachType) -> io::Result<Vec<u32>> {
    let mut programs = [0u32; QUERY_MAX];
    let mut attr = ProgQuery {
        target: raw(cgroup),
        attach_type: attach_type.0,
        prog_ids: programs.as_mut_ptr() as u64,
        count: QUERY_MAX as u32,
        ..ProgQuery::zeroed()
    };
    // SAFETY: `ProgQuery` is the layout of BPF_PROG_QUERY; `programs` has room for `count` ids.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(programs.into_iter().take(attr.count as usize).collect())
}

/// Program id and link id of each tcx program on a device of this network namespace.
pub fn query_device(ifindex: u32, attach_type: AttachType) -> io::Result<Vec<(u32, u32)>> {
    let (mut programs, mut links) = ([0u32; QUERY_MAX], [0u32; QUERY_MAX]);
    let mut attr = ProgQuery {
        target: ifindex,
        attach_type: attach_type.0,
        prog_ids: programs.as_mut_ptr() as u64,
        link_ids: links.as_mut_ptr() as u64,
        count: QUERY_MAX as u32,
        ..ProgQuery::zeroed()
    };
    // SAFETY: `ProgQuery` is the layout of BPF_PROG_QUERY; both arrays have room for `count` ids.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(programs.into_iter().zip(links).take(attr.count as usize).collect())
}

/// Pins a link, map or program at `path`, on a bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attr = Obj { pathname: path.as_ptr() as u64, fd: raw(object), file_flags: 0 };
    // SAFETY: `Obj` is the layout of BPF_OBJ_PIN; `path` is NUL-terminated and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at `path`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attr = Obj { pathname: path.as_ptr() as u64, fd: 0, file_flags: 0 };
    // SAFETY: `Obj` is the layout of BPF_OBJ_GET; `path` is NUL-terminated and outlives the call.
    unsafe { bpf(BPF_OBJ_GET, &mut attr) }.map(owned)
}

/// Loads a program of raw instructions; for probes.
pub fn load_program(prog_type: u32, attach_type: AttachType, instructions: &[u64]) -> io::Result<OwnedFd> {
    load_program_with(prog_type, attach_type, instructions, 0)
}

/// [`load_program`] with `BPF_F_…` flags.
pub fn load_program_with(
    prog_type: u32,
    attach_type: AttachType,
    instructions: &[u64],
    flags: u32,
) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut attr = ProgLoad {
        prog_type,
        insn_cnt: instructions.len() as u32,
        insns: address(instructions),
        license: license.as_ptr() as u64,
        prog_flags: flags,
        expected_attach_type: attach_type.0,
        ..ProgLoad::zeroed()
    };
    // SAFETY: `ProgLoad` is the layout of BPF_PROG_LOAD; instructions and licence outlive the call, and an
    // instruction is eight bytes.
    unsafe { bpf(BPF_PROG_LOAD, &mut attr) }.map(owned)
}

/// Runs a tc program once over `packet` and returns its return value.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<i32> {
    let mut attr = TestRun {
        prog_fd: raw(program),
        data_size_in: packet.len() as u32,
        data_in: address(packet),
        repeat: 1,
        ..TestRun::zeroed()
    };
    // SAFETY: `TestRun` is the head of the layout of BPF_PROG_TEST_RUN; `packet` is readable for its length and
    // nothing is written back but `attr` itself.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval as i32)
}

/// Number of entries of a map of any type with keys of `key_size` bytes; at most `limit`, since a map that changes
/// meanwhile may lead in circles.
pub fn count_keys(map: BorrowedFd<'_>, key_size: usize, limit: u32) -> io::Result<usize> {
    let (mut key, mut next) = (vec![0u8; key_size], vec![0u8; key_size]);
    let mut count = 0;
    while count < limit as usize {
        let mut attr = NextKey {
            map_fd: raw(map),
            _pad: 0,
            key: if count == 0 { 0 } else { key.as_ptr() as u64 },
            next_key: next.as_mut_ptr() as u64,
        };
        // SAFETY: `NextKey` is the layout of BPF_MAP_GET_NEXT_KEY; both buffers have the size of the map's keys.
        match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => count += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
        std::mem::swap(&mut key, &mut next);
    }
    Ok(count)
}

/// As [`count_keys`], in batches, for maps of which the kernel reads batches (hashes, tries). Linux 5.6.
pub fn count_entries(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    limit: u32,
) -> io::Result<usize> {
    let (mut room, mut count) = (BATCH, 0);
    let (mut keys, mut values) = (vec![0u8; room * key_size], vec![0u8; room * value_size]);
    // A trie's cursor is a key, a hash's a bucket of 32 bits.
    let mut cursor = vec![0u8; key_size.max(size_of::<u32>())];
    let mut is_first = true;
    loop {
        let mut attr = MapBatch {
            in_batch: if is_first { 0 } else { cursor.as_ptr() as u64 },
            out_batch: cursor.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: raw(map),
            ..MapBatch::zeroed()
        };
        // SAFETY: `MapBatch` is the layout of BPF_MAP_LOOKUP_BATCH; the cursor has room for a key or a bucket, keys
        // and values for `count` entries of the map's sizes (values of these maps are not per CPU).
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        match result.err().and_then(|error| error.raw_os_error()) {
            None => count += attr.count as usize,
            Some(libc::ENOENT) => return Ok(count + room.min(attr.count as usize)),
            // A bucket with more entries than there is room for; nothing was read.
            Some(libc::ENOSPC) => {
                room *= 2;
                keys.resize(room * key_size, 0);
                values.resize(room * value_size, 0);
                continue;
            }
            Some(code) => return Err(io::Error::from_raw_os_error(code)),
        }
        is_first = false;
        if count >= limit as usize {
            return Ok(count);
        }
    }
}

/// Values of `count` entries from index `first` on of a per-CPU array: `cpus` values each, the number of possible CPUs;
/// fewer entries if the array ends. `V` must have the size of the map's values, which is a multiple of 8. Linux 5.13.
pub fn read_per_cpu<V: Pod>(map: BorrowedFd<'_>, cpus: usize, first: u32, count: u32) -> io::Result<Vec<V>> {
    const { assert!(size_of::<V>().is_multiple_of(8), "the kernel rounds values up to 8 bytes") };
    read_values(map, cpus, first, count)
}

/// Values of `count` entries from index `first` on of an array; fewer if it ends. `V` must have the size of the map's
/// values. Linux 5.6.
pub fn read_array<V: Pod>(map: BorrowedFd<'_>, first: u32, count: u32) -> io::Result<Vec<V>> {
    read_values(map, 1, first, count)
}

/// `per_entry` values for each entry.
fn read_values<V: Pod>(map: BorrowedFd<'_>, per_entry: usize, first: u32, count: u32) -> io::Result<Vec<V>> {
    let mut keys = vec![0u32; count as usize];
    let mut values = vec![V::zeroed(); count as usize * per_entry];
    // The kernel begins behind the cursor.
    let before = first.checked_sub(1);
    let (cursor, mut next) = (before.unwrap_or_default(), 0u32);
    let mut attr = MapBatch {
        in_batch: if before.is_some() { std::ptr::from_ref(&cursor) as u64 } else { 0 },
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: raw(map),
        ..MapBatch::zeroed()
    };
    // SAFETY: `MapBatch` is the layout of BPF_MAP_LOOKUP_BATCH; an array's cursors are indexes of 32 bits, keys have
    // room for `count` of them and values for `per_entry` values each.
    let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    match result.err().and_then(|error| error.raw_os_error()) {
        None | Some(libc::ENOENT) => {}
        Some(code) => return Err(io::Error::from_raw_os_error(code)),
    }
    values.truncate(attr.count as usize * per_entry);
    Ok(values)
}

/// Writes entries in order, each atomically for the datapath, and returns how many were written: less than all where one
/// was refused, and none where the kernel has no batches for maps of this type. Why, only a single write says. `K` and
/// `V` must have the sizes of the map's keys and values. Linux 5.6, tries 5.13.
pub fn update_batch<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> usize {
    let all = keys.len().min(values.len());
    let mut attr = MapBatch {
        keys: address(keys),
        values: address(values),
        count: all as u32,
        map_fd: raw(map),
        ..MapBatch::zeroed()
    };
    // SAFETY: `MapBatch` is the layout of BPF_MAP_UPDATE_BATCH; keys and values are readable for `count` entries of the
    // sizes of `K` and `V`.
    match unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) } {
        Ok(_) => all,
        // A batch that was not begun leaves the count as it is.
        Err(_) if attr.count as usize >= all => 0,
        Err(_) => attr.count as usize,
    }
}

/// Entries read at once by [`walk`], unless a bucket holds more.
const BATCH: usize = 4096;

/// Walks a hash map in batches and gives each to `visit`. An entry that is neither added nor removed during the walk
/// is seen exactly once, because the kernel reads whole buckets. `K` and `V` must have the sizes of the map's keys
/// and values. Linux 5.6.
pub fn walk<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut visit: impl FnMut(&[K], &[V])) -> io::Result<()> {
    let (mut keys, mut values) = (vec![K::zeroed(); BATCH], vec![V::zeroed(); BATCH]);
    let mut cursor: Option<u64> = None;
    loop {
        let (result, next, count) = lookup_batch(map, cursor, &mut keys, &mut values);
        let code = result.err().and_then(|error| error.raw_os_error());
        match code {
            None | Some(libc::ENOENT) => visit(&keys[..count], &values[..count]),
            // A bucket with more entries than there is room for; nothing was read.
            Some(libc::ENOSPC) => {
                keys.resize(keys.len() * 2, K::zeroed());
                values.resize(values.len() * 2, V::zeroed());
            }
            Some(code) => return Err(io::Error::from_raw_os_error(code)),
        }
        if code == Some(libc::ENOENT) {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// One batch from `cursor` on: the result, the next cursor (for a hash map the number of a bucket, 32 bits) and the
/// number of entries read. `ENOENT`: these were the last.
fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: Option<u64>,
    keys: &mut [K],
    values: &mut [V],
) -> (io::Result<()>, u64, usize) {
    let mut next = cursor.unwrap_or_default();
    let at = std::ptr::from_mut(&mut next) as u64;
    let capacity = keys.len().min(values.len());
    let mut attr = MapBatch {
        in_batch: if cursor.is_some() { at } else { 0 },
        out_batch: at,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: capacity as u32,
        map_fd: raw(map),
        ..MapBatch::zeroed()
    };
    // SAFETY: `MapBatch` is the layout of BPF_MAP_LOOKUP_BATCH; `next` has room for the cursor, keys and values
    // for `count` entries of the sizes of `K` and `V`.
    let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) }.map(drop);
    (result, next, capacity.min(attr.count as usize))
}
