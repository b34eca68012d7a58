//! Which tests belong to which group, and running them. A test never skips: what needs root fails without it.

use std::{
    fmt,
    io::{BufRead as _, BufReader},
    ops::AddAssign,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    run::{command, line, require_root, run, succeeded, workspace},
    setup,
};

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Unit tests, control plane scripts, properties: no root
    Fast,
    /// BPF programs loaded and run: root
    Kernel,
    /// Real sockets in namespaces: root
    E2e,
}

/// Files in `tests/tests` that load BPF programs.
const KERNEL: [&str; 16] = [
    "agreement",
    "attach",
    "concern",
    "conntrack_gc",
    "contract",
    "datapath",
    "dsr",
    "flood",
    "flow_tables",
    "forward_pods",
    "icmp",
    "maps_bpf",
    "old_kernel",
    "sctp",
    "untouched",
    "xdp",
];
/// Files in `tests/tests` that make namespaces.
const E2E: [&str; 18] = [
    "benchmarks",
    "cli",
    "demo",
    "end_to_end",
    "life_cycle",
    "netns",
    "node_state",
    "observability",
    "path_mtu",
    "policies",
    "sctp_end_to_end",
    "sockets",
    "source_ports",
    "story",
    "title_paths",
    "titles",
    "wires",
    "xdp_end_to_end",
];

/// Outcome of a number of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u64,
    failed: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs one group, or all; the last line on stdout is the sum, alone.
pub fn test(group: Option<Group>) -> Result<()> {
    if group != Some(Group::Fast) {
        require_root("`cargo xtask test` beyond the group `fast`")?;
    }
    setup::setup()?;
    build()?;
    let mut tally = Tally::default();
    let mut first_error = Ok(());
    for args in selections(group)? {
        let result = cargo_test(&args, &mut tally);
        first_error = first_error.and(result);
    }
    println!("{tally}");
    first_error?;
    ensure!(tally.passed > 0 && tally.failed == 0, "{tally}");
    Ok(())
}

/// Builds everything the tests run, programs included, with one selection of features: cargo would otherwise build
/// the dependencies once per selection.
pub fn build() -> Result<()> {
    run(&mut command("cargo", &["build", "--workspace", "--bins", "--tests"]))
}

/// The arguments of the `cargo test` calls that make up a group.
fn selections(group: Option<Group>) -> Result<Vec<Vec<String>>> {
    let integration =
        |names: &[String]| names.iter().flat_map(|name| ["--test".into(), name.clone()]).collect();
    let named = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let selected = match group {
        None => vec![Vec::new()],
        Some(Group::Fast) => {
            let mut targets: Vec<String> = vec!["--lib".into(), "--bins".into()];
            targets.extend::<Vec<String>>(integration(&other_files()?));
            vec![targets, vec!["--doc".into()]]
        }
        Some(Group::Kernel) => vec![integration(&named(&KERNEL))],
        Some(Group::E2e) => vec![integration(&named(&E2E))],
    };
    Ok(selected)
}

/// Integration tests of every crate that are in neither list: new files are in `fast` until they are put elsewhere.
fn other_files() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for directory in ["tests/tests", "lb-agent/tests", "lb-common/tests"] {
        let directory = workspace().join(directory);
        if !directory.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let is_rust = path.extension().is_some_and(|extension| extension == "rs");
            if is_rust && !KERNEL.contains(&name.as_str()) && !E2E.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

/// How many tests of a file run at a time. One more than there are CPUs: they wait a good part of their time, for agents, answers
/// and namespaces.
const THREADS: &str = "RUST_TEST_THREADS";

/// Runs one `cargo test`, shows its output and adds up its results.
fn cargo_test(args: &[String], tally: &mut Tally) -> Result<()> {
    let mut test = command("cargo", &["test", "--workspace", "--no-fail-fast"]);
    if std::env::var_os(THREADS).is_none() {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
        test.env(THREADS, (cpus + 1).to_string());
    }
    let ran = tallied(test.args(args), tally)?;
    ensure!(ran || args == ["--doc"], "{} ran no test", line(&test));
    Ok(())
}

fn tallied(test: &mut Command, tally: &mut Tally) -> Result<bool> {
    let line = line(test);
    eprintln!("+ {line}");
    let mut child = test.stdout(Stdio::piped()).spawn().with_context(|| format!("run {line}"))?;
    let before = *tally;
    if let Some(stdout) = child.stdout.take() {
        for text in BufReader::new(stdout).lines() {
            let text = text.with_context(|| format!("read the output of {line}"))?;
            println!("{text}");
            *tally += result_line(&text).unwrap_or_default();
        }
    }
    succeeded(&line, child.wait()?)?;
    Ok(*tally != before)
}

/// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
fn result_line(text: &str) -> Option<Tally> {
    let (_, counts) = text.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        let field = counts.split("; ").find(|field| field.ends_with(word))?;
        field.split(' ').next()?.parse().ok()
    };
    Some(Tally { passed: count(" passed")?, failed: count(" failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_runs_add_up() {
        let output = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s\n";
        let mut tally = Tally::default();
        output.lines().filter_map(result_line).for_each(|result| tally += result);
        assert_eq!(tally.to_string(), "4 passed, 2 failed");
    }

    #[test]
    fn a_failing_run_is_an_error_and_still_counted() {
        let mut tally = Tally::default();
        let script = "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored'; exit 101";
        let error = tallied(&mut command("sh", &["-c", script]), &mut tally).unwrap_err();
        assert!(error.to_string().contains("101"), "{error}");
        assert_eq!(tally, Tally { passed: 1, failed: 2 });
    }

    /// A file of tests says so at its head.
    #[test]
    fn what_needs_root_is_not_among_the_fast() {
        for name in other_files().unwrap() {
            let file = workspace().join("tests/tests").join(&name).with_extension("rs");
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let mut head = text.lines().take_while(|line| line.starts_with("//!"));
            assert!(!head.any(|line| line.contains("Needs root")), "{name} needs root");
        }
    }

    #[test]
    fn no_file_is_in_two_groups() {
        let fast = other_files().unwrap();
        assert!(KERNEL.iter().all(|name| !E2E.contains(name) && !fast.iter().any(|file| file == name)));
        assert!(E2E.iter().all(|name| !fast.iter().any(|file| file == name)));
    }
}
