//! Rule sets of the shape that kube-proxy v1.36 writes, in its iptables and its nftables mode: the chains a packet
//! passes, their order and what each rule matches. Names are shorter, comments are left out; neither costs a packet
//! anything. Without source ranges, affinity and policies; the cluster's pods are 10.0.0.0/8.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::Namespace;

use crate::services::ServicePort;

/// Loads the nftables rules in a namespace.
pub(crate) fn load_nftables(namespace: &Namespace, node: Ipv4Addr, list: &[ServicePort]) -> Result<()> {
    load(namespace, "nft", &["-f", "-"], &nftables(node, list))
}

/// Loads the iptables rules in a namespace: those of the kernel's own iptables, not of its nftables translation.
pub(crate) fn load_iptables(namespace: &Namespace, list: &[ServicePort]) -> Result<()> {
    load(namespace, "iptables-legacy-restore", &[], &iptables(list))
}

fn load(namespace: &Namespace, program: &str, args: &[&str], rules: &str) -> Result<()> {
    namespace.run(|| {
        let mut command = Command::new(program);
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {program}: `cargo xtask setup` installs it"))?;
        let written = child.stdin.take().context("stdin")?.write_all(rules.as_bytes());
        let status = child.wait()?;
        ensure!(status.success(), "{program} refuses the rules: {status}");
        written.with_context(|| format!("write to {program}"))
    })?
}

fn iptables(list: &[ServicePort]) -> String {
    let mut chains = String::new();
    let mut services = String::new();
    let mut rules = String::new();
    let mut node_ports = String::new();
    for item in list {
        // Writing to a String cannot fail.
        let _ = iptables_service(item, [&mut chains, &mut services, &mut rules, &mut node_ports]);
    }
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n{chains}\
         -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {services}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n{node_ports}{rules}COMMIT\n\
         *filter\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n-A INPUT -j KUBE-NODEPORTS\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n-A FORWARD -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
    )
}

/// Adds one service port to the declarations of chains, KUBE-SERVICES, its own chains and KUBE-NODEPORTS.
fn iptables_service(item: &ServicePort, texts: [&mut String; 4]) -> std::fmt::Result {
    let [chains, services, rules, node_ports] = texts;
    let ServicePort { name, protocol, cluster_ip, port, target_port, .. } = item;
    writeln!(chains, ":KUBE-SVC-{name} - [0:0]")?;
    let dialled = format!("-d {cluster_ip}/32 -p {protocol} -m {protocol} --dport {port}");
    writeln!(services, "-A KUBE-SERVICES {dialled} -j KUBE-SVC-{name}")?;
    writeln!(rules, "-A KUBE-SVC-{name} ! -s 10.0.0.0/8 {dialled} -j KUBE-MARK-MASQ")?;
    for (number, endpoint) in item.endpoints.into_iter().enumerate() {
        let half = if number == 0 { "-m statistic --mode random --probability 0.5 " } else { "" };
        let chain = format!("KUBE-SEP-{name}-{number}");
        writeln!(chains, ":{chain} - [0:0]")?;
        writeln!(rules, "-A KUBE-SVC-{name} {half}-j {chain}")?;
        writeln!(rules, "-A {chain} -s {endpoint}/32 -j KUBE-MARK-MASQ")?;
        writeln!(
            rules,
            "-A {chain} -p {protocol} -m {protocol} -j DNAT --to-destination {endpoint}:{target_port}"
        )?;
    }
    if let Some(node_port) = item.node_port {
        writeln!(chains, ":KUBE-EXT-{name} - [0:0]")?;
        writeln!(
            node_ports,
            "-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {node_port} -j KUBE-EXT-{name}"
        )?;
        writeln!(rules, "-A KUBE-EXT-{name} -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}")?;
    }
    Ok(())
}

/// The fixed part of the table, with places for elements and the chains of services.
fn nftables(node: Ipv4Addr, list: &[ServicePort]) -> String {
    let mut chains = String::new();
    let (mut frontends, mut node_ports, mut cluster_ips) = (Vec::new(), Vec::new(), Vec::new());
    for item in list {
        let ServicePort { name, protocol, cluster_ip, port, .. } = item;
        frontends.push(format!("{cluster_ip} . {protocol} . {port} : goto service-{name}"));
        cluster_ips.push(cluster_ip.to_string());
        if let Some(node_port) = item.node_port {
            node_ports.push(format!("{protocol} . {node_port} : goto external-{name}"));
        }
        // Writing to a String cannot fail.
        let _ = nftables_service(item, &mut chains);
    }
    cluster_ips.dedup();
    let declarations: String = list.iter().map(nftables_chains).collect();
    format!(
        "table ip kube-proxy {{\n{declarations}{FIXED}}}\n{chains}{}{}{}{}",
        elements("service-ips", &frontends),
        elements("service-nodeports", &node_ports),
        elements("cluster-ips", &cluster_ips),
        elements("nodeport-ips", &[node.to_string()]),
    )
}

