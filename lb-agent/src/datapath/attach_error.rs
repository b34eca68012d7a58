//! What can go wrong when a program is put on its hook, or taken off.

use std::{io, path::PathBuf};

use aya::programs::{ProgramError, tc::TcError};
use thiserror::Error;

use super::load::LoadError;

/// What can go wrong when a program is attached or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The object has no such program.
    #[error("the datapath has no program {0}")]
    NoProgram(String),
    /// The verifier refused a program that is loaded with the first device that wants it.
    #[error(transparent)]
    Load(LoadError),
    /// The cgroup directory cannot be opened.
    #[error("open cgroup {path}: {source}; give the cgroup v2 mount with --cgroup")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a link.
    #[error("{what} {pin}: {source}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// Pin of the link.
        pin: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused the qdisc.
    #[error("add a clsact qdisc to {device}: {source}")]
    Qdisc {
        /// The device.
        device: String,
        /// Why not.
        source: TcError,
    },
    /// The kernel refused the filter.
    #[error("attach {program} to the clsact qdisc of {device}: {source}")]
    Filter {
        /// The device.
        device: String,
        /// The program.
        program: String,
        /// Why not.
        source: Box<ProgramError>,
    },
    /// The device went away meanwhile.
    #[error("device {0} is gone")]
    Gone(String),
}
