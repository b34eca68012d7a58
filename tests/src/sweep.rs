//! Removing what a cluster made: processes, namespaces, cgroups, pins and files all carry its prefix
//! (`lbt-<pid>-<n>`), so one function removes it when the cluster is dropped, on Ctrl-C, and, for a process that was
//! killed, at the next start.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{
        Once,
        atomic::{AtomicI32, AtomicU32, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cgroup,
    netns::{self, NETNS_DIR},
};

/// Begins the name of everything the tests leave where others can see it.
pub const PREFIX: &str = "lbt-";

/// Where BPF objects are pinned.
pub const BPFFS: &str = "/sys/fs/bpf";

static NEXT: AtomicU32 = AtomicU32::new(0);
static EXIT_CODE: AtomicI32 = AtomicI32::new(130);

/// A prefix nobody else uses. The first call sweeps away what dead processes left, and arranges that Ctrl-C and
/// SIGTERM remove what this process made.
pub fn unique_prefix() -> String {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        remove_leftovers();
        watch_signals();
    });
    format!("{PREFIX}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The exit code after Ctrl-C; 130 unless set.
pub fn set_exit_code_on_signal(code: i32) {
    EXIT_CODE.store(code, Ordering::Relaxed);
}

/// Removes everything that carries the prefix. Goes on after a failure and returns the first.
pub fn remove(prefix: &str) -> Result<()> {
    let cgroup = cgroup::v2_root().map(|root| root.join(prefix));
    // Pins go before the cgroup: links hold programs in it.
    let steps = [
        cgroup.as_ref().map_or(Ok(()), |path| kill(path)),
        remove_directory(&Path::new(BPFFS).join(prefix)),
        remove_namespaces(prefix),
        cgroup.as_ref().map_or(Ok(()), |path| cgroup::remove(path)),
        remove_directory(&std::env::temp_dir().join(prefix)),
    ];
    steps.into_iter().collect()
}

fn kill(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    fs::write(cgroup.join("cgroup.kill"), "1").with_context(|| format!("kill {}", cgroup.display()))
}

fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("remove {}", path.display())),
    }
}

fn remove_namespaces(prefix: &str) -> Result<()> {
    let names = names_in(Path::new(NETNS_DIR));
    let ours = names.iter().filter(|name| prefix_of(name) == Some(prefix));
    let commands: Vec<String> = ours.map(|name| format!("netns del {name}")).collect();
    if commands.is_empty() { Ok(()) } else { netns::ip(&["-force"], &commands) }
}

/// Removes what processes that no longer live have made. Failures are left to the next sweep: another process may
/// be at the same work.
fn remove_leftovers() {
    let places =
        [cgroup::v2_root().ok(), Some(BPFFS.into()), Some(NETNS_DIR.into()), Some(std::env::temp_dir())];
    let names: Vec<String> = places.iter().flatten().flat_map(|place| names_in(place)).collect();
    let prefixes: BTreeSet<&str> = names.iter().filter_map(|name| prefix_of(name)).collect();
    for prefix in prefixes {
        let pid = prefix.trim_start_matches(PREFIX).split('-').next().unwrap_or_default();
        if !PathBuf::from("/proc").join(pid).exists() {
            drop(remove(prefix));
        }
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// `lbt-<pid>-<n>` of `lbt-<pid>-<n>-whatever`.
fn prefix_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(PREFIX)?;
    let mut parts = rest.splitn(3, '-');
    let (pid, number) = (parts.next()?, parts.next()?);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(pid) && is_number(number)).then(|| &name[..PREFIX.len() + pid.len() + 1 + number.len()])
}

/// Starts a thread that waits for SIGINT and SIGTERM; returns once it would catch them.
fn watch_signals() {
    let (ready, watching) = mpsc::channel();
    thread::spawn(move || {
        let signalled = wait_for_signal(&ready);
        drop(ready);
        match signalled {
            Ok(()) => remove_own_and_exit(),
            Err(error) => eprintln!("Ctrl-C will not clean up: {error}"),
        }
    });
    // An error means that the thread has ended, and said why.
    watching.recv().ok();
}

fn wait_for_signal(ready: &mpsc::Sender<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        ready.send(()).ok();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

fn remove_own_and_exit() -> ! {
    for number in 0..NEXT.load(Ordering::Relaxed) {
        if let Err(error) = remove(&format!("{PREFIX}{}-{number}", process::id())) {
            eprintln!("{error:#}");
        }
    }
    process::exit(EXIT_CODE.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_clusters_have_a_prefix() {
        assert_eq!(prefix_of("lbt-12-3-node-a"), Some("lbt-12-3"));
        assert_eq!(prefix_of("lbt-12-3"), Some("lbt-12-3"));
        assert_eq!(prefix_of("lbt-12-34-x"), Some("lbt-12-34"));
        for name in ["lbt-12", "lbt--3-x", "lbt-x-3", "other-12-3", "lbt-12-"] {
            assert_eq!(prefix_of(name), None, "{name}");
        }
    }
}
