//! What a running agent answers on its admin socket, for the CLI: `/status`, `/services`, `/backends`. Run by `cli::run`.
//!
//! What must stay true: an answer never waits for the API server, and a question changes nothing.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixListener,
    sync::{Mutex, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    conntrack_gc,
    datapath::attach::{Attacher, Attachment},
    flood::{self, FloodReport},
    foreign::Foreign,
    inspect::{self, MapFill, TunnelCount, VerdictCount},
    reconcile::run::Query,
    report::{BackendReport, ServicePortReport, SyncReport},
    sockets::run::SocketsReport,
    source::kubernetes::SourceStatus,
};

/// The admin socket's name in the run directory.
pub const SOCKET: &str = "agent.sock";
/// How long the reconcile loop may take to answer before it counts as stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// `lb-agent status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Name of the node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// The control plane.
    pub sync: SyncReport,
    /// Where objects come from, and when they last did.
    pub source: SourceReport,
    /// The cgroup of the socket programs, if attached.
    pub cgroup: Option<String>,
    /// The search for sockets whose backend has left.
    pub sockets: SocketsReport,
    /// Devices with programs.
    pub attachments: Vec<Attachment>,
    /// What could not be attached or read.
    pub errors: Vec<String>,
    /// How full the maps are.
    pub maps: Vec<MapFill>,
    /// What the datapath decided.
    pub verdicts: Vec<VerdictCount>,
    /// What came in tunnels.
    pub tunnels: TunnelCount,
    /// What was done about floods of new flows.
    pub flood: FloodReport,
    /// Rules of kube-proxy beside the agent, as of the last scan.
    pub foreign: Foreign,
}

/// State of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Directory or address.
    pub from: String,
    /// Seconds since an API server last answered.
    pub last_contact_s: Option<u64>,
    /// The last failure.
    pub last_error: Option<String>,
    /// Why other nodes cannot be followed although they are needed.
    pub nodes_error: Option<String>,
}

/// What the answers are made of.
#[derive(Clone)]
pub struct Admin {
    /// Name of the node.
    pub node: String,
    /// Directory of manifests, or empty for a cluster.
    pub manifests: String,
    /// What the cluster source knows.
    pub source: Option<watch::Receiver<SourceStatus>>,
    /// The cgroup of the socket programs.
    pub cgroup: Option<String>,
    /// Attachments.
    pub attacher: Arc<Mutex<Attacher>>,
    /// The reconcile loop.
    pub queries: mpsc::Sender<Query>,
    /// What the search for sockets found.
    pub sockets: watch::Receiver<SocketsReport>,
    /// Rules of kube-proxy.
    pub foreign: watch::Receiver<Foreign>,
}

/// The reconcile loop did not answer.
type Stuck = (StatusCode, String);

impl Admin {
    /// Asks the reconcile loop.
    pub async fn ask<T>(&self, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, Stuck> {
        let (sender, receiver) = oneshot::channel();
        let answer = async {
            self.queries.send(query(sender)).await.ok()?;
            receiver.await.ok()
        };
        timeout(ANSWER_TIMEOUT, answer)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| (StatusCode::SERVICE_UNAVAILABLE, "the reconcile loop does not answer".to_owned()))
    }

    fn source_report(&self) -> SourceReport {
        match &self.source {
            None => SourceReport { from: self.manifests.clone(), ..SourceReport::default() },
            Some(status) => {
                let status = status.borrow().clone();
                let last_contact_s =
                    status.last_contact.and_then(|at| at.elapsed().ok()).map(|age| age.as_secs());
                SourceReport {
                    from: status.address,
                    last_contact_s,
                    last_error: status.last_error,
                    nodes_error: status.nodes_error,
                }
            }
        }
    }

    async fn status(&self) -> Result<StatusReport, Stuck> {
        let sync = self.ask(Query::Report).await?;
        let (dir, mut errors, attachments) = {
            let attacher = self.attacher.lock().await;
            let attachments = attacher.attachments().cloned().collect();
            (attacher.datapath().pins.dir().to_owned(), attacher.failures().to_vec(), attachments)
        };
        // A system call per entry: not on a thread that others wait for, nor with the lock that the follower needs.
        let read = tokio::task::spawn_blocking(move || {
            let counts = (inspect::verdicts(&dir), inspect::tunnels(&dir));
            (inspect::map_fill(&dir), counts, flood::read(&dir, conntrack_gc::now()))
        });
        let (maps, (verdicts, tunnels), flood) = read
            .await
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("read the maps: {error}")))?;
        let maps = maps.unwrap_or_else(|error| {
            errors.push(error.to_string());
            Vec::new()
        });
        let verdicts = verdicts.unwrap_or_else(|error| {
            errors.push(error.to_string());
            Vec::new()
        });
        let tunnels = tunnels.unwrap_or_else(|error| {
            errors.push(error.to_string());
            TunnelCount::default()
        });
        let flood = flood.unwrap_or_else(|error| {
            errors.push(format!("read the state of floods: {error}"));
            FloodReport::default()
        });
        Ok(StatusReport {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sync,
            source: self.source_report(),
            cgroup: self.cgroup.clone(),
            sockets: self.sockets.borrow().clone(),
            attachments,
            errors,
            maps,
            verdicts,
            tunnels,
            flood,
            foreign: self.foreign.borrow().clone(),
        })
    }
}

async fn status(State(admin): State<Admin>) -> Result<Json<StatusReport>, Stuck> {
    admin.status().await.map(Json)
}

async fn services(State(admin): State<Admin>) -> Result<Json<Vec<ServicePortReport>>, Stuck> {
    admin.ask(Query::ServicePorts).await.map(Json)
}

async fn backends(State(admin): State<Admin>) -> Result<Json<Vec<BackendReport>>, Stuck> {
    admin.ask(Query::Backends).await.map(Json)
}

/// Serves the admin socket in `run_dir` until `stop`.
pub async fn serve_socket(run_dir: &Path, admin: Admin, stop: CancellationToken) -> io::Result<()> {
    fs::create_dir_all(run_dir)?;
    let path = run_dir.join(SOCKET);
    // Left by an agent that was killed; the lock on the pin directory excludes a living one.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let routes = Router::new()
        .route("/status", get(status))
        .route("/services", get(services))
        .route("/backends", get(backends))
        .with_state(admin);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
        {
            tracing::error!("admin socket: {error}");
        }
    });
    Ok(())
}

/// Asks the agent that runs with `run_dir`.
pub async fn request<T: DeserializeOwned>(run_dir: &Path, path: &str) -> anyhow::Result<T> {
    use anyhow::Context as _;
    use http_body_util::{BodyExt as _, Empty};

    let socket = run_dir.join(SOCKET);
    let stream = tokio::net::UnixStream::connect(&socket).await.with_context(|| {
        format!("connect to {}: is `lb-agent run` running with this --run-dir?", socket.display())
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request =
        hyper::Request::get(path).header("host", "agent").body(Empty::<hyper::body::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let code = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !code.is_success() {
        anyhow::bail!("{path}: {code}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(serde_json::from_slice(&body)?)
}
