//! The table: every field of kube-proxy's file, and what it becomes (spec 10).

use std::{fmt::Write as _, net::IpAddr};

use super::{
    Outcome,
    duration::GoDuration,
    types::{KubeProxyConfiguration, text},
    validate::address_with_port,
};
use crate::setting::Setting;

/// kube-proxy's ports, added to an address that lacks one.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// What becomes of a field whose value is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It does here what it did there.
    Kept,
    /// Its effect differs.
    Differs,
    /// It has none.
    Ignored,
}

impl Fate {
    pub(super) const fn outcome(self) -> Outcome {
        match self {
            Self::Kept => Outcome::Kept,
            Self::Differs => Outcome::Differs,
            Self::Ignored => Outcome::Ignored,
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Path in the file.
    pub path: &'static str,
    /// What is done with it.
    pub fate: Fate,
    /// The flags it may become.
    pub flags: &'static [&'static str],
    /// How it differs, or why it is ignored.
    pub note: &'static str,
    pub(super) settings: fn(&KubeProxyConfiguration) -> Vec<Setting>,
}

/// What of the file is in force here.
type Settings = fn(&KubeProxyConfiguration) -> Vec<Setting>;

const fn kept(
    path: &'static str,
    flags: &'static [&'static str],
    note: &'static str,
    settings: Settings,
) -> Field {
    Field { path, fate: Fate::Kept, flags, note, settings }
}

const fn differs(
    path: &'static str,
    flags: &'static [&'static str],
    note: &'static str,
    settings: Settings,
) -> Field {
    Field { path, fate: Fate::Differs, flags, note, settings }
}

const fn ignored(path: &'static str, note: &'static str) -> Field {
    Field { path, fate: Fate::Ignored, flags: &[], note, settings: |_| Vec::new() }
}

/// Every field, in the order of kube-proxy's own documentation.
pub fn fields() -> &'static [Field] {
    FIELDS
}

const NO_MARK: &str = "no packet is marked: there is no masquerade rule that would look for it";
const NO_IPVS: &str = "no IPVS here";
const IN_ITS_MODE: &str = "read in its detectLocalMode only";
const MASQUERADE_ALL: &str =
    "pods' connections are then translated on their way and not at their sockets, which costs more";
const NO_WINDOWS: &str = "Windows only";
const OWN_SOURCE: &str = "the agent lists once and watches; its client has no rate limit";

