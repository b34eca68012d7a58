//! How do manifests in a directory become objects, and stay so while files change? `run` is started by the agent for
//! `--manifests DIR`; one thread reads, parses and sends. What must stay true: a change of one file costs one file;
//! nothing that is wrong in a file, or with the directory, takes away an object that was good before.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::{runtime::Handle, sync::mpsc, task::JoinError};
use tokio_util::sync::CancellationToken;

use super::{
    Change, Kind, Refusal,
    inventory::{Candidate, Inventory, Outlet, Stamp, Stopped},
};

/// A file that was not closed or renamed into place, which would say that it is whole, is read after this quiet time.
const QUIET: Duration = Duration::from_millis(20);
/// A file that is written without pause is read after this time all the same.
const QUIET_MAX: Duration = Duration::from_millis(200);
/// All files are compared with their stamps this often: catches what inotify cannot see, as a change behind a symlink.
const RESCAN: Duration = Duration::from_secs(10);
/// As [`RESCAN`] while the directory is missing.
const RESCAN_MISSING: Duration = Duration::from_secs(1);

/// Why the file source cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum FileSourceError {
    /// No absolute path.
    #[error("find the manifests directory {}: {source}", dir.display())]
    Directory {
        /// As given.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No inotify instance.
    #[error("start inotify to watch {}: {source}; see fs.inotify.max_user_instances", dir.display())]
    Inotify {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// The reading thread died.
    #[error("the thread that reads {} ended: {source}", dir.display())]
    Thread {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: JoinError,
    },
}

/// A directory of manifests: `*.yaml`, `*.yml` and `*.json`, not in subdirectories, not hidden.
#[derive(Clone, Debug)]
pub struct FileSource {
    dir: PathBuf,
}

impl FileSource {
    /// A source for this directory. It may appear later; nothing is [`Change::Synced`] before it is there.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Sends what the directory holds, [`Change::Synced`] for every kind, then what changes, until `stop`.
    pub async fn run(
        self,
        changes: mpsc::Sender<Change>,
        stop: CancellationToken,
    ) -> Result<(), FileSourceError> {
        let dir = std::path::absolute(&self.dir)
            .map_err(|source| FileSourceError::Directory { dir: self.dir.clone(), source })?;
        let (messages, inbox) = std_mpsc::channel();
        let outlet = Outlet { changes, stop: stop.clone(), runtime: Handle::current() };
        let watch = DirectoryWatch::new(dir.clone(), messages.clone())?;
        let reader = Reader::new(dir.clone(), watch, Inventory::new(outlet));
        let bell = Bell(messages);
        let mut thread = tokio::task::spawn_blocking(move || reader.run(&inbox));
        let ended = tokio::select! {
            ended = &mut thread => ended,
            () = stop.cancelled() => {
                drop(bell);
                thread.await
            }
        };
        ended.map_err(|source| FileSourceError::Thread { dir, source })
    }
}

enum Message {
    Event(notify::Result<notify::Event>),
    Stop,
}

/// Tells the thread to stop when `run` ends, also when it is dropped: a runtime waits for its threads.
struct Bell(std_mpsc::Sender<Message>);

impl Drop for Bell {
    fn drop(&mut self) {
        // A reader that has ended by itself has dropped the inbox.
        let _ = self.0.send(Message::Stop);
    }
}

/// The inotify watches: on the directory, and on its parent to see it come and go.
struct DirectoryWatch {
    watcher: RecommendedWatcher,
    dir: PathBuf,
    /// Device and inode that the watch is on; the path may come to mean another directory.
    watched: Option<(u64, u64)>,
    parent_watched: bool,
}

impl DirectoryWatch {
    fn new(dir: PathBuf, messages: std_mpsc::Sender<Message>) -> Result<Self, FileSourceError> {
        let watcher = notify::recommended_watcher(move |event| {
            // The reader is gone when the source stops; its last events matter to nobody.
            let _ = messages.send(Message::Event(event));
        });
        match watcher {
            Ok(watcher) => Ok(Self { watcher, dir, watched: None, parent_watched: false }),
            Err(source) => Err(FileSourceError::Inotify { dir, source }),
        }
    }

    /// Makes sure that the watch is on the directory the path means now.
    fn follow(&mut self, directory: Option<(u64, u64)>) {
        if !self.parent_watched
            && let Some(parent) = self.dir.parent()
        {
            self.parent_watched = self.watcher.watch(parent, RecursiveMode::NonRecursive).is_ok();
        }
        if self.watched == directory {
            return;
        }
        // Fails if the directory is gone, and the watch with it.
        let _ = self.watcher.unwatch(&self.dir);
        self.watched = None;
        if directory.is_some() {
            match self.watcher.watch(&self.dir, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched = directory,
                Err(error) => {
                    tracing::warn!(dir = %self.dir.display(), %error, "cannot watch; looking every {RESCAN:?} instead");
                }
            }
        }
    }
}

/// What is to be looked at, and when.
struct Pending {
    paths: BTreeMap<Arc<Path>, Due>,
    /// The manifest last renamed, with inotify's cookie.
    renamed: Option<(usize, PathBuf)>,
    rescan_at: Instant,
}

#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    first: Instant,
}

