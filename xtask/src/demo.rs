//! Builds the agent and the demo, then runs the demo: `tests/src/bin/demo.rs`.

use anyhow::Result;

use crate::{
    run::{command, require_root, run, workspace},
    setup, test,
};

/// Runs the demo; its exit code is ours.
pub fn demo(keep: bool) -> Result<()> {
    require_root("the demo")?;
    setup::setup()?;
    test::build()?;
    let demo = workspace().join("target/debug/demo");
    let mut demo = command(&demo.to_string_lossy(), &[]);
    if keep {
        demo.arg("--keep");
    }
    run(&mut demo)
}
