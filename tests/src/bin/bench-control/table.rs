//! Building a Maglev table.

use std::{hint::black_box, net::Ipv4Addr, time::Instant};

use anyhow::{Result, ensure};
use lb_agent::{
    desired::maglev::{self, TableSize},
    model::backend::BackendAddress,
};
use lb_common::{family::Protocol, id::BackendId};
use lb_tests::bench::row::{Row, Target};

use crate::{milliseconds, row};

/// One of the default size for a hundred backends, so many times.
pub(crate) fn measure(times: usize, target: Target) -> Result<Row> {
    let size = TableSize::default();
    let address = |index| BackendAddress {
        addr: Ipv4Addr::from_bits(0x0af4_0000 + index).into(),
        port: 8080,
        protocol: Protocol::TCP,
    };
    let backends: Vec<_> = (1..=100).map(|index| (address(index), BackendId(index))).collect();
    let mut samples = Vec::new();
    for _ in 0..times {
        let started = Instant::now();
        let table = maglev::build(black_box(backends.clone()), size);
        samples.push(milliseconds(started));
        ensure!(black_box(table).len() == size.get() as usize, "a table of another size");
    }
    Ok(row(format!("build a Maglev table, {size} slots, 100 backends"), "ms", samples, target))
}
