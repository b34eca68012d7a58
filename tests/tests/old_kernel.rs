//! The oldest kernel we prove ourselves on, in a VM: its verifier counts stack and states otherwise than ours.
#![allow(clippy::allow_attributes, clippy::expect_used, reason = "tests")]

use lb_tests::{
    prog::{SOCKET_PROGRAMS, TC_PROGRAMS, XDP_PROGRAMS},
    vm,
};

#[test]
fn every_program_passes_the_verifier_of_linux_6_1() {
    let said = vm::run_on_6_1("load-programs").expect("a VM that runs the loader");
    assert!(said.contains("kernel 6.1."), "{said}");
    for name in TC_PROGRAMS.into_iter().chain(XDP_PROGRAMS).chain(SOCKET_PROGRAMS) {
        assert!(said.lines().any(|line| line.trim().starts_with(&format!("{name} ok"))), "{name}: {said}");
    }
}
