//! What this kernel and this process can do: its release, the capabilities held, and probes of single features.
//! Called by `load` before anything is created and by `lb-agent check`.
//!
//! What must stay true: a probe leaves nothing behind, and a feature is never assumed from the release where the
//! kernel can be asked, because distributions backport.

use std::{
    fmt, fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use lb_common::settings::{FEATURE_CSUM_IPV6, FEATURE_SET_RETVAL, FEATURE_XDP_FRAGS};

use super::bpf::{self, AttachType, PROG_TYPE_CGROUP_SOCK_ADDR, PROG_TYPE_SCHED_CLS, PROG_TYPE_XDP};

/// A kernel release, `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl Release {
    /// The oldest kernel the datapath is made for.
    pub const OLDEST: Self = Self { major: 5, minor: 15 };
    /// tcx links.
    pub const TCX: Self = Self { major: 6, minor: 6 };
    /// BPF memory is accounted to the memory cgroup, no longer to RLIMIT_MEMLOCK.
    pub const MEMCG_ACCOUNTING: Self = Self { major: 5, minor: 11 };

    /// The running kernel's.
    pub fn running() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        Self::parse(&text).ok_or_else(|| io::Error::other(format!("kernel release {:?}", text.trim())))
    }

    /// From text like `6.1.0-25-amd64`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A capability by its number (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(pub u32, pub &'static str);

impl Capability {
    /// Devices, qdiscs, tc and cgroup programs.
    pub const NET_ADMIN: Self = Self(12, "CAP_NET_ADMIN");
    /// Includes the three others, as before Linux 5.8.
    pub const SYS_ADMIN: Self = Self(21, "CAP_SYS_ADMIN");
    /// Raising RLIMIT_MEMLOCK before Linux 5.11.
    pub const SYS_RESOURCE: Self = Self(24, "CAP_SYS_RESOURCE");
    /// Programs that the verifier checks as those of a privileged user.
    pub const PERFMON: Self = Self(38, "CAP_PERFMON");
    /// Maps and programs.
    pub const BPF: Self = Self(39, "CAP_BPF");
}

/// The capabilities in force for this process: a bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Those of this process.
    pub fn effective() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        Self::parse(&status).ok_or_else(|| io::Error::other("no CapEff in /proc/self/status"))
    }

    fn parse(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }

    /// True if `capability` is in force, by itself or, for BPF and PERFMON, as part of SYS_ADMIN.
    pub const fn has(self, capability: Capability) -> bool {
        let part_of_sys_admin = capability.0 == Capability::BPF.0 || capability.0 == Capability::PERFMON.0;
        self.0 >> capability.0 & 1 == 1 || (part_of_sys_admin && self.0 >> Capability::SYS_ADMIN.0 & 1 == 1)
    }

    /// Which of those that `lb-agent run` needs on `release` are missing.
    pub fn missing(self, release: Release) -> Vec<Capability> {
        let mut needed = vec![Capability::BPF, Capability::NET_ADMIN, Capability::PERFMON];
        if release < Release::MEMCG_ACCOUNTING {
            needed.push(Capability::SYS_RESOURCE);
        }
        needed.into_iter().filter(|&capability| !self.has(capability)).collect()
    }
}

/// Removes the limit of locked memory, to which kernels before 5.11 account maps.
pub fn raise_memlock() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit that lives during the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The cookie of this process's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket =
        std::net::UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| std::net::UdpSocket::bind(("::", 0)))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes to `cookie`; the socket is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The value of the read-only global `FEATURES`: what the programs may use.
pub fn features() -> u32 {
    let mut features = 0;
    if has_set_retval() {
        features |= FEATURE_SET_RETVAL;
    }
    if has_csum_ipv6() {
        features |= FEATURE_CSUM_IPV6;
    }
    if has_xdp_frags() {
        features |= FEATURE_XDP_FRAGS;
    }
    features
}

/// How jiffies tell CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jiffies {
    /// Nanoseconds of one; 0: they do not tell.
    pub ns: u32,
    /// How many there were when CLOCK_MONOTONIC was 0. A little less than 2^32: the kernel begins 300 s before 0.
    pub at_0: u32,
}

impl Jiffies {
    /// This kernel's. It counts a jiffy when CLOCK_MONOTONIC has gone on by as much, so the two stay together.
    pub fn probe() -> Self {
        let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `tick` is writable for the duration of the call.
        let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut tick) };
        match i32::try_from(tick.tv_nsec) {
            Ok(ns) if result == 0 && tick.tv_sec == 0 && ns > 0 => Self::with_tick(ns),
            _ => Self::default(),
        }
    }

    /// Where a tick takes `ns`: asked by one program that reads both clocks.
    fn with_tick(ns: i32) -> Self {
        const JIFFIES64: i32 = 118;
        const KTIME_GET_COARSE_NS: i32 = 160;
        let program = [
            call(JIFFIES64),
            mov_register(R6, R0),
            call(KTIME_GET_COARSE_NS),
            div(R0, ns),
            sub_register(R6, R0),
            mov_register(R0, R6),
            EXIT,
        ];
        bpf::load_program(PROG_TYPE_SCHED_CLS, AttachType(0), &program)
            .and_then(|program| bpf::test_run(program.as_fd(), &[0; 64]))
            .map_or_else(
                |_| Self::default(),
                |at_0| Self { ns: ns.unsigned_abs(), at_0: at_0.cast_unsigned() },
            )
    }
}

