//! When to search for sockets whose backend has left: after every change of what serves, again after a failure, and
//! from time to time to collect the entries of sockets that no longer exist.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::{
        run::Query,
        standing::{Claim, Standing},
    },
    sockets::{
        Judgement, Reach, Sighting, judge,
        rev_nat::{Entry, RevNat, RevNatError},
        sweep::{Case, Found, search},
    },
};

/// Between two searches: changes within are taken together.
const PAUSE: Duration = Duration::from_millis(500);
/// From a failure to the next try.
const RETRY: Duration = Duration::from_secs(2);
/// How long an entry must have been of no use before it goes: the hook writes it a moment before the socket has its
/// peer, or stands in the kernel's tables at all.
const GRACE: Duration = Duration::from_secs(5);

/// Settings.
#[derive(Clone, Debug)]
pub struct SocketsConfig {
    /// How far the search goes.
    pub reach: Reach,
    /// Where the maps are pinned.
    pub pins: PathBuf,
    /// Between two collections of entries without a socket.
    pub period: Duration,
}

/// State of the search, for `lb-agent status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketsReport {
    /// True if sockets are destroyed at all.
    pub enabled: bool,
    /// Network namespaces searched by the last search.
    pub namespaces: usize,
    /// Sockets destroyed since start.
    pub destroyed: u64,
    /// Entries of `SOCK_REV_NAT` removed since start, because they were of no more use.
    pub entries_dropped: u64,
    /// Sockets that should leave their backend but are in a namespace that could not be searched.
    pub out_of_reach: usize,
    /// Why pods are not searched, with the remedy.
    pub limit: Option<String>,
    /// What the last search could not do.
    pub last_error: Option<String>,
}

/// The loop's state.
struct Sockets {
    config: SocketsConfig,
    queries: mpsc::Sender<Query>,
    report: watch::Sender<SocketsReport>,
    /// Entries of no more use, since when.
    suspects: HashMap<Entry, Instant>,
}

/// Runs until `stop`. `changes` are those of [`crate::reconcile::Reconciler::changes`].
pub async fn run(
    config: SocketsConfig,
    queries: mpsc::Sender<Query>,
    mut changes: watch::Receiver<u64>,
    report: watch::Sender<SocketsReport>,
    stop: CancellationToken,
) {
    let mut next = Instant::now();
    let mut last = None;
    let mut collection = Instant::now() + config.period;
    let mut state = Sockets { config, queries, report, suspects: HashMap::new() };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(next) => {}
            Ok(()) = changes.changed() => {
                next = last.map_or_else(Instant::now, |last: Instant| last + PAUSE).min(next);
                continue;
            }
        }
        let collects = Instant::now() >= collection;
        let result = state.sweep(collects).await;
        last = Some(Instant::now());
        if collects {
            collection = Instant::now() + state.config.period;
        }
        next = if result.is_ok() { collection } else { Instant::now() + RETRY };
        state.tell(result);
    }
}

/// What a sweep could not do.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    RevNat(#[from] RevNatError),
    #[error("the reconcile loop does not answer")]
    Loop,
    #[error("{0}")]
    Search(String),
    #[error(transparent)]
    Thread(#[from] tokio::task::JoinError),
}

impl Sockets {
    /// Finds who must leave. Sockets are listed only if somebody must, or if this is a collection.
    async fn sweep(&mut self, collects: bool) -> Result<(), SweepError> {
        let pins = self.config.pins.clone();
        let read = move || RevNat::open(&pins)?.entries();
        let entries = tokio::task::spawn_blocking(read).await??;
        let cases = self.cases(entries).await?;
        if cases.is_empty() || !(collects || cases.iter().any(Case::leaves)) {
            self.report.send_modify(|report| report.out_of_reach = 0);
            return Ok(());
        }
        let reach = self.config.reach;
        let (cases, found) = tokio::task::spawn_blocking(move || {
            let found = search(reach, &cases);
            (cases, found)
        })
        .await?;
        let useless = self.useless(&cases, &found);
        let dropped = useless.len() as u64;
        let pins = self.config.pins.clone();
        tokio::task::spawn_blocking(move || remove(&pins, &useless)).await??;
        self.note(&cases, &found, dropped);
        match found.errors.first() {
            Some(error) => Err(SweepError::Search(error.clone())),
            None => Ok(()),
        }
    }

