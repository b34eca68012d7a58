//! Where the measured agent gets its objects: a directory of manifests, or the test API server.

use std::{
    fmt::Write as _,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use lb_tests::{
    api_server::{ApiServer, Cluster},
    netns::Namespace,
};
use tokio::runtime::Runtime;

use crate::objects::{Move, NODE, Scale, service, slice};

/// A source of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// Manifests.
    Files {
        /// Services with their slices in each file.
        services_per_file: usize,
    },
    /// The test API server, in this process, reached over HTTP inside the agent's namespace.
    Api,
}

impl Feed {
    /// Holds all objects, for an agent in `namespace`, with `dir` for files.
    pub(crate) fn start(self, scale: Scale, namespace: &Namespace, dir: &Path) -> Result<Box<dyn Objects>> {
        Ok(match self {
            Self::Files { services_per_file } => Box::new(Manifests::write(scale, services_per_file, dir)?),
            Self::Api => Box::new(Served::start(scale, namespace, dir)?),
        })
    }

    /// In a row's case.
    pub(crate) fn name(self, scale: Scale) -> String {
        match self {
            Self::Files { services_per_file } => {
                format!("{} files", scale.services.div_ceil(services_per_file))
            }
            Self::Api => "API server".to_owned(),
        }
    }
}

/// The objects while an agent reads them.
pub(crate) trait Objects {
    /// Where the API server is, if there is one; else they are manifests in `dir/manifests`.
    fn kubeconfig(&self) -> Option<&Path>;
    /// Prepares a change and returns what makes it visible.
    fn prepare(&self, change: Move) -> Result<Box<dyn FnOnce() -> Result<()> + '_>>;
}

struct Manifests {
    scale: Scale,
    per_file: usize,
    dir: PathBuf,
}

impl Manifests {
    fn write(scale: Scale, per_file: usize, dir: &Path) -> Result<Self> {
        let manifests = Self { scale, per_file, dir: dir.join("manifests") };
        fs::create_dir_all(&manifests.dir).with_context(|| format!("make {}", manifests.dir.display()))?;
        for first in (0..scale.services).step_by(per_file) {
            write(&manifests.file(first), &manifests.text(first, None)?)?;
        }
        Ok(manifests)
    }

    fn file(&self, service: usize) -> PathBuf {
        self.dir.join(format!("services-{:05}.yaml", service / self.per_file))
    }

    /// The file that the Service `wanted` stands in.
    fn text(&self, wanted: usize, moved: Option<Move>) -> Result<String> {
        let first = wanted - wanted % self.per_file;
        let services: Range<usize> = first..self.scale.services.min(first + self.per_file);
        let mut text = String::new();
        for index in services {
            let slice = serde_yaml_ng::to_string(&slice(index, self.scale, moved))?;
            write!(text, "---\n{}---\n{slice}", serde_yaml_ng::to_string(&service(index))?)?;
        }
        Ok(text)
    }
}

impl Objects for Manifests {
    fn kubeconfig(&self) -> Option<&Path> {
        None
    }

    fn prepare(&self, change: Move) -> Result<Box<dyn FnOnce() -> Result<()> + '_>> {
        let ready = self.dir.with_file_name("changed.yaml");
        write(&ready, &self.text(change.service, Some(change))?)?;
        let file = self.file(change.service);
        Ok(Box::new(move || fs::rename(&ready, file).context("rename the changed file")))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

struct Served {
    scale: Scale,
    cluster: Cluster,
    kubeconfig: PathBuf,
    _server: ApiServer,
    _runtime: Runtime,
}

impl Served {
    fn start(scale: Scale, namespace: &Namespace, dir: &Path) -> Result<Self> {
        let cluster = Cluster::new();
        // Without its Node object an agent is not ready.
        let metadata = ObjectMeta { name: Some(NODE.to_owned()), ..ObjectMeta::default() };
        cluster.apply(&Node { metadata, ..Node::default() });
        for index in 0..scale.services {
            cluster.apply(&service(index));
            cluster.apply(&slice(index, scale, None));
        }
        cluster.compact();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // A socket belongs to the namespace of the thread that makes it.
        let server = namespace.run(|| runtime.block_on(ApiServer::start(&cluster)))??;
        let kubeconfig = server.write_kubeconfig(dir)?;
        Ok(Self { scale, cluster, kubeconfig, _server: server, _runtime: runtime })
    }
}

impl Objects for Served {
    fn kubeconfig(&self) -> Option<&Path> {
        Some(&self.kubeconfig)
    }

    fn prepare(&self, change: Move) -> Result<Box<dyn FnOnce() -> Result<()> + '_>> {
        let slice = slice(change.service, self.scale, Some(change));
        Ok(Box::new(move || {
            self.cluster.apply(&slice);
            Ok(())
        }))
    }
}
