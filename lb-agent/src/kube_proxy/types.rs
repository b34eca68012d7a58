//! `KubeProxyConfiguration`, kubeproxy.config.k8s.io/v1alpha1, as kube-proxy 1.36 has it. A field that is absent or
//! null is `None`: kube-proxy's defaults are filled in by whoever reads it, through the methods here.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize};

use super::duration::GoDuration;

/// The file; fields.rs says what each field becomes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct KubeProxyConfiguration {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    pub feature_gates: Option<BTreeMap<String, bool>>,
    #[serde(deserialize_with = "or_default")]
    pub client_connection: ClientConnection,
    #[serde(deserialize_with = "or_default")]
    pub logging: Logging,
    pub hostname_override: Option<String>,
    pub bind_address: Option<String>,
    pub healthz_bind_address: Option<String>,
    pub metrics_bind_address: Option<String>,
    pub bind_address_hard_fail: Option<bool>,
    pub enable_profiling: Option<bool>,
    pub show_hidden_metrics_for_version: Option<String>,
    pub mode: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub iptables: Iptables,
    #[serde(deserialize_with = "or_default")]
    pub ipvs: Ipvs,
    #[serde(deserialize_with = "or_default")]
    pub nftables: Nftables,
    pub winkernel: Option<serde_json::Value>,
    pub windows_run_as_service: Option<bool>,
    pub detect_local_mode: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<String>,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    #[serde(deserialize_with = "or_default")]
    pub conntrack: Conntrack,
    pub config_sync_period: Option<GoDuration>,
    pub port_range: Option<String>,
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClientConnection {
    pub kubeconfig: Option<String>,
    pub accept_content_types: Option<String>,
    pub content_type: Option<String>,
    pub qps: Option<f32>,
    pub burst: Option<i32>,
}

/// component-base's logging.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Logging {
    pub format: Option<String>,
    pub verbosity: Option<u32>,
    pub flush_frequency: Option<serde_json::Value>,
    pub vmodule: Option<serde_json::Value>,
    pub options: Option<serde_json::Value>,
}

/// iptables mode, and every mode that is neither nftables nor ipvs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Iptables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: Option<bool>,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: Option<GoDuration>,
    pub min_sync_period: Option<GoDuration>,
}

/// ipvs mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Ipvs {
    pub scheduler: Option<String>,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    pub strict_arp: Option<bool>,
    pub tcp_timeout: Option<GoDuration>,
    pub tcp_fin_timeout: Option<GoDuration>,
    pub udp_timeout: Option<GoDuration>,
    pub sync_period: Option<GoDuration>,
    pub min_sync_period: Option<GoDuration>,
}

/// nftables mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Nftables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: Option<bool>,
    pub sync_period: Option<GoDuration>,
    pub min_sync_period: Option<GoDuration>,
}

/// How traffic of pods is told from other traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DetectLocal {
    pub bridge_interface: Option<String>,
    pub interface_name_prefix: Option<String>,
}

/// The kernel's connection tracking.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: Option<bool>,
    pub udp_timeout: Option<GoDuration>,
    pub udp_stream_timeout: Option<GoDuration>,
}

/// null is what an absent field is.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// kube-proxy's own default where a file sets nothing, or 0 (spec 10.3).
const SYNC_PERIOD: GoDuration = GoDuration::from_secs(30);
/// Likewise, but for ipvs mode, where it is 0.
const MIN_SYNC_PERIOD: GoDuration = GoDuration::from_secs(1);

/// The stanza of the chosen mode.
pub(super) struct ModeStanza {
    pub name: &'static str,
    /// True if ClusterIPs are masqueraded for everybody, as the stanza `masquerade_of` says: ipvs has none of its own.
    pub masquerade_all: bool,
    pub masquerade_of: &'static str,
    /// As set; `None`: not, or 0.
    pub sync_period: Option<GoDuration>,
    /// As set; `None`: not, or 0.
    pub min_sync_period: Option<GoDuration>,
}

impl ModeStanza {
    pub fn sync_period(&self) -> GoDuration {
        self.sync_period.unwrap_or(SYNC_PERIOD)
    }

    pub fn min_sync_period(&self) -> GoDuration {
        let default = if self.name == "ipvs" { GoDuration::default() } else { MIN_SYNC_PERIOD };
        self.min_sync_period.unwrap_or(default)
    }
}

impl KubeProxyConfiguration {
    /// The stanza that counts: nftables and ipvs in their modes, else iptables.
    pub(super) fn stanza(&self) -> ModeStanza {
        let set = |period: Option<GoDuration>| period.filter(|period| !period.is_zero());
        let (iptables, ipvs, nftables) = (&self.iptables, &self.ipvs, &self.nftables);
        match self.mode.as_deref() {
            Some("nftables") => ModeStanza {
                name: "nftables",
                masquerade_all: nftables.masquerade_all.unwrap_or_default(),
                masquerade_of: "nftables",
                sync_period: set(nftables.sync_period),
                min_sync_period: set(nftables.min_sync_period),
            },
            Some("ipvs") => ModeStanza {
                name: "ipvs",
                masquerade_all: iptables.masquerade_all.unwrap_or_default(),
                masquerade_of: "iptables",
                sync_period: set(ipvs.sync_period),
                min_sync_period: set(ipvs.min_sync_period),
            },
            _ => ModeStanza {
                name: "iptables",
                masquerade_all: iptables.masquerade_all.unwrap_or_default(),
                masquerade_of: "iptables",
                sync_period: set(iptables.sync_period),
                min_sync_period: set(iptables.min_sync_period),
            },
        }
    }

    /// `bindAddress`, where it names an address; it decides which family counts first and is bound by nobody (spec
    /// 9.4).
    pub(super) fn bind_ip(&self) -> Option<IpAddr> {
        let ip: IpAddr = text(&self.bind_address)?.parse().ok()?;
        Some(ip)
    }
}

/// A text that is set and not empty.
pub(super) fn text(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|text| !text.is_empty())
}