fn elements(set: &str, list: &[String]) -> String {
    if list.is_empty() {
        return String::new();
    }
    format!("add element ip kube-proxy {set} {{ {} }}\n", list.join(", "))
}

/// Declares the chains of a service port, so that others may lead there.
fn nftables_chains(item: &ServicePort) -> String {
    let name = &item.name;
    let external = item.node_port.map(|_| format!("chain external-{name} {{ }}\n")).unwrap_or_default();
    format!(
        "chain service-{name} {{ }}\nchain endpoint-{name}-0 {{ }}\nchain endpoint-{name}-1 {{ }}\n{external}"
    )
}

fn nftables_service(item: &ServicePort, chains: &mut String) -> std::fmt::Result {
    let ServicePort { name, protocol, cluster_ip, port, target_port, .. } = item;
    let rule = "add rule ip kube-proxy";
    writeln!(
        chains,
        "{rule} service-{name} ip daddr {cluster_ip} {protocol} dport {port} ip saddr != 10.0.0.0/8 \
         jump mark-for-masquerade\n\
         {rule} service-{name} numgen random mod 2 vmap {{ 0 : goto endpoint-{name}-0, 1 : goto endpoint-{name}-1 }}"
    )?;
    for (number, endpoint) in item.endpoints.into_iter().enumerate() {
        writeln!(
            chains,
            "{rule} endpoint-{name}-{number} ip saddr {endpoint} jump mark-for-masquerade\n\
             {rule} endpoint-{name}-{number} meta l4proto {protocol} dnat to {endpoint}:{target_port}"
        )?;
    }
    if item.node_port.is_some() {
        writeln!(
            chains,
            "{rule} external-{name} jump mark-for-masquerade\n{rule} external-{name} goto service-{name}"
        )?;
    }
    Ok(())
}

/// Sets, maps and chains that do not depend on the Services.
const FIXED: &str = "
set cluster-ips { type ipv4_addr; }
set nodeport-ips { type ipv4_addr; }
map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
map service-nodeports { type inet_proto . inet_service : verdict; }
map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
chain mark-for-masquerade { mark set mark | 0x4000; }
chain masquerading {
  mark & 0x4000 == 0 return
  mark set mark ^ 0x4000
  masquerade fully-random
}
chain cluster-ips-check {
  ip daddr @cluster-ips reject
  ip daddr 10.96.0.0/16 drop
}
chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
chain services {
  ip daddr . meta l4proto . th dport vmap @service-ips
  ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}
chain filter-prerouting-pre-dnat {
  type filter hook prerouting priority -110;
  ct state new jump firewall-check
}
chain filter-input {
  type filter hook input priority 0;
  ct state new jump nodeport-endpoints-check
  ct state new jump service-endpoints-check
}
chain filter-forward {
  type filter hook forward priority 0;
  ct state new jump service-endpoints-check
  ct state new jump cluster-ips-check
}
chain filter-output-pre-dnat {
  type filter hook output priority -110;
  ct state new jump firewall-check
}
chain filter-output {
  type filter hook output priority 0;
  ct state new jump service-endpoints-check
  ct state new jump cluster-ips-check
}
chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
chain nat-output { type nat hook output priority -100; jump services; }
chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::service_ports;

    #[test]
    fn each_service_port_has_its_rule_and_its_chains() {
        let list = service_ports(4);
        let (iptables, nftables) = (iptables(&list), nftables(Ipv4Addr::LOCALHOST, &list));
        assert_eq!(iptables.matches("-A KUBE-SERVICES -d").count(), list.len());
        assert_eq!(iptables.matches("-j DNAT").count(), 2 * list.len());
        assert_eq!(iptables.matches("-A KUBE-NODEPORTS").count(), 3);
        assert_eq!(nftables.matches(": goto service-").count(), list.len());
        assert_eq!(nftables.matches("dnat to").count(), 2 * list.len());
        assert_eq!(nftables.matches(": goto external-").count(), 3);
    }
}
