//! Files of kube-proxy → what becomes of them.

use std::{collections::BTreeSet, fs, path::Path};

use super::{types::KubeProxyConfiguration, *};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// What kubeadm 1.36 writes for a cluster with `podSubnet: 10.244.0.0/16`.
const KUBEADM: &str = include_str!("../../../tests/testdata/kube-proxy/kubeadm.yaml");

fn migrated(body: &str) -> Migration {
    migrate(&format!("{HEAD}{body}")).unwrap()
}

fn flags(body: &str) -> Vec<String> {
    migrated(body).rows.into_iter().flat_map(|row| row.flags).collect()
}

fn refused(body: &str) -> Vec<String> {
    migrated(body).refused().map(|row| row.field.clone()).collect()
}

fn leaves(value: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
    match value.as_object() {
        Some(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(value, &path, found);
            }
        }
        None => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn every_field_of_the_file_has_one_row() {
    let mut of_file = BTreeSet::new();
    leaves(&serde_json::to_value(KubeProxyConfiguration::default()).unwrap(), "", &mut of_file);
    let mut of_table: BTreeSet<String> = fields().iter().map(|field| field.path.to_owned()).collect();
    assert_eq!(of_table.len(), fields().len(), "a field has two rows");
    of_table.extend(["apiVersion".to_owned(), "kind".to_owned()]);
    assert_eq!(of_file, of_table);
}

#[test]
fn a_row_gives_only_the_flags_it_names() {
    for row in migrate(KUBEADM).unwrap().rows.iter().chain(&migrated(EVERYTHING).rows) {
        let field = fields().iter().find(|field| field.path == row.field).unwrap();
        assert!(row.settings.iter().all(|setting| field.flags.contains(&setting.flag.as_str())), "{row:?}");
    }
}

#[test]
fn the_page_shows_the_table_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration.md");
    let page = fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once("<!-- table -->\n").unwrap();
    let (table, tail) = rest.split_once("<!-- end of table -->").unwrap();
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, format!("{head}<!-- table -->\n{}<!-- end of table -->{tail}", markdown())).unwrap();
        return;
    }
    assert_eq!(table, markdown(), "BLESS=1 writes it");
}

#[test]
fn kubeadms_file_is_taken_whole() {
    let migration = migrate(KUBEADM).unwrap();
    assert_eq!(migration.warnings, Vec::<String>::new());
    assert_eq!(migration.refused().count(), 0);
    let flags: Vec<_> = migration.rows.iter().flat_map(|row| row.flags.clone()).collect();
    for flag in [
        "--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf",
        "--healthz-bind-address=0.0.0.0:10256",
        "--detect-local=cluster-cidr",
        "--cluster-cidr=10.244.0.0/16",
    ] {
        assert!(flags.contains(&flag.to_owned()), "{flags:?}");
    }
}

#[test]
fn the_config_map_with_the_file_is_taken_too() {
    let indented: String = KUBEADM.lines().map(|line| format!("    {line}\n")).collect();
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\ndata:\n  config.conf: |-\n{indented}  kubeconfig.conf: ''\n"
    );
    assert_eq!(migrate(&map).unwrap(), migrate(KUBEADM).unwrap());
    let empty = migrate("apiVersion: v1\nkind: ConfigMap\ndata: {}\n").unwrap_err();
    assert!(matches!(empty, DecodeError::ConfigMap));
}

/// Every field that has an effect, set to something that is not the default.
const EVERYTHING: &str = "
featureGates: {AllowServiceExternalIPs: false, TopologyAwareHints: true}
clientConnection: {kubeconfig: /etc/kubeconfig, qps: 50, burst: 100}
logging: {format: json, verbosity: 5}
hostnameOverride: node-7
bindAddress: 192.0.2.7
healthzBindAddress: 127.0.0.1
metricsBindAddress: '::'
bindAddressHardFail: true
mode: nftables
iptables: {syncPeriod: 11s, minSyncPeriod: 2s, localhostNodePorts: false}
nftables: {syncPeriod: 1m, minSyncPeriod: 250ms}
nodePortAddresses: [primary]
oomScoreAdj: -500
conntrack:
  maxPerCore: 1000
  min: 2000
  tcpEstablishedTimeout: 2h
  tcpCloseWaitTimeout: 90s
  tcpBeLiberal: true
  udpTimeout: 31s
  udpStreamTimeout: 3m
