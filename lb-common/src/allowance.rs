//! `ALLOWANCES`: how many answers (RST, ICMP errors) a CPU may still send, a token bucket. A flood of packets that
//! nobody serves must not become a flood of answers (RFC 4443, 2.4f; RFC 1812, 4.3.2.8).

/// Nanoseconds of a second, and the price of an answer.
const SECOND_NS: u64 = 1_000_000_000;

/// Value of `ALLOWANCES[0]`, one per CPU. All zeroes is a full bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Allowance {
    /// CLOCK_MONOTONIC when it was last asked, in nanoseconds.
    pub last_ns: u64,
    /// What has been saved, in billionths of an answer.
    pub credit: u64,
}

impl Allowance {
    /// Takes one answer at `now_ns`, if `per_second` (0: any number) allow it. A second's worth can be saved.
    ///
    /// Time that passed is multiplied by the rate, so that nothing is divided; 2^32 answers a second for one second
    /// are below 2^62.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64, per_second: u32) -> bool {
        if per_second == 0 {
            return true;
        }
        let passed = now_ns.saturating_sub(self.last_ns);
        let passed = if passed < SECOND_NS { passed } else { SECOND_NS };
        let full = SECOND_NS * per_second as u64;
        let saved = self.credit + passed * per_second as u64;
        let saved = if saved < full { saved } else { full };
        self.last_ns = now_ns;
        let allowed = saved >= SECOND_NS;
        self.credit = if allowed { saved - SECOND_NS } else { saved };
        allowed
    }
}

const _: () = assert!(size_of::<Allowance>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    const START_NS: u64 = 5 * SECOND_NS;

    fn taken(allowance: &mut Allowance, now_ns: u64, per_second: u32, asked: u32) -> u32 {
        (0..asked).map(|_| u32::from(allowance.take(now_ns, per_second))).sum()
    }

    #[test]
    fn a_seconds_worth_at_once_and_then_the_rate() {
        let mut allowance = Allowance::default();
        assert_eq!(taken(&mut allowance, START_NS, 1000, 5000), 1000);
        assert_eq!(taken(&mut allowance, START_NS + SECOND_NS / 10, 1000, 5000), 100);
        assert_eq!(taken(&mut allowance, START_NS + SECOND_NS / 10, 1000, 5000), 0);
        assert_eq!(taken(&mut allowance, START_NS + 100 * SECOND_NS, 1000, 5000), 1000, "no more is saved");
    }

    #[test]
    fn what_one_tick_brings_is_not_lost() {
        let mut allowance = Allowance::default();
        taken(&mut allowance, START_NS, 10, 100);
        let ticks = (1..=250).map(|tick| START_NS + tick * 4_000_000);
        assert_eq!(ticks.map(|now_ns| taken(&mut allowance, now_ns, 10, 3)).sum::<u32>(), 10);
    }

    #[test]
    fn zero_is_no_limit_and_the_largest_rate_does_not_overflow() {
        let mut allowance = Allowance::default();
        assert_eq!(taken(&mut allowance, 0, 0, 5000), 5000);
        assert!(allowance.take(u64::MAX, u32::MAX) && allowance.take(u64::MAX, u32::MAX));
    }
}
