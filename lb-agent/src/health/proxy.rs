//! The health of the proxy: what was told to it, and the verdict.
//!
//! | verdict | true while | asked by |
//! |---|---|---|
//! | alive | no change has waited to be written for longer than the timeout, in either family (spec 6.20), and the reconcile loop has not been busy with one thing for as long | `/livez` |
//! | ready | alive; everything the sources delivered at the start has been written, and programs are attached | health check node ports |
//! | eligible | the Node object is there and the node is not about to go (spec 6.23) | with ready: `/healthz` |
//!
//! kube-proxy counts as healthy before it has written anything (spec 6.21). Here that is alive, but not ready: a load
//! balancer must not send to a node that knows no Service yet, and a restart of the agent would not help.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use crate::model::{
    family::{IpFamily, PerFamily},
    node::NodePresence,
};

/// Shared by those who tell and those who ask.
#[derive(Clone, Debug)]
pub struct Health {
    timeout: Duration,
    needs_node: bool,
    attached: watch::Receiver<bool>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    families: PerFamily<FamilyState>,
    busy_since: Option<Instant>,
    node: NodePresence,
}

#[derive(Clone, Copy, Debug, Default)]
struct FamilyState {
    oldest_pending: Option<Instant>,
    last_updated: Option<Timestamp>,
}

/// The verdict on one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyVerdict {
    /// No change has waited for too long.
    pub is_healthy: bool,
    /// When its maps last held all that was wanted.
    pub last_updated: Option<Timestamp>,
}

/// The verdict; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Nothing is stuck.
    pub is_alive: bool,
    /// The maps carry what the cluster says, and programs read them.
    pub is_ready: bool,
    /// The node is there to stay.
    pub is_eligible: bool,
    /// By family.
    pub families: PerFamily<FamilyVerdict>,
}

impl Health {
    /// Nothing written, nothing pending. `attached` tells whether programs are attached; `needs_node`: a node without
    /// a Node object is not eligible, as in a cluster.
    pub fn new(timeout: Duration, needs_node: bool, attached: watch::Receiver<bool>) -> Self {
        Self { timeout, needs_node, attached, state: Arc::default() }
    }

    /// A change waits to be written, in both families: one loop writes both.
    pub fn queued(&self, now: Instant) {
        let mut state = self.state();
        for family in IpFamily::ALL {
            state.families.of_mut(family).oldest_pending.get_or_insert(now);
        }
    }

    /// The maps of a family hold all that is wanted.
    pub fn updated(&self, family: IpFamily, at: Timestamp) {
        *self.state().families.of_mut(family) = FamilyState { oldest_pending: None, last_updated: Some(at) };
    }

    /// The loop begins something. It is not told to be idle when the loop dies, so a dead loop is a busy one.
    pub fn busy(&self, now: Instant) {
        self.state().busy_since = Some(now);
    }

    /// The loop waits for something to do.
    pub fn idle(&self) {
        self.state().busy_since = None;
    }

    /// What the Node object says.
    pub fn set_node(&self, presence: NodePresence) {
        self.state().node = presence;
    }

    /// The verdict at `now`.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let state = self.state();
        let in_time = |since: Option<Instant>| {
            since.is_none_or(|since| now.saturating_duration_since(since) < self.timeout)
        };
        let family = |family: &FamilyState| FamilyVerdict {
            is_healthy: in_time(family.oldest_pending),
            last_updated: family.last_updated,
        };
        let families = PerFamily { v4: family(&state.families.v4), v6: family(&state.families.v6) };
        let all = [families.v4, families.v6];
        let is_alive = all.iter().all(|family| family.is_healthy) && in_time(state.busy_since);
        let is_written = all.iter().all(|family| family.last_updated.is_some());
        Verdict {
            is_alive,
            is_ready: is_alive && is_written && *self.attached.borrow(),
            is_eligible: match state.node {
                NodePresence::Missing => !self.needs_node,
                NodePresence::Present => true,
                NodePresence::Leaving => false,
            },
            families,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Health {
    /// As for a node without a cluster, whose programs are not attached.
    fn default() -> Self {
        Self::new(Duration::from_secs(60), false, watch::channel(false).1)
    }
}
