//! The demo holds: what a newcomer runs first must work. Needs root.

use std::process::Command;

#[test]
fn every_line_of_the_demo_holds() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" 0 do not"), "{text}");
}
