//! `/healthz` and `/livez` on port 10256, with kube-proxy's answers (spec 6.23 to 6.27): load balancers ask the first,
//! the kubelet should ask the second, or it would restart the proxy of a node that is being drained.

use std::time::Instant;

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::{
    health::proxy::{FamilyVerdict, Health, Verdict},
    metrics::answers::AnswerMetrics,
};

/// The header by which clients are kept from guessing another content type.
pub(super) const NOSNIFF: (header::HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// What the answers are made of.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// The state.
    pub health: Health,
    /// Counts the answers.
    pub metrics: AnswerMetrics,
}

/// The body of an answer; field order and spelling are kube-proxy's (spec 6.25).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Status,
}

#[derive(Debug, Serialize)]
struct Status {
    #[serde(rename = "IPv4")]
    v4: FamilyStatus,
    #[serde(rename = "IPv6")]
    v6: FamilyStatus,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: String,
    healthy: bool,
}

impl From<FamilyVerdict> for FamilyStatus {
    fn from(verdict: FamilyVerdict) -> Self {
        Self { last_updated: time(verdict.last_updated), healthy: verdict.is_healthy }
    }
}

/// RFC 3339; never is the zero time of Go, as clients of kube-proxy expect it.
fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string())
}

/// Whether load balancers may send here.
fn healthz(verdict: &Verdict, now: Timestamp) -> (StatusCode, Body) {
    answer(verdict, verdict.is_ready, Some(verdict.is_eligible), now)
}

/// Whether the agent works; a node that leaves needs it to the last.
fn livez(verdict: &Verdict, now: Timestamp) -> (StatusCode, Body) {
    answer(verdict, verdict.is_alive, None, now)
}

fn answer(verdict: &Verdict, healthy: bool, eligible: Option<bool>, now: Timestamp) -> (StatusCode, Body) {
    let is_ok = healthy && eligible != Some(false);
    let latest = verdict.families.v4.last_updated.max(verdict.families.v6.last_updated);
    let body = Body {
        last_updated: time(if is_ok { Some(now) } else { latest }),
        current_time: now.to_string(),
        node_eligible: eligible,
        healthy,
        status: Status { v4: verdict.families.v4.into(), v6: verdict.families.v6.into() },
    };
    (if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

fn respond((code, body): (StatusCode, Body)) -> Response {
    let json = serde_json::to_string(&body).unwrap_or_default();
    (code, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), NOSNIFF], json)
        .into_response()
}

async fn answer_healthz(State(server): State<Server>) -> Response {
    let answer = healthz(&server.health.verdict(Instant::now()), Timestamp::now());
    server.metrics.healthz(answer.0.as_u16());
    respond(answer)
}

async fn answer_livez(State(server): State<Server>) -> Response {
    let answer = livez(&server.health.verdict(Instant::now()), Timestamp::now());
    server.metrics.livez(answer.0.as_u16());
    respond(answer)
}

impl Server {
    /// Any other path is not found.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/healthz", any(answer_healthz))
            .route("/livez", any(answer_livez))
            .with_state(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::model::{family::IpFamily, node::NodePresence};

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// What happens, in order.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Queued,
        Updated(IpFamily),
        After(u64),
        Node(NodePresence),
        Busy,
        Idle,
        Detached,
    }

    /// Codes of `/healthz` and `/livez` after the steps.
    fn codes(needs_node: bool, steps: &[Step]) -> (u16, u16) {
        let (attached, is_attached) = watch::channel(true);
        let health = Health::new(TIMEOUT, needs_node, is_attached);
        let mut now = Instant::now();
        for step in steps {
            match *step {
                Step::Queued => health.queued(now),
                Step::Updated(family) => health.updated(family, Timestamp::UNIX_EPOCH),
                Step::After(seconds) => now += Duration::from_secs(seconds),
                Step::Node(presence) => health.set_node(presence),
                Step::Busy => health.busy(now),
                Step::Idle => health.idle(),
                Step::Detached => drop(attached.send_replace(false)),
            }
        }
        let verdict = health.verdict(now);
        let code = |(code, _): (StatusCode, Body)| code.as_u16();
        (code(healthz(&verdict, Timestamp::now())), code(livez(&verdict, Timestamp::now())))
    }

    use NodePresence::{Leaving, Missing, Present};
    use Step::{After, Busy, Detached, Idle, Node, Queued, Updated};
    const V4: Step = Updated(IpFamily::V4);
    const V6: Step = Updated(IpFamily::V6);

