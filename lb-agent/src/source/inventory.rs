//! Which objects does the directory hold, and what must the agent be told when files change? Keeps per file the hash
//! of each document and object, never the objects; [`super::file`] feeds it files and it sends the [`Change`]s.
//! At any time the delivered objects are those of the first path, in path order, that defines them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hasher},
    io,
    path::Path,
    sync::Arc,
    thread,
};

use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    Change, Object, ObjectRef, Refusal,
    manifest::{self, Document, Format, Parsed},
};

/// Documents parsed before the first of them is sent on: bounds the typed objects in memory.
const GROUP_DOCUMENTS: usize = 256;
/// Files, and bytes of text, read before the first of them is parsed.
const GROUP_FILES: usize = 256;
const GROUP_BYTES: u64 = 1 << 20;

/// The receiver is gone or the agent stops: nothing more is to be sent.
#[derive(Debug)]
pub(super) struct Stopped;

/// The way out: the bounded channel, from a thread that may block.
pub(super) struct Outlet {
    /// Where changes go.
    pub(super) changes: mpsc::Sender<Change>,
    /// Ends the wait for room in the channel.
    pub(super) stop: CancellationToken,
    /// Runtime on which to wait.
    pub(super) runtime: Handle,
}

impl Outlet {
    pub(super) fn send(&self, change: Change) -> Result<(), Stopped> {
        let change = match self.changes.try_send(change) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Stopped),
            Err(mpsc::error::TrySendError::Full(change)) => change,
        };
        self.runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => Err(Stopped),
                sent = self.changes.send(change) => sent.map_err(|_closed| Stopped),
            }
        })
    }
}

/// Tells one content of a path from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// File system, inode, length.
    pub(super) file: (u64, u64, u64),
    /// Last change of content and of inode, nanoseconds.
    pub(super) times_ns: (i128, i128),
}

/// A path to look at again: present with this stamp, or gone.
pub(super) struct Candidate {
    /// The file.
    pub(super) path: Arc<Path>,
    /// None: gone.
    pub(super) stamp: Option<Stamp>,
}

/// Everything the directory holds.
pub(super) struct Inventory {
    outlet: Outlet,
    files: HashMap<Arc<Path>, FileState>,
    claims: HashMap<ObjectRef, Claim>,
    /// Refs some file no longer has; settled once the whole batch is known, so that an object that moves from one
    /// file to another is never deleted in between.
    unsettled: BTreeSet<ObjectRef>,
    /// Files whose refusals may have changed.
    unreported: BTreeSet<Arc<Path>>,
}

#[derive(Default)]
struct FileState {
    stamp: Option<Stamp>,
    documents: Vec<Arc<DocumentState>>,
    /// Last good objects of documents that can no longer be read.
    kept: Vec<(ObjectRef, u64)>,
    /// Refusals that are the file's own.
    faults: Vec<Refusal>,
    /// Refusals last sent.
    reported: Vec<Refusal>,
}

struct DocumentState {
    text_hash: u64,
    objects: Vec<(ObjectRef, u64)>,
    refusals: Vec<Refusal>,
    unreadable: Vec<ObjectRef>,
    unnamed: bool,
}

#[derive(Default)]
struct Claim {
    /// The files that define the object, in path order; the first one counts.
    paths: BTreeSet<Arc<Path>>,
    delivered: Option<u64>,
    delivered_from: Option<Arc<Path>>,
}

/// One file while its documents go through.
struct Update<'a> {
    path: &'a Arc<Path>,
    stamp: Option<Stamp>,
    origin: String,
    old: FileState,
    /// The documents the file had, by the hash of their text.
    known: Arc<HashMap<u64, Arc<DocumentState>>>,
    documents: Vec<Arc<DocumentState>>,
    seen: HashSet<ObjectRef>,
    twice: Vec<Refusal>,
}

/// What became of a file.
enum Content {
    /// Read and parsed.
    Parsed(Vec<Outcome>),
    /// Read; too much to be parsed in one go.
    Large(String),
    /// No longer there.
    Gone,
    /// There, but it cannot be read.
    Failed(io::Error),
}

/// A document as read: a known one without its objects, another one with them.
struct Outcome {
    state: Arc<DocumentState>,
    objects: Vec<Object>,
}

