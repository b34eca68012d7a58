//! The datapath: entry points only. Each turns its context into a packet or a call, lets the stages decide, and
//! turns the verdict into a return code.
//!
//! Files in the order of a packet's way: `packet` (memory), `parse`, `concern` (may it be ours?), `balance` (its connection), `open`
//! (a connection for it), and what these ask: `work` (where it is worked out), `hook`, `kinds`, `conntrack`, `flood`, `proof`, `frontend`,
//! `host_socket`, `client`, `backend`, `nat`, `forward`, `tunnel`. Answers of our own: `answer`, `reject`, `icmp_error`; `icmp` and
//! `quote` for what quotes another packet; `socket` for the socket hooks; `counters`.
#![no_std]
#![no_main]

mod allowance;
mod answer;
mod backend;
mod balance;
mod client;
mod concern;
mod conntrack;
mod counters;
mod flood;
mod forward;
mod frontend;
mod globals;
mod hook;
mod host_socket;
mod icmp;
mod icmp_error;
mod kinds;
mod maps;
mod nat;
mod open;
mod packet;
mod parse;
mod proof;
mod quote;
mod reject;
mod service_cidr;
mod socket;
mod tunnel;
mod vip;
mod work;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md},
    helpers::bpf_redirect,
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use lb_common::{
    family::{Family as _, V4, V6},
    verdict::Verdict,
};

use crate::{
    balance::{balance, complain},
    hook::Hook,
    icmp::icmp,
    open::{claim, open, record},
    packet::{Opens, Packet as _, TcPacket, XdpPacket},
    parse::{Carries, ETHERNET_LEN, parse, parse_link},
    socket::{Call4, Call6, CallMapped, Luck, answer, dial, is_mapped},
    work::{Balanced, Work},
};

/// From the network: DNAT, SNAT for remote backends, and their answers.
#[classifier]
pub fn tc_uplink_ingress(context: TcContext) -> i32 {
    classify(context, Hook::UplinkIngress, ETHERNET_LEN)
}

/// To the network: answers of local backends; services dialled by the node itself.
#[classifier]
pub fn tc_uplink_egress(context: TcContext) -> i32 {
    classify(context, Hook::UplinkEgress, ETHERNET_LEN)
}

/// From the network, on a device without link-layer header.
#[classifier]
pub fn tc_l3_ingress(context: TcContext) -> i32 {
    classify(context, Hook::UplinkIngress, 0)
}

/// To the network, on a device without link-layer header.
#[classifier]
pub fn tc_l3_egress(context: TcContext) -> i32 {
    classify(context, Hook::UplinkEgress, 0)
}

/// From a pod.
#[classifier]
pub fn tc_workload_ingress(context: TcContext) -> i32 {
    classify(context, Hook::WorkloadIngress, ETHERNET_LEN)
}

/// To a pod.
#[classifier]
pub fn tc_workload_egress(context: TcContext) -> i32 {
    classify(context, Hook::WorkloadEgress, ETHERNET_LEN)
}

#[inline(always)]
fn classify(context: TcContext, hook: Hook, link_len: usize) -> i32 {
    let mut packet = TcPacket::new(context);
    let is_for_others = link_len > 0 && hook == Hook::UplinkIngress && concern::is_for_others(&packet);
    let verdict = match parse_link(&mut packet, link_len) {
        _ if is_for_others => None,
        Some((V4::ETHERTYPE, l3)) => family::<V4, _>(&mut packet, l3, hook),
        Some((V6::ETHERTYPE, l3)) => family::<V6, _>(&mut packet, l3, hook),
        _ => None,
    };
    let verdict = verdict.map(|(verdict, _)| verdict);
    #[cfg(feature = "log")]
    log(&packet, verdict);
    action(verdict)
}

/// The development log: what became of each packet that was understood.
#[cfg(feature = "log")]
#[inline(always)]
fn log(packet: &TcPacket, verdict: Option<Verdict>) {
    if let Some(verdict) = verdict {
        let (ifindex, len) = (packet.ifindex(), packet.len());
        let context = TcContext::new(packet.skb());
        aya_log_ebpf::debug!(&context, "ifindex {} bytes {} verdict {}", ifindex, len, verdict as u32);
    }
}

/// A packet of family `F`: the verdict and the device it was sent to, if it was; `None` if it is nothing we know.
#[inline(always)]
fn family<F: Balanced, P: Opens<F>>(packet: &mut P, l3: usize, hook: Hook) -> Option<(Verdict, u32)> {
    let work = Work::<F>::new()?;
    work.headers.l3 = l3;
    work.way.comes_in = hook.is_ingress() as u32;
    work.is_tunnelled = 0;
    let mut carries = parse::<F, P>(packet, &mut work.headers)?;
    if carries == Carries::Tunnel && hook == Hook::UplinkIngress {
        if P::HANDS_ON {
            return Some((Verdict::from_code(packet.unwrap_tunnel())?, 0));
        }
        carries = match packet.unwrap_tunnel() {
            code if code == Carries::Transport as u32 => Carries::Transport,
            code if code == Carries::Icmp as u32 => Carries::Icmp,
            _ => return None,
        };
    }
    let verdict = match carries {
        Carries::Transport => balance(packet, work, hook),
        Carries::Icmp => Verdict::from_code(packet.icmp(hook as u32))?,
        Carries::Tunnel => return None,
    };
    Some((verdict, work.way.ifindex()))
}

