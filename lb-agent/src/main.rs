//! `lb-agent`: flags to configuration to work. Everything is in [`lb_agent::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_agent::cli::main()
}
