//! `sessionAffinity: ClientIP` (spec 3, 12A 41 to 47) of packets. Time is not waited for: entries are made older.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use lb_common::family::{Protocol, V4, V6};
use lb_tests::packet::{ACK, SYN};

use super::*;

/// What clients dial: the frontends of service port `http`, in the order in which a test names them.
const HTTP: [(Ipv4Addr, u16); 4] = [
    (Ipv4Addr::new(172, 30, 0, 41), 80),
    (NODE, 30080),
    (Ipv4Addr::new(203, 0, 113, 80), 80),
    (Ipv4Addr::new(203, 0, 113, 61), 80),
];
const HTTPS: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 30, 0, 41), 443);
const DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 30, 0, 41), 53);
/// Seconds; see the manifest.
const TIMEOUT_S: u64 = 100;
const THREE: [u8; 3] = [10, 20, 30];

/// The Service, with `spec` in place of its affinity.
fn service(spec: &str) -> String {
    include_str!("../../testdata/flows/affinity.yaml").replace("# affinity", spec)
}

fn affinity(timeout_s: u64) -> String {
    service(&format!(
        "sessionAffinity: ClientIP\n  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {timeout_s}}}}}"
    ))
}

/// Backends by the last number of their addresses: 10 and 20 here, 30 elsewhere; `other` is not ready.
fn slice(ready: &[u8], other: &[u8], conditions: &str) -> String {
    let mut text = String::from(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: web-1, namespace: ns, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
         ports:\n- {name: http, port: 8080, protocol: TCP}\n- {name: https, port: 8443, protocol: TCP}\n\
         - {name: dns, port: 5353, protocol: UDP}\nendpoints:\n",
    );
    let places = |id: u8| if id == 30 { ("10.244.2", "node-b") } else { ("10.244.1", "node-a") };
    for (ids, conditions) in [(ready, "{ready: true}"), (other, conditions)] {
        for id in ids {
            let (network, node) = places(*id);
            text +=
                &format!("- {{addresses: [{network}.{id}], conditions: {conditions}, nodeName: {node}}}\n");
        }
    }
    text
}

struct Sticky {
    node: FlowNode,
    family: FlowFamily,
}

impl Sticky {
    /// The test on one family after the other, each from the beginning.
    fn each(test: impl Fn(&mut Self) -> Result<()>) -> Result<()> {
        let mut sticky = Self { node: FlowNode::start(AgentFlags::default())?, family: FlowFamily::V4 };
        for family in FAMILIES {
            sticky.family = family;
            sticky.node.apply(&affinity(TIMEOUT_S))?;
            sticky.node.apply(&slice(&THREE, &[], ""))?;
            test(&mut sticky).with_context(|| format!("{family:?}"))?;
        }
        Ok(())
    }

    /// The backend of one new connection, by the last number of its address.
    fn backend(&mut self, from: Sender, (ip, port): (Ipv4Addr, u16)) -> Result<u8> {
        let to = SocketAddr::new(self.family.of(ip), port);
        let protocol = if (ip, port) == DNS { Protocol::UDP } else { Protocol::TCP };
        match self.node.send(from, to, protocol)? {
            Outcome::Backends(reached) => {
                let addr = reached.first().context("a backend")?.backend.ip();
                Ok(match addr {
                    std::net::IpAddr::V4(ip) => ip.octets()[3],
                    std::net::IpAddr::V6(ip) => ip.octets()[15],
                })
            }
            other => bail!("{other}"),
        }
    }

    /// The backends of some new connections.
    fn backends(&mut self, from: Sender, to: (Ipv4Addr, u16)) -> Result<BTreeSet<u8>> {
        (0..48).map(|_| self.backend(from, to)).collect()
    }

    /// Makes every entry older.
    fn age(&mut self, seconds: u64) {
        let nanoseconds = seconds * 1_000_000_000;
        for (key, mut value) in self.node.node().affinity::<V4>() {
            value.last_used_ns = value.last_used_ns.saturating_sub(nanoseconds);
            self.node.node().set_affinity(&key, value);
        }
        for (key, mut value) in self.node.node().affinity::<V6>() {
            value.last_used_ns = value.last_used_ns.saturating_sub(nanoseconds);
            self.node.node().set_affinity(&key, value);
        }
    }

