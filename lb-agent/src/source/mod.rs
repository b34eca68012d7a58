//! Where Kubernetes objects come from: the API server ([`kubernetes`]) or a directory of manifests ([`mod@file`]).
//! A source sends [`Change`]s; it never interprets what an object says.

mod api_servers;
pub mod events;
pub mod file;
mod inventory;
pub mod kubernetes;
pub mod manifest;

use std::fmt;

use k8s_openapi::api::{
    core::v1::{Endpoints, Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A Service with this label, whatever its value, belongs to another proxy (spec 1.1, 1.2).
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// An EndpointSlice with this label, whatever its value, belongs to a headless Service (spec 1.3).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The `clusterIP` of a headless Service (spec 1.1).
pub const HEADLESS_CLUSTER_IP: &str = "None";

/// The kinds of object a source delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Endpoints: from manifests only; a cluster mirrors them into slices itself (spec 1.6).
    Endpoints,
    /// core/v1 Node.
    Node,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// Every kind: a source reports each of them as [`Change::Synced`].
    pub const ALL: [Self; 5] =
        [Self::Service, Self::EndpointSlice, Self::Endpoints, Self::Node, Self::ServiceCidr];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// An object's identity. `namespace` is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, or empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// An object as the API defines it.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// An Endpoints object.
    Endpoints(Box<Endpoints>),
    /// A Node.
    Node(Box<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Box<ServiceCIDR>),
}

impl Object {
    /// The object's identity; a missing namespace of a namespaced kind is `default`, as kubectl has it.
    pub fn object_ref(&self) -> ObjectRef {
        let (kind, metadata) = match self {
            Self::Service(object) => (Kind::Service, &object.metadata),
            Self::EndpointSlice(object) => (Kind::EndpointSlice, &object.metadata),
            Self::Endpoints(object) => (Kind::Endpoints, &object.metadata),
            Self::Node(object) => (Kind::Node, &object.metadata),
            Self::ServiceCidr(object) => (Kind::ServiceCidr, &object.metadata),
        };
        let namespace = match kind {
            Kind::Node | Kind::ServiceCidr => String::new(),
            _ => metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        };
        ObjectRef { kind, namespace, name: metadata.name.clone().unwrap_or_default() }
    }

    /// False for an object that is as if absent (spec 1.1 to 1.3). The API server is asked for the same by
    /// selectors built from the same constants; a label that comes is a deletion in both.
    pub fn is_watched(&self) -> bool {
        match self {
            Self::Service(service) => {
                !has_label(&service.metadata, SERVICE_PROXY_NAME_LABEL)
                    && service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref())
                        != Some(HEADLESS_CLUSTER_IP)
            }
            Self::EndpointSlice(slice) => !has_label(&slice.metadata, HEADLESS_LABEL),
            Self::Endpoints(_) | Self::Node(_) | Self::ServiceCidr(_) => true,
        }
    }
}

fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

/// What a source saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object exists and reads so.
    Applied(Object),
    /// The object is gone, or no longer matches what this proxy watches.
    Deleted(ObjectRef),
    /// Everything of this kind that existed at the start has been delivered (again, after a re-list).
    Synced(Kind),
    /// Every Node has been delivered, not just this one (again, after a re-list).
    EveryNode,
    /// A manifest that cannot be read at all, or no longer has its fault: the list replaces the former list of
    /// the same origin (a file's path).
    Unreadable {
        /// The file.
        origin: String,
        /// What is wrong in it; empty: nothing any more.
        refusals: Vec<Refusal>,
    },
}

/// Something refused, with where and why. Only this part is refused; everything else goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// The object, as `Service default/web`, or the file and document.
    pub object: String,
    /// Path of the field, as `spec.ports[0].port`; empty for the object as a whole.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.reason)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.reason)
        }
    }
}
