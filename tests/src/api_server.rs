//! What would a Kubernetes API server answer? An in-process one over HTTP on loopback, for the tests of the API server
//! source: list with limit and continue, watch with bookmarks, selectors, 410 Gone, and every failure a network or a
//! server can have. Several [`ApiServer`]s may serve one [`Cluster`], as a highly available control plane does.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use kube::Resource;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

/// Where the four kinds live: path, `apiVersion`, kind.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("/api/v1/services", "v1", "Service"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("/api/v1/nodes", "v1", "Node"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

type Key = (String, String);
type Objects = BTreeMap<Key, Value>;
type Reply = Result<Response, Box<Response>>;

/// What etcd holds: the objects and their history. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    store: Arc<Mutex<Store>>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Store {
    version: u64,
    compacted: u64,
    objects: HashMap<String, Objects>,
    history: Vec<Event>,
    hidden: HashMap<String, u16>,
}

#[derive(Clone)]
struct Event {
    version: u64,
    kind: String,
    key: Key,
    before: Option<Value>,
    after: Option<Value>,
}

impl Default for Cluster {
    fn default() -> Self {
        // Real clusters have no resourceVersion 0 either.
        let store = Store { version: 1, ..Store::default() };
        Self { store: Arc::new(Mutex::new(store)), version: watch::Sender::new(1) }
    }
}

impl Cluster {
    /// An empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the object, or replaces it.
    pub fn apply<K: Resource<DynamicType = ()> + Serialize>(&self, object: &K) {
        let mut value = serde_json::to_value(object).unwrap_or_default();
        value["apiVersion"] = json!(K::api_version(&()));
        value["kind"] = json!(K::kind(&()));
        self.change(&K::kind(&()), key_of(&value), Some(value));
    }

    /// Deletes the object; an unknown one is no event.
    pub fn delete<K: Resource<DynamicType = ()>>(&self, namespace: &str, name: &str) {
        self.change(&K::kind(&()), (namespace.to_owned(), name.to_owned()), None);
    }

    fn change(&self, kind: &str, key: Key, mut after: Option<Value>) {
        let mut store = self.store();
        let version = store.version + 1;
        if let Some(object) = &mut after {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
        }
        let objects = store.objects.entry(kind.to_owned()).or_default();
        let before = match &after {
            Some(object) => objects.insert(key.clone(), object.clone()),
            None => objects.remove(&key),
        };
        if before.is_none() && after.is_none() {
            return;
        }
        store.version = version;
        store.history.push(Event { version, kind: kind.to_owned(), key, before, after });
        self.version.send_replace(version);
    }

    /// Forgets all history: watches and continue tokens from before are too old.
    pub fn compact(&self) {
        let mut store = self.store();
        store.compacted = store.version;
        store.history.clear();
    }

    /// Takes an API away; it answers with `code` (404 or 403).
    pub fn hide<K: Resource<DynamicType = ()>>(&self, code: u16) {
        self.store().hidden.insert(K::kind(&()).into_owned(), code);
    }

    /// Gives it back.
    pub fn show<K: Resource<DynamicType = ()>>(&self) {
        self.store().hidden.remove(K::kind(&()).as_ref());
    }
}

fn key_of(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

impl Store {
    /// The objects as they were at `version`: copied only if they have changed since, or a list of many pages would
    /// copy all of them for each.
    fn objects_at(&self, kind: &str, version: u64) -> Cow<'_, Objects> {
        let objects = self.objects.get(kind);
        let mut objects = objects.map_or_else(|| Cow::Owned(Objects::new()), Cow::Borrowed);
        for event in self.history.iter().rev().filter(|event| event.kind == kind && event.version > version) {
            match &event.before {
                Some(before) => objects.to_mut().insert(event.key.clone(), before.clone()),
                None => objects.to_mut().remove(&event.key),
            };
        }
        objects
    }
}

/// How a server behaves until told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It answers.
    Healthy,
    /// Requests get no answer, watches fall silent; connections stay open.
    Stalled,
    /// Connections break without an answer.
    Breaking,
    /// Each request is answered with this status.
    Failing(u16),
}

/// What happens to one request, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status instead of an answer; a 429 asks to come back after a second.
    Status(u16),
    /// The connection breaks before an answer.
    Break,
    /// The answer comes later.
    Slow(Duration),
    /// A watch answers 200, and its only event is an ERROR of code 410.
    GoneInStream,
}

