//! Where the datapath is pinned, and who may change it. Called by `load`, `attach`, `cleanup` and the CLI.
//!
//! ```text
//! <pin-dir>/<ABI_VERSION>/FRONTENDS4 ...             the maps, by their names
//! <pin-dir>/<ABI_VERSION>/links/sock_connect4 ...    cgroup links, by their program
//! <pin-dir>/<ABI_VERSION>/links/tc-<ifindex>-ingress tcx links
//! <pin-dir>/<ABI_VERSION>/links/xdp-<ifindex>-native XDP links, by the place they run in
//! <pin-dir>/<ABI_VERSION>/clsact/<ifindex>           a symbolic link whose target is the record of a device with
//!                                                    clsact filters: `added:<name>` or `found:<name>`, after
//!                                                    whether the agent added the qdisc
//! ```
//!
//! What must stay true: what the agent put into the kernel can be found from here alone. Names hold no dots, which
//! bpffs refuses.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use lb_common::ABI_VERSION;
use thiserror::Error;

/// What can be wrong with the pin directory.
#[derive(Debug, Error)]
pub enum PinsError {
    /// It cannot be created or read.
    #[error("pin directory {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not on a bpffs, and none could be mounted.
    #[error(
        "pin directory {path} is not on a bpffs, and mounting one failed ({source}); run `mount -t bpf bpf \
         /sys/fs/bpf` on the node, or mount the node's /sys/fs/bpf into the container"
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
        /// Why mounting failed.
        source: io::Error,
    },
    /// Another agent uses it.
    #[error(
        "pin directory {path} is in use by another lb-agent; stop that one first, or give each its own --pin-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// The bpffs magic number (`BPF_FS_MAGIC`).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where a bpffs is mounted when there is none.
const BPFFS: &str = "/sys/fs/bpf";

/// The pin directory of one ABI version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// Under `pin_dir`, for this agent's layouts.
    pub fn new(pin_dir: &Path) -> Self {
        Self { dir: pin_dir.join(ABI_VERSION.to_string()) }
    }

    /// The pins in `dir`, whatever version that is.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory of links.
    pub fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// The directory of records of clsact filters.
    pub fn clsact(&self) -> PathBuf {
        self.dir.join("clsact")
    }

    /// Creates the directories, mounting a bpffs if there is none and it is possible.
    pub fn create(&self) -> Result<(), PinsError> {
        let error = |source| PinsError::Io { path: self.dir.clone(), source };
        if !is_bpffs(existing_ancestor(&self.dir)).map_err(error)? {
            if !self.dir.starts_with(BPFFS) {
                let source = io::Error::other(format!("it is outside {BPFFS}"));
                return Err(PinsError::NotBpffs { path: self.dir.clone(), source });
            }
            mount_bpffs().map_err(|source| PinsError::NotBpffs { path: self.dir.clone(), source })?;
        }
        fs::create_dir_all(self.links()).map_err(error)?;
        fs::create_dir_all(self.clsact()).map_err(error)
    }

    /// Claims the directory for this process until the lock is dropped or the process ends, however it ends.
    pub fn lock(&self) -> Result<Lock, PinsError> {
        let error = |source| PinsError::Io { path: self.dir.clone(), source };
        let dir = File::open(&self.dir).map_err(error)?;
        match dir.try_lock() {
            Ok(()) => Ok(Lock(dir)),
            Err(TryLockError::WouldBlock) => Err(PinsError::InUse { path: self.dir.clone() }),
            Err(TryLockError::Error(source)) => Err(error(source)),
        }
    }
}

/// A claim on a pin directory.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    /// Closing alone would not do: a child that is between fork and exec still has the descriptor, and so the lock.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the pin directory stays locked until its last descriptor is closed");
        }
    }
}

/// The pins of every ABI version under `pin_dir`.
pub(super) fn versions_in(pin_dir: &Path) -> Vec<Pins> {
    names_in(pin_dir)
        .filter(|name| name.parse::<u32>().is_ok())
        .map(|name| Pins::at(pin_dir.join(name)))
        .collect()
}

/// Names in a directory, in order; none if it cannot be read.
pub(super) fn names_in(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter()
}

/// The longest part of `path` that exists.
fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}

/// True if `path` lies on a bpffs.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let c_path = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: all zeroes is a valid statfs, which the call below overwrites.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `c_path` is NUL-terminated and `stat` writable, both for the duration of the call.
    if unsafe { libc::statfs(c_path.as_ptr(), &mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type as i64 == BPF_FS_MAGIC)
}

fn mount_bpffs() -> io::Result<()> {
    let target = std::ffi::CString::new(BPFFS).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the strings are NUL-terminated and outlive the call; bpf takes no data.
    let result = unsafe {
        libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, c"mode=0700".as_ptr().cast())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The id of a cgroup directory as links report it: its inode.
pub fn cgroup_id(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_whatever_a_child_still_has() -> anyhow::Result<()> {
        let dir = std::env::temp_dir().join(format!("lb-agent-lock-{}", std::process::id()));
        fs::create_dir(&dir)?;
        let pins = Pins::at(dir.clone());
        let lock = pins.lock()?;
        assert!(matches!(pins.lock(), Err(PinsError::InUse { .. })));
        // As fork does: another descriptor of the same open file.
        let of_a_child = lock.0.try_clone()?;
        drop(lock);
        drop(pins.lock()?);
        drop(of_a_child);
        Ok(fs::remove_dir(&dir)?)
    }
}
