//! Wires between two namespaces whose ends are devices of this process: packets as no veth pair carries them.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read as _, Write as _},
    os::fd::{AsRawFd as _, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    netns::Namespace,
    offload::{self, Offload},
};

/// The largest packet: what IP can say.
const PACKET_MAX: usize = 65_535;
/// Milliseconds after which an end is looked after again.
const PATIENCE_MS: libc::c_int = 100;

/// What the ends of a wire are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Devices without link-layer header, as those of WireGuard and ipip.
    Tun,
    /// Ethernet devices like those whose drivers leave data where the hardware put it: what is received has no more than its
    /// first 34 bytes in the linear part of its buffer.
    Scattered,
}

/// An Ethernet header and one of IPv4, but not one of IPv6, nor ports.
const LINEAR_BYTES: usize = 34;

/// Carries packets until it is dropped.
#[derive(Debug)]
pub struct Wire {
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes a device called `name` in both namespaces, and carries what one sends to the other.
    pub fn start(name: &str, ends: Ends, [left, right]: [&Namespace; 2]) -> Result<Self> {
        let open = |namespace: &Namespace| -> Result<File> {
            let file = namespace.run(|| open(name, ends))?;
            let file = file.with_context(|| format!("make {name} in {}", namespace.name()))?;
            if ends == Ends::Scattered {
                // Merging what is received, the stack would pull the headers that it looks at into the linear part.
                offload::turn(namespace, name, Offload::Gro, false)?;
            }
            Ok(file)
        };
        let [left, right] = [open(left)?, open(right)?];
        let stop = Arc::new(AtomicBool::new(false));
        let mut carriers = Vec::new();
        for (from, to) in [(left.try_clone()?, right.try_clone()?), (right, left)] {
            let stop = Arc::clone(&stop);
            carriers.push(
                thread::Builder::new().name(name.to_owned()).spawn(move || carry(&from, &to, ends, &stop))?,
            );
        }
        Ok(Self { stop, carriers })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            drop(carrier.join().map_err(|_| anyhow!("a carrier panicked")));
        }
    }
}

/// A device in the calling thread's namespace.
fn open(name: &str, ends: Ends) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: integers and bytes, all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let kind = match ends {
        Ends::Tun => libc::IFF_TUN,
        Ends::Scattered => libc::IFF_TAP | libc::IFF_NAPI | libc::IFF_NAPI_FRAGS,
    };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request lives until the call returns; its name is terminated.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies packets. What an end does not take, because it is down or gone, is lost as on any wire.
fn carry(mut from: &File, mut to: &File, ends: Ends, stop: &AtomicBool) {
    let mut packet = vec![0; PACKET_MAX];
    while !stop.load(Ordering::Relaxed) {
        if is_readable(from.as_raw_fd())
            && let Ok(length) = from.read(&mut packet)
        {
            let parts = match ends {
                Ends::Tun => (&packet[..length], &[][..]),
                Ends::Scattered => packet[..length].split_at(LINEAR_BYTES.min(length)),
            };
            // The first part is the linear one, the others are fragments of the buffer.
            drop(to.write_vectored(&[IoSlice::new(parts.0), IoSlice::new(parts.1)]));
        }
    }
}

fn is_readable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry, which lives until the call returns.
    let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE_MS) };
    if ready > 0 && poll.revents & libc::POLLIN == 0 {
        // An error without data: the device is down.
        thread::sleep(std::time::Duration::from_millis(PATIENCE_MS as u64));
    }
    ready > 0 && poll.revents & libc::POLLIN != 0
}
