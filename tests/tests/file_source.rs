//! The manifest directory as a source: what is read, what is refused, and what a change of files sends.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use lb_agent::source::{
    Object, Refusal,
    file::{FileSource, FileSourceError},
};
use lb_tests::changes::{Changes, PATIENCE};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

type Outcome = anyhow::Result<()>;

/// A source at work on a directory.
struct Running {
    changes: Changes,
    stop: CancellationToken,
    task: JoinHandle<Result<(), FileSourceError>>,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let (sender, changes) = Changes::channel(64);
        let stop = CancellationToken::new();
        let task = tokio::spawn(FileSource::new(dir.to_owned()).run(sender, stop.clone()));
        Self { changes, stop, task }
    }

    async fn synced(dir: &Path) -> anyhow::Result<Self> {
        let mut running = Self::start(dir);
        running.changes.until_synced().await?;
        running.changes.forget_log();
        Ok(running)
    }

    async fn stop(self) -> Outcome {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.context("the source does not stop")???;
        Ok(())
    }

    fn refusals(&self) -> Vec<&Refusal> {
        self.changes.refusals.values().flatten().collect()
    }
}

fn service(name: &str, address: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {address}}}\n")
}

fn cluster_ip<'a>(changes: &'a Changes, name: &str) -> Option<&'a str> {
    changes.objects.values().find_map(|object| match object {
        Object::Service(service) if service.metadata.name.as_deref() == Some(name) => {
            service.spec.as_ref()?.cluster_ip.as_deref()
        }
        _ => None,
    })
}

/// Replaces a file in one step, as careful writers do.
fn replace(dir: &Path, name: &str, text: &str) -> Outcome {
    let hidden = dir.join(format!(".{name}.tmp"));
    fs::write(&hidden, text)?;
    Ok(fs::rename(hidden, dir.join(name))?)
}

/// The manifests of the demo.
fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/manifests")
}

#[tokio::test]
async fn all_manifests_are_read_and_bad_ones_refused_one_by_one() -> Outcome {
    let running = Running::synced(&manifests()).await?;
    let changes = &running.changes;
    for name in [
        "EndpointSlice default/good-1",
        "Service default/demo",
        "Service default/elsewhere",
        "Service default/go-demo-2",
        "Service default/good",
        "Service default/hello-world",
        "Service kube-system/dns",
        "Service my-ns/my-lb",
    ] {
        assert!(changes.has(name), "{name} is not among {:?}", changes.names());
    }
    assert!(!changes.has("Service default/peers"), "headless (spec 1.1)");
    assert!(!changes.has("EndpointSlice default/peers-1"), "headless (spec 1.3)");
    let refusals = running.refusals();
    let [refusal] = refusals.as_slice() else { panic!("{refusals:?}") };
    assert_eq!((refusal.object.as_str(), refusal.field.as_str()), ("Deployment default/ignored", "kind"));
    running.stop().await
}

#[tokio::test]
async fn json_yaml_and_lists_are_read_and_other_files_are_not() -> Outcome {
    let dir = TempDir::new()?;
    fs::write(dir.path().join("a.yml"), service("yml", "10.0.0.1"))?;
    let list = r#"{"apiVersion":"v1","kind":"List","items":[
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"json"},"spec":{"clusterIP":"10.0.0.2"}},
        {"apiVersion":"v1","kind":"Node","metadata":{"name":"node-a"}}]}"#;
    fs::write(dir.path().join("b.json"), list)?;
    fs::write(dir.path().join(".hidden.yaml"), service("hidden", "10.0.0.3"))?;
    fs::write(dir.path().join("README.md"), service("readme", "10.0.0.4"))?;
    fs::create_dir(dir.path().join("sub.yaml"))?;
    let running = Running::synced(dir.path()).await?;
    assert_eq!(running.changes.names(), ["Service default/json", "Service default/yml", "Node node-a"]);
    assert!(running.refusals().is_empty());
    running.stop().await
}

#[tokio::test]
async fn only_what_changed_in_a_file_is_sent() -> Outcome {
    let dir = TempDir::new()?;
    let text = [service("a", "10.0.0.1"), service("b", "10.0.0.2"), service("c", "10.0.0.3")].join("---\n");
    fs::write(dir.path().join("all.yaml"), &text)?;
    let mut running = Running::synced(dir.path()).await?;
    let changed =
        text.replace("10.0.0.2", "10.0.0.9") + "# a comment says nothing\n---\n" + &service("d", "10.0.0.4");
    replace(dir.path(), "all.yaml", &changed)?;
    running.changes.until("d", |changes| changes.has("Service default/d")).await?;
    assert_eq!(running.changes.log, ["+Service default/b", "+Service default/d"]);
    assert_eq!(cluster_ip(&running.changes, "b"), Some("10.0.0.9"));
    running.changes.forget_log();
    fs::write(dir.path().join("all.yaml"), service("c", "10.0.0.3"))?;
    running.changes.until("three deletions", |changes| changes.log.len() == 3).await?;
    assert_eq!(running.changes.names(), ["Service default/c"]);
    running.stop().await
}