impl Inventory {
    pub(super) fn new(outlet: Outlet) -> Self {
        Self {
            outlet,
            files: HashMap::new(),
            claims: HashMap::new(),
            unsettled: BTreeSet::new(),
            unreported: BTreeSet::new(),
        }
    }

    pub(super) fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// The stamp under which a file was last read; None: unknown file, or one that could not be read.
    pub(super) fn stamp(&self, path: &Path) -> Option<Stamp> {
        self.files.get(path).and_then(|file| file.stamp)
    }

    /// The known files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// Looks at files again and sends what changed. They must come in path order.
    pub(super) fn refresh(&mut self, candidates: &[Candidate]) -> Result<(), Stopped> {
        let mut rest = candidates;
        while !rest.is_empty() {
            let (group, remaining) = rest.split_at(group_length(rest));
            self.refresh_group(group)?;
            rest = remaining;
        }
        self.settle()?;
        self.report()
    }

    fn refresh_group(&mut self, group: &[Candidate]) -> Result<(), Stopped> {
        let updates: Vec<Update<'_>> = group
            .iter()
            .map(|candidate| Update::begin(candidate, self.files.remove(&candidate.path).unwrap_or_default()))
            .collect();
        let contents = in_two_threads(&updates, &Update::load);
        let mut updates = updates.into_iter().zip(contents);
        let result = updates.by_ref().try_for_each(|(update, content)| self.replace_file(update, content));
        updates.for_each(|(update, _)| self.restore(update));
        result
    }

    /// Puts back a file that was taken out to be updated.
    fn restore(&mut self, update: Update<'_>) {
        self.files.insert(update.path.clone(), update.old);
    }

    fn replace_file(&mut self, update: Update<'_>, content: Content) -> Result<(), Stopped> {
        self.unreported.insert(update.path.clone());
        match content {
            Content::Parsed(outcomes) => self.replace_documents(update, [outcomes].into_iter()),
            Content::Large(text) => {
                let documents = manifest::documents(format_of(update.path), &text);
                let known = update.known.clone();
                let origin = update.origin.clone();
                let groups = documents.chunks(GROUP_DOCUMENTS).map(|group| {
                    let parse = |document: &Document<'_>| parse(document, &known, &origin);
                    if mostly_known(group, &known) {
                        group.iter().map(parse).collect()
                    } else {
                        in_two_threads(group, &parse)
                    }
                });
                self.replace_documents(update, groups)
            }
            Content::Gone => {
                let path = update.path;
                self.restore(update);
                self.forget_file(path);
                Ok(())
            }
            Content::Failed(error) => {
                let reason = format!("cannot be read: {error}; its last good objects stay");
                let fault = Refusal { object: update.origin.clone(), field: String::new(), reason };
                let old = update.old;
                self.files.insert(update.path.clone(), FileState { stamp: None, faults: vec![fault], ..old });
                Ok(())
            }
        }
    }

    fn replace_documents(
        &mut self,
        mut update: Update<'_>,
        mut groups: impl Iterator<Item = Vec<Outcome>>,
    ) -> Result<(), Stopped> {
        let result = groups
            .try_for_each(|group| group.into_iter().try_for_each(|outcome| self.take(&mut update, outcome)));
        let path = update.path;
        let (file, vanished) = update.finish();
        for object_ref in vanished {
            self.release(path, object_ref);
        }
        self.files.insert(path.clone(), file);
        result
    }

    /// Enters a document's objects and sends those that are ours to send and differ from what was delivered.
    fn take(&mut self, update: &mut Update<'_>, outcome: Outcome) -> Result<(), Stopped> {
        let Outcome { state, objects } = outcome;
        let mut objects = objects.into_iter();
        for (object_ref, hash) in &state.objects {
            let object = objects.next();
            if !update.claim(object_ref) {
                continue;
            }
            let claim = self.claims.entry(object_ref.clone()).or_default();
            claim.paths.insert(update.path.clone());
            if claim.paths.len() > 1 {
                self.unreported.extend(claim.paths.iter().cloned());
            }
            let counts = claim.paths.first() == Some(update.path);
            match object {
                Some(object) if counts => {
                    claim.delivered_from = Some(update.path.clone());
                    if claim.delivered.replace(*hash) != Some(*hash) {
                        self.outlet.send(Change::Applied(object))?;
                    }
                }
                None if counts && claim.delivered != Some(*hash) => {
                    claim.delivered_from = None;
                    self.unsettled.insert(object_ref.clone());
                }
                _ => {}
            }
        }
        update.documents.push(state);
        Ok(())
    }

