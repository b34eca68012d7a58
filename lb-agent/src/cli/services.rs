//! `lb-agent services`.

use serde::Serialize;

use super::{ListArgs, Output, print_json, table};
use crate::{
    admin::{self, StatusReport},
    report::ServicePortReport,
    source::Refusal,
};

/// What `-o json` prints.
#[derive(Serialize)]
struct Listing {
    service_ports: Vec<ServicePortReport>,
    refusals: Vec<Refusal>,
}

/// Lists the service ports of a running agent, and beneath what it refused.
pub(super) async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let service_ports: Vec<ServicePortReport> = admin::request(&args.dirs.run_dir, "/services").await?;
    let status: StatusReport = admin::request(&args.dirs.run_dir, "/status").await?;
    let listing = Listing { service_ports, refusals: status.sync.refusals };
    if args.output == Output::Json {
        return print_json(&listing);
    }
    let header = ["SERVICE", "ID", "FRONTENDS", "BACKENDS", "POLICY"];
    println!("{}", table(&header, listing.service_ports.iter().map(row)));
    if !listing.refusals.is_empty() {
        println!("\nREFUSED");
        listing.refusals.iter().for_each(|refusal| println!("  {refusal}"));
    }
    Ok(())
}

fn row(port: &ServicePortReport) -> Vec<String> {
    let frontends = port
        .frontends
        .iter()
        .map(|frontend| {
            let (internal, external) = (frontend.internal, frontend.external);
            let counts =
                if internal == external { internal.to_string() } else { format!("{internal}/{external}") };
            format!("{} {} -> {counts}", frontend.kind, frontend.address)
        })
        .collect::<Vec<_>>();
    let backends = port
        .backends
        .iter()
        .map(|backend| {
            format!("{} {}{}", backend.address, backend.state, if backend.local { " local" } else { "" })
        })
        .collect::<Vec<_>>();
    vec![title(port), port.id.to_string(), frontends.join("\n"), backends.join("\n"), policy(port)]
}

fn title(port: &ServicePortReport) -> String {
    let separator = if port.port_name.is_empty() { "" } else { ":" };
    format!("{}/{}{separator}{} {}", port.namespace, port.name, port.port_name, port.protocol)
}

/// What differs from the default.
fn policy(port: &ServicePortReport) -> String {
    let mut lines = Vec::new();
    if port.internal_traffic_policy != "Cluster" {
        lines.push(format!("internal {}", port.internal_traffic_policy));
    }
    if port.external_traffic_policy != "Cluster" {
        lines.push(format!("external {}", port.external_traffic_policy));
    }
    if let Some(seconds) = port.affinity_timeout_s {
        lines.push(format!("affinity {seconds}s"));
    }
    if port.algorithm != "random" {
        lines.push(port.algorithm.clone());
    }
    if port.forwarding != "snat" {
        lines.push(port.forwarding.clone());
    }
    if !port.source_ranges.is_empty() {
        lines.push(format!("from {}", port.source_ranges.join(" ")));
    }
    lines.join("\n")
}
