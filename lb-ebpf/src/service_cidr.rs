//! Is an address one of those ClusterIPs are taken from? Asked only of what is no frontend.

use lb_common::limits;

use crate::maps::FamilyMaps;

/// True if `addr` lies in a service CIDR. A function of its own: the loop's registers are not the callers'.
#[inline(never)]
pub fn contains<F: FamilyMaps>(addr: &F::Addr) -> bool {
    let mut index = 0;
    while index < limits::SERVICE_CIDRS_MAX {
        let Some(cidr) = F::service_cidrs().get(index) else { return false };
        if cidr.used == 0 {
            return false;
        }
        if cidr.matches(addr) {
            return true;
        }
        index += 1;
    }
    false
}
