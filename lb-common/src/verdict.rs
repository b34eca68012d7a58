//! What the datapath decided about a packet or a socket call, and why: the one list behind return codes, counters,
//! metrics, events and tests.

macro_rules! verdicts {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $text:literal;)+) => {
        /// What became of a packet or a socket call. The discriminant indexes `COUNTERS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Verdict {
            $($(#[$doc])+ $name = $code,)+
        }

        impl Verdict {
            /// Every verdict, in the order of its code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The verdict of `code`, if there is one.
            #[inline(always)]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name in metrics, dumps and events.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

verdicts! {
    /// Left exactly as it came.
    NotOurs = 0, "not-ours";
    /// Translated, then given to the kernel's stack.
    Translated = 1, "translated";
    /// Translated and sent on by the program itself.
    Redirected = 2, "redirected";
    /// A socket call was given a backend.
    SocketTranslated = 3, "socket-translated";
    /// A socket was shown the VIP it dialled.
    SocketReply = 4, "socket-reply";
    /// Nothing serves: answered with TCP RST or ICMP port unreachable, or the call failed with ECONNREFUSED.
    Refused = 5, "refused";
    /// An echo request to a VIP, answered.
    Echoed = 6, "echoed";
    /// TTL or hop limit would reach zero: answered with ICMP time exceeded in place of being sent on.
    TtlExceeded = 7, "ttl-exceeded";
    /// Larger than the next hop takes: answered with ICMP in place of being sent on (RFC 1191, RFC 8201).
    TooBig = 8, "too-big";
    /// Left by XDP, as it came, to the tc program of the same device, which decides and counts it too.
    HandedOn = 9, "handed-on";
    /// Sent in a tunnel to the backend's node, which answers the client itself.
    Tunnelled = 10, "tunnelled";
    /// Drop: traffic policy Local and no local backend (spec 5).
    PolicyLocal = 11, "drop-policy-local";
    /// Drop: the client is outside `loadBalancerSourceRanges` (spec 1.52).
    SourceRange = 12, "drop-source-range";
    /// Drop: no free source port towards this backend after the permitted tries.
    SnatPorts = 13, "drop-snat-ports";
    /// Drop: the node has no address of this family to translate the source to.
    SnatAddress = 14, "drop-snat-address";
    /// Drop: the routing table has no usable way to the rewritten destination.
    NoRoute = 15, "drop-no-route";
    /// Drop: to be answered, but the packet is one that must not be answered (RST, RFC 9293, 3.10.7.1; SCTP's ABORT; ICMP
    /// errors and later fragments, RFC 1122, 3.2.2).
    RefusedSilently = 16, "drop-unanswerable";
    /// Drop: to be answered, but the answer could not be built.
    RefusalFailed = 17, "drop-refusal-failed";
    /// Drop: the packet cannot be rewritten: the kernel refused, or it is an SCTP packet in fragments whose ports change.
    RewriteFailed = 18, "drop-rewrite-failed";
    /// Drop: to be answered with RST or an ICMP error, but this CPU has sent as many as it may.
    RefusalLimit = 19, "drop-refusal-limit";
}

impl Verdict {
    /// Number of verdicts: entries of `COUNTERS`.
    pub const COUNT: usize = Self::ALL.len();

    /// True for verdicts after which the packet is gone.
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        self as u32 >= Self::PolicyLocal as u32
    }

    /// True for verdicts after which the sender's packet has not reached anybody.
    #[inline(always)]
    pub const fn is_refusal(self) -> bool {
        self.is_drop() || matches!(self, Self::Refused | Self::TtlExceeded | Self::TooBig)
    }
}

/// Why a packet is dropped: the verdicts for which [`Verdict::is_drop`] holds.
pub type DropReason = Verdict;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_names_are_unique() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index);
            assert_eq!(Verdict::from_code(index as u32), Some(*verdict));
            assert!(Verdict::ALL[..index].iter().all(|other| other.name() != verdict.name()));
            assert_eq!(verdict.is_drop(), verdict.name().starts_with("drop-"));
        }
        assert_eq!(Verdict::from_code(Verdict::COUNT as u32), None);
    }
}
