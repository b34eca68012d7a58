//! Running the commands of other tools, from the workspace's root, with an error that names what was run.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, bail, ensure};

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir).to_owned()
}

/// A command that runs in the workspace's root.
pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(workspace());
    command
}

/// Shows and runs a command.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("+ {line}");
    let status = command.status().with_context(|| format!("run {line}"))?;
    succeeded(&line, status)
}

/// An error naming the command, unless it succeeded.
pub fn succeeded(line: &str, status: ExitStatus) -> Result<()> {
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// True if `program` is on `PATH`, or in the directories that a plain user's `PATH` lacks.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(program).is_file())
}

/// True for root.
pub fn is_root() -> bool {
    // The process's own entry belongs to its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// An error saying what root is needed for, unless we are root.
pub fn require_root(purpose: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "{purpose} needs root (BPF programs, network namespaces): run it with sudo, or `cargo xtask test fast`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_in_the_error() {
        let error = run(&mut command("sh", &["-c", "exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c exit 3") && error.contains('3'), "{error}");
        assert!(run(&mut command("true", &[])).is_ok());
        let error = run(&mut command("no-such-program", &[])).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(is_installed("sh"));
        assert!(!is_installed("no-such-program"));
    }
}