    /// When the client's last new connection was, by the youngest entry.
    fn last_used_ns(&mut self) -> u64 {
        let times = match self.family {
            FlowFamily::V4 => {
                self.node.node().affinity::<V4>().into_iter().map(|(_, v)| v.last_used_ns).max()
            }
            FlowFamily::V6 => {
                self.node.node().affinity::<V6>().into_iter().map(|(_, v)| v.last_used_ns).max()
            }
        };
        times.unwrap_or_default()
    }

    fn apply(&mut self, yaml: &str) -> Result<()> {
        self.node.apply(yaml)
    }
}

/// So many that one of three backends gets none of them once in 10^11 tests.
const MANY: u8 = 64;

/// Clients outside.
fn clients(count: u8) -> impl Iterator<Item = Sender> {
    (1..=count).map(|id| Sender::Outside(Ipv4Addr::new(198, 51, 100, id)))
}

/// Spec 3.3, 3.15, 12A 41: whichever address of a service port is dialled.
#[test]
fn a_client_keeps_its_backend_on_every_frontend_of_a_service_port() -> Result<()> {
    Sticky::each(|sticky| {
        for client in clients(8).chain([Sender::Pod]) {
            let backend = sticky.backend(client, HTTP[0])?;
            for frontend in HTTP {
                assert_eq!(
                    sticky.backends(client, frontend)?,
                    [backend].into(),
                    "{client:?} -> {frontend:?}"
                );
            }
            let backend = sticky.backend(client, DNS)?;
            assert_eq!(sticky.backends(client, DNS)?, [backend].into(), "spec 3.15: UDP");
        }
        Ok(())
    })
}

/// Spec 3.4, 12A 41; another client may have another backend.
#[test]
fn clients_and_service_ports_are_bound_one_by_one() -> Result<()> {
    Sticky::each(|sticky| {
        let mut pairs = BTreeSet::new();
        for client in clients(MANY) {
            pairs.insert((sticky.backend(client, HTTP[0])?, sticky.backend(client, HTTPS)?));
        }
        let of_http: BTreeSet<u8> = pairs.iter().map(|pair| pair.0).collect();
        assert_eq!(of_http, THREE.into(), "clients differ");
        assert!(pairs.iter().any(|(http, https)| http != https), "ports differ");
        Ok(())
    })
}

/// Spec 3.6, 12A 44: the timer starts anew with each new connection, and with nothing else.
#[test]
fn affinity_lasts_from_the_last_new_connection() -> Result<()> {
    Sticky::each(|sticky| {
        let client = Sender::Outside(CLIENT);
        let backend = sticky.backend(client, HTTP[0])?;
        for _ in 0..4 {
            sticky.age(TIMEOUT_S * 6 / 10);
            assert_eq!(sticky.backend(client, HTTP[1])?, backend, "still young");
        }
        let (src, dst) = ((sticky.family.of(CLIENT), 61_000), (sticky.family.of(HTTP[0].0), HTTP[0].1));
        sticky.node.send_packet(client, &Packet::tcp(src, dst, SYN))?;
        sticky.age(10);
        let before = sticky.last_used_ns();
        sticky.node.send_packet(client, &Packet::tcp(src, dst, ACK))?;
        assert_eq!(
            sticky.last_used_ns(),
            before,
            "a packet of a connection that is open is no new connection"
        );
        Ok(())
    })
}

/// Spec 3.12.
#[test]
fn affinity_expires() -> Result<()> {
    Sticky::each(|sticky| {
        let mut found = BTreeSet::new();
        for _ in 0..48 {
            found.insert(sticky.backend(Sender::Pod, HTTP[0])?);
            sticky.age(TIMEOUT_S + 1);
        }
        assert_eq!(found, THREE.into());
        Ok(())
    })
}

/// Spec 3.17: for what was recorded before as well.
#[test]
fn a_change_of_the_timeout_applies_at_once() -> Result<()> {
    Sticky::each(|sticky| {
        let backend = sticky.backend(Sender::Pod, HTTP[0])?;
        sticky.age(TIMEOUT_S * 2);
        sticky.apply(&affinity(TIMEOUT_S * 4))?;
        assert_eq!(sticky.backend(Sender::Pod, HTTP[0])?, backend, "longer");
        let mut found = BTreeSet::new();
        sticky.apply(&affinity(TIMEOUT_S / 2))?;
        for _ in 0..48 {
            sticky.age(TIMEOUT_S * 6 / 10);
            found.insert(sticky.backend(Sender::Pod, HTTP[0])?);
        }
        assert_eq!(found, THREE.into(), "shorter");
        Ok(())
    })
}

