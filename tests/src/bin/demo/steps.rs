//! What the demo shows, in order. The manifests are those of `tests/testdata/manifests`, as they stand.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{At, CLIENT_V4, Cluster, NODES, PodSpec, manifest},
    probe::{ClientError, Target, Transport},
    process::eventually,
};

use crate::line::{Expected, Line, Observed, ask, curl};

/// A pod on node-a that serves nothing.
pub const SHELL: &str = "shell-a";
const SHELL_B: &str = "shell-b";

const MANIFESTS: [&str; 8] = [
    "dual-stack.yaml",
    "hello-world.yaml",
    "loadbalancer.yaml",
    "names.yaml",
    "nodeport.yaml",
    "service-cidr.yaml",
    "three-replicas.yaml",
    "without-selector.yaml",
];

/// How long a changed manifest may take to show; much more than it does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests enough that every one of up to three pods is chosen at random (one run in a million misses one).
const TIMES: usize = 40;

/// Cluster, pods and agents, with the manifests applied.
pub fn start_cluster() -> Result<Cluster> {
    let mut cluster = Cluster::start()?;
    cluster.add_pods(&pods()?)?;
    for file in MANIFESTS {
        cluster.apply(file, &manifest(file)?)?;
    }
    for (vip, node) in [("203.0.113.50", "node-a"), ("203.0.113.155", "node-b"), ("192.0.2.4", "node-a")] {
        cluster.route_to(vip.parse()?, node)?;
    }
    cluster.start_agents()?;
    Ok(cluster)
}

/// The pods that the manifests' endpoints name, and two that only ask.
fn pods() -> Result<Vec<PodSpec>> {
    let (a, b) = ("node-a", "node-b");
    let dns = |name, node, addresses: &[&str]| {
        PodSpec::http(name, node, addresses, 5353).map(|pod| pod.and_udp(5353).and_http(9153))
    };
    Ok(vec![
        PodSpec::http(SHELL, a, &["10.244.1.100", "fd00:244:1::100"], 1)?,
        PodSpec::http(SHELL_B, b, &["10.244.2.100", "fd00:244:2::100"], 1)?,
        dns("dns-a", a, &["10.244.1.2", "fd00:244:1::2"])?,
        dns("dns-b", b, &["10.244.2.2", "fd00:244:2::2"])?,
        PodSpec::http("hello-a", a, &["10.244.1.199"], 8080)?,
        PodSpec::http("hello-b", b, &["10.244.2.190"], 8080)?,
        PodSpec::http("lb-a", a, &["10.244.1.21"], 9376)?,
        PodSpec::http("lb-b", b, &["10.244.2.22"], 9376)?,
        PodSpec::http("go-1", a, &["172.17.0.4"], 28017)?.and_http(27017),
        PodSpec::http("go-2", a, &["172.17.0.5"], 28017)?,
        PodSpec::http("demo-1", a, &["192.168.0.3"], 80)?,
        PodSpec::http("demo-2", a, &["192.168.0.4"], 80)?,
        PodSpec::http("demo-3", b, &["192.168.0.5"], 80)?,
        PodSpec::http("single", a, &["10.244.1.4"], 9376)?,
        PodSpec::http("peer", a, &["10.244.1.9"], 7946)?,
    ])
}

/// The demo while it runs.
pub struct Demo {
    /// What it shows.
    pub cluster: Cluster,
    /// The lines so far.
    pub lines: Vec<Line>,
}

type Step = fn(&mut Demo) -> Result<()>;

/// A question to be put with curl.
struct Curl<'a> {
    what: &'a str,
    at: At,
    dialled: &'a str,
    times: usize,
}

impl Demo {
    /// Runs all steps; a step that cannot be run is a line that does not hold.
    pub fn run(&mut self) {
        let steps: [(&str, Step); 8] = [
            ("inside the cluster", Self::inside),
            ("NodePort from outside", Self::node_port),
            ("LoadBalancer and externalIP", Self::load_balancer),
            ("dual-stack DNS", Self::dns),
            ("names", Self::names),
            ("scale up", Self::scale_up),
            ("scale down", Self::scale_down),
            ("delete", Self::delete),
        ];
        for (what, step) in steps {
            if let Err(error) = step(self) {
                self.note(what, Some(format!("{error:#}")));
            }
        }
    }