    /// TestHealthzServer and TestLivezServer of kube-proxy, and what is ours (spec 6.20 to 6.24, 12A 85 to 87).
    #[test]
    fn the_two_endpoints_answer_as_kube_proxy_s_do_once_everything_is_written() {
        #[rustfmt::skip]
        let rows: [(&str, &[Step], (u16, u16)); 19] = [
            ("before the first sync it lives but is not ready, unlike kube-proxy (6.21)", &[Node(Present)], (503, 200)),
            ("one family written", &[Node(Present), V4], (503, 200)),
            ("both written", &[Node(Present), V4, V6], (200, 200)),
            ("written, but no program is attached", &[Node(Present), V4, V6, Detached], (503, 200)),
            ("nothing to do for an hour", &[Node(Present), V4, V6, After(3600)], (200, 200)),
            ("a change has waited for 59 s", &[Node(Present), V4, V6, Queued, After(59)], (200, 200)),
            ("a change has waited for 60 s", &[Node(Present), V4, V6, Queued, After(60)], (503, 503)),
            ("further changes do not restart the clock", &[Node(Present), V4, V6, Queued, After(59), Queued, After(1)], (503, 503)),
            ("written after all", &[Node(Present), V4, V6, Queued, After(90), V4, V6], (200, 200)),
            ("IPv6 is late: writing IPv4 does not heal it (6.22)", &[Node(Present), V4, V6, Queued, After(61), V4], (503, 503)),
            ("IPv4 is late: writing IPv6 does not heal it (6.22)", &[Node(Present), V4, V6, Queued, After(61), V6], (503, 503)),
            ("a change before the first write counts too", &[Node(Present), Queued, After(61)], (503, 503)),
            ("the loop has been busy for 59 s", &[Node(Present), V4, V6, Busy, After(59)], (200, 200)),
            ("the loop is stuck, or dead", &[Node(Present), V4, V6, Busy, After(60)], (503, 503)),
            ("the loop came back", &[Node(Present), V4, V6, Busy, After(90), Idle], (200, 200)),
            ("the autoscaler's taint, or a deletion time", &[Node(Present), V4, V6, Node(Leaving)], (503, 200)),
            ("the taint is taken off again", &[V4, V6, Node(Leaving), Node(Present)], (200, 200)),
            ("the Node object is gone", &[Node(Present), V4, V6, Node(Missing)], (503, 200)),
            ("tainted and stuck", &[Node(Leaving), V4, V6, Queued, After(61)], (503, 503)),
        ];
        for (name, steps, expected) in rows {
            assert_eq!(codes(true, steps), expected, "{name}");
        }
        assert_eq!(codes(false, &[V4, V6]), (200, 200), "manifests need no Node object");
        assert_eq!(codes(false, &[V4, V6, Node(Leaving)]), (503, 200), "but one that is there counts");
    }

    fn text((_, body): (StatusCode, Body)) -> String {
        serde_json::to_string(&body).unwrap()
    }

    #[test]
    fn the_bodies_are_kube_proxy_s() {
        let health = Health::new(TIMEOUT, true, watch::channel(true).1);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        health.updated(IpFamily::V4, at("2026-01-02T03:04:05.000000006Z"));
        let now = at("2026-01-02T03:05:00Z");
        let families = "\"status\":{\"IPv4\":{\"lastUpdated\":\"2026-01-02T03:04:05.000000006Z\",\"healthy\":true},\
                        \"IPv6\":{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"healthy\":true}}}";
        let verdict = health.verdict(Instant::now());
        assert_eq!(
            text(healthz(&verdict, now)),
            format!(
                "{{\"lastUpdated\":\"2026-01-02T03:04:05.000000006Z\",\"currentTime\":\"2026-01-02T03:05:00Z\",\
                 \"nodeEligible\":false,\"healthy\":false,{families}"
            ),
            "spec 6.25: with 503 the latest of the families"
        );
        assert_eq!(
            text(livez(&verdict, now)),
            format!(
                "{{\"lastUpdated\":\"2026-01-02T03:05:00Z\",\"currentTime\":\"2026-01-02T03:05:00Z\",\
                 \"healthy\":true,{families}"
            ),
            "spec 6.25: with 200 the time of the answer; nodeEligible is /healthz's alone"
        );
    }
}
