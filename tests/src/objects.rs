//! Kubernetes objects as text, for tests that change them often.

use std::fmt::Write as _;

/// An endpoint in a slice: address, node, conditions.
#[derive(Clone, Debug)]
pub struct Endpoint {
    is_v6: bool,
    text: String,
}

impl Endpoint {
    /// Ready.
    pub fn ready(address: &str, node: &str) -> Self {
        Self::with(address, node, "ready: true")
    }

    /// Neither ready nor serving.
    pub fn unready(address: &str, node: &str) -> Self {
        Self::with(address, node, "ready: false, serving: false, terminating: false")
    }

    /// Serving, not ready, not terminating.
    pub fn serving(address: &str, node: &str) -> Self {
        Self::with(address, node, "ready: false, serving: true, terminating: false")
    }

    /// Terminating and still serving.
    pub fn terminating(address: &str, node: &str) -> Self {
        Self::with(address, node, "ready: false, serving: true, terminating: true")
    }

    /// With these conditions, as YAML.
    pub fn with(address: &str, node: &str, conditions: &str) -> Self {
        let text = format!("addresses: [\"{address}\"], conditions: {{{conditions}}}, nodeName: {node}");
        Self { is_v6: address.contains(':'), text }
    }

    /// With these zones and nodes as topology hints.
    #[must_use]
    pub fn hinted(self, zones: &[&str], nodes: &[&str]) -> Self {
        let names = |names: &[&str]| {
            names.iter().map(|name| format!("{{name: {name}}}")).collect::<Vec<_>>().join(", ")
        };
        let mut hints = Vec::new();
        if !zones.is_empty() {
            hints.push(format!("forZones: [{}]", names(zones)));
        }
        if !nodes.is_empty() {
            hints.push(format!("forNodes: [{}]", names(nodes)));
        }
        Self { text: format!("{}, hints: {{{}}}", self.text, hints.join(", ")), ..self }
    }
}

/// A Service in namespace `default` with this `spec`, as YAML in one line.
pub fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n"
    )
}

/// As [`service`], with load balancer addresses in its status.
pub fn load_balancer(name: &str, spec: &str, addresses: &[&str]) -> String {
    let ingress: Vec<String> = addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
    format!("{}status: {{loadBalancer: {{ingress: [{}]}}}}\n", service(name, spec), ingress.join(", "))
}

/// An EndpointSlice `name` of Service `service`; `ports` as YAML in one line. The family is that of the endpoints.
pub fn slice(name: &str, service: &str, ports: &str, endpoints: &[Endpoint]) -> String {
    let is_v6 = endpoints.iter().any(|endpoint| endpoint.is_v6);
    let kind = if is_v6 { "IPv6" } else { "IPv4" };
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: default, \
         labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {kind}\nports: [{ports}]\nendpoints:"
    );
    if endpoints.is_empty() {
        text.push_str(" []");
    }
    text.push('\n');
    for endpoint in endpoints {
        let _ = writeln!(text, "- {{{}}}", endpoint.text);
    }
    text
}