";

#[test]
fn each_field_becomes_its_flag() {
    let flags = flags(EVERYTHING);
    for flag in [
        "--external-ip-cidrs=0.0.0.0/32",
        "--kubeconfig=/etc/kubeconfig",
        "--log-format=json",
        "--log-level=debug",
        "--node-name=node-7",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=[::]:10249",
        "--bind-address-hard-fail=true",
        "--retry-period-max=60s",
        "--health-timeout=120",
        "--min-sync-period=250",
        "--nodeport-addresses=192.0.2.7/32",
        "--oom-score-adj=-500",
        "--conntrack-max-per-core=1000",
        "--conntrack-min=2000",
        "--conntrack-tcp-timeout-established=7200s",
        "--conntrack-tcp-timeout-close-wait=90s",
        "--conntrack-tcp-be-liberal=true",
        "--conntrack-udp-timeout=31s",
        "--conntrack-udp-timeout-stream=180s",
    ] {
        assert!(flags.contains(&flag.to_owned()), "{flag} is not in {flags:?}");
    }
    assert!(
        !flags.contains(&"--retry-period-max=11s".to_owned()),
        "iptables' stanza does not count in nftables mode"
    );
}

#[test]
fn zero_and_absent_periods_are_the_agents_own_defaults() {
    for body in [
        "",
        "iptables: {syncPeriod: 0s, minSyncPeriod: 0s}\n",
        "iptables: null\n",
        "nftables: {minSyncPeriod: 7s}\n",
    ] {
        let flags = flags(body);
        assert!(
            !flags.iter().any(|flag| flag.contains("period") || flag.contains("timeout=")),
            "spec 10.3: {body}: {flags:?}"
        );
    }
}

#[test]
fn node_port_addresses_follow_the_mode() {
    for (body, expected) in [
        ("nodePortAddresses: []\n", None),
        ("mode: nftables\n", Some("primary")),
        ("mode: nftables\nbindAddress: 'fd00::1'\n", Some("fd00::1/128")),
        ("mode: nftables\nbindAddress: 0.0.0.0\n", Some("primary")),
        ("nodePortAddresses: [10.0.0.0/8, 'fd00::/8']\n", Some("10.0.0.0/8,fd00::/8")),
    ] {
        let expected: Vec<_> = expected.iter().map(|list| format!("--nodeport-addresses={list}")).collect();
        let found: Vec<_> = flags(body).into_iter().filter(|flag| flag.starts_with("--nodeport")).collect();
        assert_eq!(found, expected, "spec 4.1 to 4.5: {body}");
    }
}

#[test]
fn health_addresses_get_their_port_and_their_family() {
    for (body, expected) in [
        ("healthzBindAddress: ''\n", None),
        ("healthzBindAddress: 1.2.3.4\n", Some("1.2.3.4:10256")),
        ("healthzBindAddress: 1.2.3.4:12345\n", Some("1.2.3.4:12345")),
        ("healthzBindAddress: 'fd00:1::5'\n", Some("[fd00:1::5]:10256")),
        ("healthzBindAddress: '[fd00:1::5]:12345'\n", Some("[fd00:1::5]:12345")),
        ("bindAddress: '::'\n", Some("[::]:10256")),
        ("bindAddress: 0.0.0.0\n", None),
    ] {
        let expected: Vec<_> =
            expected.iter().map(|address| format!("--healthz-bind-address={address}")).collect();
        let found: Vec<_> = flags(body).into_iter().filter(|flag| flag.starts_with("--healthz")).collect();
        assert_eq!(found, expected, "TestLoadConfig, TestAddressFromDeprecatedFlags (spec 12B): {body}");
    }
}

