//! Which stretches of `SLOTS` are free, and what is in the others.
//!
//! A run is never edited in place: a change of membership takes a fresh one. So runs of equal contents are one, held
//! by every service port that wants it: thousands of Services over one set of backends share a table. A run that
//! nobody holds comes back when a later plan starts, and only if no frontend in the maps points to it any more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use lb_common::{frontend::Run, id::BackendId};

use crate::desired::maglev::TableSize;

/// What a run holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Contents {
    /// Each backend once.
    List(Arc<[BackendId]>),
    /// The Maglev table of these backends, sorted by id.
    Table(TableSize, Arc<[BackendId]>),
}

impl Contents {
    /// Number of slots.
    pub fn slots(&self) -> u32 {
        match self {
            Self::List(backends) => u32::try_from(backends.len()).unwrap_or(u32::MAX),
            Self::Table(size, _) => size.get(),
        }
    }
}

/// A run that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The run.
    pub run: Run,
    /// True for its first holder, who is to write it.
    pub is_fresh: bool,
}

#[derive(Debug)]
struct Use {
    holders: u32,
    contents: Contents,
}

/// The slot array.
#[derive(Debug)]
pub struct RunPool {
    /// First slot → number of slots; neighbours are merged.
    free: BTreeMap<u32, u32>,
    /// Search from here, so that freed slots rest.
    next: u32,
    used: HashMap<Run, Use>,
    by_contents: HashMap<Contents, Run>,
    retired: Vec<Run>,
}

impl RunPool {
    /// A pool of `slots` slots, of which `taken` are in use.
    pub fn new(slots: u32, taken: impl IntoIterator<Item = Run>) -> Self {
        let mut pool = Self {
            free: BTreeMap::from([(0, slots)]),
            next: 0,
            used: HashMap::new(),
            by_contents: HashMap::new(),
            retired: Vec::new(),
        };
        for run in taken {
            pool.take(run);
            pool.next = pool.next.max(run.base.saturating_add(run.count));
        }
        pool
    }

    /// One more holder of a run that was taken from the start. Of two runs of equal contents only one finds new
    /// holders.
    pub fn restore(&mut self, run: Run, contents: impl FnOnce() -> Contents) {
        if let Some(used) = self.used.get_mut(&run) {
            used.holders += 1;
            return;
        }
        let contents = contents();
        self.by_contents.entry(contents.clone()).or_insert(run);
        self.used.insert(run, Use { holders: 1, contents });
    }

    /// One more holder of the run with these contents, a fresh one if need be; `None` if there is no room.
    pub fn hold(&mut self, contents: &Contents) -> Option<Held> {
        if let Some(run) = self.by_contents.get(contents).copied() {
            self.used.entry(run).and_modify(|used| used.holders += 1);
            return Some(Held { run, is_fresh: false });
        }
        let run = self.allocate(contents.slots())?;
        self.by_contents.insert(contents.clone(), run);
        self.used.insert(run, Use { holders: 1, contents: contents.clone() });
        Some(Held { run, is_fresh: true })
    }

    /// One holder less. True if that was the last: then nothing wants the run any more, but the maps may still.
    pub fn release(&mut self, run: Run) -> bool {
        let is_last = self.drop_holder(run);
        is_last.then(|| self.retire(run));
        is_last
    }

    /// Takes back a [`hold`](Self::hold) of which the maps have heard nothing. True if nobody else has the run.
    pub fn undo(&mut self, run: Run) -> bool {
        let is_last = self.drop_holder(run);
        is_last.then(|| self.free_one(run));
        is_last
    }

    /// True if there will be more room after the next [`reclaim`](Self::reclaim).
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    fn drop_holder(&mut self, run: Run) -> bool {
        let Some(used) = self.used.get_mut(&run) else { return false };
        used.holders -= 1;
        if used.holders > 0 {
            return false;
        }
        let contents = self.used.remove(&run).map(|used| used.contents);
        if let Some(contents) = contents.filter(|contents| self.by_contents.get(contents) == Some(&run)) {
            self.by_contents.remove(&contents);
        }
        true
    }

    /// A run of `count` slots, if there is room.
    fn allocate(&mut self, count: u32) -> Option<Run> {
        let fits = |(_, len): &(&u32, &u32)| **len >= count;
        let behind = self.free.range(self.next..).find(fits).map(|(base, _)| *base);
        let base = behind.or_else(|| self.free.range(..self.next).find(fits).map(|(base, _)| *base))?;
        let run = Run { base, count };
        self.take(run);
        self.next = base + count;
        Some(run)
    }

    /// Nothing wants the run any more.
    fn retire(&mut self, run: Run) {
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

    fn list(backends: &[u32]) -> Contents {
        Contents::List(backends.iter().copied().map(BackendId).collect())
    }

    #[test]
    fn equal_contents_are_one_run_until_the_last_holder_lets_go() {
        let mut pool = RunPool::new(10, []);
        let first = pool.hold(&list(&[1, 2])).unwrap();
        assert_eq!(first, Held { run: run(0, 2), is_fresh: true });
        assert_eq!(pool.hold(&list(&[1, 2])), Some(Held { is_fresh: false, ..first }));
        assert_eq!(pool.hold(&list(&[2, 1])).unwrap().run, run(2, 2), "other contents");
        assert!(!pool.release(first.run));
        assert!(pool.release(first.run));
        assert!(pool.hold(&list(&[1, 2])).unwrap().is_fresh, "what is let go of is not taken up again");
    }

    #[test]
    fn what_was_never_written_is_free_at_once() {
        let mut pool = RunPool::new(2, []);
        let held = pool.hold(&list(&[1, 2])).unwrap();
        assert_eq!(pool.hold(&list(&[3])), None);
        assert!(pool.undo(held.run));
        assert!(!pool.has_retired());
        assert!(pool.hold(&list(&[3])).is_some());
    }

    #[test]
    fn two_restored_runs_of_equal_contents_are_both_freed_in_the_end() {
        let mut pool = RunPool::new(4, [run(0, 2), run(2, 2)]);
        pool.restore(run(0, 2), || list(&[1, 2]));
        pool.restore(run(2, 2), || list(&[1, 2]));
        assert_eq!(pool.hold(&list(&[1, 2])), Some(Held { run: run(0, 2), is_fresh: false }));
        assert!(pool.release(run(2, 2)));
        assert!(!pool.release(run(0, 2)));
        assert!(pool.release(run(0, 2)));
        assert_eq!(pool.reclaim(|_| false).len(), 2);
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
