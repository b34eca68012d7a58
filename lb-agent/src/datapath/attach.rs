//! Puts the programs on their hooks: socket programs on a cgroup, tc programs on devices. Called by the loop that
//! follows devices, and once for the cgroup.
//!
//! What must stay true: a hook that runs a program of ours runs exactly one, before, during and after a restart;
//! nothing here is undone when the agent ends.
//!
//! | hook | held by | found again by | replaced by |
//! |---|---|---|---|
//! | cgroup | link, pinned | pin, checked against the cgroup's id | BPF_LINK_UPDATE |
//! | device, XDP | link, pinned ([`super::xdp`]) | pin, by the device being busy | BPF_LINK_UPDATE |
//! | device, Linux ≥ 6.6 | tcx link, pinned | pin, checked against the ifindex | BPF_LINK_UPDATE |
//! | device, before | filter of a clsact qdisc | priority and handle, fixed | RTM_NEWTFILTER without NLM_F_CREATE |

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    str::FromStr,
};

use aya::programs::{
    Program, ProgramError, SchedClassifier, TcAttachType, Xdp,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use lb_common::device::{DeviceFlags, DeviceRole};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    bpf::{self, AttachType, LinkTarget},
    kernel::Release,
    load::{self, Datapath, LoadError},
    pins::{self, Pins},
    xdp::{self, XdpMode, XdpState},
};

/// The socket programs and their hooks.
pub const CGROUP_PROGRAMS: [(&str, AttachType); 8] = [
    ("sock_connect4", AttachType::CONNECT4),
    ("sock_connect6", AttachType::CONNECT6),
    ("sock_sendmsg4", AttachType::SENDMSG4),
    ("sock_sendmsg6", AttachType::SENDMSG6),
    ("sock_recvmsg4", AttachType::RECVMSG4),
    ("sock_recvmsg6", AttachType::RECVMSG6),
    ("sock_getpeername4", AttachType::GETPEERNAME4),
    ("sock_getpeername6", AttachType::GETPEERNAME6),
];

/// Priority of our clsact filters: before those that `tc` numbers by itself (49152 and down).
const CLSACT_PRIORITY: u16 = 1;
/// Handle of our clsact filters.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x1b);

/// What can go wrong when a program is attached or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The object has no such program.
    #[error("the datapath has no program {0}")]
    NoProgram(String),
    /// The verifier refused a program that is loaded with the first device that wants it.
    #[error(transparent)]
    Load(LoadError),
    /// The cgroup directory cannot be opened.
    #[error("open cgroup {path}: {source}; give the cgroup v2 mount with --cgroup")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a link.
    #[error("{what} {pin}: {source}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// Pin of the link.
        pin: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused the qdisc.
    #[error("add a clsact qdisc to {device}: {source}")]
    Qdisc {
        /// The device.
        device: String,
        /// Why not.
        source: TcError,
    },
    /// The kernel refused the filter.
    #[error("attach {program} to the clsact qdisc of {device}: {source}")]
    Filter {
        /// The device.
        device: String,
        /// The program.
        program: String,
        /// Why not.
        source: Box<ProgramError>,
    },
    /// The device went away meanwhile.
    #[error("device {0} is gone")]
    Gone(String),
}

/// How tc programs are to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// tcx where the kernel has it, else clsact.
    #[default]
    Auto,
    /// tcx or nothing.
    Tcx,
    /// clsact.
    Clsact,
}

impl FromStr for AttachMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            _ => Err(format!("{text:?} is none of auto, tcx, clsact")),
        }
    }
}

/// What holds a tc program on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// A tcx link.
    Tcx,
    /// A filter of a clsact qdisc.
    Clsact,
}

impl Mechanism {
    /// Its name in metrics and listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Direction of a device's hook, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets the device received.
    Ingress,
    /// Packets it is about to send.
    Egress,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Its name in pins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Every program that may be there.
    const fn programs(self) -> [&'static str; 3] {
        match self {
            Self::Ingress => ["tc_uplink_ingress", "tc_l3_ingress", "tc_workload_ingress"],
            Self::Egress => ["tc_uplink_egress", "tc_l3_egress", "tc_workload_egress"],
        }
    }

