//! The datapath's maps without its programs: created from `lb_common::maps`, pinned into a directory of their own,
//! gone when dropped, or at the next sweep. Needs root.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use lb_common::maps::{MAPS, MapSpec};

use crate::sweep::{self, BPFFS};

/// `bpf(2)` commands (`enum bpf_cmd`).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_OBJ_PIN: libc::c_int = 6;

/// A directory of pinned maps.
#[derive(Debug)]
pub struct PinnedMaps {
    dir: PathBuf,
}

/// `union bpf_attr` as `BPF_MAP_CREATE` reads it (Linux 4.15).
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// `union bpf_attr` as `BPF_OBJ_PIN` reads it.
#[repr(C)]
struct PinAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

impl PinnedMaps {
    /// Creates and pins every map; `entries` may give other sizes by name.
    pub fn create(entries: &[(&str, u32)]) -> Result<Self> {
        mount_bpffs()?;
        let maps = Self { dir: Path::new(BPFFS).join(sweep::unique_prefix()) };
        fs::create_dir(&maps.dir).with_context(|| format!("create {}: is this root?", maps.dir.display()))?;
        for spec in &MAPS {
            let size = entries
                .iter()
                .find(|(name, _)| *name == spec.name)
                .map_or(spec.max_entries, |(_, size)| *size);
            maps.create_one(spec, size).with_context(|| format!("create map {}", spec.name))?;
        }
        Ok(maps)
    }

    /// Where the pins are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn create_one(&self, spec: &MapSpec, max_entries: u32) -> Result<()> {
        let mut attr = CreateAttr {
            map_type: spec.map_type as u32,
            key_size: spec.key_size,
            value_size: spec.value_size,
            max_entries,
            map_flags: spec.flags,
            ..CreateAttr::default()
        };
        let name = &spec.name.as_bytes()[..spec.name.len().min(15)];
        attr.map_name[..name.len()].copy_from_slice(name);
        let map = bpf(BPF_MAP_CREATE, &attr)?;
        let path = CString::new(self.dir.join(spec.name).into_os_string().into_encoded_bytes())?;
        let pin = PinAttr { pathname: path.as_ptr() as u64, bpf_fd: u32::try_from(map)?, file_flags: 0 };
        let pinned = bpf(BPF_OBJ_PIN, &pin);
        // SAFETY: the descriptor was just made and is used nowhere else; the pin keeps the map.
        unsafe { libc::close(map) };
        pinned.map(drop)
    }
}

impl Drop for PinnedMaps {
    fn drop(&mut self) {
        for spec in &MAPS {
            let _ = fs::remove_file(self.dir.join(spec.name));
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

fn bpf<A>(command: libc::c_int, attr: &A) -> Result<libc::c_int> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` for the command, and its size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    if result < 0 {
        bail!(std::io::Error::last_os_error());
    }
    Ok(libc::c_int::try_from(result)?)
}

/// Mounts the BPF file system where it belongs unless it is there.
fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    let (kind, target) = (CString::new("bpf")?, CString::new(BPFFS)?);
    // SAFETY: three strings that live until the call returns; no data.
    let result = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result < 0 {
        bail!("mount bpffs on {BPFFS}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
