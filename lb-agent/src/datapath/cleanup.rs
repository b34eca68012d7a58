//! Removes every trace of the datapath from the kernel: links, clsact filters and qdiscs, maps, pins, directories, of
//! this and of every other ABI version. Called by `lb-agent cleanup`, in the network namespace of the agent.
//!
//! What must stay true: it needs nothing but the pin directory, may be repeated, goes on after a failure, and says
//! what it removed. It never runs beside an agent that uses the directory.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use futures::TryStreamExt as _;
use rtnetlink::{Handle, packet_route::tc::TcHandle};
use serde::Serialize;

use super::{
    bpf::{self, LinkTarget},
    clsact::{ClsactRecord, name_of},
    links::remove_link,
    pins::{Lock, Pins, PinsError, names_in, versions_in},
};

/// What a cleanup did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    /// What is gone, one line each.
    pub removed: Vec<String>,
    /// What is still there, and why.
    pub failed: Vec<String>,
}

impl Cleaned {
    fn note(&mut self, what: String, result: io::Result<()>) {
        match result {
            Ok(()) => self.removed.push(what),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }
}

/// Removes everything under `pin_dir`. A directory that does not exist is clean.
pub async fn cleanup(pin_dir: &Path) -> Result<Cleaned, PinsError> {
    let mut cleaned = Cleaned::default();
    let versions = versions_in(pin_dir);
    let locks: Vec<Lock> = versions.iter().map(Pins::lock).collect::<Result<_, _>>()?;
    for pins in &versions {
        remove_links(pins, &mut cleaned);
        remove_clsact(pins, &mut cleaned).await;
        remove_maps(pins, &mut cleaned);
    }
    drop(locks);
    versions.iter().for_each(|pins| remove_directories(pins, &mut cleaned));
    // Not ours to remove if something else lives there, or if it is the mount itself.
    if fs::remove_dir(pin_dir).is_ok() {
        cleaned.removed.push(format!("directory {}", pin_dir.display()));
    }
    Ok(cleaned)
}

/// Removes what agents of other ABI versions left, once the programs of `current` are attached everywhere: until then
/// the former ones serve. clsact filters need no removal, because ours have replaced them; the record of who added
/// the qdisc moves over.
pub async fn retire_other_versions(pin_dir: &Path, current: &Pins) -> Result<Cleaned, PinsError> {
    let mut cleaned = Cleaned::default();
    for pins in versions_in(pin_dir).iter().filter(|pins| *pins != current) {
        let lock = pins.lock()?;
        remove_links(pins, &mut cleaned);
        for record in clsact_records(pins) {
            if let Some(ours) = ClsactRecord::read(current, record.ifindex) {
                let merged = ClsactRecord { added: ours.added || record.added, ..ours };
                cleaned.note(
                    format!("record of {}", record.name),
                    merged.write(current).map_err(io::Error::other),
                );
                record.remove(pins);
            }
        }
        remove_clsact(pins, &mut cleaned).await;
        remove_maps(pins, &mut cleaned);
        drop(lock);
        remove_directories(pins, &mut cleaned);
    }
    Ok(cleaned)
}

fn remove_directories(pins: &Pins, cleaned: &mut Cleaned) {
    for dir in [pins.links(), pins.clsact(), pins.dir().to_owned()] {
        cleaned.note(format!("directory {}", dir.display()), fs::remove_dir(&dir));
    }
}

fn clsact_records(pins: &Pins) -> Vec<ClsactRecord> {
    names_in(&pins.clsact()).filter_map(|name| ClsactRecord::read(pins, name.parse().ok()?)).collect()
}

fn remove_links(pins: &Pins, cleaned: &mut Cleaned) {
    for name in names_in(&pins.links()) {
        let pin = pins.links().join(&name);
        let what = format!("link {name}{}", describe(&pin));
        cleaned.note(what, remove_link(&pin).map_err(io::Error::other));
    }
}

/// Where a pinned link is attached, in words.
fn describe(pin: &Path) -> String {
    let info = bpf::open_pin(pin).and_then(|link| bpf::link_info(link.as_fd()));
    match info.map(|info| info.target) {
        Ok(LinkTarget::Device(0) | LinkTarget::Cgroup(0)) => " (what it was attached to is gone)".to_owned(),
        Ok(LinkTarget::Device(ifindex)) => {
            format!(" on {}", name_of(ifindex).unwrap_or_else(|| format!("ifindex {ifindex}")))
        }
        Ok(LinkTarget::Cgroup(id)) => format!(" on cgroup {id}"),
        Ok(LinkTarget::Other) | Err(_) => String::new(),
    }
}

async fn remove_clsact(pins: &Pins, cleaned: &mut Cleaned) {
    for record in clsact_records(pins) {
        if record.remove_filters() {
            cleaned.removed.push(format!("clsact filters on {}", record.name));
        }
        if record.added && record.is_present() {
            match remove_qdisc(record.ifindex).await {
                Ok(true) => cleaned.removed.push(format!("clsact qdisc of {}", record.name)),
                Ok(false) => {}
                Err(error) => cleaned.failed.push(format!("clsact qdisc of {}: {error}", record.name)),
            }
        }
        record.remove(pins);
    }
}

/// Removes the clsact qdisc of a device; false if others' filters use it, or it is gone.
async fn remove_qdisc(ifindex: u32) -> io::Result<bool> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = remove_empty_qdisc(&handle, ifindex as i32).await;
    connection.abort();
    result.map_err(io::Error::other)
}

async fn remove_empty_qdisc(handle: &Handle, ifindex: i32) -> Result<bool, rtnetlink::Error> {
    let mut filters = handle.traffic_filter(ifindex);
    let ingress = filters.get().ingress().execute().try_next().await;
    let egress = filters.get().egress().execute().try_next().await;
    if !matches!((ingress, egress), (Ok(None), Ok(None))) {
        return Ok(false);
    }
    let mut request = handle.qdisc().del(ifindex);
    let header = &mut request.message_mut().header;
    header.parent = TcHandle::CLSACT;
    header.handle = TcHandle { major: 0xffff, minor: 0 };
    request.execute().await.map(|()| true)
}

fn remove_maps(pins: &Pins, cleaned: &mut Cleaned) {
    for name in names_in(pins.dir()) {
        let path = pins.dir().join(&name);
        if !path.is_dir() {
            cleaned.note(format!("map {name}"), fs::remove_file(&path));
        }
    }
}
