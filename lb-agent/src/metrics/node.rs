//! The datapath as a whole: verdicts, how full the maps are, what programs are attached to.

use std::{fmt, path::Path, time::UNIX_EPOCH};

use lb_common::maps;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::{encode_counters, encode_gauge, encode_gauges};
use crate::{
    conntrack_gc,
    datapath::attach::Attachment,
    flood::{self, FloodReport},
    inspect::{self, InspectError, MapFill, TunnelCount, VerdictCount},
    source::kubernetes::SourceStatus,
};

const NO_LABELS: [(&str, &str); 0] = [];

/// What was read.
#[derive(Debug, Default)]
pub struct Node {
    /// Devices with programs.
    pub attachments: Vec<Attachment>,
    /// Devices that refused them, or could not be read.
    pub failures: usize,
    /// Of the API server.
    pub source: Option<SourceStatus>,
    /// Sockets destroyed because their backend had left.
    pub sockets_destroyed: u64,
    /// What was done about floods of new flows.
    pub flood: FloodReport,
    /// What came in tunnels.
    pub tunnels: TunnelCount,
    /// How full the maps are.
    pub maps: Vec<MapFill>,
    /// What the datapath decided.
    pub verdicts: Vec<VerdictCount>,
}

impl Node {
    /// Adds what the maps pinned in `dir` say.
    pub fn read_maps(&mut self, dir: &Path) -> Result<(), InspectError> {
        self.flood = flood::read(dir, conntrack_gc::now())
            .map_err(|source| InspectError::Map { name: maps::NEW_FLOWS.to_owned(), source })?;
        self.maps = inspect::map_fill(dir)?;
        self.verdicts = inspect::verdicts(dir)?;
        self.tunnels = inspect::tunnels(dir)?;
        Ok(())
    }

    fn last_contact_s(&self) -> Option<f64> {
        let at = self.source.as_ref()?.last_contact?;
        Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
    }
}

impl Collector for Node {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let label = |row: &VerdictCount| [("verdict", row.verdict.clone())];
        let packets = self.verdicts.iter().map(|row| (label(row), row.packets));
        encode_counters(encoder, ("lb_verdict_packets", "Packets and socket calls by verdict"), packets)?;
        let bytes = self.verdicts.iter().map(|row| (label(row), row.bytes));
        encode_counters(encoder, ("lb_verdict_bytes", "Bytes of these packets"), bytes)?;
        encode_tunnels(encoder, self.tunnels)?;
        let help = "Sockets destroyed because the backend they were given no longer serves what they dialled";
        let destroyed = std::iter::once((NO_LABELS, self.sockets_destroyed));
        encode_counters(encoder, ("lb_sockets_destroyed", help), destroyed)?;
        let help = "New flows recorded apart from connections because there were too many";
        encode_counters(
            encoder,
            ("lb_flood_flows", help),
            std::iter::once((NO_LABELS, self.flood.recorded)),
        )?;
        let help = "Of these, flows that became connections";
        let promoted = std::iter::once((NO_LABELS, self.flood.promoted));
        encode_counters(encoder, ("lb_flood_flows_promoted", help), promoted)?;
        let help = "1 while new flows are recorded apart from connections";
        encode_gauge(encoder, ("lb_flood_active", help), u32::from(self.flood.active))?;
        let label = |map: &MapFill| [("map", map.name.clone())];
        let entries = self.maps.iter().map(|map| (label(map), map.entries));
        encode_gauges(encoder, ("lb_map_entries", "Entries in a map"), entries)?;
        let max = self.maps.iter().map(|map| (label(map), map.max));
        encode_gauges(encoder, ("lb_map_entries_max", "Entries there is room for"), max)?;
        let attachments = self.attachments.iter().map(|attachment| (attachment_labels(attachment), 1_u32));
        encode_gauges(encoder, ("lb_attachment_info", "1 for each device with programs"), attachments)?;
        let help = "Devices whose programs could not be attached and are tried again";
        encode_gauge(encoder, ("lb_attach_failures", help), self.failures)?;
        let help = "When an API server last answered or sent an event; 0: not yet, or there is none";
        let name = "lb_source_last_contact_timestamp_seconds";
        encode_gauge(encoder, (name, help), self.last_contact_s().unwrap_or_default())?;
        let version = [([("version", env!("CARGO_PKG_VERSION"))], 1_u32)];
        encode_gauges(encoder, ("lb_build_info", "1, with the version of the agent"), version.into_iter())
    }
}

fn encode_tunnels(encoder: &mut DescriptorEncoder<'_>, tunnels: TunnelCount) -> fmt::Result {
    let TunnelCount { unwrapped, strangers } = tunnels;
    let help = "Packets in tunnels to this node for frontends with direct server return";
    let rows = [([("sender", "peer")], unwrapped), ([("sender", "stranger")], strangers)];
    encode_counters(encoder, ("lb_tunnel_packets", help), rows.into_iter())
}

fn attachment_labels(attachment: &Attachment) -> [(&'static str, String); 6] {
    [
        ("device", attachment.device.clone()),
        ("role", attachment.role.clone()),
        ("mechanism", attachment.mechanism.name().to_owned()),
        ("reason", attachment.reason.clone()),
        ("xdp", attachment.xdp.place.name().to_owned()),
        ("xdp_reason", attachment.xdp.reason.clone()),
    ]
}
