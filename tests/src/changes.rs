//! What did a source send? Awaits its changes with a time limit and keeps what they add up to; used by the tests of
//! both sources.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use anyhow::{Context, bail};
use lb_agent::source::{Change, Kind, Object, ObjectRef, Refusal};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

/// How long a change may take, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The receiving end of a source.
pub struct Changes {
    receiver: mpsc::Receiver<Change>,
    /// What there is now.
    pub objects: BTreeMap<ObjectRef, Object>,
    /// Refusals by origin.
    pub refusals: BTreeMap<String, Vec<Refusal>>,
    /// Kinds that synced.
    pub synced: HashSet<Kind>,
    /// True once every Node was announced.
    pub has_every_node: bool,
    /// Everything received since the last [`Changes::forget_log`], in short.
    pub log: Vec<String>,
}

impl Changes {
    /// The sender goes to the source.
    pub fn channel(capacity: usize) -> (mpsc::Sender<Change>, Self) {
        let (sender, receiver) = mpsc::channel(capacity);
        let changes = Self {
            receiver,
            objects: BTreeMap::new(),
            refusals: BTreeMap::new(),
            synced: HashSet::new(),
            has_every_node: false,
            log: Vec::new(),
        };
        (sender, changes)
    }

    /// Empties the log.
    pub fn forget_log(&mut self) {
        self.log.clear();
    }

    /// Names of the objects, as `Service default/web`.
    pub fn names(&self) -> Vec<String> {
        self.objects.keys().map(ToString::to_string).collect()
    }

    /// True if there is an object of this name, as `Service default/web`.
    pub fn has(&self, name: &str) -> bool {
        self.objects.keys().any(|object_ref| object_ref.to_string() == name)
    }

    /// Receives until the condition holds.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            let received = timeout_at(deadline, self.receiver.recv()).await;
            let change = received.with_context(|| format!("waited for: {what}; log {:?}", self.log))?;
            self.take(change.with_context(|| format!("the source ended before: {what}"))?);
        }
        Ok(())
    }

    /// Receives until every kind has synced.
    pub async fn until_synced(&mut self) -> anyhow::Result<()> {
        self.until("all kinds synced", |changes| changes.synced.len() == Kind::ALL.len()).await
    }

    /// Fails if anything comes within the time.
    pub async fn nothing_within(&mut self, time: Duration) -> anyhow::Result<()> {
        match timeout(time, self.receiver.recv()).await {
            Err(_elapsed) => Ok(()),
            Ok(change) => bail!("came unexpectedly: {change:?}"),
        }
    }

    fn take(&mut self, change: Change) {
        self.log.push(match &change {
            Change::Applied(object) => format!("+{}", object.object_ref()),
            Change::Deleted(object_ref) => format!("-{object_ref}"),
            Change::Synced(kind) => format!("synced {kind}"),
            Change::EveryNode => "every Node".to_owned(),
            Change::Unreadable { refusals, .. } => format!("{} refusals", refusals.len()),
        });
        match change {
            Change::Applied(object) => {
                self.objects.insert(object.object_ref(), object);
            }
            Change::Deleted(object_ref) => {
                self.objects.remove(&object_ref);
            }
            Change::Synced(kind) => {
                self.synced.insert(kind);
            }
            Change::EveryNode => self.has_every_node = true,
            Change::Unreadable { origin, refusals } if refusals.is_empty() => {
                self.refusals.remove(&origin);
            }
            Change::Unreadable { origin, refusals } => {
                self.refusals.insert(origin, refusals);
            }
        }
    }
}
