//! The cases of `TestCategorizeEndpoints` (spec, end of section 2), by their names.

use std::net::Ipv4Addr;

use super::*;
use crate::model::backend::{Hints, Host};

/// `A1 ready zone=a node=b local`: name and number first, then what is not the default.
fn host(words: &str) -> (Host, bool) {
    let mut words = words.split_whitespace();
    let number: u8 = words.next().unwrap().parse().unwrap();
    let mut conditions = Conditions { ready: true, serving: true, terminating: false };
    let (mut nodes, mut zones, mut is_local) = (Vec::new(), Vec::new(), false);
    for word in words {
        match word.split_once('=') {
            Some(("zone", zone)) => zones.push(zone.into()),
            Some(("node", node)) => nodes.push(node.into()),
            None if word == "local" => is_local = true,
            None if word == "unready" => conditions.ready = false,
            None if word == "notserving" => conditions.serving = false,
            None if word == "terminating" => conditions.terminating = true,
            _ => panic!("{word}"),
        }
    }
    let hints = (!nodes.is_empty() || !zones.is_empty())
        .then(|| Box::new(Hints { nodes: nodes.into(), zones: zones.into() }));
    (Host { addr: Ipv4Addr::new(10, 1, 2, number).into(), conditions, node: None, hints }, is_local)
}

struct Case {
    name: &'static str,
    /// `internal external accessible`, as `Cluster/Local -`.
    policies: &'static str,
    zone: Option<&'static str>,
    hosts: &'static [&'static str],
    cluster: Option<&'static [usize]>,
    local: Option<&'static [usize]>,
    has_any: bool,
}

/// Internal and external policy; `E` that it can be reached from outside; `D` direct server return.
fn policies(text: &str) -> Policies {
    let policy = |letter: &str| if letter == "L" { Policy::Local } else { Policy::Cluster };
    let words: Vec<_> = text.split(' ').collect();
    Policies {
        internal: policy(words[0]),
        external: policy(words[1]),
        is_externally_accessible: words[2..].contains(&"E"),
        returns_directly: words[2..].contains(&"D"),
    }
}

const HINTED: &[&str] = &["3 zone=a node=n3", "4 zone=b node=n4", "5 zone=c node=n5", "6 zone=a node=n6"];
const TERMINATING: &str = "unready terminating";

