//! What CI runs, cheapest first: format, lints, documentation, then every test (one renders deploy/).

use std::path::Path;

use anyhow::{Context as _, Result};
use ebpf_build::{TARGET, Toolchain};

use crate::{
    run::{command, is_installed, require_root, run, workspace},
    setup, test,
};

const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];

/// All checks; stops at the first that fails.
pub fn ci() -> Result<()> {
    require_root("CI")?;
    setup::setup_ci()?;
    check()?;
    test::test(None)
}

/// All that is checked without running anything.
pub fn check() -> Result<()> {
    format()?;
    lint()?;
    lint_ebpf()?;
    document()
}

fn format() -> Result<()> {
    run(&mut command("cargo", &["fmt", "--all", "--check"]))?;
    run(command("cargo", &["fmt", "--check"]).current_dir(workspace().join("lb-ebpf")))
}

fn lint() -> Result<()> {
    run(command("cargo", &["clippy", "--workspace", "--all-targets"]).args(DENY_WARNINGS))
}

/// Lints lb-ebpf with the linter of the compiler that builds it: another's would find no `core` it can read.
fn lint_ebpf() -> Result<()> {
    let toolchain = Toolchain::detect()?;
    let mut cargo = toolchain.cargo();
    cargo.current_dir(workspace().join("lb-ebpf")).env("RUSTFLAGS", "-D warnings");
    match toolchain {
        Toolchain::Debian => {
            cargo.arg("check").env("RUSTC_WORKSPACE_WRAPPER", "/usr/bin/clippy-driver");
        }
        Toolchain::Nightly => {
            cargo.args(["clippy", "-Z", "build-std=core"]);
        }
    }
    cargo
        .args(["--release", "--locked", "--all-features", "--target", TARGET, "--target-dir"])
        .arg(workspace().join("target/bpf/clippy"));
    run(&mut cargo)
}

fn document() -> Result<()> {
    let mut doc = command("cargo", &["doc", "--workspace", "--no-deps", "--document-private-items"]);
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Checks the dependencies against deny.toml.
pub fn deny() -> Result<()> {
    if !is_installed("cargo-deny") {
        println!("cargo-deny is missing: building it takes several minutes, once");
        run(command("cargo", &["install", "cargo-deny", "--locked"]).env_remove("CARGO_TARGET_DIR"))?;
    }
    for manifest in ["Cargo.toml", "lb-ebpf/Cargo.toml"] {
        let manifest = workspace().join(manifest);
        let path = Path::new(&manifest).to_str().context("the path of the workspace is not UTF-8")?;
        run(&mut command("cargo", &["deny", "--manifest-path", path, "check"]))?;
    }
    Ok(())
}
