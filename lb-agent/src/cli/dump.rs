//! `lb-agent dump`: the service maps as text, from the pins, with or without a running agent.

use super::Dirs;
use crate::maps::{Maps as _, bpf::BpfMaps};

/// Prints one sorted line per entry.
pub(super) fn dump(dirs: &Dirs) -> anyhow::Result<()> {
    print!("{}", BpfMaps::open(&dirs.maps())?.dump()?);
    Ok(())
}
