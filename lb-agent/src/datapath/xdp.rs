//! Puts the XDP program on uplinks, before the tc program of the same device, which stays: it does what XDP leaves.
//! Called by the loop that follows devices, after the tc programs are attached.
//!
//! What must stay true: [`wanted`] alone decides which devices are to have it; a device that cannot have it works by
//! tc, and the reason is kept for operators. The link is pinned as `links/xdp-<ifindex>-<mode>` and its program replaced
//! in place, also that of another ABI version: a device takes one XDP program only.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    str::FromStr,
};

use lb_common::device::DeviceRole;
use serde::{Deserialize, Serialize};

use super::{
    attach_error::AttachError,
    bpf::{self, AttachType, LinkTarget},
    devices::Receiver,
    links::remove_link,
    pins::{Pins, versions_in},
};

/// How XDP is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where that is a gain, else tc.
    #[default]
    Auto,
    /// In the driver of every uplink that can.
    Native,
    /// In the kernel's receive path of every uplink: for tests, faster than nothing only.
    Generic,
    /// Not at all.
    Off,
}

impl FromStr for XdpMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is none of auto, native, generic, off")),
        }
    }
}

/// Where a device runs the XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpPlace {
    /// Nowhere: tc does everything.
    #[default]
    Off,
    /// In the driver.
    Native,
    /// In the kernel's receive path.
    Generic,
}

impl XdpPlace {
    /// The name operators, pins and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// `XDP_FLAGS_DRV_MODE` or `XDP_FLAGS_SKB_MODE`.
    const fn flags(self) -> u32 {
        match self {
            Self::Native => 4,
            Self::Off | Self::Generic => 2,
        }
    }

    fn pin(self, pins: &Pins, ifindex: u32) -> PathBuf {
        pins.links().join(format!("xdp-{ifindex}-{}", self.name()))
    }
}

/// What became of XDP on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpState {
    /// Where it runs.
    pub place: XdpPlace,
    /// Why there.
    pub reason: String,
}

impl XdpState {
    fn new(place: XdpPlace, reason: impl Into<String>) -> Self {
        Self { place, reason: reason.into() }
    }
}

/// What a device of `role` is to have.
///
/// Hardware, and veth, take a VLAN tag off before XDP sees the frame, where tc is told of it: the frames of VLAN devices could not
/// be told from the device's own.
pub fn wanted(mode: XdpMode, role: DeviceRole, receiver: &Receiver) -> XdpState {
    match (mode, receiver.kind.as_str()) {
        (XdpMode::Off, _) => XdpState::new(XdpPlace::Off, "--xdp off"),
        _ if role != DeviceRole::UPLINK => XdpState::new(XdpPlace::Off, "not an uplink"),
        _ if receiver.has_vlans => {
            XdpState::new(XdpPlace::Off, "VLAN devices above it: XDP may see their frames without the tag")
        }
        (XdpMode::Native, _) => XdpState::new(XdpPlace::Native, "--xdp native"),
        (XdpMode::Generic, _) => XdpState::new(XdpPlace::Generic, "--xdp generic"),
        (XdpMode::Auto, "" | "bond") => XdpState::new(XdpPlace::Native, "the driver can"),
        (XdpMode::Auto, "veth") => {
            XdpState::new(XdpPlace::Off, "veth: XDP in its driver would turn off segmentation offload")
        }
        (XdpMode::Auto, kind) => XdpState::new(XdpPlace::Off, format!("{kind}: a device without a driver")),
    }
}

/// Brings a device's XDP link in line with `state`; `program` is not asked for where none is to run. What the kernel
/// refuses becomes the reason for tc.
pub(super) fn attach<'a>(
    pins: &Pins,
    ifindex: u32,
    state: XdpState,
    program: impl FnOnce() -> Result<BorrowedFd<'a>, String>,
) -> Result<XdpState, AttachError> {
    for other in [XdpPlace::Native, XdpPlace::Generic].into_iter().filter(|place| *place != state.place) {
        remove_link(&other.pin(pins, ifindex))?;
    }
    if state.place == XdpPlace::Off {
        return Ok(state);
    }
    let refused = match program() {
        Ok(program) => match link(pins, ifindex, state.place, program) {
            Ok(()) => return Ok(state),
            Err(error) => format!("{} XDP was refused: {error}", state.place.name()),
        },
        Err(error) => error,
    };
    remove_link(&state.place.pin(pins, ifindex))?;
    Ok(XdpState::new(XdpPlace::Off, refused))
}