const FIELDS: &[Field] = &[
    differs(
        "featureGates",
        &["external-ip-cidrs"],
        "AllowServiceExternalIPs: false becomes a network in which no externalIP lies; what other gates switch is on or not here, and never fatal",
        feature_gates,
    ),
    kept("clientConnection.kubeconfig", &["kubeconfig"], "empty: the Pod's service account", |config| {
        one("kubeconfig", text(&config.client_connection.kubeconfig))
    }),
    ignored("clientConnection.acceptContentTypes", "the API server is spoken to in JSON"),
    ignored("clientConnection.contentType", "the API server is spoken to in JSON"),
    ignored("clientConnection.qps", OWN_SOURCE),
    ignored("clientConnection.burst", OWN_SOURCE),
    kept("logging.format", &["log-format"], "", |config| one("log-format", text(&config.logging.format))),
    differs("logging.verbosity", &["log-level"], "4 and more: debug; 8 and more: trace", log_level),
    ignored("logging.flushFrequency", "each line is written at once"),
    ignored("logging.vmodule", "`--log-level` takes filters by module, whose names are others"),
    ignored("logging.options", "each line is written at once"),
    kept("hostnameOverride", &["node-name"], "trimmed, lower case", |config| {
        one("node-name", text(&config.hostname_override))
    }),
    differs(
        "bindAddress",
        &["nodeport-addresses"],
        "nothing is bound to it, there as here; it is what `nodePortAddresses: [primary]` means",
        |_| Vec::new(),
    ),
    kept("healthzBindAddress", &["healthz-bind-address"], "without a port: 10256", healthz),
    kept("metricsBindAddress", &["metrics-bind-address"], "without a port: 10249", metrics),
    kept("bindAddressHardFail", &["bind-address-hard-fail"], "", |config| {
        one("bind-address-hard-fail", config.bind_address_hard_fail)
    }),
    ignored("enableProfiling", "no Go profiles here; perf(1) and bpftool(8) see agent and programs"),
    ignored("showHiddenMetricsForVersion", "no hidden metrics"),
    differs(
        "mode",
        &[],
        "eBPF in place of each; the stanza of the mode named here is the one that counts",
        |_| Vec::new(),
    ),
    ignored("iptables.masqueradeBit", NO_MARK),
    kept("iptables.masqueradeAll", &["masquerade-all"], MASQUERADE_ALL, |config| {
        masquerade_all("iptables", config)
    }),
    differs(
        "iptables.localhostNodePorts",
        &[],
        "NodePorts on 127.0.0.1 and ::1 serve processes of the node, whatever is set; no route_localnet, nothing from outside",
        |_| Vec::new(),
    ),
    differs("iptables.syncPeriod", &["retry-period-max", "health-timeout"], SYNC_PERIOD, |config| {
        retry_period("iptables", config)
    }),
    differs("iptables.minSyncPeriod", &["min-sync-period"], MIN_SYNC_PERIOD, |config| {
        min_sync_period("iptables", config)
    }),
    differs(
        "ipvs.scheduler",
        &["algorithm"],
        "mh and sh, which choose by a hash, become Maglev; every other is random, each backend with the same chance",
        scheduler,
    ),
    ignored("ipvs.excludeCIDRs", NO_IPVS),
    ignored("ipvs.strictARP", "no device carries service addresses: nothing answers ARP for them"),
    ignored("ipvs.tcpTimeout", NO_IPVS),
    ignored("ipvs.tcpFinTimeout", NO_IPVS),
    ignored("ipvs.udpTimeout", NO_IPVS),
    differs("ipvs.syncPeriod", &["retry-period-max", "health-timeout"], SYNC_PERIOD, |config| {
        retry_period("ipvs", config)
    }),
    differs("ipvs.minSyncPeriod", &["min-sync-period"], MIN_SYNC_PERIOD, |config| {
        min_sync_period("ipvs", config)
    }),
    ignored("nftables.masqueradeBit", NO_MARK),
    kept("nftables.masqueradeAll", &["masquerade-all"], MASQUERADE_ALL, |config| {
        masquerade_all("nftables", config)
    }),
    differs("nftables.syncPeriod", &["retry-period-max", "health-timeout"], SYNC_PERIOD, |config| {
        retry_period("nftables", config)
    }),
    differs("nftables.minSyncPeriod", &["min-sync-period"], MIN_SYNC_PERIOD, |config| {
        min_sync_period("nftables", config)
    }),
    ignored("winkernel", NO_WINDOWS),
    ignored("windowsRunAsService", NO_WINDOWS),
    differs(
        "detectLocalMode",
        &["detect-local"],
        "empty, or ClusterCIDR without clusterCIDR: what comes in by a device towards pods is a pod's",
        |config| one("detect-local", detect_local(config)),
    ),
    kept("detectLocal.bridgeInterface", &["pod-bridge-interface"], IN_ITS_MODE, |config| {
        let name = text(&config.detect_local.bridge_interface);
        one("pod-bridge-interface", name.filter(|_| detect_local(config) == Some("bridge-interface")))
    }),
    kept("detectLocal.interfaceNamePrefix", &["pod-interface-name-prefix"], IN_ITS_MODE, |config| {
        let prefix = text(&config.detect_local.interface_name_prefix);
        one(
            "pod-interface-name-prefix",
            prefix.filter(|_| detect_local(config) == Some("interface-name-prefix")),
        )
    }),
    kept("clusterCIDR", &["cluster-cidr"], IN_ITS_MODE, |config| {
        one(
            "cluster-cidr",
            text(&config.cluster_cidr).filter(|_| detect_local(config) == Some("cluster-cidr")),
        )
    }),
    kept(
        "nodePortAddresses",
        &["nodeport-addresses"],
        "a list for one family closes the other, which kube-proxy leaves open; in nftables mode an unset list is `primary`",
        node_port_addresses,
    ),
    kept(
        "oomScoreAdj",
        &["oom-score-adj"],
        "less than now needs CAP_SYS_RESOURCE; else a warning",
        |config| one("oom-score-adj", config.oom_score_adj),
    ),
    kept("conntrack.maxPerCore", &["conntrack-max-per-core"], "0: left alone", |config| {
        one("conntrack-max-per-core", config.conntrack.max_per_core)
    }),
    kept("conntrack.min", &["conntrack-min"], "", |config| one("conntrack-min", config.conntrack.min)),
    kept(
        "conntrack.tcpEstablishedTimeout",
        &["conntrack-tcp-timeout-established"],
        "0: left alone",
        |config| one("conntrack-tcp-timeout-established", config.conntrack.tcp_established_timeout),
    ),
    kept("conntrack.tcpCloseWaitTimeout", &["conntrack-tcp-timeout-close-wait"], "0: left alone", |config| {
        one("conntrack-tcp-timeout-close-wait", config.conntrack.tcp_close_wait_timeout)
    }),
    kept("conntrack.tcpBeLiberal", &["conntrack-tcp-be-liberal"], "", |config| {
        one("conntrack-tcp-be-liberal", config.conntrack.tcp_be_liberal)
    }),
    kept("conntrack.udpTimeout", &["conntrack-udp-timeout"], "0: left alone", |config| {
        one("conntrack-udp-timeout", config.conntrack.udp_timeout)
    }),
    kept("conntrack.udpStreamTimeout", &["conntrack-udp-timeout-stream"], "0: left alone", |config| {
        one("conntrack-udp-timeout-stream", config.conntrack.udp_stream_timeout)
    }),
    ignored(
        "configSyncPeriod",
        "a re-list would change nothing: every watch is followed, and the maps are verified hourly",
    ),
    ignored("portRange", "kube-proxy does not read it either"),
];

