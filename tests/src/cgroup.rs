//! Child cgroups (version 2): a node of the test cluster is one, its pods are below it. Never the root.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// A cgroup v2 directory. Dropping the value does not remove it: [`crate::sweep`] does.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A child of the root; its name begins with [`crate::sweep::PREFIX`].
    pub fn create(name: &str) -> Result<Self> {
        Self::at(v2_root()?.join(name))
    }

    /// A child of this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `cgroup.procs`, open for writing: who writes `0` there moves in.
    pub fn entrance(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))
    }
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or beside version 1.
pub fn v2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let of_v2 = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?.to_owned();
        (fields.next()? == "cgroup2").then_some(PathBuf::from(path))
    };
    mounts.lines().find_map(of_v2).context("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Kills every process in and below a cgroup, waits until they are gone and removes it.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // cgroup.kill: Linux 5.14.
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("kill {}", path.display()))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while fs::read_to_string(path.join("cgroup.events"))?.contains("populated 1") {
        if Instant::now() > deadline {
            bail!("processes in {} do not die", path.display());
        }
        thread::sleep(Duration::from_millis(2));
    }
    remove_directories(path)
}

fn remove_directories(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_directories(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("remove cgroup {}", path.display()))
}
