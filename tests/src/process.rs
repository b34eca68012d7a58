//! Child processes with a network namespace and a cgroup of their own choice, entered between fork and exec.
//! `ip netns exec` would not do: it hides /sys/fs/bpf behind a fresh /sys.

use std::{
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cgroup::Cgroup,
    netns::{self, Namespace},
};

/// Where a process lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network.
    pub namespace: Namespace,
    /// Its cgroup, which decides whose socket programs see it.
    pub cgroup: Cgroup,
}

impl Place {
    /// A command whose process will live here.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let namespace =
            File::open(self.namespace.path()).with_context(|| format!("open {}", self.namespace.name()))?;
        let cgroup = self.cgroup.entrance()?;
        let mut command = Command::new(program);
        // A group of its own: Ctrl-C is for the parent, which removes everything in order.
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec. It makes two system calls on descriptors opened before the
        // fork and allocates nothing (an error is an errno).
        unsafe {
            command.pre_exec(move || {
                (&cgroup).write_all(b"0")?;
                netns::enter(&namespace)
            });
        }
        Ok(command)
    }

    /// Runs a program here to its end.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.command(program)?
            .args(args)
            .output()
            .with_context(|| format!("run {program} {}", args.join(" ")))
    }
}

/// A running child: killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("run {program}"))?;
        Ok(Self { child })
    }

    /// The child, for its pipes and exit status.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill")?;
        self.child.wait().context("wait").map(drop)
    }

    /// SIGTERM, and waits for an orderly end.
    pub fn terminate(&mut self, patience: Duration) -> Result<std::process::ExitStatus> {
        let pid = libc::pid_t::try_from(self.child.id())?;
        // SAFETY: the pid is our child's, not yet reaped, so it names no other process.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("process {pid} is still running {patience:?} after SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        drop(self.kill());
    }
}

/// Asks until the answer is yes; an error if it is not within `patience`. `question` begins the message.
pub fn eventually(
    question: &str,
    patience: Duration,
    mut answer: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let last = answer();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            last.with_context(|| format!("{question}: not within {patience:?}"))?;
            bail!("{question}: not within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
