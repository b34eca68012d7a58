//! Where the stages work a packet out.

use lb_common::{frontend::FrontendKey, maps::Scratch};

use crate::{
    answer::{Answer, FamilyAnswer},
    backend::{Choice, Chosen},
    conntrack::Opening,
    forward::{FamilyRoute, Way},
    parse::Headers,
    quote::Quote,
};

/// Everything a family brings.
pub trait Balanced: FamilyRoute + FamilyAnswer {}
impl<F: FamilyRoute + FamilyAnswer> Balanced for F {}

/// Where a packet's way is worked out, in this CPU's scratch memory.
#[repr(C)]
pub struct Work<F: Balanced> {
    /// The packet's headers.
    pub headers: Headers<F>,
    /// Where it was sent, if it was.
    pub way: Way<F>,
    /// Who asks for a backend.
    pub choice: Choice<F>,
    /// The backend it gets.
    pub chosen: Chosen<F>,
    /// Its connection, as far as it is known.
    pub opening: Opening<F>,
    /// Room for headers of ours.
    pub answer: Answer<F>,
    /// What an ICMP error is about.
    pub quote: Quote<F>,
    /// The frontend that is dialled.
    pub dialled: FrontendKey<F>,
    /// 1: came in a tunnel, for a backend of this node.
    pub is_tunnelled: u32,
    /// 1: the tunnel met congestion.
    pub is_congested: u32,
}

impl<F: Balanced> Work<F> {
    const FITS: () = assert!(size_of::<Self>() <= size_of::<Scratch>() && align_of::<Self>() <= 8);

    /// This CPU's.
    #[inline(always)]
    pub fn new() -> Option<&'static mut Self> {
        let () = Self::FITS;
        let scratch = F::scratch()?;
        // SAFETY: large and aligned enough, as asserted; made of integers and enums whose first variant is 0, and
        // every field is written before it is read; nobody else uses it during this run ([`FamilyMaps::scratch`]).
        Some(unsafe { &mut *scratch.cast() })
    }
}