/// Spec 3.11.
#[test]
fn affinity_is_switched_off_and_on() -> Result<()> {
    Sticky::each(|sticky| {
        sticky.backend(Sender::Pod, HTTP[0])?;
        sticky.apply(&service("sessionAffinity: None"))?;
        assert_eq!(sticky.backends(Sender::Pod, HTTP[0])?, THREE.into(), "off");
        sticky.apply(&affinity(TIMEOUT_S))?;
        assert_eq!(sticky.backends(Sender::Pod, HTTP[0])?.len(), 1, "on");
        Ok(())
    })
}

/// Spec 3.8, 12A 42, 46: a backend that is gone, or takes no new connections, binds nobody, however young the entry.
#[test]
fn a_client_leaves_a_backend_that_does_not_serve_any_more() -> Result<()> {
    const NOT_READY: &str = "{ready: false, serving: true, terminating: false}";
    const TERMINATING: &str = "{ready: false, serving: true, terminating: true}";
    for conditions in ["", NOT_READY, TERMINATING] {
        Sticky::each(|sticky| {
            let former = sticky.backend(Sender::Pod, HTTP[0])?;
            let rest: Vec<u8> = THREE.into_iter().filter(|id| *id != former).collect();
            let other: &[u8] = if conditions.is_empty() { &[] } else { &[former] };
            sticky.apply(&slice(&rest, other, conditions))?;
            let next = sticky.backend(Sender::Pod, HTTP[0])?;
            assert_ne!(next, former, "{conditions}");
            assert_eq!(sticky.backends(Sender::Pod, HTTP[1])?, [next].into(), "bound anew");
            sticky.apply(&slice(&THREE, &[], ""))?;
            assert_eq!(
                sticky.backends(Sender::Pod, HTTP[0])?,
                [next].into(),
                "the former one is back in vain"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Spec 3.10: where only terminating backends are left, affinity holds among them.
#[test]
fn a_terminating_backend_of_last_resort_keeps_its_clients() -> Result<()> {
    Sticky::each(|sticky| {
        let backend = sticky.backend(Sender::Pod, HTTP[0])?;
        sticky.apply(&slice(&[], &THREE, "{ready: false, serving: true, terminating: true}"))?;
        assert_eq!(sticky.backends(Sender::Pod, HTTP[0])?, [backend].into());
        Ok(())
    })
}

/// Spec 3.7, 12A 43: under policy Local a record of a backend elsewhere does not count.
#[test]
fn policy_local_overrules_affinity() -> Result<()> {
    Sticky::each(|sticky| {
        sticky.apply(&affinity(TIMEOUT_S).replace("# policy", "externalTrafficPolicy: Local"))?;
        let client = clients(MANY).find(|client| sticky.backend(*client, HTTP[0]).is_ok_and(|id| id == 30));
        let client = client.context("one of the clients is bound to the backend elsewhere")?;
        let local = sticky.backend(client, HTTP[1])?;
        assert_ne!(local, 30, "a NodePort with policy Local");
        assert_eq!(
            sticky.backends(client, HTTP[0])?,
            [local].into(),
            "3.7: both sets share what is recorded"
        );
        Ok(())
    })
}

/// Spec 3.13, 12A 47.
#[test]
fn affinity_survives_a_restart_of_the_agent() -> Result<()> {
    Sticky::each(|sticky| {
        let bound: Vec<u8> =
            clients(8).map(|client| sticky.backend(client, HTTP[0])).collect::<Result<_>>()?;
        sticky.node.restart()?;
        sticky.apply(&format!("{}---\n{}", affinity(TIMEOUT_S), slice(&THREE, &[], "")))?;
        let after: Vec<u8> =
            clients(8).map(|client| sticky.backend(client, HTTP[0])).collect::<Result<_>>()?;
        assert_eq!(after, bound);
        Ok(())
    })
}