/// `bpf_set_retval` may be called from a connect hook (Linux 5.18).
pub fn has_set_retval() -> bool {
    const SET_RETVAL: i32 = 187;
    let program = [mov(R1, -libc::ECONNREFUSED), call(SET_RETVAL), mov(R0, 0), EXIT];
    bpf::load_program(PROG_TYPE_CGROUP_SOCK_ADDR, AttachType::CONNECT4, &program).is_ok()
}

/// `bpf_l4_csum_replace` knows `BPF_F_IPV6` (Linux 6.16, and stable kernels it was backported to). Asked by calling
/// it with an odd offset: unknown flags are refused (EINVAL) before bad offsets are (EFAULT).
pub fn has_csum_ipv6() -> bool {
    const L4_CSUM_REPLACE: i32 = 11;
    const F_PSEUDO_HDR: i32 = 1 << 4;
    const F_IPV6: i32 = 1 << 7;
    let program =
        [mov(R2, 1), mov(R3, 0), mov(R4, 0), mov(R5, F_PSEUDO_HDR | F_IPV6), call(L4_CSUM_REPLACE), EXIT];
    bpf::load_program(PROG_TYPE_SCHED_CLS, AttachType(0), &program)
        .and_then(|program| bpf::test_run(program.as_fd(), &[0; 64]))
        .is_ok_and(|result| result == -libc::EFAULT)
}

/// XDP programs may see packets of several buffers (Linux 5.18).
pub fn has_xdp_frags() -> bool {
    const XDP_HAS_FRAGS: u32 = 1 << 5;
    let program = [mov(R0, 2), EXIT];
    bpf::load_program_with(PROG_TYPE_XDP, AttachType::XDP, &program, XDP_HAS_FRAGS).is_ok()
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R6: u8 = 6;
const EXIT: u64 = 0x95;

/// `BPF_ALU64 | BPF_MOV | BPF_K`: register = value.
const fn mov(register: u8, value: i32) -> u64 {
    0xb7 | (register as u64) << 8 | (value as u32 as u64) << 32
}

/// `BPF_ALU64 | BPF_MOV | BPF_X`: register = other.
const fn mov_register(register: u8, other: u8) -> u64 {
    0xbf | (register as u64) << 8 | (other as u64) << 12
}

/// `BPF_ALU64 | BPF_SUB | BPF_X`: register -= other.
const fn sub_register(register: u8, other: u8) -> u64 {
    0x1f | (register as u64) << 8 | (other as u64) << 12
}

/// `BPF_ALU64 | BPF_DIV | BPF_K`: register /= value, which is positive.
const fn div(register: u8, value: i32) -> u64 {
    0x37 | (register as u64) << 8 | (value as u32 as u64) << 32
}

/// `BPF_JMP | BPF_CALL`: calls a kernel function by its number.
const fn call(function: i32) -> u64 {
    0x85 | (function as u32 as u64) << 32
}

/// Lets the calling thread have what CPU time others of its cgroup leave, for good (setpriority(2)).
pub fn give_way() {
    const NICE: libc::c_int = 10;
    // SAFETY: no pointers; 0 is the calling thread. To become nicer needs no right and does not fail.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_from_what_distributions_write() {
        let rows = [
            ("6.18.44-fc-v657\n", 6, 18),
            ("5.15.0-1051-aws", 5, 15),
            ("6.1.0-25-amd64", 6, 1),
            ("6.6", 6, 6),
        ];
        for (text, major, minor) in rows {
            assert_eq!(Release::parse(text), Some(Release { major, minor }), "{text}");
        }
        assert_eq!(Release::parse("linux"), None);
        assert!(
            Release { major: 5, minor: 4 } < Release::OLDEST
                && Release { major: 6, minor: 1 } > Release::OLDEST
        );
    }

    #[test]
    fn missing_capabilities_are_named() {
        let none = Capabilities::parse("Name:\tx\nCapEff:\t0000000000000000\n").unwrap();
        assert_eq!(none.missing(Release::TCX).len(), 3);
        assert_eq!(none.missing(Release { major: 5, minor: 10 }).len(), 4);
        let admin = Capabilities(1 << Capability::SYS_ADMIN.0);
        assert_eq!(admin.missing(Release::TCX), [Capability::NET_ADMIN]);
        let exact = Capabilities(1 << 39 | 1 << 38 | 1 << 12);
        assert_eq!(exact.missing(Release::TCX), []);
    }
}
