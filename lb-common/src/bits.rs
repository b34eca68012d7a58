//! Sets of bits: the operations of every flag type of the contract, once.

use crate::{
    backend::{BackendFlags, MemberSets},
    conntrack::{ConnectionFlags, TcpFlags},
    device::DeviceFlags,
    frontend::FrontendFlags,
};

/// Gives newtypes of integers the operations of a set.
macro_rules! bit_sets {
    ($($type:ident)+) => {$(
        impl $type {
            /// True if every bit of `other` is set.
            #[inline(always)]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Both sets together.
            #[inline(always)]
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    )+};
}

bit_sets! { BackendFlags ConnectionFlags DeviceFlags FrontendFlags MemberSets TcpFlags }
