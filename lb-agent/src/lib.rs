//! The control plane: Kubernetes objects in, BPF map contents out. Data flows one way, in the order of the modules:
//!
//! ```text
//! Kubernetes --source--> objects --convert--> model --select/desired--> want --diff--> Plan --maps--> BPF maps
//!                         |------------- values in, values out, no I/O -------------|        ^
//!                                                          have = maps.dump() ----------------'
//! ```
//!
//! `reconcile` is the loop around it; `datapath` loads and attaches the programs; `cli` and `report` are what an
//! operator sees.

pub mod source;
pub mod convert;
pub mod model;
pub mod select;
pub mod desired;
pub mod diff;
pub mod maps;
pub mod metrics;
pub mod health;
pub mod host_flows;
pub mod http;
pub mod reconcile;
pub mod datapath;
pub mod conntrack_gc;
pub mod flood;
pub mod sockets;
pub mod report;
pub mod admin;
pub mod inspect;
pub mod config;
pub mod setting;
pub mod kube_proxy;
pub mod node_tuning;
pub mod foreign;
pub mod cli;