    fn forget_file(&mut self, path: &Arc<Path>) {
        let Some(mut file) = self.files.remove(path) else { return };
        for (object_ref, _) in file.objects() {
            self.release(path, object_ref.clone());
        }
        if !file.reported.is_empty() {
            (file.stamp, file.documents, file.kept, file.faults) = Default::default();
            self.files.insert(path.clone(), file);
        }
    }

    fn release(&mut self, path: &Arc<Path>, object_ref: ObjectRef) {
        if let Some(claim) = self.claims.get_mut(&object_ref) {
            claim.paths.remove(path);
            self.unreported.extend(claim.paths.iter().cloned());
            self.unsettled.insert(object_ref);
        }
    }

    /// Deletes the objects no file has any more, and sends those that now count from another file.
    fn settle(&mut self) -> Result<(), Stopped> {
        while let Some(object_ref) = self.unsettled.pop_first() {
            let Some(claim) = self.claims.get_mut(&object_ref) else { continue };
            let Some(path) = claim.paths.first().cloned() else {
                let was_delivered = claim.delivered.is_some();
                self.claims.remove(&object_ref);
                if was_delivered {
                    self.outlet.send(Change::Deleted(object_ref))?;
                }
                continue;
            };
            if claim.delivered_from.as_ref() == Some(&path) {
                continue;
            }
            claim.delivered_from = Some(path.clone());
            let Some((object, hash)) = find(&path, &object_ref) else { continue };
            if claim.delivered.replace(hash) != Some(hash) {
                self.outlet.send(Change::Applied(object))?;
            }
        }
        Ok(())
    }

    fn report(&mut self) -> Result<(), Stopped> {
        while let Some(path) = self.unreported.pop_first() {
            let Some(file) = self.files.get(&path) else { continue };
            let mut refusals = file.faults.clone();
            refusals.extend(file.documents.iter().flat_map(|document| document.refusals.iter().cloned()));
            refusals.extend(file.objects().filter_map(|(object_ref, _)| self.overruled(&path, object_ref)));
            let gone = file.stamp.is_none() && refusals.is_empty();
            if refusals != file.reported {
                let origin = path.display().to_string();
                self.outlet.send(Change::Unreadable { origin, refusals: refusals.clone() })?;
            }
            if gone {
                self.files.remove(&path);
            } else if let Some(file) = self.files.get_mut(&path) {
                file.reported = refusals;
            }
        }
        Ok(())
    }

    fn overruled(&self, path: &Arc<Path>, object_ref: &ObjectRef) -> Option<Refusal> {
        let first = self.claims.get(object_ref)?.paths.first()?;
        (first != path).then(|| Refusal {
            object: object_ref.to_string(),
            field: String::new(),
            reason: format!("{} defines it too and comes first; this one is not used", first.display()),
        })
    }
}

impl FileState {
    fn objects(&self) -> impl Iterator<Item = &(ObjectRef, u64)> {
        self.documents.iter().flat_map(|document| &document.objects).chain(&self.kept)
    }
}

impl<'a> Update<'a> {
    fn begin(candidate: &'a Candidate, old: FileState) -> Self {
        let known = old.documents.iter().map(|document| (document.text_hash, document.clone())).collect();
        Self {
            path: &candidate.path,
            stamp: candidate.stamp,
            origin: candidate.path.display().to_string(),
            old,
            known: Arc::new(known),
            documents: Vec::new(),
            seen: HashSet::new(),
            twice: Vec::new(),
        }
    }

