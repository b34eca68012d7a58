//! Filters of clsact qdiscs, for kernels without tcx: what we added to a device is on record in the pin directory.

use std::{ffi::CString, fs, path::PathBuf};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};

use super::{attach_error::AttachError, hook::Hook, pins::Pins};

/// Priority of our clsact filters: before those that `tc` numbers by itself (49152 and down).
const CLSACT_PRIORITY: u16 = 1;
/// Handle of our clsact filters.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x1b);

/// Adds the clsact qdisc where there is none, and records whether we did. The record comes first, so that a crash in
/// between leaves nothing that `cleanup` cannot find.
pub(super) fn add_clsact(pins: &Pins, ifindex: u32, name: &str) -> Result<(), AttachError> {
    let record = ClsactRecord { ifindex, name: name.to_owned(), added: true };
    let known = ClsactRecord::read(pins, ifindex).is_some_and(|known| known.name == name);
    if !known {
        record.write(pins)?;
    }
    match tc::qdisc_add_clsact(name) {
        Ok(()) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            if known {
                Ok(())
            } else {
                ClsactRecord { added: false, ..record }.write(pins)
            }
        }
        Err(source) => Err(AttachError::Qdisc { device: name.to_owned(), source }),
    }
}

/// Replaces our filter on a hook, or adds it. The filter stays when the returned link is forgotten.
pub(super) fn fill_filter(
    program: &mut SchedClassifier,
    device: &str,
    hook: TcAttachType,
) -> Result<(), ProgramError> {
    let there = SchedClassifierLink::attached(device, hook, CLSACT_PRIORITY, CLSACT_HANDLE, None)
        .map_err(TcError::IoError)?;
    let id = match program.attach_to_link(there) {
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::ENOENT) =>
        {
            let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
            program.attach_with_options(device, hook, TcAttachOptions::Netlink(options))
        }
        other => other,
    }?;
    // Dropping the link would remove the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes our filters from a device and the record of them, if there is one. The qdisc stays: it costs nothing, and
/// `cleanup` removes it.
pub(super) fn detach_clsact(pins: &Pins, ifindex: u32) {
    if let Some(record) = ClsactRecord::read(pins, ifindex) {
        record.remove_filters();
        if !record.added || name_of(ifindex).is_none() {
            record.remove(pins);
        }
    }
}

/// What we did to a device's clsact qdisc, kept as the target of a symbolic link in the pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClsactRecord {
    pub(super) ifindex: u32,
    pub(super) name: String,
    /// True if the qdisc is ours.
    pub(super) added: bool,
}

impl ClsactRecord {
    fn path(pins: &Pins, ifindex: u32) -> PathBuf {
        pins.clsact().join(ifindex.to_string())
    }

    pub(super) fn read(pins: &Pins, ifindex: u32) -> Option<Self> {
        let target = fs::read_link(Self::path(pins, ifindex)).ok()?;
        let (how, name) = target.to_str()?.split_once(':')?;
        Some(Self { ifindex, name: name.to_owned(), added: how == "added" })
    }

    pub(super) fn write(&self, pins: &Pins) -> Result<(), AttachError> {
        let path = Self::path(pins, self.ifindex);
        let error =
            |source| AttachError::Link { what: "record clsact filters as", pin: path.clone(), source };
        self.remove(pins);
        let target = format!("{}:{}", if self.added { "added" } else { "found" }, self.name);
        std::os::unix::fs::symlink(target, &path).map_err(error)
    }

    pub(super) fn remove(&self, pins: &Pins) {
        // Absent is what we want.
        let _ = fs::remove_file(Self::path(pins, self.ifindex));
    }

    /// True while the device is the one that was recorded.
    pub(super) fn is_present(&self) -> bool {
        ifindex_of(&self.name) == Some(self.ifindex)
    }

    /// Removes every filter on the device that carries the name of a program of ours; true if there was one.
    pub(super) fn remove_filters(&self) -> bool {
        if !self.is_present() {
            return false;
        }
        let mut removed = false;
        for hook in Hook::ALL {
            for program in hook.programs() {
                removed |= tc::qdisc_detach_program(&self.name, hook.clsact(), program).is_ok();
            }
        }
        removed
    }
}

/// The number of a device, if there is one of that name in this network namespace.
pub(super) fn ifindex_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (ifindex != 0).then_some(ifindex)
}

/// The name of a device, if there is one of that number in this network namespace.
pub(super) fn name_of(ifindex: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    Some(std::ffi::CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned())
}
