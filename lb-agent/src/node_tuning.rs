//! What kube-proxy sets in the kernel for the node as a whole: sysctls of connection tracking (spec 7.20 to 7.24) and
//! its own OOM score. Called by `run` before anything else.
//!
//! What must stay true: 0 leaves a value alone; a value that is right already is not written, so that a read-only
//! /proc with the right values is no fault (spec 7.23). The eBPF datapath has its own connection table; these values
//! are for everything else that the node tracks, host ports above all (spec 7.24).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Larger maxima only cost memory (spec 7.20).
const CONNTRACK_MAX_CAP: u64 = 1_048_576;
/// Below `root`.
const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";

/// What `run` was asked to set.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeTuning {
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// This process' OOM score adjustment.
    pub oom_score_adj: i32,
    /// What cannot be set is an error.
    pub hard_fail: bool,
}

/// Connection tracking; 0 leaves a value alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries per CPU.
    pub max_per_core: u32,
    /// Entries at least, if `max_per_core` is not 0.
    pub min: u32,
    /// How long an idle TCP connection is remembered.
    pub tcp_established: Duration,
    /// How long one that one side has closed is.
    pub tcp_close_wait: Duration,
    /// Accept segments outside the window.
    pub tcp_be_liberal: bool,
    /// How long UDP in one direction is remembered.
    pub udp: Duration,
    /// How long UDP in both directions is.
    pub udp_stream: Duration,
}

/// One value of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// Path below the root.
    path: String,
    value: u64,
    /// Values from here up are right.
    is_minimum: bool,
}

/// A value that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("{path} stays {found}, {value} is wanted: {source}")]
pub struct TuningError {
    path: String,
    found: String,
    value: u64,
    source: io::Error,
}

/// Values that could not be set, as one error with its remedy.
#[derive(Debug, thiserror::Error)]
pub struct TuningErrors(Vec<TuningError>);

impl fmt::Display for TuningErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |each: &dyn Fn(&TuningError) -> String| self.0.iter().map(each).collect::<Vec<_>>().join("; ");
        write!(
            f,
            "{}. On the node: {}; or run `lb-agent run --init-only` in a privileged init container; or 0 with the \
             --conntrack-… flags leaves them alone",
            list(&ToString::to_string),
            list(&|error| format!("echo {} > {}", error.value, error.path))
        )
    }
}

impl NodeTuning {
    /// Sets everything; what cannot be set goes to the log, or is an error with `--sysctl-hard-fail`.
    pub fn apply(&self) -> Result<(), TuningErrors> {
        if let Err(error) = set_oom_score(Path::new("/"), self.oom_score_adj) {
            tracing::warn!("--oom-score-adj {}: {error}; it needs CAP_SYS_RESOURCE", self.oom_score_adj);
        }
        match self.conntrack.set(Path::new("/"), cpus()) {
            Err(errors) if self.hard_fail => Err(errors),
            Err(errors) => {
                tracing::warn!("{errors}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

impl Conntrack {
    /// What differs from the wanted, as lines to read.
    pub fn differences(&self) -> Vec<String> {
        let root = Path::new("/");
        let differing =
            self.wanted(cpus()).into_iter().filter_map(|wanted| Some((read(root, &wanted)?, wanted)));
        differing
            .filter(|(found, wanted)| !wanted.accepts(found))
            .map(|(found, wanted)| format!("{wanted} is {found}"))
            .collect()
    }

    /// Writes what differs below `root`. Where the kernel does not track connections (yet), there is nothing to set.
    fn set(&self, root: &Path, cpus: u32) -> Result<(), TuningErrors> {
        let mut errors: Vec<TuningError> = Vec::new();
        for wanted in self.wanted(cpus) {
            // A table for more connections than are allowed would be of no use; the maximum comes first.
            let is_maximum_refused = errors.iter().any(|error| error.path.ends_with("nf_conntrack_max"));
            if wanted.path == HASHSIZE && is_maximum_refused {
                continue;
            }
            errors.extend(set(root, &wanted).err());
        }
        if errors.is_empty() { Ok(()) } else { Err(TuningErrors(errors)) }
    }

    fn wanted(&self, cpus: u32) -> Vec<Wanted> {
        let seconds = |name, duration: Duration| (name, duration.as_secs());
        let max = self.max(cpus);
        let sysctls = [
            ("max", max),
            seconds("tcp_timeout_established", self.tcp_established),
            seconds("tcp_timeout_close_wait", self.tcp_close_wait),
            ("tcp_be_liberal", self.tcp_be_liberal.into()),
            seconds("udp_timeout", self.udp),
            seconds("udp_timeout_stream", self.udp_stream),
        ];
        let mut wanted: Vec<Wanted> = sysctls
            .into_iter()
            .map(|(name, value)| Wanted {
                path: format!("proc/sys/net/netfilter/nf_conntrack_{name}"),
                value,
                is_minimum: false,
            })
            .collect();
        wanted.push(Wanted { path: HASHSIZE.to_owned(), value: max / 4, is_minimum: true });
        wanted.retain(|wanted| wanted.value > 0);
        wanted
    }

    /// Spec 7.20.
    fn max(&self, cpus: u32) -> u64 {
        match u64::from(self.max_per_core) * u64::from(cpus) {
            0 => 0,
            scaled if scaled > CONNTRACK_MAX_CAP => CONNTRACK_MAX_CAP,
            scaled => scaled.max(self.min.into()),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{} = {}", self.path, self.value)
    }
}

impl Wanted {
    fn accepts(&self, found: &str) -> bool {
        let found = found.parse::<u64>().ok();
        found == Some(self.value) || (self.is_minimum && found.is_some_and(|found| found > self.value))
    }
}

fn read(root: &Path, wanted: &Wanted) -> Option<String> {
    fs::read_to_string(root.join(&wanted.path)).ok().map(|text| text.trim().to_owned())
}

fn set(root: &Path, wanted: &Wanted) -> Result<(), TuningError> {
    let path = root.join(&wanted.path);
    let Some(found) = read(root, wanted) else { return Ok(()) };
    if wanted.accepts(&found) {
        return Ok(());
    }
    match fs::write(&path, wanted.value.to_string()) {
        Ok(()) => {
            tracing::info!("{wanted}, was {found}");
            Ok(())
        }
        Err(source) => {
            Err(TuningError { path: path.display().to_string(), found, value: wanted.value, source })
        }
    }
}

fn set_oom_score(root: &Path, score: i32) -> io::Result<()> {
    let path: PathBuf = root.join("proc/self/oom_score_adj");
    if fs::read_to_string(&path)?.trim() == score.to_string() {
        return Ok(());
    }
    fs::write(path, score.to_string())
}

/// CPUs of the machine, not those this process may use.
fn cpus() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let counted = online.and_then(|list| count(list.trim()));
    let own = || std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok());
    counted.or_else(own).unwrap_or(1)
}

/// How many numbers a list such as `0-3,8` names.
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        sum.checked_add(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests;