/// One API server of a cluster.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    cluster: Cluster,
    mode: watch::Sender<Mode>,
    /// Goes up to break every watch.
    breaks: watch::Sender<u64>,
    faults: Mutex<VecDeque<Fault>>,
    requests: Mutex<Vec<String>>,
    events: Mutex<Vec<Value>>,
    watches: watch::Sender<usize>,
    bookmark_interval: Duration,
}

impl ApiServer {
    /// A server on a free port of 127.0.0.1 that sends bookmarks every 100 ms.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            cluster: cluster.clone(),
            mode: watch::Sender::new(Mode::Healthy),
            breaks: watch::Sender::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            events: Mutex::default(),
            watches: watch::Sender::default(),
            bookmark_interval: Duration::from_millis(100),
        });
        let mut server = Self { shared, address: SocketAddr::from(([127, 0, 0, 1], 0)), listener: None };
        server.restart().await?;
        Ok(server)
    }

    /// Listens again, on the port it had.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        self.set_mode(Mode::Healthy);
        let router = Router::new().fallback(answer).with_state(self.shared.clone());
        self.listener = Some(tokio::spawn(async move {
            // Ends by being aborted.
            let _ = axum::serve(listener, router).await;
        }));
        Ok(())
    }

    /// Goes away: connections break, further ones are refused.
    pub async fn stop(&mut self) {
        self.set_mode(Mode::Breaking);
        self.break_watches();
        if let Some(listener) = self.listener.take() {
            listener.abort();
            // Reports the abort; what counts is that the socket is closed.
            let _ = listener.await;
        }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig for this server.
    pub fn write_kubeconfig(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        let path = dir.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// From here on.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// For the next request that has none yet.
    pub fn inject(&self, fault: Fault) {
        lock(&self.shared.faults).push_back(fault);
    }

    /// Breaks the connection of every watch.
    pub fn break_watches(&self) {
        self.shared.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// Returns when this many watches have begun.
    pub async fn until_watched(&self, count: usize) {
        // The sender is ours, so there is always an end to wait for.
        let _ = self.shared.watches.subscribe().wait_for(|begun| *begun >= count).await;
    }

    /// Every event created or patched so far, as it was sent.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.shared.events).clone()
    }

    /// Path and query of every request so far; others than GET with their method in front.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HashMap<String, String>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let is_get = method == Method::GET;
    lock(&shared.requests).push(if is_get { uri.to_string() } else { format!("{method} {uri}") });
    let fault = lock(&shared.faults).pop_front();
    match *shared.mode.borrow() {
        Mode::Healthy => {}
        Mode::Stalled => return stalled(),
        Mode::Breaking => return broken(),
        Mode::Failing(code) => return status(code, "Failing", "as the test wants it"),
    }
    match fault {
        None => {}
        Some(Fault::Status(code)) => return status(code, "Injected", "as the test wants it"),
        Some(Fault::Break) => return broken(),
        Some(Fault::Slow(delay)) => sleep(delay).await,
        Some(Fault::GoneInStream) => return gone_in_stream(),
    }
    if !is_get {
        return take_event(&shared, uri.path(), &body);
    }
    serve(&shared, uri.path(), &query).unwrap_or_else(|refusal| *refusal)
}

/// Creates or patches an event: nothing else may be written.
fn take_event(shared: &Shared, path: &str, body: &Bytes) -> Response {
    let is_event = path.starts_with("/apis/events.k8s.io/v1/namespaces/") && path.contains("/events");
    match serde_json::from_slice::<Value>(body).ok().filter(|_| is_event) {
        None => status(403, "Forbidden", "only events may be written"),
        Some(event) => {
            lock(&shared.events).push(event.clone());
            json_response(StatusCode::CREATED, event.to_string())
        }
    }
}

fn serve(shared: &Arc<Shared>, path: &str, query: &HashMap<String, String>) -> Reply {
    let not_found = || refused(404, "NotFound", "the server could not find the requested resource");
    let (_, api_version, kind) =
        RESOURCES.iter().find(|resource| resource.0 == path).ok_or_else(not_found)?;
    if let Some(code) = shared.cluster.store().hidden.get(*kind) {
        return Err(if *code == 403 { refused(403, "Forbidden", "no access") } else { not_found() });
    }
    let selector = Selector::parse(query)?;
    if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        Watch::begin(shared, (api_version, kind), selector, query)
    } else {
        list(&shared.cluster, (api_version, kind), &selector, query)
    }
}

