//! What Prometheus is told: kube-proxy's metrics under its names (`kubeproxy_…`, spec 6d), the process's (`process_…`)
//! and our own (`lb_…`). docs/metrics.md lists each; a test compares it with what is exposed.
//!
//! Counters of the agent live in [`control_plane`], [`answers`], [`collection`] and [`host_flows`] and are counted where things happen.
//! Everything else is read when asked for: [`snapshot`] by the reconcile loop, [`traffic`] and [`node`] from the maps
//! and the attachments, [`process`] from /proc. [`server`] puts them together.
//!
//! What must stay true: a label's values are those that exist at the moment of the scrape, so that their number is
//! bounded by the maps; a scrape reads counters off the reconcile loop's thread.

pub mod answers;
pub mod collection;
pub mod host_flows;
pub mod control_plane;
pub mod node;
pub mod process;
pub mod server;
pub mod snapshot;
pub mod traffic;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, NoLabelSet},
    metrics::{MetricType, family::Family, histogram::Histogram},
};

use crate::model::family::IpFamily;

/// Label names and values.
pub(crate) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The label by which kube-proxy tells IP families apart.
pub(crate) fn of_family(family: IpFamily) -> Labels<1> {
    [("ip_family", family.name())]
}

/// A metric for each family, present from the start.
pub(crate) fn per_family<M: Clone>(new: fn() -> M) -> Family<Labels<1>, M> {
    let metrics = Family::new_with_constructor(new);
    for family in IpFamily::ALL {
        drop(metrics.get_or_create(&of_family(family)));
    }
    metrics
}

/// kube-proxy's buckets for durations of its work: 1 ms to 16 s, doubling.
pub(crate) fn work_seconds() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 15))
}

/// Encodes one counter with a row for each set of labels.
pub(crate) fn encode_counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    rows: impl Iterator<Item = (L, u64)>,
) -> std::fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

/// Encodes one gauge with a row for each set of labels.
pub(crate) fn encode_gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    rows: impl Iterator<Item = (L, V)>,
) -> std::fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

/// Encodes a gauge without labels.
pub(crate) fn encode_gauge<V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    value: V,
) -> std::fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}
