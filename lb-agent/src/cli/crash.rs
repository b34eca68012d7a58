//! A task that panics ends the process.

/// A task that dies alone would leave the node silently stale (spec 8.5, 12A 81): the process ends, whoever supervises
/// it starts it anew, and until then the maps stay as they are.
pub(super) fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    /// Set in the process that is to die.
    const DIES: &str = "LB_TEST_PANIC";

    #[test]
    fn a_task_that_panics_ends_the_process() {
        if std::env::var_os(DIES).is_some() {
            end_on_panic();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
            runtime.block_on(async { drop(tokio::spawn(async { panic!("a task's end") }).await) });
            return;
        }
        let name = "cli::crash::tests::a_task_that_panics_ends_the_process";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name, "--nocapture"]).env(DIES, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("a task's end"), "{output:?}");
    }
}
