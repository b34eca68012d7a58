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
    fs::File,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::programs::{Program, SchedClassifier, Xdp};
use lb_common::device::{DeviceFlags, DeviceRole};
use serde::{Deserialize, Serialize};

use super::{
    attach_error::AttachError,
    bpf::{self, AttachType, LinkTarget},
    clsact::{add_clsact, detach_clsact, fill_filter, ifindex_of},
    devices::Receiver,
    hook::{AttachMode, Hook, Mechanism},
    kernel::Release,
    links::{LinkSlot, ifindex_of_pin, remove_link, remove_tcx_links, tcx_pin},
    load::{self, Datapath, LoadError},
    pins::{self, Pins, names_in},
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

    /// Attaches the XDP program to a device that has its tc programs, if it is to have it.
    pub fn attach_xdp(
        &mut self,
        ifindex: u32,
        role: DeviceRole,
        receiver: &Receiver,
    ) -> Result<(), AttachError> {
        let wanted = xdp::wanted(self.xdp, role, receiver);
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

fn pinned_devices(pins: &Pins) -> Vec<u32> {
    let tcx = names_in(&pins.links()).filter_map(|name| ifindex_of_pin(&name));
    let clsact = names_in(&pins.clsact()).filter_map(|name| name.parse().ok());
    let mut devices: Vec<u32> = tcx.chain(clsact).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}
