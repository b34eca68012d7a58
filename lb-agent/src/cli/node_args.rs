//! Flags of `run` about the node as a whole, with kube-proxy's names and defaults.

use anyhow::ensure;
use clap::{ArgAction, Args};

use crate::{
    kube_proxy::GoDuration,
    node_tuning::{Conntrack, NodeTuning},
};

/// See [`NodeTuning`].
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Connections that the kernel's own tracking may hold per CPU (nf_conntrack_max); 0 leaves it alone.
    #[arg(long, default_value_t = 32_768, value_name = "N")]
    conntrack_max_per_core: u32,
    /// The least for nf_conntrack_max, unless --conntrack-max-per-core is 0.
    #[arg(long, default_value_t = 131_072, value_name = "N")]
    conntrack_min: u32,
    /// How long the kernel remembers an idle TCP connection; 0 leaves it alone.
    #[arg(long, default_value = "24h", value_name = "DURATION")]
    conntrack_tcp_timeout_established: GoDuration,
    /// How long the kernel remembers a TCP connection in CLOSE_WAIT; 0 leaves it alone.
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    conntrack_tcp_timeout_close_wait: GoDuration,
    /// Let the kernel's tracking accept TCP segments outside the window.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    conntrack_tcp_be_liberal: bool,
    /// How long the kernel remembers UDP that was not answered; 0 leaves it alone.
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    conntrack_udp_timeout: GoDuration,
    /// How long the kernel remembers UDP that was answered; 0 leaves it alone.
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    conntrack_udp_timeout_stream: GoDuration,
    /// End with an error if a sysctl cannot be set. Default: a warning with the remedy.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    sysctl_hard_fail: bool,
    /// The agent's own OOM score adjustment.
    #[arg(long, default_value_t = -999, value_name = "-1000..1000", allow_hyphen_values = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: i32,
}

impl NodeArgs {
    pub(super) fn tuning(&self) -> anyhow::Result<NodeTuning> {
        let durations = [
            self.conntrack_tcp_timeout_established,
            self.conntrack_tcp_timeout_close_wait,
            self.conntrack_udp_timeout,
            self.conntrack_udp_timeout_stream,
        ];
        ensure!(
            durations.iter().all(|duration| !duration.is_negative),
            "--conntrack-…: no duration is negative"
        );
        let [tcp_established, tcp_close_wait, udp, udp_stream] = durations.map(|duration| duration.length);
        let conntrack = Conntrack {
            max_per_core: self.conntrack_max_per_core,
            min: self.conntrack_min,
            tcp_established,
            tcp_close_wait,
            tcp_be_liberal: self.conntrack_tcp_be_liberal,
            udp,
            udp_stream,
        };
        Ok(NodeTuning { conntrack, oom_score_adj: self.oom_score_adj, hard_fail: self.sysctl_hard_fail })
    }
}
