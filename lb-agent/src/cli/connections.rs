//! `lb-agent connections`: from the pinned maps, with or without a running agent.

use lb_common::family::{V4, V6};

use super::{ListArgs, Output, print_json, table};
use crate::{conntrack_gc, inspect};

/// Lists every direction of every connection.
pub(super) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let (dir, now) = (args.dirs.maps(), conntrack_gc::now());
    let mut connections = inspect::connections::<V4>(&dir, now)?;
    connections.extend(inspect::connections::<V6>(&dir, now)?);
    connections.sort_by(|a, b| (a.service_port, &a.source).cmp(&(b.service_port, &b.source)));
    if args.output == Output::Json {
        return print_json(&connections);
    }
    let rows = connections.into_iter().map(|connection| {
        vec![
            connection.protocol,
            format!("{} -> {}", connection.source, connection.destination),
            format!("{} -> {}", connection.to_source, connection.to_destination),
            connection.direction,
            connection.service_port.to_string(),
            connection.backend.to_string(),
            connection.phase,
            format!("{}s", connection.age_s),
        ]
    });
    let header =
        ["PROTOCOL", "TUPLE", "REWRITTEN TO", "DIRECTION", "SERVICE PORT", "BACKEND", "PHASE", "AGE"];
    println!("{}", table(&header, rows));
    Ok(())
}
