//! Rules of kube-proxy that are still on this node (spec 8.62): which there are, and how they go. Two proxies on a node
//! translate twice, and what the agent leaves alone still meets the other's rules.
//!
//! Called by `check`, by `run` at its start and from time to time, and by `cleanup --kube-proxy`. What must stay true:
//! a scan changes nothing; what cannot be looked at is said; only chains and tables with names that kube-proxy alone
//! uses are touched, in the network namespace of the caller. Chains of the kubelet (KUBE-FIREWALL,
//! KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, spec 8.64) and of kube-router (KUBE-ROUTER-…, KUBE-POD-FW-…) are others'.

mod iptables;

use std::{
    fs,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// The device that carries service addresses in ipvs mode.
const IPVS_DEVICE: &str = "kube-ipvs0";
/// The name of kube-proxy's nftables tables.
const NFT_TABLE: &str = "kube-proxy";
const PAUSE_FOUND: Duration = Duration::from_secs(60);
const PAUSE_CLEAN: Duration = Duration::from_secs(3600);
/// Lines of heading in `/proc/net/ip_vs`.
const IP_VS_HEADING: usize = 3;

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// Rules that translate Services beside the agent.
    pub found: Vec<Finding>,
    /// What could not be looked at, and why.
    pub unchecked: Vec<String>,
}

/// Rules of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Where, and how many.
    pub what: String,
    /// The command that removes them.
    pub remedy: String,
}

/// Something that was to be removed and is still there.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// A program could not be started.
    #[error("run {program}: {source}")]
    Run {
        /// Its name.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program}: {said}")]
    Failed {
        /// Its name.
        program: String,
        /// What it said.
        said: String,
    },
}

impl ForeignError {
    /// True if the program does not exist here.
    fn is_missing(&self) -> bool {
        matches!(self, Self::Run { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Looks for what kube-proxy may have left, in every backend. It takes as long as the dumps do.
pub fn scan() -> Foreign {
    let mut foreign = Foreign::default();
    iptables::scan(&mut foreign);
    scan_nft(&mut foreign);
    scan_ipvs(&mut foreign);
    foreign
}

/// Removes what kube-proxy left. Returns what is gone, and what is not with the reason.
pub fn remove() -> (Vec<String>, Vec<String>) {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    let mut note = |what: String, result: Result<(), ForeignError>| match result {
        Ok(()) => removed.push(what),
        Err(error) => failed.push(format!("{what}: {error}")),
    };
    iptables::remove(&mut note);
    for family in nft_tables().unwrap_or_default() {
        let result = run("nft", &["delete", "table", &family, NFT_TABLE], None).map(drop);
        note(format!("nftables table {family} {NFT_TABLE}"), result);
    }
    if has_ipvs_device() {
        note(IPVS_DEVICE.to_owned(), run("ip", &["link", "delete", "dev", IPVS_DEVICE], None).map(drop));
    }
    if ipvs_services() > 0 {
        failed.push(
            "IPVS virtual servers: they may be others'; `ipvsadm --clear` removes every one".to_owned(),
        );
    }
    (removed, failed)
}

/// Scans at the start, then every minute while something is there and every hour while nothing is. What is found goes to
/// the log once.
pub fn follow(stop: CancellationToken) -> watch::Receiver<Foreign> {
    let (sender, receiver) = watch::channel(Foreign::default());
    tokio::spawn(async move {
        loop {
            let Ok(current) = tokio::task::spawn_blocking(scan).await else { return };
            let former = sender.send_replace(current.clone());
            for finding in current.found.iter().filter(|finding| !former.found.contains(finding)) {
                tracing::warn!("{} beside this agent: {}", finding.what, finding.remedy);
            }
            for what in current.unchecked.iter().filter(|what| !former.unchecked.contains(what)) {
                tracing::info!("not looked for rules of kube-proxy: {what}");
            }
            let pause = if current.found.is_empty() { PAUSE_CLEAN } else { PAUSE_FOUND };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    });
    receiver
}

fn scan_nft(foreign: &mut Foreign) {
    match nft_tables() {
        Ok(families) => foreign.found.extend(families.into_iter().map(|family| Finding {
            what: format!("nftables table {family} {NFT_TABLE}"),
            remedy: format!("nft delete table {family} {NFT_TABLE}"),
        })),
        Err(error) => foreign.unchecked.push(format!("nftables: {error}")),
    }
}

/// The families in which kube-proxy has a table.
fn nft_tables() -> Result<Vec<String>, ForeignError> {
    /// What `nft -j list tables` prints, as far as it matters.
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        table: Option<Table>,
    }
    #[derive(Deserialize)]
    struct Table {
        family: String,
        name: String,
    }
    let text = run("nft", &["-j", "list", "tables"], None)?;
    let listing: Listing = serde_json::from_str(&text)
        .map_err(|error| ForeignError::Failed { program: "nft".to_owned(), said: error.to_string() })?;
    let tables = listing.nftables.into_iter().filter_map(|item| item.table);
    Ok(tables.filter(|table| table.name == NFT_TABLE).map(|table| table.family).collect())
}

fn scan_ipvs(foreign: &mut Foreign) {
    let services = ipvs_services();
    if services > 0 {
        let what = format!("{services} IPVS virtual servers");
        foreign.found.push(Finding {
            what,
            remedy: "kube-proxy --cleanup, or ipvsadm --clear if all are its".to_owned(),
        });
    }
    if has_ipvs_device() {
        let remedy = format!("ip link delete dev {IPVS_DEVICE}");
        foreign.found.push(Finding { what: format!("device {IPVS_DEVICE}"), remedy });
    }
}

fn ipvs_services() -> usize {
    fs::read_to_string("/proc/net/ip_vs").map_or(0, |table| virtual_servers(&table))
}

/// Lines of servers behind a virtual one begin with an arrow.
fn virtual_servers(table: &str) -> usize {
    let lines = table.lines().skip(IP_VS_HEADING);
    lines.filter(|line| !line.trim_start().starts_with("->") && !line.trim().is_empty()).count()
}

fn has_ipvs_device() -> bool {
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    devices.lines().any(|line| line.trim_start().starts_with(&format!("{IPVS_DEVICE}:")))
}

/// Runs a program, `input` on its stdin, and returns its stdout.
fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, ForeignError> {
    let error = |source| ForeignError::Run { program: program.to_owned(), source };
    let output = output(program, arguments, input).map_err(error)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ForeignError::Failed { program: program.to_owned(), said })
}

fn output(program: &str, arguments: &[&str], input: Option<&str>) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes())?;
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_counted_without_their_real_ones() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A600001:01BB rr\n  -> 0A000002:192B      Masq    1      0          0\n\
            UDP  0A60000A:0035 rr\n  -> 0AF40002:0035      Masq    1      0          0\n  -> 0AF40003:0035 Masq 1 0 0\n";
        assert_eq!(virtual_servers(table), 2);
        assert_eq!(virtual_servers(""), 0);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_from_one_that_fails() {
        assert!(run("lb-no-such-program", &[], None).unwrap_err().is_missing());
        let error = run("sh", &["-c", "cat >&2; exit 3"], Some("why")).unwrap_err();
        assert!(!error.is_missing() && error.to_string() == "sh: why", "{error}");
    }
}