impl Pending {
    fn note_file(&mut self, path: PathBuf, whole: bool, now: Instant) {
        let due = self.paths.entry(path.into()).or_insert(Due { at: now, first: now });
        due.at = if whole { now } else { (now + QUIET).min(due.first + QUIET_MAX) };
    }

    fn note_rescan(&mut self, now: Instant) {
        self.rescan_at = self.rescan_at.min(now + QUIET);
    }

    fn next(&self) -> Instant {
        self.paths.values().map(|due| due.at).fold(self.rescan_at, Instant::min)
    }

    fn take_due(&mut self, now: Instant) -> Vec<Arc<Path>> {
        let mut due = Vec::new();
        self.paths.retain(|path, entry| {
            let is_due = entry.at <= now;
            if is_due {
                due.push(path.clone());
            }
            !is_due
        });
        due
    }
}

struct Reader {
    dir: PathBuf,
    watch: DirectoryWatch,
    inventory: Inventory,
    pending: Pending,
    /// What is wrong with the directory itself, as last reported.
    fault: Option<String>,
    synced: bool,
}

impl Reader {
    fn new(dir: PathBuf, watch: DirectoryWatch, inventory: Inventory) -> Self {
        let pending = Pending { paths: BTreeMap::new(), renamed: None, rescan_at: Instant::now() };
        Self { dir, watch, inventory, pending, fault: None, synced: false }
    }

    /// Ends when told to, or when nobody listens any more.
    fn run(mut self, inbox: &std_mpsc::Receiver<Message>) {
        while self.look().is_ok() {
            let timeout = self.pending.next().saturating_duration_since(Instant::now());
            match inbox.recv_timeout(timeout) {
                Ok(message) => {
                    let mut messages = std::iter::once(message).chain(inbox.try_iter());
                    if !messages.all(|message| self.note(message)) {
                        return;
                    }
                }
                Err(std_mpsc::RecvTimeoutError::Timeout) => {}
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// False: stop.
    fn note(&mut self, message: Message) -> bool {
        let now = Instant::now();
        match message {
            Message::Stop => return false,
            Message::Event(Ok(event)) if !event.need_rescan() => {
                self.note_rename(&event, now);
                let kind = event.kind;
                event.paths.into_iter().for_each(|path| self.note_path(path, kind, now));
            }
            // Lost events and watch errors alike: look at everything.
            Message::Event(_) => self.pending.note_rescan(now),
        }
        true
    }

    /// A manifest that gets another manifest's name: the old name is due together with the new one, or its objects
    /// would for a moment be defined twice.
    fn note_rename(&mut self, event: &notify::Event, now: Instant) {
        let (Some(cookie), [path]) = (event.tracker(), event.paths.as_slice()) else { return };
        match event.kind {
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) if is_manifest(path) => {
                self.pending.renamed = Some((cookie, path.clone()));
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) if is_manifest(path) => {
                if let Some((_, old)) = self.pending.renamed.take().filter(|renamed| renamed.0 == cookie)
                    && old.parent() == Some(&self.dir)
                {
                    self.pending.note_file(old, true, now);
                }
            }
            _ => {}
        }
    }

    fn note_path(&mut self, path: PathBuf, kind: EventKind, now: Instant) {
        let whole = match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => true,
            // Two paths; each is told of by itself as well.
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return,
            _ => false,
        };
        if path == self.dir {
            self.pending.note_rescan(now);
        } else if path.parent() != Some(&self.dir) {
            // A neighbour of the directory.
        } else if is_manifest(&path) {
            self.pending.note_file(path, whole, now);
        } else if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
            // A symlink through which manifests may be reached, as `..data` of a ConfigMap volume.
            self.pending.note_rescan(now);
        }
    }

