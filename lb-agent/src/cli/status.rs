//! `lb-agent status`.

use super::{ListArgs, Output, print_json, table};
use crate::{
    admin::{self, StatusReport},
    flood::FloodReport,
    inspect::TunnelCount,
    report::TunnelReport,
    sockets::run::SocketsReport,
};

/// Shows the state of a running agent.
pub(super) async fn show(args: &ListArgs) -> anyhow::Result<()> {
    let status: StatusReport = admin::request(&args.dirs.run_dir, "/status").await?;
    if args.output == Output::Json {
        return print_json(&status);
    }
    show_sync(&status);
    let attachments = status.attachments.into_iter().map(|attachment| {
        vec![
            attachment.device,
            attachment.ifindex.to_string(),
            attachment.role,
            attachment.mechanism.name().to_owned(),
            attachment.reason,
            attachment.xdp.place.name().to_owned(),
            attachment.xdp.reason,
        ]
    });
    println!(
        "\n{}",
        table(&["DEVICE", "IFINDEX", "ROLE", "ATTACHED BY", "BECAUSE", "XDP", "BECAUSE"], attachments)
    );
    let fill = status.maps.into_iter().map(|map| {
        let percent = map.entries as f64 * 100.0 / f64::from(map.max.max(1));
        vec![map.name, map.entries.to_string(), map.max.to_string(), format!("{percent:.1} %")]
    });
    println!("\n{}", table(&["MAP", "ENTRIES", "MAX", "FULL"], fill));
    let seen = status.verdicts.into_iter().filter(|verdict| verdict.packets > 0);
    let verdicts =
        seen.map(|verdict| vec![verdict.verdict, verdict.packets.to_string(), verdict.bytes.to_string()]);
    println!("\n{}", table(&["VERDICT", "PACKETS", "BYTES"], verdicts));
    Ok(())
}

fn show_sync(status: &StatusReport) {
    let sync = &status.sync;
    println!("node      {} (lb-agent {})", status.node, status.version);
    println!("source    {}", status.source.from);
    if let Some(seconds) = status.source.last_contact_s {
        println!("contact   {seconds} s ago");
    }
    println!(
        "sync      {}: {} services, {} service ports, {} frontends, {} backends; {} waiting",
        if sync.synced { "done" } else { "not yet" },
        sync.services,
        sync.service_ports,
        sync.frontends,
        sync.backends,
        sync.dirty
    );
    println!(
        "syncs     {} ({} failed, {} repairs), the last took {} µs",
        sync.syncs, sync.failures, sync.repairs, sync.last_sync_us
    );
    println!("cidrs     {}", sync.service_cidrs.join(", "));
    println!("cgroup    {}", status.cgroup.as_deref().unwrap_or("none (--socket-lb false)"));
    println!("sockets   {}", sockets(&status.sockets));
    println!("tunnels   {}", tunnels(&sync.tunnels, &status.tunnels));
    println!("flood     {}", flood(&status.flood));
    println!("refused   {} (see `lb-agent services`)", sync.refusals.len());
    for finding in &status.foreign.found {
        println!("foreign   {}: {}", finding.what, finding.remedy);
    }
    status.foreign.unchecked.iter().for_each(|what| println!("foreign   not looked at: {what}"));
    let errors = status.errors.iter().chain(&sync.last_error);
    let errors = errors.chain(&status.source.last_error).chain(&status.source.nodes_error);
    let errors = errors.chain(&status.sockets.last_error);
    errors.for_each(|error| println!("error     {error}"));
}

/// Whose tunnels end here, and what came in them.
fn tunnels(report: &TunnelReport, count: &TunnelCount) -> String {
    if !report.wanted {
        return "none: no Service has direct server return".to_owned();
    }
    let TunnelReport { nodes, peers, .. } = report;
    let TunnelCount { unwrapped, strangers } = count;
    let state = if report.awaits_nodes { "not every node known yet" } else { "every node known" };
    format!(
        "{state}: {nodes} others; from {peers} addresses and networks {unwrapped} packets unwrapped, \
         {strangers} of strangers left to the stack"
    )
}

/// What was done about floods of new flows.
fn flood(report: &FloodReport) -> String {
    let FloodReport { active, recorded, promoted } = report;
    let state = if *active { "under way" } else { "none" };
    format!("{state}; {recorded} flows recorded apart so far, {promoted} of them became connections")
}

/// What became of sockets whose backend has left.
fn sockets(report: &SocketsReport) -> String {
    if !report.enabled {
        return "those of backends that left stay (--destroy-sockets off)".to_owned();
    }
    let mut text = format!("{} destroyed after their backend left", report.destroyed);
    if report.out_of_reach > 0 {
        text += &format!(", {} out of reach", report.out_of_reach);
    }
    report.limit.iter().for_each(|limit| text += &format!("\n          pods: {limit}"));
    text
}
