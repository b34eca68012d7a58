//! The contract between datapath and agent: every map's name, key, value and size, and every formula both sides
//! must compute alike. `no_std`, no allocation; compiled for the kernel (`bpfel-unknown-none`) and for the host.
//!
//! # Which map is read when
//!
//! A packet or a `connect()` towards a service goes through the maps in this order:
//!
//! 0. `PORTS`, whether any frontend uses the destination port; in tc also `KINDS` ([`kind`]), `TARGET_PORTS` and `VIP_HASHES` ([`bit_set`]).
//!    Most packets need no more.
//! 1. [`CONNECTIONS`](maps) by 5-tuple. A hit whose generation equals `GENERATIONS[service port]` is valid as it is;
//!    otherwise `MEMBERS` says whether its backend still serves this service port. On a miss `FLOOD`, if `FLOOD_STATE`
//!    says that it may hold something ([`flood`]).
//! 2. `FRONTENDS` by destination address, port and protocol: the service port, its policies and two runs.
//!    On a miss `SERVICE_CIDRS` and `VIPS`: what lies in one, or is one, is refused.
//! 3. `SOURCE_RANGES`, when the frontend's flags ask for it; `POD_CIDRS` or `DEVICES`, when the agent was told to tell
//!    pods by them ([`settings::DetectLocal`]).
//! 4. `AFFINITY`, when the frontend has session affinity, validated by `MEMBERS`.
//! 5. `SLOTS[base + index]`, a backend id, and `BACKENDS`, its address.
//!
//! # Byte order
//!
//! Addresses and ports in keys and values are in network byte order and typed so ([`family::Addr4`],
//! [`family::Addr6`], [`family::Be16`]). Every other integer is in host order.
//!
//! # Layout
//!
//! `repr(C)`, integers and byte arrays only, explicit padding that is always zero. Sizes are asserted beside each
//! type. Any change of layout raises [`ABI_VERSION`].
#![no_std]

pub mod affinity;
pub mod allowance;
pub mod backend;
pub mod bit_set;
pub mod bits;
pub mod checksum;
pub mod cidr;
pub mod conntrack;
pub mod counters;
pub mod crc32c;
pub mod device;
pub mod event;
pub mod family;
pub mod flood;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod id;
pub mod kind;
pub mod limits;
pub mod maglev;
pub mod maps;
pub mod next_hop;
pub mod peer;
pub mod pod;
pub mod rev_nat;
pub mod sctp;
pub mod settings;
pub mod source_range;
pub mod verdict;
pub mod vip;

/// Version of the layouts in this crate: the name of the pin directory (`/sys/fs/bpf/lb/<ABI_VERSION>`), so that an
/// agent never opens maps whose bytes mean something else.
pub const ABI_VERSION: u32 = 6;
