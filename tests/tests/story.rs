//! An operator's story, told by the commands an operator has: a Deployment is exposed, given an external address,
//! scaled, and its Service deleted again. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{At, PodSpec},
    objects::{Endpoint, service, slice},
    probe::Target,
    process::eventually,
    scene::{PATIENCE, Scene},
};

const PORT: &str = "{name: \"\", port: 8080}";

/// What `lb-agent COMMAND` of node-a says once it contains `wanted`.
fn says(scene: &mut Scene, command: &str, wanted: &[&str]) -> Result<String> {
    let agent = scene.cluster.agent("node-a")?;
    let mut text = String::new();
    eventually("does it say so", PATIENCE, || {
        text = agent.cli_text(command, &[])?;
        Ok(wanted.iter().all(|part| text.contains(part)))
    })
    .with_context(|| format!("lb-agent {command}: {wanted:?} wanted in:\n{text}"))?;
    Ok(text)
}

/// The pods of the Deployment, as its EndpointSlice has them.
fn deployment(scene: &Scene, pods: &[(&str, &str)]) -> Result<()> {
    let endpoints: Vec<Endpoint> =
        pods.iter().map(|(address, node)| Endpoint::ready(address, node)).collect();
    scene.cluster.apply("slice.yaml", &slice("hello-1", "hello", PORT, &endpoints))
}

fn expose(scene: &Scene, external_ips: &str) -> Result<()> {
    let spec = format!(
        "clusterIP: 10.96.0.200, externalIPs: [{external_ips}], ports: [{{port: 80, targetPort: 8080}}]"
    );
    scene.cluster.apply("service.yaml", &service("hello", &spec))
}

const FIRST: (&str, &str) = ("10.244.1.10", "node-a");
const SECOND: (&str, &str) = ("10.244.2.10", "node-b");
const THIRD: (&str, &str) = ("10.244.2.20", "node-b");

#[test]
fn a_deployment_is_exposed_patched_scaled_and_its_service_deleted() -> Result<()> {
    let mut scene =
        Scene::prepared(|agent| agent.set_extra_args(&["--external-ip-cidrs", "203.0.113.64/26"]))?;
    let client = At::pod("a2");
    let cluster_ip = Target::http("10.96.0.200:80")?;
    let external = Target::http("203.0.113.70:80")?;

    deployment(&scene, &[FIRST, SECOND])?;
    scene.refused(&client, cluster_ip).context("a Deployment alone is no Service")?;
    expose(&scene, "")?;
    scene.reaches(&client, cluster_ip, &["a1", "b1"])?;
    let services = says(&mut scene, "services", &["default/hello TCP", "ClusterIP 10.96.0.200:80 -> 2"])?;
    ensure!(services.contains("10.244.1.10:8080 active local"), "{services}");
    ensure!(services.contains("10.244.2.10:8080 active"), "{services}");
    let backends = says(&mut scene, "backends", &["10.244.1.10:8080", "10.244.2.10:8080", "node-b"])?;
    ensure!(backends.contains("local") && backends.contains("remote"), "{backends}");

    expose(&scene, "203.0.113.70")?;
    scene.reaches(&client, external, &["a1", "b1"])?;
    says(&mut scene, "services", &["ExternalIP 203.0.113.70:80 -> 2"])?;
    expose(&scene, "203.0.113.200")?;
    scene.fails(&client, external)?;
    let services = says(&mut scene, "services", &["REFUSED", "Service default/hello", "203.0.113.200"])?;
    ensure!(!services.contains("ExternalIP"), "{services}");
    scene.reaches(&client, cluster_ip, &["a1", "b1"])?;
    expose(&scene, "203.0.113.70")?;
    scene.reaches(&client, external, &["a1", "b1"]).context("back inside")?;

    let pod = PodSpec::http("b2", "node-b", &[THIRD.0], 8080)?;
    scene.cluster.add_pods(&[pod])?;
    deployment(&scene, &[FIRST, SECOND, THIRD])?;
    scene.reaches(&client, cluster_ip, &["a1", "b1", "b2"])?;
    says(&mut scene, "backends", &["10.244.2.20:8080"])?;
    deployment(&scene, &[FIRST, SECOND])?;
    scene.reaches(&client, cluster_ip, &["a1", "b1"])?;
    scene.cluster.remove_pod("b2")?;
    scene.reaches(&client, external, &["a1", "b1"])?;

    scene.cluster.delete("service.yaml")?;
    scene.refused(&client, cluster_ip)?;
    let dump = says(&mut scene, "dump", &[])?;
    for kind in ["FRONTEND", "BACKEND", "MEMBER"] {
        ensure!(!dump.contains(kind), "every entry is gone: {dump}");
    }
    let backends = says(&mut scene, "backends", &[])?;
    ensure!(!backends.contains("10.244."), "{backends}");
    for pod in ["10.244.1.10:8080", "10.244.2.10:8080"] {
        scene.ask(&client, Target::http(pod)?)?.context("the pods live")?;
    }
    Ok(())
}
