//! Links: pinned, found again, replaced in place, removed.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use super::{
    attach_error::AttachError,
    bpf::{self, AttachType, LinkTarget},
    hook::Hook,
    pins::Pins,
};

/// A hook that is held by a pinned link.
pub(super) struct LinkSlot {
    /// Where the link is pinned.
    pub(super) pin: PathBuf,
    /// The device, or the cgroup.
    pub(super) target: LinkTarget,
    /// Which hook of it.
    pub(super) attach_type: AttachType,
}

impl LinkSlot {
    /// Lets the slot's link run `program`; makes it with `create` where there is none, or where the pinned one
    /// belongs to something else (ifindexes are used again, cgroups are removed and made anew).
    pub(super) fn fill(
        &self,
        program: BorrowedFd<'_>,
        create: impl FnOnce() -> io::Result<std::os::fd::OwnedFd>,
    ) -> Result<(), AttachError> {
        let error = |what| move |source| AttachError::Link { what, pin: self.pin.clone(), source };
        match bpf::open_pin(&self.pin) {
            Ok(link) if self.is_held_by(link.as_fd()) && bpf::link_update(link.as_fd(), program).is_ok() => {
                return Ok(());
            }
            Ok(_) => remove_link(&self.pin)?,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error("open pinned link")(source)),
        }
        let link = create().map_err(error("create link"))?;
        bpf::pin(link.as_fd(), &self.pin).map_err(error("pin link"))
    }

    /// True if `link` is on this hook. A device is asked itself: another network namespace may have one with the
    /// same ifindex.
    fn is_held_by(&self, link: BorrowedFd<'_>) -> bool {
        let Ok(info) = bpf::link_info(link) else { return false };
        let on_device = |ifindex| {
            bpf::query_device(ifindex, self.attach_type)
                .is_ok_and(|attached| attached.iter().any(|&(_, link)| link == info.id))
        };
        info.target == self.target
            && info.attach_type == self.attach_type
            && match self.target {
                LinkTarget::Device(ifindex) => on_device(ifindex),
                LinkTarget::Cgroup(_) | LinkTarget::Other => true,
            }
    }
}

/// Detaches and unpins a link. One that is not there is fine.
pub(super) fn remove_link(pin: &Path) -> Result<(), AttachError> {
    let error = |what| move |source| AttachError::Link { what, pin: pin.to_owned(), source };
    match bpf::open_pin(pin) {
        Ok(link) => {
            // Fails for a link whose device or cgroup is gone: then there is nothing to detach it from.
            let _ = bpf::link_detach(link.as_fd());
            fs::remove_file(pin).map_err(error("unpin link"))
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(error("open pinned link")(source)),
    }
}

/// The pin of a device's tcx link.
pub(super) fn tcx_pin(pins: &Pins, ifindex: u32, hook: Hook) -> PathBuf {
    pins.links().join(format!("tc-{ifindex}-{}", hook.name()))
}

/// Removes both tcx links of a device.
pub(super) fn remove_tcx_links(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    Hook::ALL.iter().try_for_each(|&hook| remove_link(&tcx_pin(pins, ifindex, hook)))
}

/// The ifindex in the name of a device link's pin.
pub(super) fn ifindex_of_pin(pin: &str) -> Option<u32> {
    pin.strip_prefix("tc-").or_else(|| pin.strip_prefix("xdp-"))?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_its_device() {
        assert_eq!(ifindex_of_pin("tc-12-ingress"), Some(12));
        assert_eq!(ifindex_of_pin("xdp-7-native"), Some(7));
        assert_eq!(ifindex_of_pin("sock_connect4"), None);
        assert_eq!(ifindex_of_pin("tc-x-ingress"), None);
    }
}
