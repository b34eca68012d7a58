//! The Services of a lane: many that nobody dials, and in the middle of them the one that is measured. The rule sets
//! of kube-proxy's shape and the agent's manifests are made from the same list.

use std::{fmt::Write as _, net::Ipv4Addr};

use crate::load::Measure;

/// Where the measured Service is.
pub(crate) const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 10);
/// Where the server is.
pub(crate) const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 2, 0, 2), Ipv4Addr::new(10, 2, 0, 3)];
/// NodePort of a measure: its server port and this.
const NODE_PORTS: u16 = 24_000;

/// One service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    /// Of the Service and the port, no separators: names chains and objects.
    pub(crate) name: String,
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    pub(crate) cluster_ip: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    pub(crate) endpoints: [Ipv4Addr; 2],
    pub(crate) target_port: u16,
}

/// The NodePort that leads to the server of a measure.
pub(crate) const fn node_port(measure: Measure) -> u16 {
    measure.port() + NODE_PORTS
}

/// The port of the ClusterIP that leads to the server of a measure.
pub(crate) const fn cluster_port(measure: Measure) -> u16 {
    measure.port() + 1
}

/// So many Services, one service port and two endpoints each; the measured one in the middle has three ports.
pub(crate) fn service_ports(services: usize) -> Vec<ServicePort> {
    let mut list = Vec::new();
    for index in 0..services {
        if index == services / 2 {
            list.extend([Measure::TcpConnect, Measure::UdpFlow, Measure::Bulk].map(measured));
        } else {
            list.push(other(index));
        }
    }
    list
}

fn measured(measure: Measure) -> ServicePort {
    let protocol = if measure == Measure::UdpFlow { "udp" } else { "tcp" };
    ServicePort {
        name: format!("measured{}", measure.port()),
        protocol,
        cluster_ip: CLUSTER_IP,
        port: cluster_port(measure),
        node_port: Some(node_port(measure)),
        endpoints: BACKENDS,
        target_port: measure.port(),
    }
}

fn other(index: usize) -> ServicePort {
    let address = |net: u8, number: usize| Ipv4Addr::new(10, net, (number / 256) as u8, (number % 256) as u8);
    ServicePort {
        name: format!("other{index}"),
        protocol: "tcp",
        cluster_ip: address(96, index),
        port: 80,
        node_port: None,
        endpoints: [address(3, 2 * index), address(3, 2 * index + 1)],
        target_port: 8080,
    }
}

/// As the agent reads them: a Service and an EndpointSlice for each service port.
pub(crate) fn manifests(list: &[ServicePort]) -> String {
    let mut text = String::new();
    for item in list {
        let ServicePort { name, cluster_ip, port, target_port, .. } = item;
        let protocol = item.protocol.to_uppercase();
        let [first, second] = item.endpoints;
        let (kind, node_port) = match item.node_port {
            Some(number) => ("NodePort", format!(", nodePort: {number}")),
            None => ("ClusterIP", String::new()),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{type: {kind}, clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], ports: \
             [{{protocol: {protocol}, port: {port}, targetPort: {target_port}{node_port}}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, \
             namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
             ports: [{{name: '', protocol: {protocol}, port: {target_port}}}]\nendpoints:\n\
             - {{addresses: [{first}], nodeName: elsewhere, conditions: {{ready: true}}}}\n\
             - {{addresses: [{second}], nodeName: elsewhere, conditions: {{ready: true}}}}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_service_stands_in_the_middle() {
        let list = service_ports(5);
        assert_eq!(list.len(), 7);
        assert!(list[2..5].iter().all(|item| item.cluster_ip == CLUSTER_IP && item.endpoints == BACKENDS));
        assert_eq!((list[1].name.as_str(), list[5].name.as_str()), ("other1", "other3"));
        assert!(list.iter().all(|item| item.node_port.is_none_or(|port| (29_000..32_768).contains(&port))));
    }
}