/// Takes the XDP program off a device.
pub(super) fn detach(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    [XdpPlace::Native, XdpPlace::Generic]
        .into_iter()
        .try_for_each(|place| remove_link(&place.pin(pins, ifindex)))
}

/// Lets the device run `program`. A device that is free gets a link; the pin may then be one of a former device of the
/// same number. One that is busy has a link of ours, which is pinned here or by another version, or it is not ours.
fn link(pins: &Pins, ifindex: u32, place: XdpPlace, program: BorrowedFd<'_>) -> io::Result<()> {
    let ours = place.pin(pins, ifindex);
    match bpf::link_xdp(program, ifindex, place.flags()) {
        Ok(link) => pin_over(&link, &ours),
        Err(busy) if busy.raw_os_error() == Some(libc::EBUSY) => {
            let others = pins.dir().parent().map(versions_in).unwrap_or_default();
            let theirs = others.iter().map(|pins| place.pin(pins, ifindex)).filter(|pin| *pin != ours);
            for pin in std::iter::once(ours.clone()).chain(theirs) {
                if let Some(link) = updated(&pin, ifindex, program) {
                    return if pin == ours { Ok(()) } else { move_pin(&link, pin, &ours) };
                }
            }
            Err(busy)
        }
        Err(error) => Err(error),
    }
}

/// The link pinned at `pin`, if it is the device's; it then runs `program`.
fn updated(pin: &std::path::Path, ifindex: u32, program: BorrowedFd<'_>) -> Option<OwnedFd> {
    let link = bpf::open_pin(pin).ok()?;
    let info = bpf::link_info(link.as_fd()).ok()?;
    let is_here = info.target == LinkTarget::Device(ifindex) && info.attach_type == AttachType::XDP;
    (is_here && bpf::link_update(link.as_fd(), program).is_ok()).then_some(link)
}

fn move_pin(link: &OwnedFd, from: PathBuf, to: &std::path::Path) -> io::Result<()> {
    pin_over(link, to)?;
    fs::remove_file(from)
}

fn pin_over(link: &OwnedFd, path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bpf::pin(link.as_fd(), path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdp_runs_in_drivers_of_uplinks_unless_told_otherwise() {
        let (uplink, workload) = (DeviceRole::UPLINK, DeviceRole::WORKLOAD);
        let rows = [
            (XdpMode::Auto, uplink, "", XdpPlace::Native),
            (XdpMode::Auto, uplink, "bond", XdpPlace::Native),
            (XdpMode::Auto, uplink, "veth", XdpPlace::Off),
            (XdpMode::Auto, uplink, "vlan", XdpPlace::Off),
            (XdpMode::Auto, workload, "", XdpPlace::Off),
            (XdpMode::Native, uplink, "veth", XdpPlace::Native),
            (XdpMode::Native, workload, "veth", XdpPlace::Off),
            (XdpMode::Native, DeviceRole::OVERLAY, "vxlan", XdpPlace::Off),
            (XdpMode::Generic, uplink, "", XdpPlace::Generic),
            (XdpMode::Off, uplink, "", XdpPlace::Off),
        ];
        for (mode, role, kind, expected) in rows {
            let mut receiver = Receiver { kind: kind.into(), has_vlans: false };
            let state = wanted(mode, role, &receiver);
            assert_eq!(state.place, expected, "{mode:?} {} {kind}", role.name());
            assert!(!state.reason.is_empty());
            receiver.has_vlans = true;
            assert_eq!(wanted(mode, role, &receiver).place, XdpPlace::Off, "{mode:?} below a VLAN");
        }
    }

    #[test]
    fn modes_are_read_by_name() {
        assert_eq!("native".parse(), Ok(XdpMode::Native));
        assert!("driver".parse::<XdpMode>().is_err());
    }
}
