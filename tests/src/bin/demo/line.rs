//! One line of the demo: who dialled what, who answered, and whether that is what must happen.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result};
use lb_tests::{
    cluster::{At, Cluster},
    probe::{Answer, ClientError, Tally, Target},
};

/// A line, ready to be printed.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it shows.
    pub what: String,
    /// Who dials.
    pub client: String,
    /// What is dialled.
    pub dialled: String,
    /// Pods with the number of their answers, errors with theirs.
    pub answered: String,
    /// The client's addresses as the pods saw them.
    pub seen_as: String,
    /// Why it does not hold.
    pub fault: Option<String>,
}

/// What happened to a number of requests.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Who answered how often.
    pub tally: Tally,
    /// The client's addresses as the pods saw them.
    pub clients: BTreeSet<IpAddr>,
}

/// What must happen.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Each of these pods answers, and nobody else.
    Each(Vec<&'static str>),
    /// One of these pods answers everything: affinity.
    AlwaysTheSame(Vec<&'static str>),
    /// Every request ends with this error.
    Error(ClientError),
}

impl Observed {
    /// Counts one outcome.
    pub fn count(&mut self, outcome: Result<Answer, ClientError>) {
        match outcome {
            Ok(answer) => {
                self.clients.insert(answer.client.ip());
                *self.tally.answers.entry(answer.pod).or_default() += 1;
            }
            Err(error) => *self.tally.failures.entry(error.to_string()).or_default() += 1,
        }
    }

    /// Pods and errors with their numbers.
    pub fn answered(&self) -> String {
        let all = self.tally.answers.iter().chain(&self.tally.failures);
        all.map(|(who, times)| format!("{who} {times}")).collect::<Vec<_>>().join(", ")
    }

    /// The client's addresses.
    pub fn seen_as(&self) -> String {
        self.clients.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Expected {
    /// Says what is wrong with what happened, if anything. `seen_as`: the only client address the pods may see.
    pub fn fault(&self, observed: &Observed, seen_as: Option<IpAddr>) -> Option<String> {
        let tally = &observed.tally;
        let pods: Vec<&str> = tally.answers.keys().map(String::as_str).collect();
        let errors: Vec<&str> = tally.failures.keys().map(String::as_str).collect();
        let holds = match self {
            Self::Each(expected) => errors.is_empty() && sorted(expected) == pods,
            Self::AlwaysTheSame(expected) => {
                errors.is_empty() && pods.len() == 1 && expected.iter().any(|pod| pods.contains(pod))
            }
            Self::Error(error) => pods.is_empty() && errors == [error.to_string()],
        };
        if !holds {
            return Some(format!("expected {self:?}, got {}", observed.answered()));
        }
        let wrong_client = seen_as.filter(|address| observed.clients != BTreeSet::from([*address]));
        wrong_client
            .map(|address| format!("expected the pod to see {address}, it saw {}", observed.seen_as()))
    }
}

fn sorted<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}

/// Asks with real `curl` processes.
pub fn curl(cluster: &Cluster, at: &At, dialled: &str, times: usize) -> Result<Observed> {
    let place = cluster.place(at)?;
    let mut observed = Observed::default();
    for _ in 0..times {
        let output = place.output("curl", &["--silent", "--verbose", "--max-time", "1", dialled])?;
        observed.count(match output.status.code() {
            Some(0) => Ok(serde_json::from_slice(&output.stdout).context("the answer of a pod")?),
            // curl(1), EXIT CODES: 28 is a timeout, 56 a failed receive; 7 covers every failed connect.
            Some(28) => Err(ClientError::TimedOut),
            Some(56) => Err(ClientError::Broken),
            _ => Err(connect_error(&String::from_utf8_lossy(&output.stderr))),
        });
    }
    Ok(observed)
}

/// The kernel's error in curl's own words: `connect to 10.0.0.1 port 80 failed: Connection refused` after an answer,
/// `Immediate connect fail for 10.0.0.1: Connection refused` from `connect()` itself.
fn connect_error(stderr: &str) -> ClientError {
    let failed = stderr.lines().filter(|line| line.contains("connect") && line.contains("fail"));
    match failed.filter_map(|line| line.rsplit_once(": ")).map(|(_, error)| error.trim()).next() {
        Some("Connection refused") => ClientError::Refused,
        Some(error) => ClientError::Other(error.to_owned()),
        None => ClientError::Other(stderr.lines().last().unwrap_or_default().to_owned()),
    }
}

/// Asks with sockets of a probe: UDP, and whatever must be quick.
pub fn ask(cluster: &Cluster, at: &At, target: Target, times: usize) -> Result<Observed> {
    let probe = cluster.probe(at)?;
    let mut observed = Observed::default();
    for _ in 0..times {
        observed.count(probe.once(target)?.map(|reply| reply.answer));
    }
    Ok(observed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(answers: &[(&str, u64)], failures: &[(&str, u64)]) -> Observed {
        let map =
            |rows: &[(&str, u64)]| rows.iter().map(|(name, times)| (name.to_string(), *times)).collect();
        let clients = BTreeSet::from(["198.51.100.10".parse().unwrap()]);
        Observed { tally: Tally { answers: map(answers), failures: map(failures) }, clients }
    }

    #[test]
    fn a_line_holds_only_if_everything_is_as_expected() {
        let each = Expected::Each(vec!["b", "a"]);
        let same = Expected::AlwaysTheSame(vec!["a", "b"]);
        let refused = Expected::Error(ClientError::Refused);
        let rows = [
            ("both answer", &each, observed(&[("a", 1), ("b", 2)], &[]), true),
            ("one never answers", &each, observed(&[("a", 3)], &[]), false),
            ("a stranger answers", &each, observed(&[("a", 1), ("b", 1), ("c", 1)], &[]), false),
            ("a request fails", &each, observed(&[("a", 1), ("b", 1)], &[("refused", 1)]), false),
            ("affinity holds", &same, observed(&[("b", 9)], &[]), true),
            ("affinity breaks", &same, observed(&[("a", 1), ("b", 9)], &[]), false),
            ("all are refused", &refused, observed(&[], &[("refused", 3)]), true),
            ("one times out", &refused, observed(&[], &[("refused", 2), ("timed out", 1)]), false),
            ("one gets through", &refused, observed(&[("a", 1)], &[("refused", 2)]), false),
        ];
        for (name, expected, observed, holds) in rows {
            assert_eq!(expected.fault(&observed, None).is_none(), holds, "{name}");
        }
        let kept = "198.51.100.10".parse().unwrap();
        assert!(each.fault(&observed(&[("a", 1), ("b", 2)], &[]), Some(kept)).is_none());
        let translated = "192.0.2.12".parse().unwrap();
        assert!(each.fault(&observed(&[("a", 1), ("b", 2)], &[]), Some(translated)).is_some());
    }

    #[test]
    fn curl_s_words_become_the_kernel_s_error() {
        let refused =
            "*   Trying 10.0.0.1:80...\n* connect to 10.0.0.1 port 80 failed: Connection refused\n* Closing";
        assert_eq!(connect_error(refused), ClientError::Refused);
        let at_once = "* Immediate connect fail for 10.0.0.1: Connection refused\n* Closing connection 0";
        assert_eq!(connect_error(at_once), ClientError::Refused);
        let unreachable = "* connect to 10.0.0.1 port 80 failed: No route to host";
        assert_eq!(connect_error(unreachable), ClientError::Other("No route to host".to_owned()));
    }
}