    fn load(&self) -> Content {
        if self.stamp.is_none() {
            return Content::Gone;
        }
        match std::fs::read_to_string(self.path) {
            Ok(text) if text.len() as u64 > GROUP_BYTES => Content::Large(text),
            Ok(text) => Content::Parsed(
                manifest::documents(format_of(self.path), &text)
                    .iter()
                    .map(|document| parse(document, &self.known, &self.origin))
                    .collect(),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Gone,
            Err(error) => Content::Failed(error),
        }
    }

    /// False if the file defined the object before.
    fn claim(&mut self, object_ref: &ObjectRef) -> bool {
        let first = self.seen.insert(object_ref.clone());
        if !first {
            self.twice.push(Refusal {
                object: object_ref.to_string(),
                field: String::new(),
                reason: format!("{} defines it more than once; the first one is used", self.origin),
            });
        }
        first
    }

    /// Decides what becomes of the objects the file had and no longer shows: kept if a document that cannot be read
    /// may be theirs, else gone.
    fn finish(self) -> (FileState, Vec<ObjectRef>) {
        let unnamed = self.documents.iter().any(|document| document.unnamed);
        let unreadable: HashSet<&ObjectRef> =
            self.documents.iter().flat_map(|document| &document.unreadable).collect();
        let (mut kept, mut vanished) = (Vec::new(), Vec::new());
        for (object_ref, hash) in self.old.objects().filter(|(object_ref, _)| !self.seen.contains(object_ref))
        {
            if unnamed || unreadable.contains(object_ref) {
                kept.push((object_ref.clone(), *hash));
            } else {
                vanished.push(object_ref.clone());
            }
        }
        let file = FileState {
            stamp: self.stamp,
            kept,
            faults: self.twice,
            reported: self.old.reported,
            documents: self.documents,
        };
        (file, vanished)
    }
}

/// Parses a document unless the file already had it.
fn parse(document: &Document<'_>, known: &HashMap<u64, Arc<DocumentState>>, origin: &str) -> Outcome {
    let text_hash = document.text_hash();
    if let Some(state) = known.get(&text_hash) {
        return Outcome { state: state.clone(), objects: Vec::new() };
    }
    let Parsed { objects, refusals, unreadable, unnamed } = document.parse(origin);
    let hashed = objects.iter().map(|object| (object.object_ref(), object_hash(object))).collect();
    let state = DocumentState { text_hash, objects: hashed, refusals, unreadable, unnamed };
    Outcome { state: Arc::new(state), objects }
}

/// True if a second thread would cost more than it saves.
fn mostly_known(documents: &[Document<'_>], known: &HashMap<u64, Arc<DocumentState>>) -> bool {
    !known.is_empty()
        && documents.iter().filter(|document| !known.contains_key(&document.text_hash())).nth(8).is_none()
}

/// Reads one object out of a file again; what else the file says is known already.
fn find(path: &Path, object_ref: &ObjectRef) -> Option<(Object, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let origin = path.display().to_string();
    manifest::documents(format_of(path), &text)
        .iter()
        .flat_map(|document| document.parse(&origin).objects)
        .find(|object| object.object_ref() == *object_ref)
        .map(|object| {
            let hash = object_hash(&object);
            (object, hash)
        })
}

/// How many files to read before parsing.
fn group_length(candidates: &[Candidate]) -> usize {
    let mut bytes = 0;
    let within = candidates.iter().take(GROUP_FILES).take_while(|candidate| {
        bytes += candidate.stamp.map_or(0, |stamp| stamp.file.2);
        bytes <= GROUP_BYTES
    });
    within.count().max(1)
}

fn format_of(path: &Path) -> Format {
    if path.extension().is_some_and(|extension| extension == "json") { Format::Json } else { Format::Yaml }
}

/// Hash of what the object says, whatever its text looks like.
fn object_hash(object: &Object) -> u64 {
    let mut hasher = HashWriter(DefaultHasher::new());
    // The writer never fails, and Kubernetes objects have string keys only.
    let _ = match object {
        Object::Service(object) => serde_json::to_writer(&mut hasher, object),
        Object::EndpointSlice(object) => serde_json::to_writer(&mut hasher, object),
        Object::Endpoints(object) => serde_json::to_writer(&mut hasher, object),
        Object::Node(object) => serde_json::to_writer(&mut hasher, object),
        Object::ServiceCidr(object) => serde_json::to_writer(&mut hasher, object),
    };
    hasher.0.finish()
}

struct HashWriter(DefaultHasher);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Maps the items in order, half of them on a second thread if there are enough to pay for it.
fn in_two_threads<T: Sync, R: Send>(items: &[T], map: &(impl Fn(&T) -> R + Sync)) -> Vec<R> {
    if items.len() < 8 {
        return items.iter().map(map).collect();
    }
    let (first, second) = items.split_at(items.len() / 2);
    thread::scope(|scope| {
        let second = scope.spawn(|| second.iter().map(map).collect::<Vec<R>>());
        let mut all: Vec<R> = first.iter().map(map).collect();
        match second.join() {
            Ok(rest) => all.extend(rest),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        all
    })
}
