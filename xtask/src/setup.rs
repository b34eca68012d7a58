//! What must be on the machine, why, and how it gets there. Looks first, installs only what is missing, and is done
//! in a moment when nothing is.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use ebpf_build::Toolchain;

use crate::run::{command, is_installed, is_root, run};

/// One thing and the Debian packages that bring it.
struct Need {
    what: &'static str,
    why: &'static str,
    packages: &'static [&'static str],
    present: fn() -> bool,
}

/// The version that was built and tried with the LLVM below.
const BPF_LINKER: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// For every command.
const NEEDS: [Need; 9] = [
    Need {
        what: "a Rust compiler with core for BPF",
        why: "to compile lb-ebpf for the kernel",
        packages: &["rustc-web", "libstd-rust-web-dev-bpf"],
        present: || Toolchain::detect().is_ok(),
    },
    Need {
        what: "LLVM 22",
        why: "to build bpf-linker, which links the BPF object",
        packages: &["llvm-22-dev", "clang-22", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"],
        present: || has_linker() || has_llvm(),
    },
    Need {
        what: "bpftool",
        why: "the tests and the documents dump maps with it",
        packages: &["bpftool"],
        present: || is_installed("bpftool"),
    },
    Need {
        what: "ip and tc",
        why: "to make the namespaces of the demo and the tests",
        packages: &["iproute2"],
        present: || is_installed("ip") && is_installed("tc"),
    },
    Need {
        what: "iptables",
        why: "the tests prove that rules of others stay untouched",
        packages: &["iptables"],
        present: || is_installed("iptables"),
    },
    Need {
        what: "nft",
        why: "the measurements compare with kube-proxy's nftables rules",
        packages: &["nftables"],
        present: || is_installed("nft"),
    },
    Need {
        what: "curl",
        why: "the demo's client",
        packages: &["curl", "ca-certificates"],
        present: || is_installed("curl"),
    },
    Need {
        what: "qemu, busybox and cpio",
        why: "a test boots Linux 6.1 in a VM and loads every program there",
        packages: &["qemu-system-x86", "busybox-static", "cpio"],
        present: || ["qemu-system-x86_64", "busybox", "cpio"].into_iter().all(is_installed),
    },
    Need {
        what: "kubectl",
        why: "a test renders deploy/ with `kubectl kustomize`",
        packages: &["kubernetes-client"],
        present: || is_installed("kubectl"),
    },
];

/// For `cargo xtask ci` besides.
const CI_NEEDS: [Need; 1] = [Need {
    what: "Rust's linter for the BPF compiler",
    why: "`cargo xtask ci` lints lb-ebpf with the compiler that builds it",
    packages: &["rust-web-clippy"],
    present: || {
        Toolchain::detect().is_ok_and(|toolchain| toolchain == Toolchain::Nightly) || has_debian_clippy()
    },
}];

/// Installs what is missing for building, running and testing.
pub fn setup() -> Result<()> {
    install_packages(NEEDS.iter())?;
    if !has_linker() {
        println!("setup: bpf-linker is missing (it links the BPF object): building it takes about a minute");
        install_linker()?;
    }
    Ok(())
}

/// Installs what is missing for CI's checks.
pub fn setup_ci() -> Result<()> {
    setup()?;
    install_packages(CI_NEEDS.iter())
}

fn install_packages<'a>(needs: impl Iterator<Item = &'a Need>) -> Result<()> {
    let missing: Vec<&Need> = needs.filter(|need| !(need.present)()).collect();
    for need in &missing {
        println!(
            "setup: {} is missing ({}): Debian packages {}",
            need.what,
            need.why,
            need.packages.join(" ")
        );
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    if packages.is_empty() {
        return Ok(());
    }
    if !is_installed("apt-get") {
        bail!("this machine has no apt-get: install {} with its own package manager", packages.join(" "));
    }
    if !is_root() {
        bail!("installing needs root: `sudo apt-get install {}`, then run this again", packages.join(" "));
    }
    run(command("apt-get", &["-qq", "update"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    let mut install = command("apt-get", &["-qq", "-y", "--no-install-recommends", "install"]);
    run(install.args(packages).env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null()))
}

/// Debian's compiler emits LLVM 22 bitcode, so the linker uses that LLVM; its default features look for the LLVM
/// inside rustup's compiler.
fn install_linker() -> Result<()> {
    let mut install = command("cargo", &["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
    if has_llvm() {
        install.args(["--no-default-features", "--features", "llvm-22"]).env("LLVM_PREFIX", LLVM_PREFIX);
    }
    // Set by the cargo that runs us, and meant for our own build.
    run(install.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS"))
}

fn has_linker() -> bool {
    ebpf_build::check_linker().is_ok()
}

fn has_llvm() -> bool {
    PathBuf::from(LLVM_PREFIX).join("bin/llvm-config").is_file() && Path::new("/usr/bin/clang-22").is_file()
}

fn has_debian_clippy() -> bool {
    Path::new("/usr/bin/clippy-driver").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_need_says_what_it_is_for_and_which_packages_bring_it() {
        for need in NEEDS.iter().chain(&CI_NEEDS) {
            assert!(
                !need.what.is_empty() && !need.why.is_empty() && !need.packages.is_empty(),
                "{}",
                need.what
            );
        }
    }
}