    /// The program for a device of `role`. Overlay devices are treated as uplinks; those without link-layer header have
    /// programs of their own.
    pub const fn program(self, role: DeviceRole, flags: DeviceFlags) -> &'static str {
        let [uplink, l3, workload] = self.programs();
        match role {
            DeviceRole::WORKLOAD => workload,
            _ if flags.has(DeviceFlags::L3) => l3,
            _ => uplink,
        }
    }

    const fn tcx(self) -> AttachType {
        match self {
            Self::Ingress => AttachType::TCX_INGRESS,
            Self::Egress => AttachType::TCX_EGRESS,
        }
    }

    const fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// What is attached to a device: a program at each hook.
type Programs = [(Hook, &'static str); 2];

/// A device that has our programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its name.
    pub device: String,
    /// Its number.
    pub ifindex: u32,
    /// `uplink`, `workload` or `overlay`.
    pub role: String,
    /// What holds the programs.
    pub mechanism: Mechanism,
    /// Why this mechanism.
    pub reason: String,
    /// Whether XDP sees packets before them.
    #[serde(default)]
    pub xdp: XdpState,
}

/// The loaded programs and what they are attached to.
#[derive(Debug)]
pub struct Attacher {
    datapath: Datapath,
    mode: AttachMode,
    xdp: XdpMode,
    attachments: BTreeMap<u32, Attachment>,
    failures: Vec<String>,
}

impl Attacher {
    /// For the programs of `datapath`.
    pub fn new(datapath: Datapath, mode: AttachMode) -> Self {
        let xdp = XdpMode::Off;
        Self { datapath, mode, xdp, attachments: BTreeMap::new(), failures: Vec::new() }
    }

    /// The same with XDP programs where `mode` says.
    #[must_use]
    pub fn with_xdp(self, mode: XdpMode) -> Self {
        Self { xdp: mode, ..self }
    }

    /// The devices attached by this process.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.values()
    }

    /// What could not be attached, and why, as of the last try.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Notes what could not be attached.
    pub fn set_failures(&mut self, failures: Vec<String>) {
        self.failures = failures;
    }

    /// Loads the programs of a datapath that has its maps only; before anything is attached.
    pub fn load_programs(&mut self) -> Result<(), LoadError> {
        self.datapath.load_programs()
    }

    /// The loaded datapath.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Attaches the socket programs to `cgroup`, or replaces those that a former agent attached there.
    pub fn attach_cgroup(&self, cgroup: &Path) -> Result<(), AttachError> {
        let error = |source| AttachError::Cgroup { path: cgroup.to_owned(), source };
        let dir = File::open(cgroup).map_err(error)?;
        let target = LinkTarget::Cgroup(pins::cgroup_id(cgroup).map_err(error)?);
        for (name, attach_type) in CGROUP_PROGRAMS {
            let program = self.program_fd(name)?;
            let slot = LinkSlot { pin: self.datapath.pins.links().join(name), target, attach_type };
            slot.fill(program, || bpf::link_cgroup(program, dir.as_fd(), attach_type))?;
        }
        Ok(())
    }

    /// Takes the socket programs off whatever cgroup a former agent attached them to.
    pub fn detach_cgroup(&self) -> Result<(), AttachError> {
        CGROUP_PROGRAMS.iter().try_for_each(|(name, _)| remove_link(&self.datapath.pins.links().join(name)))
    }

    /// Attaches the tc programs for `role` to a device, or replaces those that are there. What another mechanism
    /// holds is removed afterwards: for a moment a packet may meet both, which changes nothing, because what was
    /// translated is no longer addressed to a frontend; without either, replies would go out untranslated.
    pub fn attach_device(
        &mut self,
        ifindex: u32,
        name: &str,
        role: DeviceRole,
        flags: DeviceFlags,
    ) -> Result<(), AttachError> {
        let programs = Hook::ALL.map(|hook| (hook, hook.program(role, flags)));
        for (_, program) in programs {
            self.load_classifier(program)?;
        }
        let (mechanism, reason) = match self.mode {
            AttachMode::Clsact => {
                (self.attach_clsact(ifindex, name, &programs)?, "--attach clsact".to_owned())
            }
            AttachMode::Tcx => (self.attach_tcx(ifindex, &programs)?, "--attach tcx".to_owned()),
            AttachMode::Auto => self.attach_auto(ifindex, name, &programs)?,
        };
        match mechanism {
            Mechanism::Tcx => detach_clsact(&self.datapath.pins, ifindex),
            Mechanism::Clsact => remove_tcx_links(&self.datapath.pins, ifindex)?,
        }
        let (device, role, xdp) = (name.to_owned(), role.name().to_owned(), XdpState::default());
        self.attachments.insert(ifindex, Attachment { device, ifindex, role, mechanism, reason, xdp });
        Ok(())
    }

    /// Attaches the XDP program to a device of kernel `kind` that has its tc programs, if it is to have it.
    pub fn attach_xdp(&mut self, ifindex: u32, role: DeviceRole, kind: &str) -> Result<(), AttachError> {
        let wanted = xdp::wanted(self.xdp, role, kind);
        let pins = self.datapath.pins.clone();
        let state = xdp::attach(&pins, ifindex, wanted, || self.xdp_program())?;
        if let Some(attachment) = self.attachments.get_mut(&ifindex) {
            attachment.xdp = state;
        }
        Ok(())
    }

    /// The XDP program, loaded when it is first asked for.
    fn xdp_program(&mut self) -> Result<BorrowedFd<'_>, String> {
        let name = self.datapath.xdp_program_name();
        let program = self.datapath.ebpf.program_mut(name);
        let program = program.and_then(|program| <&mut Xdp>::try_from(program).ok());
        let program = program.ok_or_else(|| AttachError::NoProgram(name.to_owned()).to_string())?;
        if program.fd().is_err() {
            load::patiently(|| program.load())
                .map_err(|source| LoadError::Program { name: name.to_owned(), source }.to_string())?;
        }
        program.fd().map(|fd| fd.as_fd()).map_err(|error| error.to_string())
    }

    /// Takes our programs off a device that no longer has a role.
    pub fn detach_device(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.attachments.remove(&ifindex);
        xdp::detach(&self.datapath.pins, ifindex)?;
        detach_clsact(&self.datapath.pins, ifindex);
        remove_tcx_links(&self.datapath.pins, ifindex)
    }

    /// The devices that have our programs according to the pins, whoever attached them.
    pub fn pinned_devices(&self) -> Vec<u32> {
        pinned_devices(&self.datapath.pins)
    }

    fn attach_auto(
        &mut self,
        ifindex: u32,
        name: &str,
        programs: &Programs,
    ) -> Result<(Mechanism, String), AttachError> {
        let release = self.datapath.release;
        if release < Release::TCX {
            let reason = format!("Linux {release} is older than {}, which brought tcx", Release::TCX);
            return Ok((self.attach_clsact(ifindex, name, programs)?, reason));
        }
        match self.attach_tcx(ifindex, programs) {
            Ok(mechanism) => Ok((mechanism, format!("Linux {release} has tcx"))),
            Err(error @ AttachError::NoProgram(_)) => Err(error),
            Err(error) => {
                Ok((self.attach_clsact(ifindex, name, programs)?, format!("tcx was refused: {error}")))
            }
        }
    }

    fn attach_tcx(&self, ifindex: u32, programs: &Programs) -> Result<Mechanism, AttachError> {
        for &(hook, program) in programs {
            let program = self.program_fd(program)?;
            let slot = LinkSlot {
                pin: tcx_pin(&self.datapath.pins, ifindex, hook),
                target: LinkTarget::Device(ifindex),
                attach_type: hook.tcx(),
            };
            slot.fill(program, || bpf::link_device(program, ifindex, hook.tcx()))?;
        }
        Ok(Mechanism::Tcx)
    }

    fn attach_clsact(
        &mut self,
        ifindex: u32,
        name: &str,
        programs: &Programs,
    ) -> Result<Mechanism, AttachError> {
        if ifindex_of(name) != Some(ifindex) {
            return Err(AttachError::Gone(name.to_owned()));
        }
        add_clsact(&self.datapath.pins, ifindex, name)?;
        for &(hook, program_name) in programs {
            let program = self.classifier(program_name)?;
            fill_filter(program, name, hook.clsact()).map_err(|source| AttachError::Filter {
                device: name.to_owned(),
                program: program_name.to_owned(),
                source: Box::new(source),
            })?;
        }
        Ok(Mechanism::Clsact)
    }

    fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, AttachError> {
        let program = self.datapath.ebpf.program_mut(name);
        let program = program.and_then(|program| <&mut SchedClassifier>::try_from(program).ok());
        program.ok_or_else(|| AttachError::NoProgram(name.to_owned()))
    }

    /// Loads a tc program, unless it is.
    fn load_classifier(&mut self, name: &str) -> Result<(), AttachError> {
        let program = self.classifier(name)?;
        if program.fd().is_ok() {
            return Ok(());
        }
        load::patiently(|| program.load())
            .map_err(|source| AttachError::Load(LoadError::Program { name: name.to_owned(), source }))
    }

    fn program_fd(&self, name: &str) -> Result<BorrowedFd<'_>, AttachError> {
        let fd = match self.datapath.ebpf.program(name) {
            Some(Program::CgroupSockAddr(program)) => program.fd().ok(),
            Some(Program::SchedClassifier(program)) => program.fd().ok(),
            _ => None,
        };
        fd.map(|fd| fd.as_fd()).ok_or_else(|| AttachError::NoProgram(name.to_owned()))
    }
}

