//! How does `lb-ebpf` become an object file on this machine? Called by `cargo xtask build-ebpf` and by the build
//! script of `lb-agent`, which embeds the object. Nothing here installs anything: what is missing is named, together
//! with the command that brings it.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The target triple of the object: BPF, little endian, as every machine we support is.
pub const TARGET: &str = "bpfel-unknown-none";

/// The compiler of the Debian package `rustc-web`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

const REMEDY: &str = "run `cargo xtask setup`";

/// A Rust compiler that can produce BPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// Debian's `/usr/bin/rustc` with the prebuilt `core` of `libstd-rust-web-dev-bpf`.
    Debian,
    /// rustup's nightly with the component `rust-src`, from which cargo builds `core` itself.
    Nightly,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::Nightly => "nightly",
        })
    }
}

impl FromStr for Toolchain {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "debian" => Ok(Self::Debian),
            "nightly" => Ok(Self::Nightly),
            _ => bail!("unknown toolchain {name:?}: expected debian or nightly"),
        }
    }
}

impl Toolchain {
    /// The toolchain to use here. Debian's comes first: it needs no build of `core`, and `cargo xtask setup` builds
    /// `bpf-linker` against the LLVM of exactly that compiler.
    pub fn detect() -> Result<Self> {
        let [debian, nightly] =
            [Self::Debian, Self::Nightly].map(|toolchain| toolchain.check().map(|()| toolchain));
        debian.or_else(|no_debian| {
            nightly.map_err(|no_nightly| {
                anyhow::anyhow!(
                    "no Rust toolchain here can build BPF ({no_debian:#}; {no_nightly:#}): {REMEDY}"
                )
            })
        })
    }

    /// Says what this toolchain lacks, if anything.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Debian => {
                let args = ["--print", "target-libdir", "--target", TARGET];
                let libdir = stdout_of(clean_environment(Command::new(DEBIAN_RUSTC).args(args)))?;
                ensure!(Path::new(&libdir).is_dir(), "{DEBIAN_RUSTC} has no core for {TARGET}: {REMEDY}");
            }
            Self::Nightly => {
                let args = ["run", "nightly", "rustc", "--print", "sysroot"];
                let sysroot = stdout_of(clean_environment(Command::new("rustup").args(args)))?;
                let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
                ensure!(
                    core.is_dir(),
                    "the nightly toolchain has no rust-src: `rustup component add rust-src --toolchain nightly`"
                );
            }
        }
        Ok(())
    }

    /// A cargo of this toolchain with its environment set: the caller adds subcommand and arguments.
    pub fn cargo(self) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut cargo = Command::new("cargo");
                clean_environment(&mut cargo);
                // aya-ebpf uses `asm_experimental_arch` on this target, an unstable feature.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut rustup = Command::new("rustup");
                clean_environment(&mut rustup);
                rustup.args(["run", "nightly", "cargo"]);
                rustup
            }
        };
        command.env("PATH", path_with_cargo_bin());
        command
    }

    fn build_std(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &[],
            Self::Nightly => &["-Z", "build-std=core"],
        }
    }
}

/// One build of the object.
#[derive(Clone, Debug)]
pub struct Build {
    /// The workspace's root: holds `lb-ebpf` and receives `target/bpf`.
    pub workspace: PathBuf,
    /// Who compiles.
    pub toolchain: Toolchain,
    /// With the development log (feature `log` of lb-ebpf).
    pub log: bool,
}

impl Build {
    /// Builds the object in release mode and returns its path; the compiler's messages go to stderr.
    ///
    /// The target directory is one of its own per toolchain and feature: the cargo that runs a build script holds the
    /// lock of the ordinary one, and two variants must not overwrite each other's object.
    pub fn run(&self) -> Result<PathBuf> {
        self.binary("lb-ebpf", if self.log { &["--features", "log"] } else { &[] })
    }

    /// Builds the object that measures the other one (feature `bench` of lb-ebpf) and returns its path.
    pub fn run_bench(&self) -> Result<PathBuf> {
        self.binary("bench", &["--features", "bench"])
    }

