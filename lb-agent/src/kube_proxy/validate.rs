//! kube-proxy's own validation (spec 10.2), after its defaults: each message names its field.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::{
    duration::GoDuration,
    types::{KubeProxyConfiguration, text},
};
use crate::convert::{parse_cidr, parse_ip};

/// A value that kube-proxy would not start with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Its path.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// Collects the faults.
#[derive(Default)]
struct Faults(Vec<Invalid>);

impl Faults {
    fn unless(&mut self, is_valid: bool, field: &str, reason: impl Into<String>) {
        if !is_valid {
            self.0.push(Invalid { field: field.to_owned(), reason: reason.into() });
        }
    }

    fn bit(&mut self, field: &str, bit: Option<i32>) {
        self.unless(bit.is_none_or(|bit| (0..=31).contains(&bit)), field, "must be 0 to 31");
    }

    fn not_negative(&mut self, field: &str, duration: Option<GoDuration>) {
        self.unless(duration.is_none_or(|duration| !duration.is_negative), field, "must not be negative");
    }

    fn address(&mut self, field: &str, address: Option<&str>) {
        let Some(address) = address else { return };
        let is_valid = address_with_port(address, 1).is_some_and(|address| address.port() != 0);
        self.unless(is_valid, field, format!("{address:?} must be IP:port, the port 1 to 65535"));
    }
}

/// Everything that is wrong.
pub(super) fn validate(config: &KubeProxyConfiguration) -> Vec<Invalid> {
    let mut faults = Faults::default();
    addresses(config, &mut faults);
    modes(config, &mut faults);
    numbers(config, &mut faults);
    local_detection(config, &mut faults);
    node_ports(config, &mut faults);
    faults.0
}

/// `IP:port`; kube-proxy adds the default port to a bare address.
pub(super) fn address_with_port(text: &str, default_port: u16) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    text.parse().ok().or_else(|| Some(SocketAddr::new(bare.ok()?, default_port)))
}

fn addresses(config: &KubeProxyConfiguration, faults: &mut Faults) {
    if let Some(address) = text(&config.bind_address) {
        faults.unless(parse_ip(address).is_ok(), "bindAddress", format!("{address:?} must be an IP address"));
    }
    faults.address("healthzBindAddress", text(&config.healthz_bind_address));
    faults.address("metricsBindAddress", text(&config.metrics_bind_address));
    if let Some(name) = &config.hostname_override {
        let is_blank = !name.is_empty() && name.trim().is_empty();
        faults.unless(!is_blank, "hostnameOverride", "must not be spaces only (spec 9.1)");
    }
}

fn modes(config: &KubeProxyConfiguration, faults: &mut Faults) {
    let mode = config.mode.as_deref().unwrap_or_default();
    let reason = format!("{mode:?} must be empty, iptables, ipvs or nftables");
    faults.unless(["", "iptables", "ipvs", "nftables"].contains(&mode), "mode", reason);
    faults.bit("iptables.masqueradeBit", config.iptables.masquerade_bit);
    if mode == "nftables" {
        faults.bit("nftables.masqueradeBit", config.nftables.masquerade_bit);
    }
    if mode == "ipvs" {
        faults.not_negative("ipvs.tcpTimeout", config.ipvs.tcp_timeout);
        faults.not_negative("ipvs.tcpFinTimeout", config.ipvs.tcp_fin_timeout);
        faults.not_negative("ipvs.udpTimeout", config.ipvs.udp_timeout);
        let cidrs = config.ipvs.exclude_cidrs.iter().flatten();
        let bad = cidrs.filter(|cidr| parse_cidr(cidr).is_err()).map(String::as_str).collect::<Vec<_>>();
        faults.unless(bad.is_empty(), "ipvs.excludeCIDRs", format!("not a CIDR: {}", bad.join(", ")));
    }
    let stanza = config.stanza();
    let (period, minimum) = (stanza.sync_period(), stanza.min_sync_period());
    let field = |name| format!("{}.{name}", stanza.name);
    faults.unless(!period.is_negative, &field("syncPeriod"), "must be greater than 0");
    faults.not_negative(&field("minSyncPeriod"), Some(minimum));
    let is_ordered = period.is_negative || minimum.is_negative || minimum.length <= period.length;
    let reason = format!("{minimum} must not be longer than syncPeriod, {period}");
    faults.unless(is_ordered, &field("minSyncPeriod"), reason);
}

