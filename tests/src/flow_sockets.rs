//! The rows of flow tables ([`crate::flow_table`]) with real sockets, in the two-node cluster.
//!
//! `pod` is a pod of node-a, `far-pod` one of node-b, `node` a process of node-a, `client` and `outsider` as they are.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::family::Protocol;

use crate::{
    cluster::{At, Cluster, NODES},
    flow_table::{FlowFamily, Outcome, Reached, Row, Sender},
    probe::{ClientError, Reply, Target, Transport},
};

/// Questions of a row whose backends are drawn by lot: with three of them, one is missed once in 10^6 rows.
const DRAWS: usize = 40;
/// How long silence must last to count as such.
const SILENCE: Duration = Duration::from_millis(400);

/// Which pods of a cluster send.
#[derive(Clone, Copy, Debug)]
pub struct Senders {
    /// `pod`
    pub pod: &'static str,
    /// `far-pod`
    pub far_pod: &'static str,
}

/// Checks rows; the error names every one that failed.
pub fn check(cluster: &Cluster, senders: Senders, rows: &str) -> Result<()> {
    let (mut count, mut failures) = (0, Vec::new());
    for row in rows.lines().filter_map(|line| Row::parse(line).transpose()) {
        let row = row?;
        count += 1;
        let expected = row.expected(FlowFamily::V4)?;
        let found = outcome(cluster, senders, &row, expected == Outcome::Drop)?;
        if found != expected {
            failures.push(format!("{}\n    but: {found}", row.text));
        }
    }
    ensure!(count > 0, "no rows");
    ensure!(failures.is_empty(), "{} of {count} rows:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// What becomes of a row's questions. Who expects silence waits less long for an answer.
fn outcome(cluster: &Cluster, senders: Senders, row: &Row, is_silent: bool) -> Result<Outcome> {
    let probe = cluster.probe(&place(senders, row.from)?)?;
    let to = SocketAddr::new(row.to.0.into(), row.to.1);
    let transport = match row.protocol {
        Protocol::TCP => Transport::Http,
        Protocol::UDP => Transport::UdpConnected,
        other => bail!("no sockets of {}", other.name()),
    };
    let target = Target::new(transport, to);
    match probe.once(if is_silent { target.within(SILENCE) } else { target })? {
        Err(ClientError::TimedOut) => return Ok(Outcome::Drop),
        Err(ClientError::Refused) => return Ok(Outcome::Reject),
        _ => {}
    }
    let mut backends = std::collections::BTreeSet::new();
    for _ in 0..DRAWS {
        let reply = probe.once(target)?.with_context(|| row.text.clone())?;
        backends.insert(reached(row.from, &reply));
    }
    Ok(Outcome::Backends(backends))
}

fn place(senders: Senders, from: Sender) -> Result<At> {
    Ok(match from {
        Sender::Pod => At::pod(senders.pod),
        Sender::Node => At::host(NODES[0].name),
        from if from == Sender::parse("far-pod")? => At::pod(senders.far_pod),
        from if from == Sender::parse("client")? => At::Client,
        from if from == Sender::parse("outsider")? => At::Outsider,
        other => bail!("no process to send as {other:?}"),
    })
}

fn reached(from: Sender, reply: &Reply) -> Reached {
    let client = reply.answer.client.ip();
    let is_node = NODES.iter().any(|node| node.v4.parse() == Ok(client));
    Reached { backend: reply.answer.server, as_node: is_node && from != Sender::Node }
}
