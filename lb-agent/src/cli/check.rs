//! `lb-agent check`: what this kernel, this node and these privileges allow, each line with the remedy.
//!
//! What must stay true: it changes nothing on the node, and fails exactly if `run` would.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{Dirs, Output, print_json, table};
use crate::{
    config::{self, PortRange},
    datapath::{
        kernel::{self, Capabilities, Capability, Release},
        pins,
    },
    foreign::{self, Foreign},
    kube_proxy,
};

/// Flags of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    dirs: Dirs,
    /// SNAT ports that `run` will be given.
    #[arg(long, default_value_t = PortRange::default(), value_name = "MIN-MAX")]
    snat_ports: PortRange,
    /// Say what becomes of each field of kube-proxy's configuration file, and nothing else; fails if one is refused.
    #[arg(long, value_name = "FILE")]
    kube_proxy_config: Option<PathBuf>,
    /// A table to read, or JSON to process.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    what: String,
    remedy: Cow<'static, str>,
}

fn ok(what: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, what: what.into(), remedy: Cow::Borrowed("") }
}

fn warn(what: impl Into<String>, remedy: impl Into<Cow<'static, str>>) -> Finding {
    Finding { level: Level::Warn, what: what.into(), remedy: remedy.into() }
}

fn fail(what: impl Into<String>, remedy: impl Into<Cow<'static, str>>) -> Finding {
    Finding { level: Level::Fail, what: what.into(), remedy: remedy.into() }
}

/// Prints every finding; an error if one is a failure.
pub(super) fn check(args: &CheckArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.kube_proxy_config {
        return check_kube_proxy_config(path, args.output);
    }
    let mut findings = kernel_findings();
    findings.extend(capability_findings());
    findings.extend(mount_findings(&args.dirs.pin_dir));
    findings.extend(sysctl_findings(args.snat_ports));
    findings.extend(kube_proxy_findings());
    if args.output == Output::Json {
        print_json(&findings)?;
    } else {
        findings.iter().for_each(print_line);
    }
    let failures = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    if failures == 0 { Ok(()) } else { anyhow::bail!("{failures} checks failed") }
}

fn check_kube_proxy_config(path: &Path, output: Output) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let migration = kube_proxy::migrate(&text).with_context(|| path.display().to_string())?;
    if output == Output::Json {
        print_json(&migration)?;
    } else {
        let rows = migration.rows.iter().map(|row| {
            let value = row.value.as_ref().map(ToString::to_string).unwrap_or_default();
            vec![
                row.field.clone(),
                value,
                row.outcome.name().to_owned(),
                row.flags.join(" "),
                row.note.clone(),
            ]
        });
        println!("{}", table(&["FIELD", "VALUE", "HERE", "FLAGS", "NOTE"], rows));
        migration.warnings.iter().for_each(|warning| println!("warning: {warning}"));
    }
    match migration.refused().count() {
        0 => Ok(()),
        refused => anyhow::bail!("{refused} fields refused"),
    }
}

fn print_line(finding: &Finding) {
    let level = match finding.level {
        Level::Ok => "ok  ",
        Level::Warn => "warn",
        Level::Fail => "fail",
    };
    let separator = if finding.remedy.is_empty() { "" } else { ": " };
    println!("{level}  {}{separator}{}", finding.what, finding.remedy);
}

fn kernel_findings() -> Vec<Finding> {
    let Ok(release) = Release::running() else {
        return vec![fail("kernel release unknown", "mount /proc")];
    };
    let mut findings = Vec::new();
    findings.push(if release < Release::OLDEST {
        fail(format!("Linux {release}"), "5.15 or later is needed")
    } else {
        ok(format!("Linux {release}"))
    });
    findings.push(if Path::new("/sys/kernel/btf/vmlinux").exists() {
        ok("kernel BTF")
    } else {
        warn("no kernel BTF", "not needed to run; CONFIG_DEBUG_INFO_BTF helps bpftool")
    });
    findings.push(match read_trimmed("/proc/sys/net/core/bpf_jit_enable").as_deref() {
        Some("0") => {
            warn("the BPF JIT is off", "sysctl -w net.core.bpf_jit_enable=1 (programs run ten times slower)")
        }
        Some(_) => ok("BPF JIT"),
        None => ok("BPF JIT (always on in this kernel)"),
    });
    findings.push(if release >= Release::TCX {
        ok("tcx")
    } else {
        warn("no tcx (Linux 6.6)", "clsact qdiscs are used instead")
    });
    findings.push(if kernel::has_set_retval() {
        ok("bpf_set_retval")
    } else {
        warn("no bpf_set_retval (Linux 5.18)", "refused connections fail with EPERM, not ECONNREFUSED")
    });
    findings
}

fn capability_findings() -> Vec<Finding> {
    let (Ok(held), Ok(release)) = (Capabilities::effective(), Release::running()) else {
        return vec![fail("capabilities unknown", "mount /proc")];
    };
    let missing = held.missing(release);
    [Capability::BPF, Capability::NET_ADMIN, Capability::PERFMON, Capability::SYS_RESOURCE]
        .into_iter()
        .filter(|capability| *capability != Capability::SYS_RESOURCE || release < Release::MEMCG_ACCOUNTING)
        .map(|capability| {
            if missing.contains(&capability) {
                fail(
                    format!("no {}", capability.1),
                    "run as root, or add it to the container's securityContext",
                )
            } else {
                ok(capability.1)
            }
        })
        .collect()
}