fn list(
    cluster: &Cluster,
    (api_version, kind): (&str, &str),
    selector: &Selector,
    query: &HashMap<String, String>,
) -> Reply {
    let store = cluster.store();
    let token = query.get("continue").map(|token| Token::parse(token)).transpose()?;
    let version = token.as_ref().map_or(store.version, |token| token.version);
    if version < store.compacted {
        let message = "The provided continue parameter is too old to display a consistent list result.";
        return Err(refused(410, "Expired", message));
    }
    let objects = store.objects_at(kind, version);
    let start = token.as_ref().map_or(Bound::Unbounded, |token| Bound::Excluded(&token.last));
    let mut matching =
        objects.range((start, Bound::Unbounded)).filter(|(_, object)| selector.matches(object));
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let page: Vec<(&Key, &Value)> = matching.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some((last, _)) = page.last().filter(|_| matching.next().is_some()) {
        metadata["continue"] = json!(Token { version, last: (*last).clone() }.to_text());
    }
    let items: Vec<Value> = page.into_iter().map(|(_, object)| untyped(object)).collect();
    let body = json!({
        "kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": items
    });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

/// Items of a typed list carry no `apiVersion` and `kind`.
fn untyped(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    object
}

struct Token {
    version: u64,
    last: Key,
}

impl Token {
    fn parse(text: &str) -> Result<Self, Box<Response>> {
        let invalid = || refused(400, "BadRequest", "continue key is not valid");
        let mut parts = text.splitn(3, '_');
        let mut part = || parts.next().ok_or_else(invalid);
        let version = part()?.parse().map_err(|_error| invalid())?;
        Ok(Self { version, last: (part()?.to_owned(), part()?.to_owned()) })
    }

    fn to_text(&self) -> String {
        format!("{}_{}_{}", self.version, self.last.0, self.last.1)
    }
}

/// `key`, `!key`, `key=value` of labels; `path=value`, `path!=value` of fields.
#[derive(Default)]
struct Selector {
    labels: Vec<(String, Option<String>, bool)>,
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    fn parse(query: &HashMap<String, String>) -> Result<Self, Box<Response>> {
        let mut selector = Self::default();
        for term in terms(query, "labelSelector") {
            selector.labels.push(match (term.strip_prefix('!'), term.split_once('=')) {
                (Some(key), _) => (key.to_owned(), None, false),
                (None, Some((key, value))) => (key.to_owned(), Some(value.to_owned()), true),
                (None, None) => (term.to_owned(), None, true),
            });
        }
        for term in terms(query, "fieldSelector") {
            let (path, value, wanted) = match (term.split_once("!="), term.split_once('=')) {
                (Some((path, value)), _) => (path, value, false),
                (None, Some((path, value))) => (path, value, true),
                (None, None) => return Err(refused(400, "BadRequest", "invalid field selector")),
            };
            if !["metadata.name", "metadata.namespace", "spec.clusterIP"].contains(&path) {
                return Err(refused(400, "BadRequest", &format!("field label not supported: {path}")));
            }
            selector.fields.push((path.to_owned(), value.to_owned(), wanted));
        }
        Ok(selector)
    }

    fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|(key, value, wanted)| {
            let found = match value {
                None => labels.get(key).is_some(),
                Some(value) => labels.get(key).and_then(Value::as_str) == Some(value),
            };
            found == *wanted
        }) && self.fields.iter().all(|(path, value, wanted)| {
            let pointer = format!("/{}", path.replace('.', "/"));
            let found = object.pointer(&pointer).and_then(Value::as_str).unwrap_or_default();
            (found == value) == *wanted
        })
    }
}

fn terms<'a>(query: &'a HashMap<String, String>, name: &str) -> impl Iterator<Item = &'a str> {
    query.get(name).into_iter().flat_map(|text| text.split(',')).filter(|term| !term.is_empty())
}

/// A watch in progress.
struct Watch {
    shared: Arc<Shared>,
    api_version: String,
    kind: String,
    selector: Selector,
    /// Everything up to here was sent or does not match.
    version: u64,
    bookmarks: bool,
    ends_at: Instant,
    bookmark_at: Instant,
    versions: watch::Receiver<u64>,
    mode: watch::Receiver<Mode>,
    breaks: watch::Receiver<u64>,
    ended: bool,
}