/// A hook that is held by a pinned link.
struct LinkSlot {
    pin: PathBuf,
    target: LinkTarget,
    attach_type: AttachType,
}

impl LinkSlot {
    /// Lets the slot's link run `program`; makes it with `create` where there is none, or where the pinned one
    /// belongs to something else (ifindexes are used again, cgroups are removed and made anew).
    fn fill(
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

fn tcx_pin(pins: &Pins, ifindex: u32, hook: Hook) -> PathBuf {
    pins.links().join(format!("tc-{ifindex}-{}", hook.name()))
}

fn remove_tcx_links(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    Hook::ALL.iter().try_for_each(|&hook| remove_link(&tcx_pin(pins, ifindex, hook)))
}

/// The ifindex in the name of a device link's pin.
pub(super) fn ifindex_of_pin(pin: &str) -> Option<u32> {
    pin.strip_prefix("tc-").or_else(|| pin.strip_prefix("xdp-"))?.split('-').next()?.parse().ok()
}

fn pinned_devices(pins: &Pins) -> Vec<u32> {
    let names = |dir: PathBuf| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    let tcx = names(pins.links()).into_iter().filter_map(|name| ifindex_of_pin(&name));
    let clsact = names(pins.clsact()).into_iter().filter_map(|name| name.parse().ok());
    let mut devices: Vec<u32> = tcx.chain(clsact).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// Adds the clsact qdisc where there is none, and records whether we did. The record comes first, so that a crash in
/// between leaves nothing that `cleanup` cannot find.
fn add_clsact(pins: &Pins, ifindex: u32, name: &str) -> Result<(), AttachError> {
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
fn fill_filter(program: &mut SchedClassifier, device: &str, hook: TcAttachType) -> Result<(), ProgramError> {
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
fn detach_clsact(pins: &Pins, ifindex: u32) {
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
fn ifindex_of(name: &str) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_the_programs_that_can_read_its_packets() {
        let (link, no_link) = (DeviceFlags::default(), DeviceFlags::L3);
        assert_eq!(Hook::Ingress.program(DeviceRole::OVERLAY, link), "tc_uplink_ingress");
        assert_eq!(Hook::Egress.program(DeviceRole::UPLINK, link), "tc_uplink_egress");
        assert_eq!(Hook::Egress.program(DeviceRole::WORKLOAD, link), "tc_workload_egress");
        assert_eq!(Hook::Ingress.program(DeviceRole::OVERLAY, no_link), "tc_l3_ingress");
        assert_eq!(Hook::Egress.program(DeviceRole::UPLINK, no_link), "tc_l3_egress");
    }

    #[test]
    fn a_pin_names_its_device() {
        assert_eq!(ifindex_of_pin("tc-12-ingress"), Some(12));
        assert_eq!(ifindex_of_pin("xdp-7-native"), Some(7));
        assert_eq!(ifindex_of_pin("sock_connect4"), None);
        assert_eq!(ifindex_of_pin("tc-x-ingress"), None);
    }

    #[test]
    fn attach_modes_are_read_by_name() {
        assert_eq!("auto".parse(), Ok(AttachMode::Auto));
        assert_eq!("clsact".parse(), Ok(AttachMode::Clsact));
        assert!("xdp".parse::<AttachMode>().is_err());
    }
}
