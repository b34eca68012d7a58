//! The network namespaces of this machine, as far as this process can see and enter them.
//!
//! Two places name them: `/run/netns` and its like, where container runtimes keep them, and `/proc/PID/ns/net` of
//! every process that is visible. Entering needs CAP_SYS_ADMIN (setns(2)).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// Where container runtimes keep namespaces.
const DIRECTORIES: [&str; 2] = ["/run/netns", "/run/docker/netns"];
/// Inode of the initial PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Network namespaces besides that of this process.
#[derive(Debug)]
pub struct Namespaces {
    /// One open file each.
    pub others: Vec<File>,
    /// Namespaces of processes that may not be asked for theirs, by [`identity`]; those found may be among them.
    unopened: BTreeSet<u64>,
    /// True if every process of the machine is visible.
    sees_all: bool,
}

impl Namespaces {
    /// Those there are now.
    pub fn find() -> io::Result<Self> {
        let own = fs::metadata("/proc/self/ns/net")?;
        let sees_all = fs::metadata("/proc/self/ns/pid")?.ino() == INITIAL_PID_NAMESPACE;
        let mut found = Self { others: Vec::new(), unopened: BTreeSet::new(), sees_all };
        let mut known = BTreeSet::from([own.ino()]);
        for path in DIRECTORIES.into_iter().flat_map(entries) {
            // Anything else there is a name whose namespace is no longer, or not yet, mounted on it.
            if let Ok(file) = File::open(&path)
                && let Ok(metadata) = file.metadata()
                && metadata.dev() == own.dev()
                && known.insert(metadata.ino())
            {
                found.others.push(file);
            }
        }
        for process in entries("/proc").filter(|path| is_process(path)) {
            found.add_process(&process, &mut known);
        }
        Ok(found)
    }

    /// True if every namespace that has a process is among those `searched`, by [`identity`].
    pub fn are_all_among(&self, searched: &BTreeSet<u64>) -> bool {
        self.sees_all && self.unopened.is_subset(searched)
    }

    fn add_process(&mut self, process: &Path, known: &mut BTreeSet<u64>) {
        let path = process.join("ns/net");
        match fs::metadata(&path) {
            Ok(metadata) if known.contains(&metadata.ino()) => {}
            Ok(metadata) => {
                if let Ok(file) = File::open(&path) {
                    known.insert(metadata.ino());
                    self.others.push(file);
                }
            }
            // Its namespace's file needs the rights of a debugger, which few have over PID 1.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.unopened.extend(inode(&process.join("net/dev")));
            }
            // The process has ended.
            Err(_) => {}
        }
    }
}

/// Tells the calling thread's namespace from others: the inode of a file that each has of its own in /proc, which
/// needs no rights to be looked at.
pub fn identity() -> Option<u64> {
    inode(Path::new("/proc/thread-self/net/dev"))
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

fn entries(directory: &str) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// Moves the calling thread into a namespace, for good.
pub fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which `namespace` keeps open, and changes only the calling thread.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
