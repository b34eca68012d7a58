//! Events about this node and its Services, for those who ask `kubectl describe`. Only a cluster keeps them: without
//! one they are logged by who sends them and go nowhere.
//!
//! What must stay true: nobody waits for an event, and a lost one costs nothing else.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event as KubeEvent, EventType, Recorder, Reporter};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::api_servers::{ApiServer, ApiServers};
use crate::model::service::ServiceName;

/// Who says so, in events.
const CONTROLLER: &str = "lb-agent";
/// Events that may wait.
const EVENTS: usize = 64;
/// Tries for one event, a pause apart.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// For an API server to take one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Regarding {
    /// A Service, with its `metadata.uid`, which may be empty.
    Service {
        /// Its name.
        name: ServiceName,
        /// Its uid.
        uid: Arc<str>,
    },
    /// This node.
    Node(String),
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Worth knowing.
    Normal,
    /// Something does not work.
    Warning,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub regarding: Regarding,
    /// How bad it is.
    pub severity: Severity,
    /// Why, in one word.
    pub reason: &'static str,
    /// What was done, in one word.
    pub action: &'static str,
    /// The whole sentence.
    pub note: String,
}

/// Where events go. The default goes nowhere.
#[derive(Clone, Debug, Default)]
pub struct EventSink(Option<mpsc::Sender<Queued>>);

/// The other end.
#[derive(Debug)]
pub struct EventQueue(mpsc::Receiver<Queued>);

#[derive(Debug)]
struct Queued {
    event: Event,
    /// Told once the event has been taken, or given up.
    done: Option<oneshot::Sender<()>>,
}

/// A sink and its other end.
pub fn channel() -> (EventSink, EventQueue) {
    let (sender, receiver) = mpsc::channel(EVENTS);
    (EventSink(Some(sender)), EventQueue(receiver))
}

impl EventSink {
    /// Sends an event, unless too many wait already.
    pub fn send(&self, event: Event) {
        if let Some(Err(error)) = self.0.as_ref().map(|sink| sink.try_send(Queued { event, done: None })) {
            tracing::debug!("event dropped: {error}");
        }
    }

    /// Sends a last event before the end, and waits until it is gone, or `patience` is.
    pub async fn send_last(&self, event: Event, patience: Duration) {
        let Some(sink) = &self.0 else { return };
        let (done, is_done) = oneshot::channel();
        if sink.try_send(Queued { event, done: Some(done) }).is_ok() {
            // Whatever the outcome: the end does not wait longer.
            let _ = timeout(patience, is_done).await;
        }
    }
}

/// Publishes what comes through `queue`, for as long as somebody may send.
pub(super) async fn publish(servers: &ApiServers, mut queue: EventQueue, node: &str) {
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
    // One for each server: it remembers its events, to count further ones of the same kind on them.
    let mut recorders: Vec<(String, Recorder)> = Vec::new();
    while let Some(Queued { event, done }) = queue.0.recv().await {
        for _ in 0..TRIES {
            let server = servers.current();
            let recorder = recorder(&mut recorders, server, &reporter);
            match timeout(REQUEST_TIMEOUT, recorder.publish(&kube_event(&event), &reference(&event))).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => tracing::warn!(reason = event.reason, "event not taken: {error}"),
                Err(_elapsed) => {
                    tracing::warn!(reason = event.reason, "event not taken in {REQUEST_TIMEOUT:?}")
                }
            }
            sleep(PAUSE).await;
        }
        // Nobody may be waiting any more.
        let _ = done.map(|done| done.send(()));
    }
}

fn recorder<'a>(
    known: &'a mut Vec<(String, Recorder)>,
    server: &ApiServer,
    reporter: &Reporter,
) -> &'a Recorder {
    let found = known.iter().position(|(address, _)| *address == server.address);
    let index = found.unwrap_or_else(|| {
        known.push((server.address.clone(), Recorder::new(server.client.clone(), reporter.clone())));
        known.len() - 1
    });
    &known[index].1
}

fn kube_event(event: &Event) -> KubeEvent {
    KubeEvent {
        type_: match event.severity {
            Severity::Normal => EventType::Normal,
            Severity::Warning => EventType::Warning,
        },
        reason: event.reason.to_owned(),
        note: Some(event.note.clone()),
        action: event.action.to_owned(),
        secondary: None,
    }
}

/// By its uid `kubectl describe` finds the events of a Service; those of a node it looks up by the node's name (spec
/// 9.16), as the kubelet writes them.
fn reference(event: &Event) -> ObjectReference {
    let of = |kind: &str, namespace: Option<&str>, name: &str, uid: &str| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    };
    match &event.regarding {
        Regarding::Service { name, uid } => of("Service", Some(&name.namespace), &name.name, uid),
        Regarding::Node(name) => of("Node", None, name, name),
    }
}
