//! Another kernel to test on: a Debian kernel under qemu (emulated, no KVM), whose init runs one program and powers
//! off. Kernel package and initramfs are kept in `target/vm`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::probe::program;

/// A kernel as Debian 12 packages it for cloud images.
const KERNEL_PACKAGES: &str = "linux-image-6.1.0-[0-9]+-cloud-amd64-unsigned";
/// Emulated: a boot takes 7 s here, 30 times as long on a bad day.
const PATIENCE: &str = "210";

const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t bpf none /sys/fs/bpf
echo kernel $(/bin/busybox uname -r)
/bin/program
echo exit $?
/bin/busybox poweroff -f
";

/// Runs a program of this workspace as the only process of Debian's 6.1 kernel; what it printed.
pub fn run_on_6_1(name: &str) -> Result<String> {
    let dir = workspace().join("target/vm");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let kernel = kernel(&dir)?;
    let initramfs = initramfs(&dir, &program(name)?)?;
    let output = Command::new("timeout")
        .args([PATIENCE, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "2048", "-nographic"])
        .args(["-no-reboot", "-append", "console=ttyS0 quiet panic=-1", "-kernel"])
        .arg(&kernel)
        .arg("-initrd")
        .arg(&initramfs)
        .stdin(Stdio::null())
        .output()
        .context("run qemu-system-x86_64")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("\nexit 0"), "the program failed, or the VM did not get that far:\n{text}");
    Ok(text)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The kernel's image, downloaded when first asked for.
fn kernel(dir: &Path) -> Result<PathBuf> {
    let boot = dir.join("kernel/boot");
    let image = || -> Option<PathBuf> {
        let files = fs::read_dir(&boot).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        files.into_iter().find(|path| path.to_string_lossy().contains("vmlinuz"))
    };
    if let Some(image) = image() {
        return Ok(image);
    }
    let script = format!(
        "set -e; package=$(apt-cache --names-only search '^{KERNEL_PACKAGES}$' | cut -d' ' -f1 | sort -V | tail -n 1); \
         apt-get -qq download \"$package\"; dpkg -x \"$package\"_*.deb kernel; rm \"$package\"_*.deb"
    );
    run(Command::new("sh").args(["-c", &script]).current_dir(dir))?;
    image().with_context(|| format!("no kernel in {}", boot.display()))
}

/// busybox, the program and the libraries it is linked with.
fn initramfs(dir: &Path, program: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    for directory in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).context("copy busybox")?;
    fs::copy(program, root.join("bin/program")).with_context(|| format!("copy {}", program.display()))?;
    let ldd = Command::new("ldd").arg(program).output().context("run ldd")?;
    let ldd = String::from_utf8_lossy(&ldd.stdout).into_owned();
    for library in ldd.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library's directory")?)?;
        fs::copy(library, &to).with_context(|| format!("copy {library}"))?;
    }
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let pack = "find . | cpio --quiet -o -H newc | gzip -1 > ../initramfs.gz";
    run(Command::new("sh").args(["-c", pack]).current_dir(&root))?;
    Ok(dir.join("initramfs.gz"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