const CASES: &[Case] = &[
    Case {
        name: "should use topology since all endpoints have hints, node has a zone label and and there are endpoints for the node's zone",
        policies: "C C",
        zone: Some("a"),
        hosts: &["3 zone=a", "4 zone=b", "5 zone=c", "6 zone=a"],
        cluster: Some(&[0, 3]),
        local: None,
        has_any: true,
    },
    Case {
        name: "externalTrafficPolicy: Local, topology ignored for Local endpoints",
        policies: "C L E",
        zone: Some("a"),
        hosts: &["3 zone=a local", "4 zone=b local", "5 zone=c", "6 zone=a"],
        cluster: Some(&[0, 3]),
        local: Some(&[0, 1]),
        has_any: true,
    },
    Case {
        name: "internalTrafficPolicy: Local, topology ignored for Local endpoints",
        policies: "L C E",
        zone: Some("a"),
        hosts: &["3 zone=a local", "4 zone=b local", "5 zone=c", "6 zone=a"],
        cluster: Some(&[0, 3]),
        local: Some(&[0, 1]),
        has_any: true,
    },
    Case {
        name: "empty node labels",
        policies: "C C",
        zone: None,
        hosts: &["3 zone=a"],
        cluster: Some(&[0]),
        local: None,
        has_any: true,
    },
    Case {
        name: "empty zone label",
        policies: "C C",
        zone: Some(""),
        hosts: &["3 zone=a"],
        cluster: Some(&[0]),
        local: None,
        has_any: true,
    },
    Case {
        name: "node in different zone, no endpoint filtering",
        policies: "C C",
        zone: Some("b"),
        hosts: &["3 zone=a"],
        cluster: Some(&[0]),
        local: None,
        has_any: true,
    },
    Case {
        name: "unready endpoint",
        policies: "C C",
        zone: Some("a"),
        hosts: &["3 zone=a", "4 zone=b", "5 zone=c", "6 zone=a unready"],
        cluster: Some(&[0]),
        local: None,
        has_any: true,
    },
    Case {
        name: "only unready endpoints in same zone (should not filter)",
        policies: "C C",
        zone: Some("a"),
        hosts: &["3 zone=a unready", "4 zone=b", "5 zone=c", "6 zone=a unready"],
        cluster: Some(&[1, 2]),
        local: None,
        has_any: true,
    },
    Case {
        name: "missing hints, no filtering applied",
        policies: "C C",
        zone: Some("a"),
        hosts: &["3 zone=a", "4 zone=b", "5", "6 zone=a"],
        cluster: Some(&[0, 1, 2, 3]),
        local: None,
        has_any: true,
    },
    Case {
        name: "multiple hints per endpoint, filtering includes any endpoint with zone included",
        policies: "C C",
        zone: Some("c"),
        hosts: &["3 zone=a", "4 zone=b zone=c", "5 zone=b zone=d", "6 zone=c"],
        cluster: Some(&[1, 3]),
        local: None,
        has_any: true,
    },
    Case {
        name: "PreferSameNode falls back to same-zone when feature gate disabled",
        // The gate is locked to on; what is left of the case is slices without node hints.
        policies: "C C",
        zone: Some("a"),
        hosts: &["3 zone=a", "4 zone=b", "5 zone=c", "6 zone=a"],
        cluster: Some(&[0, 3]),
        local: None,
        has_any: true,
    },
    Case {
        name: "PreferSameNode available",
        policies: "C C",
        zone: Some("a"),
        hosts: &["3 zone=a node=me", "4 zone=b node=n4", "5 zone=c node=n5", "6 zone=a node=n6"],
        cluster: Some(&[0]),
        local: None,
        has_any: true,
    },
    Case {
        name: "PreferSameNode ignored if some endpoints unhinted",
        policies: "C C",
        zone: Some("z"),
        hosts: &["3 zone=a node=me", "4 zone=b node=n4", "5", "6 zone=a node=n6"],
        cluster: Some(&[0, 1, 2, 3]),
        local: None,
        has_any: true,
    },
    Case {
        name: "PreferSameNode falls back to PreferSameZone if no endpoint for node",
        policies: "C C",
        zone: Some("a"),
        hosts: HINTED,
        cluster: Some(&[0, 3]),
        local: None,
        has_any: true,
    },
    Case {
        name: "conflicting topology and localness require merging allEndpoints",
        policies: "C L E",
        zone: Some("a"),
        hosts: &["1 zone=a local", "2 zone=b local", "3 zone=a", "4 zone=b"],
        cluster: Some(&[0, 2]),
        local: Some(&[0, 1]),
        has_any: true,
    },
    Case {
        name: "internalTrafficPolicy: Local, with empty endpoints",
        policies: "L C",
        zone: None,
        hosts: &[],
        cluster: None,
        local: Some(&[]),
        has_any: false,
    },
    Case {
        name: "internalTrafficPolicy: Local, but all endpoints are remote",
        policies: "L C",
        zone: None,
        hosts: &["1", "2"],
        cluster: None,
        local: Some(&[]),
        has_any: true,
    },
    Case {
        name: "internalTrafficPolicy: Local, all endpoints are local",
        policies: "L C",
        zone: None,
        hosts: &["1 local", "2 local"],
        cluster: None,
        local: Some(&[0, 1]),
        has_any: true,
    },
    Case {
        name: "internalTrafficPolicy: Local, some endpoints are local",
        policies: "L C",
        zone: None,
        hosts: &["1 local", "2"],
        cluster: None,
        local: Some(&[0]),
        has_any: true,
    },
    Case {
        name: "Cluster traffic policy, endpoints not Ready",
        policies: "C C",
        zone: None,
        hosts: &["1 unready", "2 unready"],
        cluster: Some(&[]),
        local: None,
        has_any: false,
    },
    Case {
        name: "Cluster traffic policy, some endpoints are Ready",
        policies: "C C",
        zone: None,
        hosts: &["1 unready", "2"],
        cluster: Some(&[1]),
        local: None,
        has_any: true,
    },
    Case {
        name: "Cluster traffic policy, all endpoints are terminating",
        policies: "C C",
        zone: None,
        hosts: &["1 unready terminating", "2 unready terminating local"],
        cluster: Some(&[0, 1]),
        local: None,
        has_any: true,
    },
    Case {
        name: "iTP: Local, eTP: Cluster, some endpoints local",
        policies: "L C E",
        zone: None,
        hosts: &["1 local", "2"],
        cluster: Some(&[0, 1]),
        local: Some(&[0]),
        has_any: true,
    },
    Case {
        name: "iTP: Cluster, eTP: Local, some endpoints local",
        policies: "C L E",
        zone: None,
        hosts: &["1 local", "2"],
        cluster: Some(&[0, 1]),
        local: Some(&[0]),
        has_any: true,
    },
    Case {
        name: "iTP: Local, eTP: Local, some endpoints local",
        policies: "L L E",
        zone: None,
        hosts: &["1 local", "2"],
        cluster: Some(&[0, 1]),
        local: Some(&[0]),
        has_any: true,
    },
    Case {
        name: "iTP: Local, eTP: Local, all endpoints remote",
        policies: "L L E",
        zone: None,
        hosts: &["1", "2"],
        cluster: Some(&[0, 1]),
        local: Some(&[]),
        has_any: true,
    },
    Case {
        name: "iTP: Local, eTP: Local, all endpoints remote and terminating",
        policies: "L L E",
        zone: None,
        hosts: &["1 unready terminating", "2 unready terminating"],
        cluster: Some(&[0, 1]),
        local: Some(&[]),
        has_any: true,
    },
    Case {
        name: "iTP: Cluster, eTP: Local, with terminating endpoints",
        policies: "C L E",
        zone: None,
        hosts: &[
            "1 unready notserving",
            "2 unready local terminating",
            "3 unready notserving local terminating",
            "4",
            "5 unready terminating",
        ],
        cluster: Some(&[3]),
        local: Some(&[1]),
        has_any: true,
    },
    Case {
        name: "externalTrafficPolicy ignored if not externally accessible",
        policies: "C L",
        zone: None,
        hosts: &["1", "2 local"],
        cluster: Some(&[0, 1]),
        local: None,
        has_any: true,
    },
    Case {
        name: "no cluster endpoints for iTP:Local internal-only service",
        policies: "L C",
        zone: None,
        hosts: &["1", "2 local"],
        cluster: None,
        local: Some(&[1]),
        has_any: true,
    },
    Case {
        name: "empty endpoints when no service endpoints exist",
        policies: "C C E",
        zone: None,
        hosts: &[],
        cluster: Some(&[]),
        local: None,
        has_any: false,
    },
    Case {
        name: "single endpoint not ready, not serving, not terminating",
        policies: "L L E",
        zone: None,
        hosts: &["1 unready notserving local"],
        cluster: Some(&[]),
        local: Some(&[]),
        has_any: false,
    },
];