fn mount_findings(pin_dir: &Path) -> Vec<Finding> {
    let existing = pin_dir.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let can_mount = Capabilities::effective().is_ok_and(|held| held.has(Capability::SYS_ADMIN));
    let bpffs = match pins::is_bpffs(existing) {
        Ok(true) => ok(format!("bpffs at {}", existing.display())),
        _ if can_mount && pin_dir.starts_with("/sys/fs/bpf") => {
            ok("no bpffs yet; `run` mounts one on /sys/fs/bpf")
        }
        _ => fail(format!("{} is not on a bpffs", pin_dir.display()), "mount -t bpf bpf /sys/fs/bpf"),
    };
    let cgroup = match config::cgroup(None) {
        Ok(path) => ok(format!("cgroup v2 at {}", path.display())),
        Err(_) => fail("no cgroup v2 mount", "mount -t cgroup2 cgroup2 DIR, or give --cgroup"),
    };
    vec![bpffs, cgroup]
}

fn sysctl_findings(snat: PortRange) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((first, last)) =
        read_trimmed("/proc/sys/net/ipv4/ip_local_port_range").as_deref().and_then(ports)
    {
        findings.push(if snat.min <= last && first <= snat.max {
            warn(
                format!("SNAT ports {snat} overlap ip_local_port_range {first}-{last}"),
                "choose --snat-ports outside it, or a narrower range for the node's sockets",
            )
        } else {
            ok(format!("SNAT ports {snat} are outside ip_local_port_range {first}-{last}"))
        });
        findings.push(if first <= 32767 && last >= 30000 {
            warn(
                format!("NodePorts 30000-32767 overlap ip_local_port_range {first}-{last}"),
                "a socket of the node may get a NodePort as its source port; narrow the range",
            )
        } else {
            ok("NodePorts are outside ip_local_port_range")
        });
    }
    for sysctl in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        let path = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        findings.push(if read_trimmed(&path).as_deref() == Some("0") {
            warn(format!("{sysctl} is 0"), "set it to 1 with sysctl -w, or pods are not reached")
        } else {
            ok(sysctl)
        });
    }
    findings.push(rp_filter_finding(&rp_filters()));
    findings
}

/// Every device's own `rp_filter`, `all` among them.
fn rp_filters() -> Vec<(String, u8)> {
    let Ok(devices) = fs::read_dir("/proc/sys/net/ipv4/conf") else { return Vec::new() };
    let mut filters: Vec<(String, u8)> = devices
        .filter_map(Result::ok)
        .filter_map(|device| {
            let value = read_trimmed(device.path().join("rp_filter").to_str()?)?.parse().ok()?;
            Some((device.file_name().to_string_lossy().into_owned(), value))
        })
        .collect();
    filters.sort();
    filters
}

/// The kernel filters by the larger of the device's value and that of `all`; 1 is strict, 2 loose.
fn rp_filter_finding(filters: &[(String, u8)]) -> Finding {
    let all = filters.iter().find(|(name, _)| name == "all").map_or(0, |(_, value)| *value);
    let strict: Vec<&str> = filters
        .iter()
        .filter(|(name, value)| !["all", "default", "lo"].contains(&name.as_str()) && (*value).max(all) == 1)
        .map(|(name, _)| name.as_str())
        .collect();
    if strict.is_empty() {
        return ok("rp_filter is not strict");
    }
    warn(
        format!("rp_filter is 1 (strict) on {}", strict.join(", ")),
        "packets on asymmetric ways are dropped by the kernel; 2 (loose) or 0 lets them pass",
    )
}

/// The two numbers of `ip_local_port_range`.
fn ports(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kube_proxy_findings() -> Vec<Finding> {
    let Foreign { found, unchecked } = foreign::scan();
    if found.is_empty() && unchecked.is_empty() {
        return vec![ok("no rules of kube-proxy")];
    }
    let found = found.into_iter().map(|finding| warn(finding.what, finding.remedy));
    let remedy = "rules of kube-proxy were not looked for there; run lb-agent where the tool is, in the node's network";
    found.chain(unchecked.into_iter().map(|what| warn(what, remedy))).collect()
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_rp_filter_of_device_and_all_counts() {
        let finding = |filters: &[(&str, u8)]| {
            let filters: Vec<_> = filters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            rp_filter_finding(&filters)
        };
        let fine = ok("rp_filter is not strict");
        assert_eq!(finding(&[("all", 0), ("eth0", 0), ("lo", 1)]), fine);
        assert_eq!(finding(&[("all", 2), ("eth0", 1)]), fine, "loose for all loosens the device");
        let strict = finding(&[("all", 0), ("default", 1), ("eth0", 1), ("eth1", 2)]);
        assert!(format!("{strict:?}").contains("strict) on eth0\""), "{strict:?}");
        assert!(format!("{:?}", finding(&[("all", 1), ("eth0", 0)])).contains("on eth0\""));
    }

    #[test]
    fn port_ranges_are_read_from_the_sysctl() {
        assert_eq!(ports("32768\t60999"), Some((32768, 60999)));
        assert_eq!(ports(""), None);
    }
}