    async fn cases(&self, entries: Vec<Entry>) -> Result<Vec<Case>, SweepError> {
        let claims: BTreeSet<Claim> = entries.iter().map(|entry| entry.claim).collect();
        let claims: Vec<Claim> = claims.into_iter().collect();
        let (sender, receiver) = oneshot::channel();
        self.queries
            .send(Query::Standings(claims.clone(), sender))
            .await
            .map_err(|_closed| SweepError::Loop)?;
        let standings = receiver.await.map_err(|_closed| SweepError::Loop)?;
        let standings: HashMap<Claim, Standing> = claims.into_iter().zip(standings).collect();
        let case = |entry: Entry| Some(Case { entry, standing: *standings.get(&entry.claim)? });
        Ok(entries.into_iter().filter_map(case).collect())
    }

    /// The entries to remove: those of destroyed sockets, and those of no use for some time.
    fn useless(&mut self, cases: &[Case], found: &Found) -> Vec<Entry> {
        let now = Instant::now();
        let mut suspects = HashMap::new();
        let mut useless = Vec::new();
        for (case, sighting) in cases.iter().zip(&found.sightings) {
            match judge(case.entry.protocol(), case.standing, *sighting) {
                Judgement::Keep => {}
                Judgement::Destroy => useless.push(case.entry),
                Judgement::Drop => {
                    let since = self.suspects.get(&case.entry).copied().unwrap_or(now);
                    if now.duration_since(since) >= GRACE {
                        useless.push(case.entry);
                    } else {
                        suspects.insert(case.entry, since);
                    }
                }
            }
        }
        self.suspects = suspects;
        useless
    }

    fn note(&self, cases: &[Case], found: &Found, dropped: u64) {
        if found.destroyed > 0 {
            let sockets = found.destroyed;
            tracing::info!(sockets, "destroyed sockets whose backend serves no more");
        }
        let unseen = cases.iter().zip(&found.sightings);
        let unseen = unseen.filter(|(case, seen)| case.leaves() && **seen == Sighting::OutOfReach);
        let out_of_reach = unseen.count();
        let limit = found.limit.as_ref().map(|limit| format!("{limit}; {REMEDY}"));
        self.report.send_modify(|report| {
            if let Some(limit) = limit.as_ref().filter(|limit| report.limit.as_ref() != Some(limit)) {
                tracing::warn!("sockets of pods stay with backends that left: {limit}");
            }
            report.namespaces = found.namespaces;
            report.destroyed += found.destroyed;
            report.entries_dropped += dropped;
            report.out_of_reach = out_of_reach;
            report.limit = limit;
        });
    }

    fn tell(&self, result: Result<(), SweepError>) {
        let error = result.err().map(|error| error.to_string());
        self.report.send_modify(|report| {
            if let Some(error) = error.as_ref().filter(|error| report.last_error.as_ref() != Some(error)) {
                tracing::warn!("sockets of backends that left: {error}");
            }
            report.last_error = error;
        });
    }
}

/// What lets the agent reach the sockets of pods.
const REMEDY: &str = "kubectl apply -k deploy/pod-sockets gives CAP_SYS_ADMIN and the node's /run/netns; or say \
                      --destroy-sockets node";

fn remove(pins: &Path, entries: &[Entry]) -> Result<(), RevNatError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut maps = RevNat::open(pins)?;
    entries.iter().try_for_each(|entry| maps.remove(entry))
}
