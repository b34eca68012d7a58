//! Is an address ours whatever the port? Asked of what is no frontend, and of echo requests.

use lb_common::{device::NodeAddressKey, vip::VipKey};

use crate::maps::FamilyMaps;

/// True if `addr` is a VIP and no address of this node: there, other ports and the echo are the node's own.
#[inline(never)]
pub fn is_ours<F: FamilyMaps>(addr: &F::Addr) -> bool {
    // SAFETY: only asked whether it exists.
    let is_vip = unsafe { F::vips().get(VipKey { addr: *addr }) }.is_some();
    // SAFETY: as above.
    is_vip && unsafe { F::node_addresses().get(NodeAddressKey { addr: *addr }) }.is_none()
}
