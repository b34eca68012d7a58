//! What an agent finds and sets on its node: kube-proxy's file and its rules, the kernel's own connection tracking,
//! maps that somebody else has changed. Real agent, real iptables and nft, in a namespace. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Agent,
    cluster::{At, Cluster},
    probe::program,
    process::{Place, eventually},
    script::testdata,
};
use serde_json::Value;

const SERVICES: &str = include_str!("../testdata/e2e/services.yaml");
const PATIENCE: Duration = Duration::from_secs(30);

/// Rules of the shape kube-proxy writes, beside those of the kubelet, kube-router and an administrator.
const IPTABLES: &str = "*mangle
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:ADMIN - [0:0]
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -j ADMIN
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ERIFXISQEP7F7OF4 - [0:0]
:KUBE-SEP-IT2ZTR26TO4XFPTO - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-ROUTER-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -p tcp -m comment --comment \"kube-system/kube-dns:dns-tcp cluster IP\" -m tcp --dport 53 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SVC-ERIFXISQEP7F7OF4 -j KUBE-SEP-IT2ZTR26TO4XFPTO
-A KUBE-SEP-IT2ZTR26TO4XFPTO -j RETURN
COMMIT
";
const OTHERS: [&str; 4] = [":KUBE-KUBELET-CANARY", ":KUBE-FIREWALL", ":ADMIN", ":KUBE-ROUTER-SERVICES"];
const BACKENDS: [&str; 4] = ["iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"];

fn shell(place: &Place, script: &str, input: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("input");
    fs::write(&path, input)?;
    let file = fs::File::open(&path)?;
    let output = place.command("sh")?.args(["-c", script]).stdin(file).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn leave_rules(place: &Place) -> Result<()> {
    for backend in BACKENDS {
        shell(place, &format!("{backend}-restore"), IPTABLES)?;
    }
    for family in ["ip", "ip6"] {
        shell(
            place,
            &format!("nft add table {family} kube-proxy && nft add chain {family} kube-proxy services"),
            "",
        )?;
        shell(place, &format!("nft add table {family} admin"), "")?;
    }
    // A bridge in place of the dummy device: only its name counts.
    shell(place, "ip link add kube-ipvs0 type bridge", "").map(drop)
}

/// Everything of kube-proxy that `lb-agent check` names in this namespace.
fn checked(place: &Place) -> Result<Vec<String>> {
    let output = place.output(program("lb-agent")?.to_str().context("path")?, &["check", "-o", "json"])?;
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let of_kube_proxy = findings.iter().filter(|finding| {
        let remedy = finding["remedy"].as_str().unwrap_or_default();
        ["cleanup --kube-proxy", "nft delete table", "ip link delete"]
            .iter()
            .any(|command| remedy.contains(command))
    });
    Ok(of_kube_proxy.map(|finding| finding["what"].as_str().unwrap_or_default().to_owned()).collect())
}

fn count(texts: &[String], part: &str) -> usize {
    texts.iter().filter(|text| text.contains(part)).count()
}

#[test]
fn rules_of_kube_proxy_are_found_shown_and_removed_and_others_stay() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.apply("services.yaml", SERVICES)?;
    let place = cluster.place(&At::host("node-a"))?.clone();
    ensure!(checked(&place)?.is_empty(), "a clean node");
    leave_rules(&place)?;
    let found = checked(&place)?;
    for backend in BACKENDS {
        ensure!(
            count(&found, &format!("7 chains of kube-proxy in {backend} (")) == 1,
            "12A 99: {backend}: {found:#?}"
        );
    }
    ensure!(
        count(&found, "nftables table ip kube-proxy") == 1 && count(&found, "table ip6 kube-proxy") == 1,
        "{found:#?}"
    );
    ensure!(count(&found, "kube-ipvs0") == 1 && found.len() == 7, "{found:#?}");

    cluster.prepare_agents()?;
    let agent = cluster.agent("node-a")?;
    agent.start()?;
    agent.wait_until_ready()?;
    eventually("status shows the rules", PATIENCE, || {
        let status = agent.cli_text("status", &[])?;
        Ok(status.contains("7 chains of kube-proxy in iptables-nft (") && status.contains("kube-ipvs0"))
    })?;
    ensure!(agent.log_tail().contains("lb-agent cleanup --kube-proxy"), "{}", agent.log_tail());

    let said = agent.cli_text("cleanup", &["--kube-proxy"])?;
    ensure!(said.contains("removed") && said.contains("kube-ipvs0"), "{said}");
    ensure!(checked(&place)?.is_empty(), "{:?}", checked(&place)?);
    for backend in BACKENDS {
        let left = shell(&place, &format!("{backend}-save"), "")?;
        for other in OTHERS {
            ensure!(left.contains(other), "spec 8.64: {backend}: {other} is gone from\n{left}");
        }
        ensure!(left.contains("-A FORWARD -j ADMIN") && left.contains("-A INPUT -j KUBE-FIREWALL"), "{left}");
        ensure!(!left.contains("KUBE-SERVICES\n") || !left.contains(":KUBE-SERVICES"), "{left}");
    }
    ensure!(shell(&place, "nft list tables", "")?.contains("admin"), "another's table is gone");
    ensure!(agent.cli_text("services", &[])?.contains("default/web"), "the agent's own is untouched");
    Ok(())
}