fn numbers(config: &KubeProxyConfiguration, faults: &mut Faults) {
    let not_negative = |number: Option<i32>| number.is_none_or(|number| number >= 0);
    let conntrack = &config.conntrack;
    let score = config.oom_score_adj;
    let is_score = score.is_none_or(|score| (-1000..=1000).contains(&score));
    faults.unless(is_score, "oomScoreAdj", "must be -1000 to 1000");
    let period = config.config_sync_period;
    faults.unless(
        period.is_none_or(|period| !period.is_negative),
        "configSyncPeriod",
        "must be greater than 0",
    );
    faults.unless(not_negative(conntrack.max_per_core), "conntrack.maxPerCore", "must not be negative");
    faults.unless(not_negative(conntrack.min), "conntrack.min", "must not be negative");
    faults.not_negative("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout);
    faults.not_negative("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout);
    faults.not_negative("conntrack.udpTimeout", conntrack.udp_timeout);
    faults.not_negative("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout);
    let format = text(&config.logging.format).unwrap_or("text");
    faults.unless(
        ["text", "json"].contains(&format),
        "logging.format",
        format!("{format:?} must be text or json"),
    );
    let burst = config.client_connection.burst;
    faults.unless(not_negative(burst), "clientConnection.burst", "must not be negative");
}

fn local_detection(config: &KubeProxyConfiguration, faults: &mut Faults) {
    let mode = config.detect_local_mode.as_deref().unwrap_or_default();
    const MODES: [&str; 5] = ["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
    let reason = format!("{mode:?} must be empty, {}", MODES[1..].join(", "));
    faults.unless(MODES.contains(&mode), "detectLocalMode", reason);
    let detect = &config.detect_local;
    let needs = |wanted: &str, value| mode != wanted || text(value).is_some();
    let reason = format!("must be set when detectLocalMode is {mode}");
    faults.unless(needs(MODES[3], &detect.bridge_interface), "detectLocal.bridgeInterface", &*reason);
    let has_prefix = needs(MODES[4], &detect.interface_name_prefix);
    faults.unless(has_prefix, "detectLocal.interfaceNamePrefix", &*reason);
    if let Some(list) = text(&config.cluster_cidr).filter(|_| ["", MODES[1]].contains(&mode)) {
        faults.unless(
            is_cluster_cidr(list),
            "clusterCIDR",
            format!("{list:?} must be one CIDR, or one of each family"),
        );
    }
}

fn is_cluster_cidr(list: &str) -> bool {
    let cidrs: Result<Vec<IpNet>, _> = list.split(',').map(|cidr| parse_cidr(cidr.trim())).collect();
    let families =
        |cidrs: &[IpNet]| cidrs.iter().map(|cidr| cidr.addr().is_ipv4()).collect::<BTreeSet<_>>().len();
    cidrs.is_ok_and(|cidrs| cidrs.len() <= 2 && families(&cidrs) == cidrs.len())
}

/// Spec 4.1.
fn node_ports(config: &KubeProxyConfiguration, faults: &mut Faults) {
    let list = config.node_port_addresses.as_deref().unwrap_or_default();
    let has_primary = list.iter().any(|entry| entry == "primary");
    faults.unless(!has_primary || list.len() == 1, "nodePortAddresses", "can't use both 'primary' and CIDRs");
    let bad: Vec<_> = list.iter().filter(|entry| *entry != "primary" && parse_cidr(entry).is_err()).collect();
    faults.unless(bad.is_empty(), "nodePortAddresses", format!("not a CIDR: {bad:?}"));
}