impl Watch {
    fn begin(
        shared: &Arc<Shared>,
        (api_version, kind): (&str, &str),
        selector: Selector,
        query: &HashMap<String, String>,
    ) -> Reply {
        if query.contains_key("sendInitialEvents") {
            let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the \
                           WatchList feature gate is enabled";
            return Err(refused(422, "Invalid", message));
        }
        let version = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let seconds = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(1800);
        let watch = Self {
            shared: shared.clone(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            selector,
            version,
            bookmarks: query.get("allowWatchBookmarks").is_some_and(|allow| allow == "true"),
            ends_at: Instant::now() + Duration::from_secs(seconds),
            bookmark_at: Instant::now() + shared.bookmark_interval,
            versions: shared.cluster.version.subscribe(),
            mode: shared.mode.subscribe(),
            breaks: shared.breaks.subscribe(),
            ended: false,
        };
        shared.watches.send_modify(|begun| *begun += 1);
        let frames = stream::unfold(watch, |mut watch| async move {
            let frame = watch.next_frame().await?;
            Some((frame, watch))
        });
        Ok(json_response(StatusCode::OK, Body::from_stream(frames)))
    }

    /// The next line or lines; an error breaks the connection, None ends the answer in order.
    async fn next_frame(&mut self) -> Option<Result<Bytes, std::io::Error>> {
        while !self.ended {
            // Both borrows must end before anything is awaited.
            if self.breaks.has_changed().unwrap_or(true) {
                return Some(Err(std::io::Error::other("the connection breaks")));
            }
            let silent = *self.mode.borrow_and_update() == Mode::Stalled;
            if !silent && let Some(lines) = self.due_lines() {
                return Some(Ok(lines.into()));
            }
            let next = if silent { self.ends_at } else { self.ends_at.min(self.bookmark_at) };
            tokio::select! {
                _ = self.versions.changed(), if !silent => {}
                _ = self.mode.changed() => {}
                _ = self.breaks.changed() => self.breaks.mark_changed(),
                _ = timeout_at(next, std::future::pending::<Infallible>()) => {
                    self.ended = Instant::now() >= self.ends_at;
                }
            }
        }
        None
    }

    fn due_lines(&mut self) -> Option<String> {
        self.versions.mark_unchanged();
        let cluster = self.shared.cluster.clone();
        let store = cluster.store();
        if self.version < store.compacted {
            self.ended = true;
            let message = format!("too old resource version: {} ({})", self.version, store.compacted);
            return Some(line("ERROR", &status_object(410, "Expired", &message)));
        }
        let since = self.version;
        let events = store.history.iter().filter(|event| event.version > since && event.kind == self.kind);
        let lines: String = events.filter_map(|event| self.event_line(event)).collect();
        self.version = store.version.max(self.version);
        if !lines.is_empty() {
            return Some(lines);
        }
        if !self.bookmarks || Instant::now() < self.bookmark_at {
            return None;
        }
        self.bookmark_at = Instant::now() + self.shared.bookmark_interval;
        let metadata = json!({"resourceVersion": self.version.to_string(), "creationTimestamp": null});
        let object = json!({"kind": self.kind, "apiVersion": self.api_version, "metadata": metadata});
        Some(line("BOOKMARK", &object))
    }

    /// An object that comes to match is ADDED, one that ceases to is DELETED (spec 1.2).
    fn event_line(&self, event: &Event) -> Option<String> {
        let matching = |object: &Option<Value>| object.clone().filter(|object| self.selector.matches(object));
        Some(match (matching(&event.before), matching(&event.after)) {
            (None, Some(after)) => line("ADDED", &after),
            (Some(_), Some(after)) => line("MODIFIED", &after),
            (Some(mut before), None) => {
                before["metadata"]["resourceVersion"] = json!(event.version.to_string());
                line("DELETED", &before)
            }
            (None, None) => return None,
        })
    }
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn status_object(code: u16, reason: &str, message: &str) -> Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if code == 429 {
        status["details"] = json!({"retryAfterSeconds": 1});
    }
    status
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let http_code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(http_code, status_object(code, reason, message).to_string())
}

fn refused(code: u16, reason: &str, message: &str) -> Box<Response> {
    Box::new(status(code, reason, message))
}

fn gone_in_stream() -> Response {
    json_response(StatusCode::OK, line("ERROR", &status_object(410, "Expired", "too old resource version")))
}

fn json_response(code: StatusCode, body: impl Into<Body>) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

/// Headers, then nothing.
fn stalled() -> Response {
    json_response(StatusCode::OK, Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()))
}

fn broken() -> Response {
    let error = stream::once(async { Err::<Bytes, _>(std::io::Error::other("the connection breaks")) });
    json_response(StatusCode::OK, Body::from_stream(error))
}
