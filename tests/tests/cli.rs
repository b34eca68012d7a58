//! The commands of an operator, against agents that run and one that does not. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Agent,
    cluster::{At, Cluster, PodSpec},
    probe::{Target, program},
};
use serde_json::Value;

const SERVICES: &str = include_str!("../testdata/e2e/services.yaml");

fn json(agent: &Agent, command: &str) -> Result<Value> {
    let text = agent.cli_text(command, &["-o", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("{command} -o json: {text}"))
}

fn listings_tell_what_is_there(agent: &Agent) -> Result<()> {
    for (command, words) in [
        ("services", ["default/web:http", "[fd00:96::20]:80", "external Local"].as_slice()),
        ("backends", &["10.244.1.10:8080", "[fd00:244:2::10]:5353", "active"]),
        ("connections", &["10.244.2.10:8080", "reply"]),
        ("dump", &["FRONTEND 10.96.0.20:80/TCP ClusterIP", "FRONTEND [fd00:96::20]:53/UDP", "MEMBER"]),
        ("status", &["eth0", "uplink", "CONNECTIONS4", "redirected", "refused"]),
        ("check", &["CAP_BPF", "tcx"]),
    ] {
        let text = agent.cli_text(command, &[])?;
        for word in words {
            ensure!(text.contains(word), "{command}: {word:?} in\n{text}");
        }
    }
    Ok(())
}

fn json_tells_the_same(agent: &Agent) -> Result<()> {
    let services = json(agent, "services")?;
    let ports = services["service_ports"].as_array().or(services.as_array()).context("service ports")?;
    let web = ports.iter().find(|port| port["name"] == "web" && port["port_name"] == "http");
    let web = web.context("web:http")?;
    ensure!(web["frontends"].as_array().is_some_and(|frontends| frontends.len() >= 8), "{web}");
    ensure!(web["backends"].as_array().is_some_and(|backends| backends.len() == 4), "{web}");
    let backends = json(agent, "backends")?;
    let all = backends.as_array().context("backends")?;
    ensure!(all.iter().any(|backend| backend["address"] == "[fd00:244:1::10]:8080"), "{backends}");
    let connections = json(agent, "connections")?;
    ensure!(connections.as_array().is_some_and(|entries| entries.len() >= 2), "{connections}");
    let status = json(agent, "status")?;
    ensure!(status["sync"]["synced"] == true && status["sync"]["failures"] == 0, "{status}");
    Ok(())
}

/// A refusal is made while `events` listens, and shown.
fn events_are_shown_as_they_happen(cluster: &Cluster, agent: &Agent) -> Result<()> {
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| agent.cli_text("events", &["--count", "1"]));
        let client = cluster.probe(&At::Client)?;
        while !listening.is_finished() {
            drop(client.once(Target::http("192.0.2.11:31081")?)?);
        }
        let said = listening.join().ok().context("the listener")??;
        ensure!(said.contains("192.0.2.11:31081") && said.contains("refused"), "{said}");
        Ok(())
    })
}

#[test]
fn an_operator_sees_what_the_node_does() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.add_pods(&[
        PodSpec::http("a1", "node-a", &["10.244.1.10", "fd00:244:1::10"], 8080)?.and_udp(5353),
        PodSpec::http("b1", "node-b", &["10.244.2.10", "fd00:244:2::10"], 8080)?.and_udp(5353),
    ])?;
    cluster.apply("services.yaml", SERVICES)?;
    cluster.start_agents()?;
    let tally = cluster.probe(&At::Client)?.tally(Target::http("192.0.2.11:31080")?, 20)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let refused = cluster.probe(&At::Client)?.once(Target::http("192.0.2.11:31081")?)?;
    ensure!(refused.is_err(), "{refused:?}");
    let agent = cluster.agents().get("node-a").context("the agent of node-a")?;
    listings_tell_what_is_there(agent)?;
    json_tells_the_same(agent)?;
    events_are_shown_as_they_happen(&cluster, agent)
}

fn lb_agent(args: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(program("lb-agent")?).args(args).output().context("run lb-agent")?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

#[test]
fn without_an_agent_the_commands_say_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path().to_str().context("a path")?;
    for command in ["services", "backends", "status"] {
        let (ok, said) = lb_agent(&[command, "--run-dir", dir, "--pin-dir", dir])?;
        ensure!(!ok && said.contains(dir), "{command}: {said}");
    }
    let (ok, said) = lb_agent(&["run", "--manifests", dir, "--snat-ports", "9-8"])?;
    ensure!(!ok && said.contains("snat-ports"), "{said}");
    Ok(())
}

#[test]
fn every_command_teaches() -> Result<()> {
    for command in
        ["run", "services", "backends", "connections", "dump", "status", "check", "cleanup", "events"]
    {
        let (ok, said) = lb_agent(&[command, "--help"])?;
        ensure!(
            ok && said.contains(&format!("Usage: lb-agent {command}")) && said.contains("--help"),
            "{said}"
        );
    }
    Ok(())
}

/// Spec 10: what becomes of each field of kube-proxy's file, and a failure where one is refused.
#[test]
fn check_tells_what_becomes_of_kube_proxys_file() -> Result<()> {
    let check = |file: &std::path::Path, more: &[&str]| -> Result<(bool, String, String)> {
        let mut command = Command::new(program("lb-agent")?);
        let output = command.arg("check").arg("--kube-proxy-config").arg(file).args(more).output()?;
        Ok((output.status.success(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    };
    let kubeadm = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/kube-proxy/kubeadm.yaml");
    let (passed, table, _) = check(&kubeadm, &[])?;
    ensure!(passed, "{table}");
    for word in ["clientConnection.kubeconfig", "--kubeconfig", "kept", "portRange", "ignored", "differs"] {
        ensure!(table.contains(word), "{word:?} in\n{table}");
    }
    let (_, text, _) = check(&kubeadm, &["-o", "json"])?;
    let report: Value = serde_json::from_str(&text)?;
    let rows = report["rows"].as_array().context("rows")?;
    let row = rows.iter().find(|row| row["field"] == "clientConnection.kubeconfig").context("its row")?;
    ensure!(row["outcome"] == "kept", "{row}");
    let refused = tempfile::NamedTempFile::new()?;
    let bad =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\noomScoreAdj: 5000\n";
    std::fs::write(refused.path(), bad)?;
    let (passed, table, error) = check(refused.path(), &[])?;
    ensure!(!passed && (table + &error).contains("oomScoreAdj"), "{error}");
    Ok(())
}