#[test]
fn every_case_of_kube_proxy_selects_the_same() {
    assert_eq!(CASES.len(), 32);
    for case in CASES {
        let hosts: Vec<_> = case.hosts.iter().map(|words| host(words)).collect();
        let backends: Vec<_> =
            hosts.iter().map(|(host, is_local)| Backend { host, port: 80, is_local: *is_local }).collect();
        let node = Node {
            name: "me".into(),
            zone: case.zone.filter(|zone| !zone.is_empty()).map(Into::into),
            ..Node::default()
        };
        let expected = Selection {
            cluster: case.cluster.unwrap_or_default().to_vec(),
            local: case.local.unwrap_or_default().to_vec(),
            has_any: case.has_any,
        };
        assert_eq!(select(&backends, policies(case.policies), &node), expected, "{}", case.name);
    }
}

#[test]
fn a_remote_last_resort_makes_an_internal_local_port_silent_rather_than_refused() {
    let (host, _) = host(&format!("1 {TERMINATING}"));
    let backends = [Backend { host: &host, port: 80, is_local: false }];
    let selection = select(&backends, policies("L C"), &Node::default());
    assert_eq!(selection, Selection { has_any: true, ..Selection::default() }, "spec 2.9");
}

#[test]
fn published_although_not_ready_means_used() {
    let (mut host, _) = host("1 notserving terminating");
    host.conditions.ready = true;
    let backends = [Backend { host: &host, port: 80, is_local: false }];
    assert_eq!(select(&backends, policies("C C"), &Node::default()).cluster, [0], "spec 2.5");
}

#[test]
fn direct_server_return_selects_the_own_backends_besides() {
    let hosts = ["3 zone=a local", "4 zone=b local", "5 zone=c", "6 zone=a"].map(host);
    let backends = hosts.each_ref().map(|(host, is_local)| Backend { host, port: 80, is_local: *is_local });
    let node = Node { zone: Some("a".into()), ..Node::default() };
    let selection = select(&backends, policies("C C E D"), &node);
    assert_eq!((selection.cluster, selection.local), (vec![0, 3], vec![0, 1]), "hints choose among all only");
    assert!(select(&backends, policies("C C D"), &node).local.is_empty(), "nobody comes from outside");
}
