//! The agent's own process, under the names that every Prometheus client library uses.

use std::fmt;

use procfs::{
    ProcResult, WithCurrentSystemInfo as _,
    process::{LimitValue, Process as Procfs},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::encode_gauge;

/// What /proc says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    cpu_seconds: f64,
    start_time_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    virtual_bytes_max: f64,
    open_fds: usize,
    max_fds: f64,
}

impl Process {
    /// Reads it.
    pub fn read() -> ProcResult<Self> {
        let own = Procfs::myself()?;
        let (stat, limits) = (own.stat()?, own.limits()?);
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            start_time_seconds: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
            resident_bytes: stat.rss_bytes().get(),
            virtual_bytes: stat.vsize,
            virtual_bytes_max: limit(limits.max_address_space.soft_limit),
            open_fds: own.fd_count()?,
            max_fds: limit(limits.max_open_files.soft_limit),
        })
    }
}

/// Prometheus has no word for unlimited; its own clients say the largest number.
fn limit(value: LimitValue) -> f64 {
    match value {
        LimitValue::Unlimited => u64::MAX as f64,
        LimitValue::Value(value) => value as f64,
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let (name, help) = ("process_cpu_seconds", "User and system CPU time");
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&self.cpu_seconds, None)?;
        let help = "Start of the process since the Unix epoch";
        encode_gauge(encoder, ("process_start_time_seconds", help), self.start_time_seconds)?;
        encode_gauge(encoder, ("process_resident_memory_bytes", "Resident memory"), self.resident_bytes)?;
        encode_gauge(encoder, ("process_virtual_memory_bytes", "Virtual memory"), self.virtual_bytes)?;
        let help = "Virtual memory there may be";
        encode_gauge(encoder, ("process_virtual_memory_max_bytes", help), self.virtual_bytes_max)?;
        encode_gauge(encoder, ("process_open_fds", "Open file descriptors"), self.open_fds)?;
        encode_gauge(encoder, ("process_max_fds", "File descriptors there may be"), self.max_fds)
    }
}
