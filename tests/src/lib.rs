//! What the tests are made of: packets, program runs, scripts, namespaces and a test API server. The cases are in
//! `tests/tests/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on panics")]
#![allow(clippy::allow_attributes, reason = "the line above holds for every item")]

pub mod agent;
pub mod api_server;
pub mod bench;
pub mod cgroup;
pub mod changes;
pub mod cluster;
pub mod families;
pub mod flow_sockets;
pub mod flow_table;
pub mod netns;
pub mod objects;
pub mod offload;
pub mod packet;
pub mod pinned_maps;
pub mod probe;
pub mod process;
pub mod prog;
pub mod scene;
pub mod script;
pub mod sweep;
pub mod vm;
pub mod wire;
