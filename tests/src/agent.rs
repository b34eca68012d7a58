//! The agent of one node of the test cluster: the real program, in the node's namespace, attached to the node's cgroup.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cgroup::Cgroup,
    probe::program,
    process::{Place, Process, eventually},
    sweep::BPFFS,
};

/// The agent's port for `/healthz`, in its own namespace.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// An agent, running or not. Dropping it kills it and leaves its pins to [`crate::sweep`].
#[derive(Debug)]
pub struct Agent {
    node: String,
    place: Place,
    cgroup: Cgroup,
    /// Where objects come from: flag and path.
    source: (&'static str, PathBuf),
    /// Holds its run directory and its log.
    dir: PathBuf,
    pins: PathBuf,
    extra_args: Vec<String>,
    capabilities: Option<String>,
    process: Option<Process>,
}

impl Agent {
    /// An agent that is not started yet. Its programs go to `cgroup`, where the node's processes are.
    pub fn new(node: &str, place: Place, cgroup: Cgroup, prefix: &str, manifests: &Path) -> Result<Self> {
        let dir = std::env::temp_dir().join(prefix).join(node);
        std::fs::create_dir_all(dir.join("run")).with_context(|| format!("make {}", dir.display()))?;
        let pins = Path::new(BPFFS).join(prefix).join(node);
        mount_bpffs()?;
        let (node, source) = (node.to_owned(), ("--manifests", manifests.to_owned()));
        Ok(Self {
            node,
            place,
            cgroup,
            source,
            dir,
            pins,
            extra_args: Vec::new(),
            capabilities: None,
            process: None,
        })
    }

    /// Further arguments of `run`, from the next start on.
    pub fn set_extra_args(&mut self, args: &[&str]) {
        self.extra_args = args.iter().map(ToString::to_string).collect();
    }

    /// Follows an API server in place of the directory of manifests, from the next start on.
    pub fn set_kubeconfig(&mut self, kubeconfig: &Path) {
        self.source = ("--kubeconfig", kubeconfig.to_owned());
    }

    /// Runs it as root with exactly these capabilities (`bpf`, `net_admin`, …), in every set of the process, from the
    /// next start on. Root's own way to regain the others at exec is locked (`SECBIT_NOROOT`).
    pub fn set_capabilities(&mut self, names: &[&str]) {
        let added: Vec<String> = names.iter().map(|name| format!(",+{name}")).collect();
        self.capabilities = Some(format!("-all{}", added.concat()));
    }

    /// Starts it; see [`Self::wait_until_ready`].
    pub fn start(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("open the agent's log")?;
        let mut command = match &self.capabilities {
            None => self.command("run")?,
            Some(set) => self.confined("run", set)?,
        };
        command.arg("--node-name").arg(&self.node).arg(self.source.0).arg(&self.source.1);
        command
            .arg("--cgroup")
            .arg(self.cgroup.path())
            .arg("--healthz-bind-address")
            .arg(HEALTHZ.to_string());
        // These are the machine's and not the namespace's.
        for alone in ["--conntrack-max-per-core", "--oom-score-adj"] {
            if !self.extra_args.iter().any(|arg| arg.starts_with(alone)) {
                command.arg(format!("{alone}=0"));
            }
        }
        command.args(&self.extra_args).stdout(log.try_clone()?).stderr(log);
        self.process = Some(Process::spawn(&mut command)?);
        Ok(())
    }

    /// Waits until `/healthz` says that the maps hold what the manifests say and programs are attached.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let question = format!("is the agent of {} ready", self.node);
        let namespace = self.place.namespace.clone();
        let process = self.process.as_mut().context("the agent is not started")?;
        let ready = eventually(&question, Duration::from_secs(60), || {
            if let Some(status) = process.child().try_wait()? {
                // No use in waiting any longer: `Ok(true)` ends it, the check below tells.
                eprintln!("the agent ended: {status}");
                return Ok(true);
            }
            namespace.run(is_healthy).map(|healthy| healthy.unwrap_or(false))
        });
        let ended = process.child().try_wait()?;
        ready.with_context(|| self.log_tail())?;
        ensure!(ended.is_none(), "the agent of {} ended at its start: {}", self.node, self.log_tail());
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the agent is not running")?.kill()
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent is not running")?;
        let status = process.terminate(Duration::from_secs(10))?;
        ensure!(status.success(), "the agent of {} stopped with {status}: {}", self.node, self.log_tail());
        Ok(())
    }

    /// Runs a subcommand of the CLI (`services`, `status`, `dump`, `cleanup`...) against this agent.
    pub fn cli(&self, subcommand: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.command(subcommand)?;
        command.args(args).output().with_context(|| format!("run lb-agent {subcommand}"))
    }

    /// As [`Self::cli`]; its stdout, or an error with its stderr.
    pub fn cli_text(&self, subcommand: &str, args: &[&str]) -> Result<String> {
        let output = self.cli(subcommand, args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lb-agent {subcommand}: {}: {stderr}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Process id while it runs.
    pub fn pid(&mut self) -> Option<u32> {
        self.process.as_mut().map(|process| process.child().id())
    }

    /// Where its maps, programs and links are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Its run directory (admin socket).
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(30)..];
        format!("the agent of {} last said:\n{}", self.node, tail.join("\n"))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    fn command(&self, subcommand: &str) -> Result<Command> {
        let mut command = self.place.command(program("lb-agent")?)?;
        self.add_args(&mut command, subcommand);
        Ok(command)
    }

    /// As [`Self::command`], with these capabilities as setpriv(1) names them.
    fn confined(&self, subcommand: &str, set: &str) -> Result<Command> {
        let mut command = self.place.command("setpriv")?;
        for option in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
            command.arg(format!("{option}={set}"));
        }
        command
            .args(["--securebits=+noroot,+noroot_locked", "--no-new-privs", "--"])
            .arg(program("lb-agent")?);
        self.add_args(&mut command, subcommand);
        Ok(command)
    }

    fn add_args(&self, command: &mut Command, subcommand: &str) {
        command.arg(subcommand).arg("--run-dir").arg(self.run_dir()).arg("--pin-dir").arg(&self.pins);
    }
}

/// Asks `/healthz` in the calling thread's namespace.
fn is_healthy() -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(HEALTHZ)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

/// Mounts the BPF file system where pins live, unless it is there.
fn mount_bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    let status = Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status().context("run mount")?;
    ensure!(status.success(), "mount -t bpf bpf {BPFFS}: {status}");
    Ok(())
}
