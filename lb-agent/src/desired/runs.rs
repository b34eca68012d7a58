//! Which stretches of `SLOTS` are free.
//!
//! A run is never edited in place: a change of membership takes a fresh one. Freed runs come back when a later plan
//! starts, and only if no frontend in the maps points to them any more.

use std::collections::BTreeMap;

use lb_common::frontend::Run;

/// Free stretches of the slot array.
#[derive(Debug)]
pub struct RunPool {
    /// First slot → number of slots; neighbours are merged.
    free: BTreeMap<u32, u32>,
    /// Search from here, so that freed slots rest.
    next: u32,
    retired: Vec<Run>,
}

impl RunPool {
    /// A pool of `slots` slots, of which `taken` are in use.
    pub fn new(slots: u32, taken: impl IntoIterator<Item = Run>) -> Self {
        let mut pool = Self { free: BTreeMap::from([(0, slots)]), next: 0, retired: Vec::new() };
        for run in taken {
            pool.take(run);
            pool.next = pool.next.max(run.base.saturating_add(run.count));
        }
        pool
    }

    /// A run of `count` slots, if there is room.
    pub fn allocate(&mut self, count: u32) -> Option<Run> {
        let fits = |(_, len): &(&u32, &u32)| **len >= count;
        let behind = self.free.range(self.next..).find(fits).map(|(base, _)| *base);
        let base = behind.or_else(|| self.free.range(..self.next).find(fits).map(|(base, _)| *base))?;
        let run = Run { base, count };
        self.take(run);
        self.next = base + count;
        Some(run)
    }

    /// Nothing wants the run any more.
    pub fn retire(&mut self, run: Run) {
        self.retired.push(run);
    }

    /// Frees the retired runs that nothing in the maps points to, and returns them.
    pub fn reclaim(&mut self, is_pending: impl Fn(Run) -> bool) -> Vec<Run> {
        let (kept, freed) = std::mem::take(&mut self.retired).into_iter().partition(|run| is_pending(*run));
        self.retired = kept;
        freed.into_iter().inspect(|run: &Run| self.free_one(*run)).collect()
    }

    /// Takes whatever of `run` is free.
    fn take(&mut self, run: Run) {
        let end = run.base.saturating_add(run.count);
        while let Some((&base, &len)) =
            self.free.range(..end).next_back().filter(|(base, len)| *base + *len > run.base)
        {
            self.free.remove(&base);
            if base < run.base {
                self.free.insert(base, run.base - base);
            }
            if base + len > end {
                self.free.insert(end, base + len - end);
            }
        }
    }

    fn free_one(&mut self, run: Run) {
        let Run { mut base, mut count } = run;
        if let Some(len) = self.free.remove(&(base + count)) {
            count += len;
        }
        if let Some((&before, &len)) =
            self.free.range(..base).next_back().filter(|(before, len)| *before + *len == base)
        {
            base = before;
            count += len;
        }
        self.free.insert(base, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(base: u32, count: u32) -> Run {
        Run { base, count }
    }

    #[test]
    fn freed_slots_rest_until_the_end_is_reached_and_merge_with_their_neighbours() {
        let mut pool = RunPool::new(10, []);
        assert_eq!([pool.allocate(4), pool.allocate(4)], [Some(run(0, 4)), Some(run(4, 4))]);
        pool.retire(run(0, 4));
        assert_eq!(pool.allocate(4), None, "retired is not free");
        assert_eq!(pool.reclaim(|_| false), [run(0, 4)]);
        assert_eq!(pool.allocate(1), Some(run(8, 1)));
        pool.retire(run(4, 4));
        pool.reclaim(|_| false);
        assert_eq!(pool.allocate(8), Some(run(0, 8)));
    }

    #[test]
    fn a_run_that_a_frontend_still_points_to_stays() {
        let mut pool = RunPool::new(4, [run(0, 4)]);
        pool.retire(run(0, 4));
        assert!(pool.reclaim(|run| run.base == 0).is_empty());
        assert_eq!(pool.allocate(1), None);
        assert_eq!(pool.reclaim(|_| false), [run(0, 4)]);
        assert_eq!(pool.allocate(4), Some(run(0, 4)));
    }

    #[test]
    fn restored_runs_are_taken_even_where_they_overlap() {
        let mut pool = RunPool::new(12, [run(2, 3), run(4, 3)]);
        assert_eq!(pool.allocate(5), Some(run(7, 5)));
        assert_eq!(pool.allocate(2), Some(run(0, 2)));
        assert_eq!(pool.allocate(1), None);
    }
}