    fn inside(&mut self) -> Result<()> {
        let three = || Expected::Each(vec!["demo-1", "demo-2", "demo-3"]);
        let what = "pod to ClusterIP";
        self.curl(Curl { what, at: At::pod(SHELL), dialled: "10.0.0.228", times: TIMES }, three(), None)?;
        let what = "host to ClusterIP";
        self.curl(Curl { what, at: At::host("node-b"), dialled: "10.0.0.228", times: TIMES }, three(), None)?;
        let both = Expected::Each(vec!["hello-a", "hello-b"]);
        let what = "host to its own NodePort on 127.0.0.1";
        self.curl(
            Curl { what, at: At::host("node-a"), dialled: "127.0.0.1:30583", times: TIMES },
            both,
            None,
        )?;
        let what = "Service without selector, hand-written Endpoints";
        let single = Expected::Each(vec!["single"]);
        self.curl(
            Curl { what, at: At::pod(SHELL_B), dialled: "10.96.0.17", times: 5 },
            single,
            address("10.244.2.100"),
        )
    }

    fn node_port(&mut self) -> Result<()> {
        let go = || Expected::Each(vec!["go-1", "go-2"]);
        let what = "NodePort, backends on the other node: SNAT";
        let question = Curl { what, at: At::Client, dialled: "192.0.2.12:30001", times: TIMES };
        self.curl(question, go(), address(NODES[1].v4))?;
        let what = "NodePort, backends on this node: client address kept";
        let question = Curl { what, at: At::Client, dialled: "192.0.2.11:30001", times: TIMES };
        self.curl(question, go(), address(CLIENT_V4))
    }

    fn load_balancer(&mut self) -> Result<()> {
        let hello = Expected::Each(vec!["hello-a", "hello-b"]);
        let what = "LoadBalancer IP";
        self.curl(Curl { what, at: At::Client, dialled: "203.0.113.50:8080", times: TIMES }, hello, None)?;
        let what = "LoadBalancer IP, source range allowed, policy Local";
        let local = Expected::Each(vec!["lb-b"]);
        self.curl(
            Curl { what, at: At::Client, dialled: "203.0.113.155", times: 10 },
            local,
            address(CLIENT_V4),
        )?;
        let what = "LoadBalancer IP, source range refused";
        let silence = Expected::Error(ClientError::TimedOut);
        self.curl(Curl { what, at: At::Outsider, dialled: "203.0.113.155", times: 2 }, silence, None)?;
        let what = "externalIP";
        let three = Expected::Each(vec!["demo-1", "demo-2", "demo-3"]);
        self.curl(Curl { what, at: At::Client, dialled: "192.0.2.4", times: TIMES }, three, None)
    }

    fn dns(&mut self) -> Result<()> {
        let transports = [
            ("UDP, connected", Transport::UdpConnected),
            ("UDP, unconnected", Transport::UdpUnconnected),
            ("TCP", Transport::Http),
        ];
        for vip in ["10.96.0.10:53", "[fd00:96::a]:53"] {
            for (name, transport) in transports {
                for pod in [SHELL, SHELL_B] {
                    let target = Target::new(transport, vip.parse()?);
                    let observed = ask(&self.cluster, &At::pod(pod), target, TIMES)?;
                    let expected = Expected::AlwaysTheSame(vec!["dns-a", "dns-b"]);
                    let fault = expected.fault(&observed, None);
                    self.push(
                        &format!("DNS over {name}, with affinity"),
                        &At::pod(pod),
                        vip,
                        (observed, fault),
                    );
                }
            }
        }
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        for node in NODES {
            let listing = self.cluster.agent(node.name)?.cli_text("services", &["-o", "json"])?;
            ensure!(listing.contains("hello-world"), "hello-world is missing in: {listing}");
            for name in ["elsewhere", "peers"] {
                let found = listing.contains(&format!("\"name\":\"{name}\""))
                    || listing.contains(&format!("\"name\": \"{name}\""));
                let fault = found.then(|| format!("lb-agent services lists {name} on {}", node.name));
                self.note(
                    &format!("{name} (ExternalName or headless) has no frontend on {}", node.name),
                    fault,
                );
            }
        }
        let what = "headless: the pod's own address, untouched";
        let peer = Expected::Each(vec!["peer"]);
        let question = Curl { what, at: At::pod(SHELL_B), dialled: "10.244.1.9:7946", times: 3 };
        self.curl(question, peer, address("10.244.2.100"))
    }

    fn scale_up(&mut self) -> Result<()> {
        self.cluster.add_pods(&[PodSpec::http("demo-4", "node-b", &["192.168.0.6"], 80)?])?;
        let last = "- {addresses: [192.168.0.5], conditions: {ready: true, serving: true, terminating: false}, nodeName: node-b}\n";
        let text = manifest("three-replicas.yaml")?;
        ensure!(text.contains(last), "three-replicas.yaml does not end as expected");
        let scaled = text.replace(last, &format!("{last}{}", last.replace("192.168.0.5", "192.168.0.6")));
        self.cluster.apply("three-replicas.yaml", &scaled)?;
        self.wait_for("does demo-4 answer", |observed| observed.tally.answers.contains_key("demo-4"))?;
        let what = "scaled up to four";
        let four = Expected::Each(vec!["demo-1", "demo-2", "demo-3", "demo-4"]);
        self.curl(Curl { what, at: At::pod(SHELL), dialled: "10.0.0.228", times: 2 * TIMES }, four, None)
    }