/// From the network, before the kernel makes a socket buffer: what [`tc_uplink_ingress`] does, or nothing at all.
#[xdp]
pub fn xdp_uplink(context: XdpContext) -> u32 {
    divert(context)
}

/// [`xdp_uplink`] for packets of several buffers (Linux 5.18).
#[xdp(frags)]
pub fn xdp_uplink_frags(context: XdpContext) -> u32 {
    divert(context)
}

#[inline(always)]
fn divert(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(context);
    let hook = Hook::UplinkIngress;
    let decided = match parse_link(&mut packet, ETHERNET_LEN) {
        Some((V4::ETHERTYPE, l3)) => family::<V4, _>(&mut packet, l3, hook),
        Some((V6::ETHERTYPE, l3)) => family::<V6, _>(&mut packet, l3, hook),
        _ => None,
    };
    match decided {
        Some((Verdict::Redirected | Verdict::Tunnelled, to)) if to == packet.ifindex() => xdp_action::XDP_TX,
        // SAFETY: no pointers.
        Some((Verdict::Redirected | Verdict::Tunnelled, to)) => unsafe { bpf_redirect(to, 0) as u32 },
        Some((verdict, _)) if verdict.is_drop() => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

/// The stages that are BPF functions of their own at tc hooks, for one family.
macro_rules! tc_stages {
    ($family:ident, $open:ident, $record:ident, $claim:ident, $icmp:ident, $unwrap:ident, $complain:ident) => {
        /// [`open`] at tc hooks.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $open(skb: *mut __sk_buff, hook: u32) -> u32 {
            open::<$family, _>(&mut TcPacket::new(TcContext::new(skb)), hook)
        }

        /// [`record`] at tc hooks.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $record(skb: *mut __sk_buff) -> u32 {
            record::<$family, _>(&mut TcPacket::new(TcContext::new(skb)))
        }

        /// [`claim`] at tc hooks.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $claim(skb: *mut __sk_buff, how: u32) -> u32 {
            claim::<$family, _>(&mut TcPacket::new(TcContext::new(skb)), how)
        }

        /// [`icmp`] at tc hooks.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $icmp(skb: *mut __sk_buff, hook: u32) -> u32 {
            icmp::<$family, _>(&mut TcPacket::new(TcContext::new(skb)), hook)
        }

        /// [`unwrap`](tunnel::unwrap) at tc hooks.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $unwrap(skb: *mut __sk_buff) -> u32 {
            tunnel::unwrap::<$family, _>(&mut TcPacket::new(TcContext::new(skb)))
        }

        /// [`complain`] at tc hooks.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $complain(skb: *mut __sk_buff, hook: u32, code: u32) -> u32 {
            complain::<$family, _>(&mut TcPacket::new(TcContext::new(skb)), hook, code)
        }

        impl Opens<$family> for TcPacket {
            #[inline(always)]
            fn open(&mut self, hook: u32) -> u32 {
                $open(self.skb(), hook)
            }

            #[inline(always)]
            fn record(&mut self) -> u32 {
                $record(self.skb())
            }

            #[inline(always)]
            fn claim(&mut self, how: u32) -> u32 {
                $claim(self.skb(), how)
            }

            #[inline(always)]
            fn icmp(&mut self, hook: u32) -> u32 {
                $icmp(self.skb(), hook)
            }

            #[inline(always)]
            fn unwrap_tunnel(&mut self) -> u32 {
                $unwrap(self.skb())
            }

            #[inline(always)]
            fn complain(&mut self, hook: u32, code: u32) -> u32 {
                $complain(self.skb(), hook, code)
            }
        }
    };
}

tc_stages!(V4, tc_open4, tc_record4, tc_claim4, tc_icmp4, tc_unwrap4, tc_complain4);
tc_stages!(V6, tc_open6, tc_record6, tc_claim6, tc_icmp6, tc_unwrap6, tc_complain6);

/// [`open`] for IPv4 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_open4(context: *mut xdp_md, hook: u32) -> u32 {
    open::<V4, _>(&mut XdpPacket::new(XdpContext::new(context)), hook)
}

/// [`open`] for IPv6 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_open6(context: *mut xdp_md, hook: u32) -> u32 {
    open::<V6, _>(&mut XdpPacket::new(XdpContext::new(context)), hook)
}