#[test]
fn pods_are_known_by_the_mode_and_by_nothing_that_belongs_to_another() {
    let all = "clusterCIDR: '10.0.0.0/8,fd00::/64'\ndetectLocal: {bridgeInterface: cbr0, interfaceNamePrefix: cali}\n";
    for (mode, expected) in [
        ("''", ["--detect-local=cluster-cidr", "--cluster-cidr=10.0.0.0/8,fd00::/64"].as_slice()),
        ("ClusterCIDR", &["--detect-local=cluster-cidr", "--cluster-cidr=10.0.0.0/8,fd00::/64"]),
        ("NodeCIDR", &["--detect-local=node-cidr"]),
        ("BridgeInterface", &["--detect-local=bridge-interface", "--pod-bridge-interface=cbr0"]),
        (
            "InterfaceNamePrefix",
            &["--detect-local=interface-name-prefix", "--pod-interface-name-prefix=cali"],
        ),
    ] {
        assert_eq!(flags(&format!("{all}detectLocalMode: {mode}\n")), expected, "spec 4.50 to 4.55: {mode}");
    }
    assert_eq!(flags("detectLocalMode: ClusterCIDR\n"), Vec::<String>::new());
}

#[test]
fn everybody_is_masqueraded_as_the_stanza_of_the_mode_says() {
    for (body, is_on) in [
        ("iptables: {masqueradeAll: true}\n", true),
        ("mode: ipvs\niptables: {masqueradeAll: true}\n", true),
        ("mode: nftables\nnftables: {masqueradeAll: true}\n", true),
        ("mode: nftables\niptables: {masqueradeAll: true}\n", false),
        ("nftables: {masqueradeAll: true}\n", false),
    ] {
        assert_eq!(flags(body).contains(&"--masquerade-all=true".to_owned()), is_on, "{body}");
    }
}

#[test]
fn schedulers_that_hash_become_maglev() {
    for (body, expected) in [
        ("mode: ipvs\nipvs: {scheduler: mh}\n", vec!["--algorithm=maglev"]),
        ("mode: ipvs\nipvs: {scheduler: rr}\n", vec![]),
        ("ipvs: {scheduler: mh}\n", vec![]),
    ] {
        let found: Vec<_> = flags(body).into_iter().filter(|flag| flag.starts_with("--algorithm")).collect();
        assert_eq!(found, expected, "{body}");
    }
}

#[test]
fn what_kube_proxy_would_not_know_is_a_warning_and_the_rest_counts() {
    let migration = migrated("oomScoreAdj: -1\nfoo: bar\niptables: {masqueradeBt: 3}\noomScoreAdj: -2\n");
    let warnings = migration.warnings.join("\n");
    assert_eq!(migration.warnings.len(), 3, "{warnings}");
    for part in ["foo", "iptables.masqueradeBt", "oomScoreAdj"] {
        assert!(warnings.contains(part), "spec 10.1: {warnings}");
    }
    assert_eq!(migration.settings(), [Setting::new("oom-score-adj", -2)]);
}