    /// Looks at what is due.
    fn look(&mut self) -> Result<(), Stopped> {
        let now = Instant::now();
        if self.pending.rescan_at <= now {
            return self.rescan();
        }
        let candidates: Vec<Candidate> = self.pending.take_due(now).into_iter().map(candidate).collect();
        if candidates.is_empty() || self.fault.is_some() {
            return Ok(());
        }
        self.inventory.refresh(&candidates)
    }

    /// Compares every file with what is known of it. The watch comes first: what happens after it is an event, what
    /// happened before is seen.
    fn rescan(&mut self) -> Result<(), Stopped> {
        let directory = std::fs::metadata(&self.dir).and_then(|metadata| {
            if metadata.is_dir() {
                Ok((metadata.dev(), metadata.ino()))
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        self.watch.follow(directory.as_ref().ok().copied());
        match directory.and_then(|_| self.changed_files()) {
            Ok(candidates) => {
                self.pending.rescan_at = Instant::now() + RESCAN;
                self.report(None)?;
                self.inventory.refresh(&candidates)?;
                self.announce()
            }
            Err(error) => {
                self.pending.rescan_at = Instant::now() + RESCAN_MISSING;
                self.report(Some(format!(
                    "cannot be read: {error}; what it held stays in force until it can"
                )))
            }
        }
    }

    fn changed_files(&self) -> io::Result<Vec<Candidate>> {
        let mut present = HashSet::new();
        let mut candidates = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path: Arc<Path> = entry?.path().into();
            if !is_manifest(&path) {
                continue;
            }
            let candidate = candidate(path.clone());
            if candidate.stamp.is_some() {
                // One that is being written is due by itself, when it is whole.
                if candidate.stamp != self.inventory.stamp(&path) && !self.pending.paths.contains_key(&path) {
                    candidates.push(candidate);
                }
                present.insert(path);
            }
        }
        let gone = self.inventory.paths().filter(|path| !present.contains(*path)).cloned();
        candidates.extend(gone.map(|path| Candidate { path, stamp: None }));
        candidates.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(candidates)
    }

    fn report(&mut self, fault: Option<String>) -> Result<(), Stopped> {
        if fault == self.fault {
            return Ok(());
        }
        let origin = self.dir.display().to_string();
        let refusal = |reason: &String| Refusal {
            object: origin.clone(),
            field: String::new(),
            reason: reason.clone(),
        };
        let refusals = fault.iter().map(refusal).collect();
        self.fault = fault;
        self.inventory.outlet().send(Change::Unreadable { origin, refusals })
    }

    fn announce(&mut self) -> Result<(), Stopped> {
        if std::mem::replace(&mut self.synced, true) {
            return Ok(());
        }
        self.inventory.outlet().send(Change::EveryNode)?;
        Kind::ALL.into_iter().try_for_each(|kind| self.inventory.outlet().send(Change::Synced(kind)))
    }
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The file with the stamp it has now, taken before it is read: a change in between gives another stamp.
fn candidate(path: Arc<Path>) -> Candidate {
    let stamp = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file).map(|metadata| Stamp {
        file: (metadata.dev(), metadata.ino(), metadata.len()),
        times_ns: (
            i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
        ),
    });
    Candidate { path, stamp }
}
