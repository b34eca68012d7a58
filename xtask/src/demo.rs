//! Builds the agent and the demo, then runs the demo: `tests/src/bin/demo.rs`.

use anyhow::Result;

use crate::{
    run::{command, require_root, run},
    setup, test,
};

/// Runs the demo; its exit code is ours.
pub fn demo(keep: bool) -> Result<()> {
    require_root("the demo")?;
    setup::setup()?;
    test::build()?;
    // Beside this program, wherever the target directory is (`CARGO_TARGET_DIR`).
    let demo = std::env::current_exe()?.with_file_name("demo");
    let mut demo = command(&demo.to_string_lossy(), &[]);
    if keep {
        demo.arg("--keep");
    }
    run(&mut demo)
}