#[tokio::test]
async fn a_file_renamed_into_place_is_read_without_waiting_for_quiet() -> Outcome {
    let dir = TempDir::new()?;
    let mut running = Running::synced(dir.path()).await?;
    let mut fastest = Duration::MAX;
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"] {
        let begun = Instant::now();
        replace(dir.path(), "a.yaml", &service("a", address))?;
        running.changes.until("the change", |changes| cluster_ip(changes, "a") == Some(address)).await?;
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_millis(20), "{fastest:?}");
    running.stop().await
}

#[tokio::test]
async fn a_broken_document_takes_nothing_away() -> Outcome {
    let dir = TempDir::new()?;
    let text = [service("a", "10.0.0.1"), service("b", "10.0.0.2")].join("---\n");
    fs::write(dir.path().join("f.yaml"), &text)?;
    let mut running = Running::synced(dir.path()).await?;

    let broken = text.replace("{name: b}", "{name: [b}").replace("10.0.0.1", "10.0.0.7");
    replace(dir.path(), "f.yaml", &broken)?;
    running.changes.until("a refusal", |changes| !changes.refusals.is_empty()).await?;
    assert_eq!(running.changes.names(), ["Service default/a", "Service default/b"]);
    assert_eq!(cluster_ip(&running.changes, "a"), Some("10.0.0.7"), "the good document counts");
    assert!(
        running.refusals()[0].object.ends_with("f.yaml, document 2 (line 5)"),
        "{:?}",
        running.refusals()
    );

    replace(dir.path(), "f.yaml", &service("a", "10.0.0.7"))?;
    running.changes.until("no refusal", |changes| changes.refusals.is_empty()).await?;
    assert_eq!(running.changes.names(), ["Service default/a"], "the file is readable and has no b");
    running.stop().await
}

#[tokio::test]
async fn a_file_that_is_no_text_keeps_its_last_good_objects() -> Outcome {
    let dir = TempDir::new()?;
    fs::write(dir.path().join("f.yaml"), service("a", "10.0.0.1"))?;
    fs::write(dir.path().join("g.yaml"), service("b", "10.0.0.2"))?;
    let mut running = Running::synced(dir.path()).await?;
    fs::write(dir.path().join("f.yaml"), [0xff, 0xfe, 0x00])?;
    running.changes.until("a refusal", |changes| !changes.refusals.is_empty()).await?;
    fs::write(dir.path().join("g.yaml"), service("b", "10.0.0.3"))?;
    running.changes.until("b", |changes| cluster_ip(changes, "b") == Some("10.0.0.3")).await?;
    assert!(running.changes.has("Service default/a"));
    fs::remove_file(dir.path().join("f.yaml"))?;
    let forgotten = |changes: &Changes| !changes.has("Service default/a") && changes.refusals.is_empty();
    running.changes.until("no a, no refusal", forgotten).await?;
    running.stop().await
}

#[tokio::test]
async fn of_two_definitions_the_first_path_counts() -> Outcome {
    let dir = TempDir::new()?;
    fs::write(dir.path().join("b.yaml"), service("a", "10.0.0.2"))?;
    fs::write(dir.path().join("c.yaml"), service("a", "10.0.0.3"))?;
    let mut running = Running::synced(dir.path()).await?;
    let changes = &mut running.changes;
    assert_eq!(cluster_ip(changes, "a"), Some("10.0.0.2"));
    assert_eq!(changes.refusals.len(), 1);
    assert!(changes.refusals.keys().all(|origin| origin.ends_with("c.yaml")));

    fs::write(dir.path().join("a.yaml"), service("a", "10.0.0.1"))?;
    changes.until("a.yaml counts", |changes| cluster_ip(changes, "a") == Some("10.0.0.1")).await?;
    changes.until("two refusals", |changes| changes.refusals.len() == 2).await?;

    fs::remove_file(dir.path().join("a.yaml"))?;
    fs::remove_file(dir.path().join("b.yaml"))?;
    changes.until("c.yaml counts", |changes| cluster_ip(changes, "a") == Some("10.0.0.3")).await?;
    changes.until("no refusal", |changes| changes.refusals.is_empty()).await?;
    assert!(!changes.log.iter().any(|entry| entry.starts_with('-')), "{:?}", changes.log);
    running.stop().await
}

#[tokio::test]
async fn an_object_that_moves_to_another_file_is_not_deleted_in_between() -> Outcome {
    let dir = TempDir::new()?;
    fs::write(dir.path().join("a.yaml"), service("a", "10.0.0.1"))?;
    let mut running = Running::synced(dir.path()).await?;
    fs::rename(dir.path().join("a.yaml"), dir.path().join("z.yaml"))?;
    running.changes.nothing_within(Duration::from_millis(200)).await?;
    replace(dir.path(), "z.yaml", &service("a", "10.0.0.2"))?;
    running.changes.until("z.yaml counts", |changes| cluster_ip(changes, "a") == Some("10.0.0.2")).await?;
    assert_eq!(running.changes.log, ["+Service default/a"]);
    running.stop().await
}