#[test]
fn without_the_tools_it_is_said_what_could_not_be_looked_at() -> Result<()> {
    let output = Command::new(program("lb-agent")?)
        .args(["check", "-o", "json"])
        .env("PATH", "/nonexistent")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    for tool in ["iptables-save", "ip6tables-save", "nft"] {
        ensure!(text.contains(&format!("run {tool}: ")), "{tool}: {text}");
    }
    Ok(())
}

fn sysctl(place: &Place, name: &str) -> Result<String> {
    place
        .namespace
        .run(|| fs::read_to_string(Path::new("/proc/sys/net/netfilter").join(name)))??
        .trim()
        .parse()
        .context("a value")
}

#[test]
fn kubeadms_file_configures_an_agent_and_the_kernel_as_kube_proxy_does() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.apply("services.yaml", SERVICES)?;
    let place = cluster.place(&At::host("node-a"))?.clone();
    cluster.prepare_agents()?;
    let agent = cluster.agent("node-a")?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config.conf");
    let theirs = fs::read_to_string(testdata().join("kube-proxy/kubeadm.yaml"))?
        .replace("kubeconfig: /var/lib/kube-proxy/kubeconfig.conf", "kubeconfig: \"\"")
        .replace("tcpEstablishedTimeout: null", "tcpEstablishedTimeout: 2h")
        .replace("udpTimeout: 0s\ndetectLocal", "udpTimeout: 77s\nnoSuchField: 1\ndetectLocal");
    fs::write(&path, theirs)?;
    agent.set_extra_args(&["--kube-proxy-config", path.to_str().context("path")?]);
    agent.start()?;
    agent.wait_until_ready()?;
    for (name, value) in [
        ("nf_conntrack_tcp_timeout_close_wait", "3600"),
        ("nf_conntrack_tcp_timeout_established", "7200"),
        ("nf_conntrack_udp_timeout", "77"),
    ] {
        let found = sysctl(&place, name)?;
        ensure!(found == value, "spec 7.22, 7.24: {name} is {found}");
    }
    ensure!(agent.log_tail().contains("unknown field noSuchField"), "spec 10.1: {}", agent.log_tail());
    agent.stop()?;
    // The maximum is the machine's: a namespace may read and not write it.
    agent.set_extra_args(&["--conntrack-max-per-core=1000", "--sysctl-hard-fail"]);
    agent.start()?;
    ensure!(agent.wait_until_ready().is_err(), "--sysctl-hard-fail");
    let said = agent.log_tail();
    ensure!(said.contains("nf_conntrack_max") && said.contains("On the node: echo"), "{said}");
    Ok(())
}