    fn binary(&self, name: &str, features: &[&str]) -> Result<PathBuf> {
        check_linker()?;
        let target_dir = self.target_dir();
        let mut cargo = self.toolchain.cargo();
        cargo.current_dir(self.workspace.join("lb-ebpf"));
        cargo.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(&target_dir);
        cargo.args(["--bin", name]).args(features).args(self.toolchain.build_std());
        // Debug information becomes the BTF that lets `bpftool map dump` print field names.
        cargo.env(
            "RUSTFLAGS",
            "-C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order -C debuginfo=2 -D warnings",
        );
        cargo.stdin(Stdio::null()).stdout(Stdio::null());
        let status = cargo.status().with_context(|| format!("run {:?}", cargo.get_program()))?;
        ensure!(status.success(), "building lb-ebpf with the {} toolchain failed ({status})", self.toolchain);
        let object = target_dir.join(TARGET).join("release").join(name);
        ensure!(object.is_file(), "cargo succeeded, but there is no object at {}", object.display());
        Ok(object)
    }

    fn target_dir(&self) -> PathBuf {
        let variant = if self.log { format!("{}-log", self.toolchain) } else { self.toolchain.to_string() };
        self.workspace.join("target/bpf").join(variant)
    }
}

/// Says whether `bpf-linker`, which turns bitcode into the object, can be run.
pub fn check_linker() -> Result<()> {
    let mut linker = Command::new("bpf-linker");
    linker.arg("--version").env("PATH", path_with_cargo_bin());
    stdout_of(&mut linker)
        .map(drop)
        .with_context(|| format!("bpf-linker is missing or does not run: {REMEDY}"))
}

/// `PATH` with cargo's bin directory, where `cargo install` puts bpf-linker, behind everything else.
fn path_with_cargo_bin() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let directories = env::split_paths(&path).chain(home.map(|home| home.join("bin")));
    env::join_paths(directories).unwrap_or(path)
}

/// Removes what an outer cargo (a build script, `cargo run`, clippy) sets for its own compilation, and would
/// otherwise rule the inner one. What the user configured (home, network, registries, terminal) stays.
fn clean_environment(command: &mut Command) -> &mut Command {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_"];
    const OUTER: [&str; 9] = [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "CLIPPY_ARGS",
        "MAKEFLAGS",
    ];
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let of_cargo =
            name == "CARGO" || name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept));
        if of_cargo || OUTER.contains(&name.as_ref()) {
            command.env_remove(name.as_ref());
        }
    }
    command
}

fn stdout_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", stderr.lines().next().unwrap_or("failed"));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchains_are_forced_by_the_name_they_print() {
        for toolchain in [Toolchain::Debian, Toolchain::Nightly] {
            assert_eq!(toolchain.to_string().parse::<Toolchain>().unwrap(), toolchain);
        }
        assert!("stable".parse::<Toolchain>().is_err());
    }

    #[test]
    fn an_outer_cargo_does_not_rule_the_inner_one() {
        // `cargo test` sets CARGO and CARGO_MANIFEST_DIR for this very process.
        assert!(env::var_os("CARGO_MANIFEST_DIR").is_some());
        let mut command = Command::new("true");
        clean_environment(&mut command);
        let removed: Vec<_> =
            command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert!(removed.contains(&"CARGO_MANIFEST_DIR".as_ref()));
        assert!(removed.contains(&"CARGO".as_ref()));
        assert!(!removed.contains(&"CARGO_HOME".as_ref()));
    }

    #[test]
    fn variants_of_the_object_do_not_share_a_target_directory() {
        let build = |toolchain, log| Build { workspace: "/w".into(), toolchain, log }.target_dir();
        assert_eq!(build(Toolchain::Debian, false), Path::new("/w/target/bpf/debian"));
        assert_eq!(build(Toolchain::Debian, true), Path::new("/w/target/bpf/debian-log"));
        assert_eq!(build(Toolchain::Nightly, false), Path::new("/w/target/bpf/nightly"));
    }
}