#[test]
fn what_is_not_kube_proxys_file_is_an_error_that_names_the_place() {
    for (text, expected) in [
        (format!("{HEAD}oomScoreAdj: many\n"), "oomScoreAdj: "),
        (format!("{HEAD}conntrack: {{udpTimeout: 5}}\n"), "conntrack.udpTimeout: "),
        (format!("{HEAD}conntrack: {{udpTimeout: 5 s}}\n"), "\"5 s\" is not a duration"),
        (format!("{HEAD}mode: [\n"), "not YAML"),
        ("kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1beta1\n".to_owned(), "v1beta1"),
        ("apiVersion: v1\nkind: Pod\n".to_owned(), "kind \"Pod\""),
        (String::new(), "expected kubeproxy.config.k8s.io/v1alpha1"),
    ] {
        let error = migrate(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn values_that_kube_proxy_would_not_start_with_are_refused_by_name() {
    // validation_test.go (spec 10.2, 12B).
    for (body, field) in [
        ("mode: userspace", "mode"),
        ("mode: kernelspace", "mode"),
        ("bindAddress: 10.10.12.11:2000", "bindAddress"),
        ("healthzBindAddress: 12.1:2", "healthzBindAddress"),
        ("healthzBindAddress: 1.2.3.4:0", "healthzBindAddress"),
        ("healthzBindAddress: 1.2.3.4:123456", "healthzBindAddress"),
        ("metricsBindAddress: localhost:10249", "metricsBindAddress"),
        ("hostnameOverride: '  '", "hostnameOverride"),
        ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit"),
        ("mode: ipvs\niptables: {masqueradeBit: -1}", "iptables.masqueradeBit"),
        ("mode: nftables\nnftables: {masqueradeBit: 32}", "nftables.masqueradeBit"),
        ("iptables: {syncPeriod: -1s}", "iptables.syncPeriod"),
        ("iptables: {minSyncPeriod: -1s}", "iptables.minSyncPeriod"),
        ("iptables: {syncPeriod: 1s, minSyncPeriod: 2s}", "iptables.minSyncPeriod"),
        ("mode: nftables\nnftables: {syncPeriod: 500ms}", "nftables.minSyncPeriod"),
        ("mode: ipvs\nipvs: {tcpTimeout: -1s}", "ipvs.tcpTimeout"),
        ("mode: ipvs\nipvs: {tcpFinTimeout: -1s}", "ipvs.tcpFinTimeout"),
        ("mode: ipvs\nipvs: {udpTimeout: -1s}", "ipvs.udpTimeout"),
        ("mode: ipvs\nipvs: {excludeCIDRs: [x]}", "ipvs.excludeCIDRs"),
        ("configSyncPeriod: -1s", "configSyncPeriod"),
        ("oomScoreAdj: -1001", "oomScoreAdj"),
        ("oomScoreAdj: 1001", "oomScoreAdj"),
        ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore"),
        ("conntrack: {min: -1}", "conntrack.min"),
        ("conntrack: {tcpEstablishedTimeout: -5s}", "conntrack.tcpEstablishedTimeout"),
        ("conntrack: {tcpCloseWaitTimeout: -5s}", "conntrack.tcpCloseWaitTimeout"),
        ("conntrack: {udpTimeout: -5s}", "conntrack.udpTimeout"),
        ("conntrack: {udpStreamTimeout: -5s}", "conntrack.udpStreamTimeout"),
        ("clientConnection: {burst: -5}", "clientConnection.burst"),
        ("logging: {format: xml}", "logging.format"),
        ("detectLocalMode: Guess", "detectLocalMode"),
        ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface"),
        ("detectLocalMode: InterfaceNamePrefix", "detectLocal.interfaceNamePrefix"),
        ("clusterCIDR: 192.168.59.0", "clusterCIDR"),
        ("clusterCIDR: '10.0.0.0/8,192.168.0.0/16'", "clusterCIDR"),
        ("clusterCIDR: '10.0.0.0/8,fd00::/64,192.168.0.0/16'", "clusterCIDR"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", "nodePortAddresses"),
        ("nodePortAddresses: [10.0.0.0]", "nodePortAddresses"),
    ] {
        assert_eq!(refused(&format!("{body}\n")), [field], "{body}");
    }
}

#[test]
fn values_that_kube_proxy_starts_with_are_not_refused() {
    for body in [
        "",
        "mode: ipvs\nipvs: {scheduler: rr, excludeCIDRs: [10.0.0.0/24], tcpTimeout: 5s}",
        "ipvs: {tcpTimeout: -1s}",
        "nftables: {masqueradeBit: 99}",
        "detectLocalMode: NodeCIDR\nclusterCIDR: nonsense",
        "clusterCIDR: '10.0.0.0/8,fd00::/64'",
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cbr0}",
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}",
        "healthzBindAddress: '[::1]:10256'\nmetricsBindAddress: '127.0.0.1'",
        "featureGates: {NoSuchGate: true}",
        "iptables: {syncPeriod: 5s, minSyncPeriod: 5s}",
    ] {
        assert_eq!(refused(&format!("{body}\n")), Vec::<String>::new(), "{body}");
    }
}
