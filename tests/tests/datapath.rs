//! Packets through the real programs.
use lb_tests::prog::Datapath;

#[test]
fn loads() {
    let _ = Datapath::load();
}