/// [`record`] for IPv4 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_record4(context: *mut xdp_md) -> u32 {
    record::<V4, _>(&mut XdpPacket::new(XdpContext::new(context)))
}

/// [`record`] for IPv6 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_record6(context: *mut xdp_md) -> u32 {
    record::<V6, _>(&mut XdpPacket::new(XdpContext::new(context)))
}

/// [`claim`] for IPv4 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_claim4(context: *mut xdp_md, how: u32) -> u32 {
    claim::<V4, _>(&mut XdpPacket::new(XdpContext::new(context)), how)
}

/// [`claim`] for IPv6 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_claim6(context: *mut xdp_md, how: u32) -> u32 {
    claim::<V6, _>(&mut XdpPacket::new(XdpContext::new(context)), how)
}

/// [`unwrap_known`](tunnel::unwrap_known) for IPv4 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_unwrap4(context: *mut xdp_md) -> u32 {
    tunnel::unwrap_known::<V4, _>(&mut XdpPacket::new(XdpContext::new(context)))
}

/// [`unwrap_known`](tunnel::unwrap_known) for IPv6 packets at XDP hooks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn xdp_unwrap6(context: *mut xdp_md) -> u32 {
    tunnel::unwrap_known::<V6, _>(&mut XdpPacket::new(XdpContext::new(context)))
}

impl Opens<V4> for XdpPacket {
    #[inline(always)]
    fn open(&mut self, hook: u32) -> u32 {
        xdp_open4(self.md(), hook)
    }

    #[inline(always)]
    fn record(&mut self) -> u32 {
        xdp_record4(self.md())
    }

    #[inline(always)]
    fn claim(&mut self, how: u32) -> u32 {
        xdp_claim4(self.md(), how)
    }

    #[inline(always)]
    fn unwrap_tunnel(&mut self) -> u32 {
        xdp_unwrap4(self.md())
    }
}

impl Opens<V6> for XdpPacket {
    #[inline(always)]
    fn open(&mut self, hook: u32) -> u32 {
        xdp_open6(self.md(), hook)
    }

    #[inline(always)]
    fn record(&mut self) -> u32 {
        xdp_record6(self.md())
    }

    #[inline(always)]
    fn claim(&mut self, how: u32) -> u32 {
        xdp_claim6(self.md(), how)
    }

    #[inline(always)]
    fn unwrap_tunnel(&mut self) -> u32 {
        xdp_unwrap6(self.md())
    }
}

/// What tc is told. `TC_ACT_UNSPEC` lets other programs of the hook, a CNI's, have their turn.
#[inline(always)]
fn action(verdict: Option<Verdict>) -> i32 {
    match verdict {
        None | Some(Verdict::NotOurs | Verdict::Translated) => TC_ACT_UNSPEC,
        Some(
            Verdict::Redirected
            | Verdict::Tunnelled
            | Verdict::Refused
            | Verdict::Echoed
            | Verdict::TtlExceeded
            | Verdict::TooBig,
        ) => TC_ACT_REDIRECT,
        Some(_) => TC_ACT_SHOT,
    }
}

/// A redirect helper was called and has its say.
const TC_ACT_REDIRECT: i32 = 7;

/// `connect()` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(context: SockAddrContext) -> i32 {
    dial(&mut Call4(context), Luck::Connection)
}

/// `connect()` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(context: SockAddrContext) -> i32 {
    if is_mapped(&context) {
        dial(&mut CallMapped(context), Luck::Connection)
    } else {
        dial(&mut Call6(context), Luck::Connection)
    }
}

/// A datagram of an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(context: SockAddrContext) -> i32 {
    dial(&mut Call4(context), Luck::Socket)
}

/// A datagram of an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(context: SockAddrContext) -> i32 {
    if is_mapped(&context) {
        dial(&mut CallMapped(context), Luck::Socket)
    } else {
        dial(&mut Call6(context), Luck::Socket)
    }
}

/// The sender of a datagram, as an IPv4 socket sees it.
#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(context: SockAddrContext) -> i32 {
    answer(&mut Call4(context))
}

/// The sender of a datagram, as an IPv6 socket sees it.
#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(context: SockAddrContext) -> i32 {
    if is_mapped(&context) { answer(&mut CallMapped(context)) } else { answer(&mut Call6(context)) }
}

/// The peer of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeername4(context: SockAddrContext) -> i32 {
    answer(&mut Call4(context))
}

/// The peer of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeername6(context: SockAddrContext) -> i32 {
    if is_mapped(&context) { answer(&mut CallMapped(context)) } else { answer(&mut Call6(context)) }
}

/// Lets the kernel grant helpers that want a GPL-compatible program; one of the crate's two licences is.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

/// Never reached: nothing here can panic, and the linker fails if it could.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
