//! `lb-agent cleanup`.

use clap::Args;

use super::Dirs;
use crate::{admin, datapath::cleanup as datapath, foreign};

/// Flags of `cleanup`.
#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    dirs: Dirs,
    /// Remove what kube-proxy left in this network namespace instead (its iptables chains, nftables tables and
    /// kube-ipvs0), and nothing of the agent's. Stop kube-proxy first, or it writes them again.
    #[arg(long)]
    kube_proxy: bool,
}

/// Removes what was asked for and says what it was.
pub(super) async fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    if args.kube_proxy { cleanup_kube_proxy() } else { cleanup_own(&args.dirs).await }
}

fn cleanup_kube_proxy() -> anyhow::Result<()> {
    let (removed, failed) = foreign::remove();
    removed.iter().for_each(|what| println!("removed {what}"));
    if removed.is_empty() && failed.is_empty() {
        println!("nothing of kube-proxy here");
    }
    foreign::scan().unchecked.iter().for_each(|what| println!("not looked at: {what}"));
    anyhow::ensure!(failed.is_empty(), "still there:\n  {}", failed.join("\n  "));
    Ok(())
}

async fn cleanup_own(dirs: &Dirs) -> anyhow::Result<()> {
    let cleaned = datapath::cleanup(&dirs.pin_dir).await?;
    for what in &cleaned.removed {
        println!("removed {what}");
    }
    if std::fs::remove_file(dirs.run_dir.join(admin::SOCKET)).is_ok() {
        println!("removed {}", dirs.run_dir.join(admin::SOCKET).display());
    }
    if cleaned.removed.is_empty() && cleaned.failed.is_empty() {
        println!("nothing under {}", dirs.pin_dir.display());
    }
    if cleaned.failed.is_empty() {
        return Ok(());
    }
    anyhow::bail!("still there:\n  {}", cleaned.failed.join("\n  "))
}
