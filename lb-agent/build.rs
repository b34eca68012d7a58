//! Builds the BPF object and puts it at `$OUT_DIR/lb-ebpf`, where `datapath` embeds it.
//!
//! `LB_EBPF_TOOLCHAIN` (`debian`, `nightly`) forces a toolchain, `LB_EBPF_LOG=1` adds the development log.

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use ebpf_build::{Build, Toolchain};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let manifest_dir =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let workspace = manifest_dir.parent().context("lb-agent lies in the workspace")?.to_owned();
    for source in
        ["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-ebpf/Cargo.lock", "lb-common/src", "lb-common/Cargo.toml"]
    {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    println!("cargo::rerun-if-env-changed=LB_EBPF_TOOLCHAIN");
    println!("cargo::rerun-if-env-changed=LB_EBPF_LOG");
    let toolchain = match env::var("LB_EBPF_TOOLCHAIN") {
        Ok(name) => name.parse::<Toolchain>().and_then(|toolchain| toolchain.check().map(|()| toolchain))?,
        Err(_) => Toolchain::detect()?,
    };
    let log = env::var("LB_EBPF_LOG").is_ok_and(|value| value == "1");
    let object = Build { workspace, toolchain, log }.run()?;
    fs::copy(&object, out_dir.join("lb-ebpf")).with_context(|| format!("copy {}", object.display()))?;
    Ok(())
}
