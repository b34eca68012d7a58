//! One search for sockets: where each entry's socket is, and the end of those that must leave.
//!
//! Runs on a thread of its own, because it moves from namespace to namespace ([`search`]). The entries were read
//! before the sockets are listed, so a socket that an entry belongs to and that still exists is found.

use std::{
    collections::{BTreeSet, HashMap},
    thread,
};

use crate::sockets::{
    Reach, Sighting,
    diag::{Diag, DiagError, Listed},
    leaves,
    namespaces::{self, Namespaces},
    rev_nat::Entry,
};

use crate::reconcile::standing::Standing;

/// An entry with how its backend stands.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The entry.
    pub entry: Entry,
    /// How its backend stands.
    pub standing: Standing,
}

impl Case {
    /// True if the socket may not stay, if it is what the entry says.
    pub fn leaves(&self) -> bool {
        leaves(self.entry.protocol(), self.standing)
    }
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Found {
    /// Of each case, in order.
    pub sightings: Vec<Sighting>,
    /// Sockets destroyed.
    pub destroyed: u64,
    /// Namespaces searched.
    pub namespaces: usize,
    /// Why pods were not searched, if they were not.
    pub limit: Option<String>,
    /// What failed.
    pub errors: Vec<String>,
}

/// Searches for the sockets of `cases`, and destroys those that are connected to a backend they may not stay with.
pub fn search(reach: Reach, cases: &[Case]) -> Found {
    thread::scope(|scope| {
        let searching = scope.spawn(|| Search::new(cases).everywhere(reach));
        searching.join().unwrap_or_else(|_panic| Found {
            sightings: vec![Sighting::OutOfReach; cases.len()],
            errors: vec!["the search for sockets panicked".to_owned()],
            ..Found::default()
        })
    })
}

struct Search<'a> {
    cases: &'a [Case],
    /// Cookie → indices of cases.
    by_cookie: HashMap<u64, Vec<usize>>,
    /// The namespaces searched, by [`namespaces::identity`].
    searched: BTreeSet<u64>,
    found: Found,
}

impl<'a> Search<'a> {
    fn new(cases: &'a [Case]) -> Self {
        let mut by_cookie = HashMap::<u64, Vec<usize>>::new();
        for (index, case) in cases.iter().enumerate() {
            by_cookie.entry(case.entry.cookie).or_default().push(index);
        }
        let sightings = vec![Sighting::OutOfReach; cases.len()];
        Self { cases, by_cookie, searched: BTreeSet::new(), found: Found { sightings, ..Found::default() } }
    }

    fn everywhere(mut self, reach: Reach) -> Found {
        self.here();
        if reach == Reach::Auto && self.pods() && self.found.errors.is_empty() {
            let unseen = self.found.sightings.iter_mut().filter(|seen| **seen == Sighting::OutOfReach);
            unseen.for_each(|seen| *seen = Sighting::Missing);
        }
        self.found
    }

    /// Searches every other namespace; true if that leaves none out.
    fn pods(&mut self) -> bool {
        let namespaces = match Namespaces::find() {
            Ok(namespaces) => namespaces,
            Err(error) => {
                self.found.limit = Some(format!("/proc: {error}"));
                return false;
            }
        };
        if namespaces.others.is_empty() && !namespaces.are_all_among(&self.searched) {
            self.found.limit = Some("neither /run/netns nor the processes of pods are visible".to_owned());
            return false;
        }
        for namespace in &namespaces.others {
            if let Err(error) = namespaces::enter(namespace) {
                self.found.limit = Some(format!("enter a network namespace: {error}"));
                return false;
            }
            self.here();
        }
        namespaces.are_all_among(&self.searched)
    }

    /// Searches the namespace this thread is in.
    fn here(&mut self) {
        self.found.namespaces += 1;
        self.searched.extend(namespaces::identity());
        if let Err(error) = self.list_and_destroy() {
            self.found.errors.push(error.to_string());
        }
    }

    fn list_and_destroy(&mut self) -> Result<(), DiagError> {
        let mut diag = Diag::open()?;
        let mut doomed = Vec::new();
        diag.list(|socket| {
            if self.see(&socket) {
                doomed.push(socket);
            }
        })?;
        for socket in doomed {
            if diag.destroy(&socket)? {
                self.found.destroyed += 1;
            }
        }
        Ok(())
    }

    /// Notes where a socket is; true if it must go.
    fn see(&mut self, socket: &Listed) -> bool {
        let mut must_go = false;
        for &index in self.by_cookie.get(&socket.cookie()).into_iter().flatten() {
            let case = &self.cases[index];
            let backend = case.entry.claim.backend;
            if socket.protocol != backend.protocol {
                continue;
            }
            let peer = socket.peer();
            if (peer.ip(), peer.port()) == (backend.addr, backend.port) {
                self.found.sightings[index] = Sighting::Connected;
                must_go |= case.leaves();
            } else {
                self.found.sightings[index] = Sighting::Elsewhere;
            }
        }
        must_go
    }
}
