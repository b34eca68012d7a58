//! `lb-agent cleanup`.

use super::Dirs;
use crate::{admin, datapath::cleanup as datapath};

/// Removes every trace and says what it was.
pub(super) async fn cleanup(dirs: &Dirs) -> anyhow::Result<()> {
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
