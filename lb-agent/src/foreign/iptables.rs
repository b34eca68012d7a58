//! kube-proxy's chains in iptables, both families, both backends: read through `iptables-save`, removed through
//! `iptables-restore`, one transaction per table.

use std::fmt::Write as _;

use super::{Finding, Foreign, ForeignError, run};

/// Names of kube-proxy's chains, of every mode and of the versions in use.
const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Those that carry a hash of a service port or backend.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-"];

/// One family of iptables.
struct Family {
    name: &'static str,
    /// The program of each backend; the tables of one do not show in the other.
    backends: [&'static str; 2],
    /// Whichever backend the system has chosen.
    default: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { name: "IPv4", backends: ["iptables-legacy", "iptables-nft"], default: "iptables" },
    Family { name: "IPv6", backends: ["ip6tables-legacy", "ip6tables-nft"], default: "ip6tables" },
];

/// kube-proxy's part of one table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    name: String,
    chains: Vec<String>,
    /// Rules of other chains that lead into these, without `-A`.
    jumps: Vec<String>,
}

/// kube-proxy's part of what one program sees.
struct Ruleset {
    program: &'static str,
    family: &'static str,
    tables: Vec<Table>,
}

pub(super) fn scan(foreign: &mut Foreign) {
    for read in rulesets() {
        match read {
            Ok(ruleset) if ruleset.tables.is_empty() => {}
            Ok(ruleset) => foreign.found.push(ruleset.finding()),
            Err(error) => foreign.unchecked.push(format!("iptables: {error}")),
        }
    }
}

pub(super) fn remove(note: &mut impl FnMut(String, Result<(), ForeignError>)) {
    for ruleset in rulesets().into_iter().flatten() {
        let restore = format!("{}-restore", ruleset.program);
        for table in &ruleset.tables {
            let what = format!("{} chains of {} table {}", table.chains.len(), ruleset.program, table.name);
            note(what, run(&restore, &["--noflush", "--wait=5"], Some(&table.removal())).map(drop));
        }
    }
}

/// What every backend has. A backend whose program is missing is none of this node's; without any the family cannot
/// be looked at.
fn rulesets() -> Vec<Result<Ruleset, ForeignError>> {
    FAMILIES.iter().flat_map(Family::rulesets).collect()
}

impl Family {
    fn rulesets(&self) -> Vec<Result<Ruleset, ForeignError>> {
        let own = self.backends.iter().map(|program| self.read(program));
        let present: Vec<_> =
            own.filter(|read| !read.as_ref().is_err_and(ForeignError::is_missing)).collect();
        if present.is_empty() { vec![self.read(self.default)] } else { present }
    }

    fn read(&self, program: &'static str) -> Result<Ruleset, ForeignError> {
        let text = run(&format!("{program}-save"), &[], None)?;
        Ok(Ruleset { program, family: self.name, tables: parse(&text) })
    }
}

impl Ruleset {
    fn finding(&self) -> Finding {
        let chains: usize = self.tables.iter().map(|table| table.chains.len()).sum();
        let tables: Vec<&str> = self.tables.iter().map(|table| table.name.as_str()).collect();
        Finding {
            what: format!(
                "{chains} chains of kube-proxy in {} ({}): {}",
                self.program,
                self.family,
                tables.join(", ")
            ),
            remedy: "lb-agent cleanup --kube-proxy, or kube-proxy --cleanup".to_owned(),
        }
    }
}

impl Table {
    /// Input of `iptables-restore --noflush`: naming a chain empties it; then its callers go, then it does.
    fn removal(&self) -> String {
        let mut text = format!("*{}\n", self.name);
        for chain in &self.chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for jump in &self.jumps {
            let _ = writeln!(text, "-D {jump}");
        }
        for chain in &self.chains {
            let _ = writeln!(text, "-X {chain}");
        }
        text + "COMMIT\n"
    }
}

/// The tables of an `iptables-save` in which kube-proxy has chains.
fn parse(text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table { name: name.to_owned(), ..Table::default() });
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':').and_then(|line| line.split(' ').next()) {
            table.chains.extend(is_kube_proxys(chain).then(|| chain.to_owned()));
        }
        if let Some(rule) = line.strip_prefix("-A ").filter(|rule| leads_in(rule)) {
            table.jumps.push(rule.to_owned());
        }
    }
    tables.retain(|table| !table.chains.is_empty());
    tables
}

/// True for a rule of somebody else's chain that leads into one of kube-proxy's.
fn leads_in(rule: &str) -> bool {
    let chain = rule.split(' ').next().unwrap_or_default();
    let words: Vec<&str> = rule.split(' ').collect();
    let target = words.windows(2).rev().find(|pair| ["-j", "-g"].contains(&pair[0])).map(|pair| pair[1]);
    !is_kube_proxys(chain) && target.is_some_and(is_kube_proxys)
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "# Generated by iptables-save v1.8.9\n*mangle\n:PREROUTING ACCEPT [0:0]\n\
        :KUBE-KUBELET-CANARY - [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n\
        *nat\n:PREROUTING ACCEPT [5:300]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-ERIFXISQEP7F7OF4 - [0:0]\n:DOCKER - [0:0]\n\
        :KUBE-ROUTER-SERVICES - [0:0]\n-A PREROUTING -m comment --comment \"kubernetes -j service portals\" -j KUBE-SERVICES\n\
        -A PREROUTING -j DOCKER\n-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -j KUBE-SVC-ERIFXISQEP7F7OF4\nCOMMIT\n";

    #[test]
    fn only_kube_proxys_chains_and_the_rules_that_lead_into_them_count() {
        let [nat] = &*parse(SAVED) else { panic!("{:?}", parse(SAVED)) };
        assert_eq!(nat.name, "nat");
        assert_eq!(nat.chains, ["KUBE-SERVICES", "KUBE-SVC-ERIFXISQEP7F7OF4"]);
        assert_eq!(
            nat.jumps,
            ["PREROUTING -m comment --comment \"kubernetes -j service portals\" -j KUBE-SERVICES"]
        );
    }

    #[test]
    fn chains_are_emptied_before_they_go_and_after_nobody_calls_them() {
        let table = Table {
            name: "nat".to_owned(),
            chains: vec!["KUBE-SERVICES".to_owned(), "KUBE-NODEPORTS".to_owned()],
            jumps: vec!["OUTPUT -j KUBE-SERVICES".to_owned()],
        };
        assert_eq!(
            table.removal(),
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n-D OUTPUT -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\n-X KUBE-NODEPORTS\nCOMMIT\n"
        );
    }
}
