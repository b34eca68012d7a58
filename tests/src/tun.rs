//! A wire between two namespaces whose ends are tun devices: packets without a link-layer header, as WireGuard and ipip
//! devices have them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};

use crate::netns::Namespace;

/// The largest packet: what IP can say.
const PACKET_MAX: usize = 65_535;
/// Milliseconds after which an end is looked after again.
const PATIENCE_MS: libc::c_int = 100;

/// Carries packets until it is dropped.
#[derive(Debug)]
pub struct Wire {
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes a device called `name` in both namespaces, and carries what one sends to the other.
    pub fn start(name: &str, ends: [&Namespace; 2]) -> Result<Self> {
        let open = |namespace: &Namespace| -> Result<File> {
            namespace.run(|| open(name))?.with_context(|| format!("make {name} in {}", namespace.name()))
        };
        let [left, right] = [open(ends[0])?, open(ends[1])?];
        let stop = Arc::new(AtomicBool::new(false));
        let mut carriers = Vec::new();
        for (from, to) in [(left.try_clone()?, right.try_clone()?), (right, left)] {
            let stop = Arc::clone(&stop);
            carriers
                .push(thread::Builder::new().name(name.to_owned()).spawn(move || carry(&from, &to, &stop))?);
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

/// A tun device in the calling thread's namespace.
fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: integers and bytes, all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request lives until the call returns; its name is terminated.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies packets. What an end does not take, because it is down or gone, is lost as on any wire.
fn carry(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut packet = vec![0; PACKET_MAX];
    while !stop.load(Ordering::Relaxed) {
        if is_readable(from.as_raw_fd())
            && let Ok(length) = from.read(&mut packet)
        {
            drop(to.write(&packet[..length]));
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
