//! Everything between the built object and the kernel's hooks: [`load`] creates maps and programs, [`attach`] puts
//! programs on cgroups and devices, [`devices`] knows which devices those are, [`kernel`] what the kernel can do.
//!
//! What must stay true: whatever is attached stays attached, unchanged, when the agent ends; whatever is attached
//! can be found again from the pin directory alone, by the next agent and by `cleanup`.

pub mod attach;
pub mod attach_error;
pub mod bpf;
pub mod cleanup;
mod clsact;
pub mod devices;
pub mod follow;
pub mod globals;
pub mod hook;
pub mod kernel;
mod links;
pub mod load;
pub mod local;
pub mod node_maps;
pub mod pins;
pub mod xdp;

/// The datapath, built for the kernel.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));