    fn scale_down(&mut self) -> Result<()> {
        let text = manifest("three-replicas.yaml")?;
        let kept = |line: &&str| !["192.168.0.4]", "192.168.0.5]"].iter().any(|gone| line.contains(gone));
        let scaled = text.lines().filter(kept).collect::<Vec<_>>().join("\n");
        self.cluster.apply("three-replicas.yaml", &scaled)?;
        self.wait_for("does demo-1 alone answer", |observed| observed.tally.answers.keys().eq(["demo-1"]))?;
        let what = "scaled down to one";
        let one = Expected::Each(vec!["demo-1"]);
        self.curl(Curl { what, at: At::pod(SHELL), dialled: "10.0.0.228", times: TIMES }, one, None)
    }

    fn delete(&mut self) -> Result<()> {
        let text = manifest("three-replicas.yaml")?;
        let (service, _) = text.split_once("---\n").context("a Service and its EndpointSlice")?;
        self.cluster.apply("three-replicas.yaml", service)?;
        self.wait_for("is the connection refused", |observed| {
            observed.tally.failures.contains_key("refused")
        })?;
        for (what, at, dialled) in [
            ("endpoints deleted: pod gets ECONNREFUSED", At::pod(SHELL), "10.0.0.228"),
            ("endpoints deleted: host gets ECONNREFUSED", At::host("node-b"), "10.0.0.228"),
            ("endpoints deleted: external client gets RST", At::Client, "192.0.2.4"),
        ] {
            self.curl(Curl { what, at, dialled, times: 3 }, Expected::Error(ClientError::Refused), None)?;
        }
        self.cluster.delete("three-replicas.yaml")?;
        for node in NODES {
            let agent = self.cluster.agent(node.name)?;
            let is_gone =
                || agent.cli_text("services", &["-o", "json"]).map(|text| !text.contains("10.0.0.228"));
            eventually("has the agent forgotten the Service", PATIENCE, is_gone)?;
        }
        for (what, at) in [
            ("Service deleted: pod gets ECONNREFUSED", At::pod(SHELL)),
            ("Service deleted: host gets ECONNREFUSED", At::host("node-b")),
        ] {
            let question = Curl { what, at, dialled: "10.0.0.228", times: 3 };
            self.curl(question, Expected::Error(ClientError::Refused), None)?;
        }
        Ok(())
    }

    /// Waits until a few requests of a pod to the demo Service go as they should.
    fn wait_for(&mut self, question: &str, holds: impl Fn(&Observed) -> bool) -> Result<()> {
        let target = Target::http("10.0.0.228:80")?.within(Duration::from_millis(500));
        eventually(question, PATIENCE, || {
            ask(&self.cluster, &At::pod(SHELL), target, 20).map(|observed| holds(&observed))
        })
    }

    fn curl(&mut self, question: Curl<'_>, expected: Expected, seen_as: Option<IpAddr>) -> Result<()> {
        let observed = curl(&self.cluster, &question.at, question.dialled, question.times)?;
        let fault = expected.fault(&observed, seen_as);
        self.push(question.what, &question.at, question.dialled, (observed, fault));
        Ok(())
    }

    fn push(&mut self, what: &str, at: &At, dialled: &str, (observed, fault): (Observed, Option<String>)) {
        let client = match at {
            At::Host(name) | At::Pod(name) => name.clone(),
            At::Client | At::Outsider | At::Router => format!("{at:?}").to_lowercase(),
        };
        let (answered, seen_as) = (observed.answered(), observed.seen_as());
        println!("{} {what}: {answered}", if fault.is_none() { "ok    " } else { "FAILED" });
        let (what, dialled) = (what.to_owned(), dialled.to_owned());
        self.lines.push(Line { what, client, dialled, answered, seen_as, fault });
    }

    /// A line without traffic.
    fn note(&mut self, what: &str, fault: Option<String>) {
        println!("{} {what}", if fault.is_none() { "ok    " } else { "FAILED" });
        let empty = String::new;
        let what = what.to_owned();
        self.lines.push(Line {
            what,
            client: empty(),
            dialled: empty(),
            answered: empty(),
            seen_as: empty(),
            fault,
        });
    }
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}