/// bpftool's own way: the key's bytes.
fn delete_a_frontend(pins: &Path) -> Result<()> {
    let map = pins.join("FRONTENDS4");
    let map = map.to_str().context("path")?;
    let dump = Command::new("bpftool").args(["-j", "map", "dump", "pinned", map]).output()?;
    let entries: Vec<Value> = serde_json::from_slice(&dump.stdout)?;
    let key = entries.first().and_then(|entry| entry["key"].as_array()).context("an entry")?;
    let bytes: Vec<&str> = key.iter().filter_map(Value::as_str).collect();
    let done = Command::new("bpftool").args(["map", "delete", "pinned", map, "key"]).args(&bytes).status()?;
    ensure!(done.success(), "bpftool map delete");
    Ok(())
}

fn repairs(agent: &Agent) -> Result<u64> {
    let status: Value = serde_json::from_str(&agent.cli_text("status", &["-o", "json"])?)?;
    status["sync"]["repairs"].as_u64().context("repairs")
}

#[test]
fn an_entry_that_somebody_deletes_is_written_again_and_reported() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.apply("services.yaml", SERVICES)?;
    cluster.prepare_agents()?;
    let agent = cluster.agent("node-a")?;
    agent.set_extra_args(&["--full-sync-period", "1"]);
    agent.start()?;
    agent.wait_until_ready()?;
    let before = agent.cli_text("dump", &[])?;
    let pins = fs::read_dir(agent.pins())?.next().context("the pins of an ABI version")??.path();
    delete_a_frontend(&pins)?;
    eventually("it is repaired", PATIENCE, || {
        Ok(repairs(agent)? == 1 && agent.cli_text("dump", &[])? == before)
    })?;
    ensure!(agent.log_tail().contains("somebody else changed the maps"), "{}", agent.log_tail());
    Ok(())
}

#[test]
fn an_api_server_that_is_away_at_the_start_leaves_what_is_pinned() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.apply("services.yaml", SERVICES)?;
    cluster.prepare_agents()?;
    let agent = cluster.agent("node-a")?;
    agent.start()?;
    agent.wait_until_ready()?;
    let before = agent.cli_text("dump", &[])?;
    agent.stop()?;
    let dir = tempfile::tempdir()?;
    let kubeconfig = dir.path().join("kubeconfig");
    fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
         clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n",
    )?;
    agent.set_kubeconfig(&kubeconfig);
    agent.start()?;
    eventually("it says that the API server is away", PATIENCE, || {
        let status: Value = serde_json::from_str(&agent.cli_text("status", &["-o", "json"])?)?;
        Ok(status["source"]["last_error"].is_string()
            && status["attachments"].as_array().is_some_and(|all| !all.is_empty()))
    })?;
    let status: Value = serde_json::from_str(&agent.cli_text("status", &["-o", "json"])?)?;
    ensure!(status["sync"]["synced"] == false, "{status}");
    ensure!(
        agent.cli_text("dump", &[])? == before,
        "spec 8.14, 8.17: nothing is written before everything is known"
    );
    Ok(())
}

#[test]
fn an_agent_works_where_ipv6_is_disabled() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.apply("services.yaml", SERVICES)?;
    let place = cluster.place(&At::host("node-a"))?.clone();
    place.namespace.set_sysctls(&[("ipv6/conf/all/disable_ipv6", "1")])?;
    cluster.prepare_agents()?;
    let agent = cluster.agent("node-a")?;
    agent.start()?;
    agent.wait_until_ready()?;
    let services = agent.cli_text("services", &[])?;
    ensure!(
        services.contains("192.0.2.11:31080") && !services.contains("[2001:db8:2::11]:31080"),
        "12A 24: {services}"
    );
    Ok(())
}
