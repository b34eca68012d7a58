//! May a packet concern a frontend at all? Asked by XDP first of all, to let through at once what is not ours, and before
//! every lookup of a frontend: the answer is a bit of an array.

use lb_common::{family::Be16, port_set};

use crate::{globals::snat_ports, maps::PORTS};

/// True if frontends use the port, or it may be the source port that a connection was given (SNAT).
#[inline(always)]
pub fn may_be_ours(port: Be16) -> bool {
    let (min, count) = snat_ports();
    (port.get() as u32).wrapping_sub(min) < count || has_frontends(port)
}

/// True if frontends use the port. The bit is set before the first frontend is written.
#[inline(always)]
pub fn has_frontends(port: Be16) -> bool {
    PORTS.get(port_set::word(port)).is_some_and(|word| word & port_set::bit(port) != 0)
}
