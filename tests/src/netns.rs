//! Network namespaces: making them, running code and `ip` commands in them. Used by [`crate::cluster`], and by tests
//! that need a single namespace. Nothing here touches the namespace of the caller.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};

/// Where `ip netns` keeps names.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace. Dropping the value does not remove it: [`crate::sweep`] does, by prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes namespaces, all with one `ip`.
    pub fn create(names: &[String]) -> Result<Vec<Self>> {
        let commands: Vec<String> = names.iter().map(|name| format!("netns add {name}")).collect();
        ip(&[], &commands)?;
        Ok(names.iter().map(|name| Self { name: name.clone() }).collect())
    }

    /// Its name, for `ip -n` and `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.name)
    }

    /// Runs `ip` commands inside it, as one batch.
    pub fn ip(&self, commands: &[String]) -> Result<()> {
        ip(&["-n", &self.name], commands)
    }

    /// Writes `/proc/sys/net` entries: (path below it, value).
    pub fn set_sysctls(&self, entries: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (path, value) in entries {
                let path = format!("/proc/sys/net/{path}");
                std::fs::write(&path, value).with_context(|| format!("write {value} to {path}"))?;
            }
            Ok(())
        })?
    }

    /// Runs a closure on a thread inside the namespace. Sockets it makes belong to the namespace, but to the caller's
    /// cgroup: socket programs of a node see them only when made by a [`crate::process::Process`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("open {}", self.path().display()))?;
        thread::scope(|scope| {
            let entered = scope.spawn(|| enter(&file).map(|()| work()));
            entered.join().map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))
        })?
        .with_context(|| format!("enter {}", self.name))
    }
}

/// Ethernet address of a device of the calling thread's network namespace.
pub fn mac_of(device: &str) -> Result<[u8; 6]> {
    let output = Command::new("ip").args(["-j", "link", "show", device]).output().context("run ip")?.stdout;
    let links: serde_json::Value =
        serde_json::from_slice(&output).with_context(|| format!("find {device}"))?;
    let bytes = links[0]["address"].as_str().with_context(|| format!("{device} has no address"))?.split(':');
    let bytes: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|bytes| anyhow!("{device}: no Ethernet address: {bytes:?}"))
}

/// Moves the calling thread into the network namespace behind `file`. Callable between fork and exec.
pub fn enter(file: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which `file` keeps open, and changes only the calling thread.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs several batches at once: one `ip` per namespace.
pub fn ip_all(batches: &[(&Namespace, Vec<String>)]) -> Result<()> {
    thread::scope(|scope| {
        let running: Vec<_> =
            batches.iter().map(|(namespace, commands)| scope.spawn(|| namespace.ip(commands))).collect();
        running.into_iter().try_for_each(|batch| batch.join().map_err(|_| anyhow!("an ip batch panicked"))?)
    })
}

/// Runs `ip OPTIONS -batch -`; an error shows what `ip` said and the commands.
pub fn ip(options: &[&str], commands: &[String]) -> Result<()> {
    let text = commands.join("\n") + "\n";
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip: is iproute2 installed (`cargo xtask setup`)?")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).context("write to ip")?;
    }
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {} failed: {stderr}commands:\n{text}", options.join(" "));
    Ok(())
}