const SYNC_PERIOD: &str = "the longest wait before a failed sync is tried again, and half the time after which a waiting change makes /healthz say 503; changes are written at once either way";
const MIN_SYNC_PERIOD: &str = "where it is not set, or 0 in an iptables or nftables stanza, the agent's own default of 5 ms counts and not 1 s";

fn one(flag: &str, value: Option<impl std::fmt::Display>) -> Vec<Setting> {
    value.map(|value| Setting::new(flag, value)).into_iter().collect()
}

/// Gate off: no externalIP is allowed (spec 1.39). The API refuses addresses of 0.0.0.0/32.
fn feature_gates(config: &KubeProxyConfiguration) -> Vec<Setting> {
    let gates = config.feature_gates.iter().flatten();
    let is_off = |(gate, is_on): &(&String, &bool)| *gate == "AllowServiceExternalIPs" && !**is_on;
    one("external-ip-cidrs", gates.filter(is_off).map(|_| "0.0.0.0/32").next())
}

fn log_level(config: &KubeProxyConfiguration) -> Vec<Setting> {
    let level = match config.logging.verbosity.unwrap_or_default() {
        0..4 => None,
        4..8 => Some("debug"),
        8.. => Some("trace"),
    };
    one("log-level", level)
}

fn healthz(config: &KubeProxyConfiguration) -> Vec<Setting> {
    let default = config.bind_ip().filter(IpAddr::is_ipv6).map(|_| "::");
    let address = text(&config.healthz_bind_address).or(default);
    one("healthz-bind-address", address.and_then(|text| address_with_port(text, HEALTHZ_PORT)))
}

fn metrics(config: &KubeProxyConfiguration) -> Vec<Setting> {
    let default = config.bind_ip().filter(IpAddr::is_ipv6).map(|_| "::1");
    let address = text(&config.metrics_bind_address).or(default);
    one("metrics-bind-address", address.and_then(|text| address_with_port(text, METRICS_PORT)))
}

fn scheduler(config: &KubeProxyConfiguration) -> Vec<Setting> {
    let scheduler = text(&config.ipvs.scheduler).filter(|_| config.mode.as_deref() == Some("ipvs"));
    one("algorithm", scheduler.filter(|name| ["mh", "sh"].contains(name)).map(|_| "maglev"))
}

fn masquerade_all(stanza: &str, config: &KubeProxyConfiguration) -> Vec<Setting> {
    let current = config.stanza();
    one("masquerade-all", (current.masquerade_all && current.masquerade_of == stanza).then_some(true))
}

/// The mode that is in force; `None`: the device decides.
fn detect_local(config: &KubeProxyConfiguration) -> Option<&'static str> {
    match config.detect_local_mode.as_deref().unwrap_or_default() {
        "NodeCIDR" => Some("node-cidr"),
        "BridgeInterface" => Some("bridge-interface"),
        "InterfaceNamePrefix" => Some("interface-name-prefix"),
        _ => text(&config.cluster_cidr).map(|_| "cluster-cidr"),
    }
}

/// The health timeout is twice the period (spec 8.8).
fn retry_period(stanza: &str, config: &KubeProxyConfiguration) -> Vec<Setting> {
    let current = config.stanza();
    let Some(period) = current.sync_period.filter(|_| current.name == stanza) else { return Vec::new() };
    let timeout_s = period.length.saturating_mul(2).as_secs().max(1);
    vec![Setting::new("retry-period-max", period), Setting::new("health-timeout", timeout_s)]
}

/// In milliseconds, as the flag has it.
fn min_sync_period(stanza: &str, config: &KubeProxyConfiguration) -> Vec<Setting> {
    let current = config.stanza();
    let period = current.min_sync_period.filter(|_| current.name == stanza);
    one("min-sync-period", period.map(|period: GoDuration| period.length.as_millis()))
}

/// Spec 4.1 to 4.5: `primary` means `bindAddress` where that names an address (9.4, 9.5).
fn node_port_addresses(config: &KubeProxyConfiguration) -> Vec<Setting> {
    let list = config.node_port_addresses.clone().unwrap_or_default();
    let is_primary = list == ["primary"] || (list.is_empty() && config.mode.as_deref() == Some("nftables"));
    let bound = config.bind_ip().filter(|ip| !ip.is_unspecified());
    let values = match (is_primary, bound) {
        (true, Some(ip)) => vec![ipnet::IpNet::from(ip).to_string()],
        (true, None) => vec!["primary".to_owned()],
        (false, _) if list.is_empty() => return Vec::new(),
        (false, _) => list,
    };
    vec![Setting { flag: "nodeport-addresses".to_owned(), values }]
}

/// The table of docs/migration.md.
pub fn markdown() -> String {
    let mut text = String::from("| field | here | flag of `lb-agent run` | |\n|---|---|---|---|\n");
    for field in FIELDS {
        let flags: Vec<String> = field.flags.iter().map(|flag| format!("`--{flag}`")).collect();
        let (path, fate) = (field.path, field.fate.outcome().name());
        let _ = writeln!(text, "| `{path}` | {fate} | {} | {} |", flags.join(", "), field.note);
    }
    text
}