#[tokio::test]
async fn a_label_that_comes_is_a_deletion_and_one_that_goes_an_addition() -> Outcome {
    let dir = TempDir::new()?;
    let plain = service("a", "10.0.0.1");
    let labelled =
        plain.replace("{name: a}", "{name: a, labels: {service.kubernetes.io/service-proxy-name: ''}}");
    fs::write(dir.path().join("a.yaml"), &plain)?;
    let mut running = Running::synced(dir.path()).await?;
    replace(dir.path(), "a.yaml", &labelled)?;
    running.changes.until("gone (spec 1.2)", |changes| changes.objects.is_empty()).await?;
    replace(dir.path(), "a.yaml", &plain)?;
    running.changes.until("back", |changes| changes.has("Service default/a")).await?;
    running.stop().await
}

/// The files of a ConfigMap volume are symlinks through `..data`, which is swapped by a rename.
#[tokio::test]
async fn a_config_map_volume_is_followed_through_its_symlinks() -> Outcome {
    let dir = TempDir::new()?;
    let version = |name: &str, text: &str| -> Outcome {
        fs::create_dir(dir.path().join(name))?;
        Ok(fs::write(dir.path().join(name).join("a.yaml"), text)?)
    };
    version("..v1", &service("a", "10.0.0.1"))?;
    symlink("..v1", dir.path().join("..data"))?;
    symlink("..data/a.yaml", dir.path().join("a.yaml"))?;
    let mut running = Running::synced(dir.path()).await?;
    assert!(running.changes.has("Service default/a"));

    version("..v2", &service("a", "10.0.0.2"))?;
    symlink("..v2", dir.path().join("..data_tmp"))?;
    let begun = Instant::now();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data"))?;
    running.changes.until("v2", |changes| cluster_ip(changes, "a") == Some("10.0.0.2")).await?;
    assert!(begun.elapsed() < Duration::from_secs(5), "found by the periodic rescan only");
    running.stop().await
}

#[tokio::test]
async fn a_directory_may_appear_later_vanish_and_come_back() -> Outcome {
    let parent = TempDir::new()?;
    let (dir, staged) = (parent.path().join("manifests"), parent.path().join("staged"));
    let mut running = Running::start(&dir);
    running.changes.until("a refusal", |changes| !changes.refusals.is_empty()).await?;
    assert!(running.changes.synced.is_empty(), "nothing was read yet");

    fs::create_dir(&staged)?;
    fs::write(staged.join("a.yaml"), service("a", "10.0.0.1"))?;
    fs::rename(&staged, &dir)?;
    running.changes.until_synced().await?;
    assert!(running.changes.has("Service default/a"));
    assert!(running.changes.refusals.is_empty());

    fs::rename(&dir, &staged)?;
    running.changes.until("a refusal", |changes| !changes.refusals.is_empty()).await?;
    assert!(running.changes.has("Service default/a"), "what it held stays");

    fs::create_dir(&dir)?;
    fs::write(dir.join("b.yaml"), service("b", "10.0.0.2"))?;
    running.changes.until("b instead of a", |changes| changes.names() == ["Service default/b"]).await?;
    fs::write(dir.join("c.yaml"), service("c", "10.0.0.3"))?;
    running.changes.until("c", |changes| changes.has("Service default/c")).await?;
    running.stop().await
}

#[tokio::test]
async fn a_large_file_is_read_whole_and_changed_in_part() -> Outcome {
    let dir = TempDir::new()?;
    let text: String =
        (0..10_000).map(|index| format!("---\n{}", service(&format!("s{index}"), "10.0.0.1"))).collect();
    let padding = "# padding: the file is larger than what is parsed in one go\n".repeat(10_000);
    fs::write(dir.path().join("all.yaml"), format!("{text}{padding}"))?;
    let mut running = Running::synced(dir.path()).await?;
    assert_eq!(running.changes.objects.len(), 10_000);
    replace(dir.path(), "all.yaml", &format!("{}{padding}", text.replacen("10.0.0.1", "10.0.0.2", 1)))?;
    running.changes.until("s0", |changes| cluster_ip(changes, "s0") == Some("10.0.0.2")).await?;
    running.changes.nothing_within(Duration::from_millis(100)).await?;
    assert_eq!(running.changes.log, ["+Service default/s0"]);
    running.stop().await
}

#[tokio::test]
async fn it_stops_though_nobody_receives() -> Outcome {
    let dir = TempDir::new()?;
    let text: Vec<String> = (0..200).map(|index| service(&format!("s{index}"), "10.0.0.1")).collect();
    fs::write(dir.path().join("all.yaml"), text.join("---\n"))?;
    let mut running = Running::start(dir.path());
    running.changes.until("a first object", |changes| !changes.objects.is_empty()).await?;
    running.stop().await
}
