//! The Services and EndpointSlices of a measurement.

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_common::{
    family::{Addr4, Be16, Protocol, V4},
    frontend::FrontendKey,
};

/// The node of the measured agent.
pub(crate) const NODE: &str = "node-0";

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    /// At most 65,536.
    pub(crate) services: usize,
    /// Of each Service.
    pub(crate) endpoints: usize,
}

impl std::fmt::Display for Scale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} services, {} endpoints", self.services, self.services * self.endpoints)
    }
}

/// One endpoint that has moved: the last of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    /// Whose.
    pub(crate) service: usize,
    /// Which time: each gives another address.
    pub(crate) round: usize,
}

impl Move {
    /// Services take turns, far from each other.
    pub(crate) fn nth(round: usize, scale: Scale) -> Self {
        Self { service: round * 7919 % scale.services, round }
    }
}

/// The address a client dials.
fn cluster_ip(index: usize) -> [u8; 4] {
    [10, 96, (index / 256) as u8, (index % 256) as u8]
}

/// The entry of `FRONTENDS4` that a Service becomes.
pub(crate) fn frontend_key(index: usize) -> FrontendKey<V4> {
    FrontendKey::new(Addr4(cluster_ip(index)), Be16::new(80), Protocol::TCP)
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta { name: Some(name), namespace: Some("default".to_owned()), ..ObjectMeta::default() }
}

/// A Service.
pub(crate) fn service(index: usize) -> Service {
    let port = ServicePort { port: 80, protocol: Some("TCP".to_owned()), ..ServicePort::default() };
    let [a, b, c, d] = cluster_ip(index);
    let spec = ServiceSpec {
        cluster_ip: Some(format!("{a}.{b}.{c}.{d}")),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let metadata = metadata(format!("service-{index}"));
    Service { metadata, spec: Some(spec), ..Service::default() }
}

/// Its endpoints, one of which may have moved.
pub(crate) fn slice(index: usize, scale: Scale, moved: Option<Move>) -> EndpointSlice {
    let moved = moved.filter(|moved| moved.service == index);
    let endpoints = (0..scale.endpoints).map(|number| {
        let id = index * scale.endpoints + number;
        let net = match moved.filter(|_| number == scale.endpoints - 1) {
            Some(moved) => 140 + moved.round % 100,
            None => 128 + (id >> 16),
        };
        Endpoint {
            addresses: vec![format!("10.{net}.{}.{}", (id >> 8) % 256, id % 256)],
            node_name: Some(format!("node-{}", id % 100)),
            ..Endpoint::default()
        }
    });
    let mut metadata = metadata(format!("service-{index}-1"));
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), format!("service-{index}"))].into());
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints.collect()),
        ports: Some(vec![EndpointPort {
            name: Some(String::new()),
            port: Some(8080),
            ..EndpointPort::default()
        }]),
        metadata,
    }
}
