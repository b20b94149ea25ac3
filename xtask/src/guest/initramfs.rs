//! The initramfs that hands the guest over to the host's root file system, or is a system of its own.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::kernel::Arch;

/// What the guest covers with file systems of its own; host directories below it are bound back.
const COVERED: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// Where busybox-static puts itself, before and after the merge of /bin and /usr/bin.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

pub struct Contents<'a> {
    pub arch: Arch,
    /// This tool, which is its own agent.
    pub agent: &'a Path,
    pub busybox: &'a Path,
    /// Host directories that must stay visible.
    pub visible: Vec<PathBuf>,
}

/// This machine's.
pub fn busybox() -> Result<PathBuf> {
    let mut places = BUSYBOX.map(PathBuf::from).into_iter();
    places
        .find(|path| path.is_file())
        .context("no busybox in /bin; `cargo xtask setup` installs busybox-static")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// That of a machine inside a guest, which fills its memory: with copies of one file, with what no other has, and with a table.
pub fn machine() -> Result<Vec<u8>> {
    let mut archive = Cpio::default();
    for dir in ["bin", "dev", "proc", "tmp"] {
        archive.directory(dir);
    }
    archive.file("bin/busybox", 0o755, &read(&busybox()?)?);
    archive.file("init", 0o755, MACHINE.as_bytes());
    Ok(archive.finish())
}

const MACHINE: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
$b mount -t proc proc /proc
$b mount -t tmpfs -o size=150m tmpfs /tmp
exec </dev/null >/dev/ttyS0 2>&1
for i in 1 2 3 4 5 6 7 8 9 10; do
	$b cp $b /tmp/copy-$i
done
$b dd if=/dev/urandom of=/tmp/own bs=64k count=384
# The same in each machine, and not twice in one.
$b seq 1 2500000 >/tmp/table
echo "machine is ready"
case $($b cat /proc/cmdline) in
*role=writes*)
	while :; do
		$b dd if=/dev/urandom of=/tmp/own bs=64k count=128 conv=notrunc 2>/dev/null
		$b sleep 1
	done
	;;
*role=boots-again*)
	$b sleep 60
	$b reboot -f
	;;
esac
while :; do
	$b date
	$b sleep 1
done
"#;

/// The archive, ready to boot.
pub fn build(contents: &Contents) -> Result<Vec<u8>> {
    let busybox = read(contents.busybox)?;
    let agent = read(contents.agent)?;
    let script = script(contents)?;
    let mut archive = Cpio::default();
    for dir in ["bin", "dev", "host", "proc", "root"] {
        archive.directory(dir);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("agent", 0o755, &agent);
    archive.file("init", 0o755, script.as_bytes());
    Ok(archive.finish())
}

/// A system with systemd, an archive as the kernel takes it, that runs the agent as one of its services; and some files more.
pub fn system(
    arch: Arch,
    root: &Path,
    agent: &Path,
    files: &[(String, Vec<u8>)],
) -> Result<Vec<u8>> {
    let mut own = Cpio::default();
    own.link("init", "lib/systemd/systemd");
    let agent = read(agent)?;
    own.file("sksm-agent", 0o755, &agent);
    let service = SERVICE.replace("CHANNEL", channel(arch));
    let units = "etc/systemd/system";
    own.file(
        &format!("{units}/sksm-agent.service"),
        0o644,
        service.as_bytes(),
    );
    let wanted = format!("{units}/multi-user.target.wants/sksm-agent.service");
    own.link(&wanted, "../sksm-agent.service");
    // The console is the log's.
    own.link(&format!("{units}/serial-getty@.service"), "/dev/null");
    for (path, content) in files {
        for (end, _) in path.match_indices('/') {
            own.directory(&path[..end]);
        }
        own.file(path, 0o644, content);
    }
    let mut archive = read(root)?;
    // The kernel unpacks one after the other.
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(own.finish());
    Ok(archive)
}

const SERVICE: &str = "[Unit]
Description=The hand of who has booted this

[Service]
ExecStart=/sksm-agent guest-agent --guest CHANNEL
StandardOutput=journal+console
KillMode=process
";

/// What leads to the tool, in the guest.
fn channel(arch: Arch) -> &'static str {
    match arch {
        Arch::Um => "/dev/ttyS0",
        _ => "/dev/vport0p1",
    }
}

fn script(contents: &Contents) -> Result<String> {
    let root = match contents.arch {
        Arch::Um => "-t hostfs -o ro none",
        _ => "-t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose hostroot",
    };
    let channel = channel(contents.arch);
    let foreign = contents.arch.foreign();
    let system = match foreign {
        false => HOST,
        true => OWN,
    };
    let mut binds = String::new();
    // Of a system of its own, all but what it must be able to write to.
    let is_shown = |path: &Path| match foreign {
        false => is_covered(path),
        true => !COVERED.iter().any(|mount| path == Path::new(mount)),
    };
    for path in hidden(&contents.visible, is_shown) {
        let Some(path) = path.to_str().filter(|path| !path.contains('\'')) else {
            bail!(
                "{} cannot be shown to the guest; move it to a directory with a plain name",
                path.display()
            );
        };
        writeln!(binds, "bind '{path}'")?;
    }
    Ok(format!(
        r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
# From here on every line is a kernel message.
exec </dev/null >/dev/kmsg 2>&1

fail() {{
	echo "sksm-init: $* failed"
	$b poweroff -f
	$b sleep 60
}}
mnt() {{
	$b mount "$@" || fail mount "$@"
}}
# Shows a host directory that lies below a file system of the guest's own.
bind() {{
	if [ -d "/host$1" ]; then
		$b mkdir -p "/root$1"
	else
		$b mkdir -p "/root${{1%/*}}" && : >"/root$1"
	fi
	mnt -o bind "/host$1" "/root$1"
}}

mnt {root} /host
{system}mnt -t proc proc /root/proc
mnt -t sysfs sysfs /root/sys
mnt -t devtmpfs devtmpfs /root/dev
$b mkdir -p /root/dev/pts /root/dev/shm
mnt -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mnt -t tmpfs -o mode=1777 tmpfs /root/dev/shm
mnt -t tmpfs -o mode=1777 tmpfs /root/tmp
mnt -t tmpfs -o mode=755 tmpfs /root/run
mnt -t debugfs debugfs /root/sys/kernel/debug
mnt -t cgroup2 cgroup2 /root/sys/fs/cgroup
echo +memory >/root/sys/fs/cgroup/cgroup.subtree_control
[ -d /root/sys/kernel/tracing ] && $b mount -t tracefs tracefs /root/sys/kernel/tracing
for i in 'fd fd' 'fd/0 stdin' 'fd/1 stdout' 'fd/2 stderr'; do
	$b ln -sf /proc/self/${{i% *}} /root/dev/${{i#* }}
done
{binds}$b ip link set lo up
$b hostname sksm-{arch}
$b cp /agent /root/run/sksm-agent || fail cp
echo "sksm-init: ready"
# Not chroot, in which the kernel refuses new user namespaces.
exec $b switch_root /root /run/sksm-agent guest-agent {channel}
"#,
        arch = contents.arch,
    ))
}

/// The host's system is the guest's.
const HOST: &str = "$b mount -o bind /host /root || fail mount -o bind /host /root
";

/// A system of busybox alone, as the host's programs are another processor's.
const OWN: &str = "# To know where it is, to which its links lead.
mnt -t proc proc /proc
mnt -t tmpfs -o mode=755 tmpfs /root
for i in bin dev etc proc run sbin sys tmp usr/bin usr/sbin var; do
	$b mkdir -p /root/$i
done
$b cp $b /root/bin/busybox || fail cp
$b --install -s /root/bin || fail install
echo 'root:x:0:0:root:/root:/bin/sh' >/root/etc/passwd
echo 'root:x:0:' >/root/etc/group
";

/// Whether the guest's own mounts would hide it.
fn is_covered(path: &Path) -> bool {
    let mut mounts = COVERED.iter().map(Path::new);
    mounts.any(|mount| path.starts_with(mount) && path != mount)
}

/// Those of `paths` that the guest does not have by itself, without what lies inside another.
fn hidden(paths: &[PathBuf], is_hidden: impl Fn(&Path) -> bool) -> Vec<&Path> {
    let mut hidden: Vec<&Path> = paths
        .iter()
        .map(PathBuf::as_path)
        // All of the host's system cannot be beside the guest's own.
        .filter(|path| path.parent().is_some() && is_hidden(path))
        .collect();
    hidden.sort();
    hidden.dedup_by(|inner, outer| inner.starts_with(outer));
    hidden
}

/// Writes the "newc" format that the kernel unpacks.
#[derive(Default)]
struct Cpio {
    archive: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | permissions, content);
    }

    fn link(&mut self, name: &str, target: &str) {
        self.entry(name, 0o120_777, target.as_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.archive
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("no file of the initramfs has 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let links = 1;
        // inode, mode, uid, gid, links, mtime, size, device, special device, name size, check
        let header = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.archive.extend(b"070701");
        for field in header {
            self.archive.extend(format!("{field:08x}").bytes());
        }
        self.archive.extend(name.bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        while self.archive.len() % 4 != 0 {
            self.archive.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    #[test]
    fn the_archive_unpacks_elsewhere() {
        let mut archive = Cpio::default();
        archive.directory("bin");
        archive.file("bin/odd", 0o755, b"12345");
        archive.file("empty", 0o644, b"");
        let dir = tempfile::tempdir().unwrap();
        let mut busybox = Command::new("/bin/busybox")
            .args(["cpio", "-id"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = busybox.stdin.take().unwrap();
        input.write_all(&archive.finish()).unwrap();
        drop(input);
        assert!(busybox.wait().unwrap().success());
        assert_eq!(fs::read(dir.path().join("bin/odd")).unwrap(), b"12345");
        assert_eq!(fs::read(dir.path().join("empty")).unwrap(), b"");
    }

    #[test]
    fn only_hidden_directories_are_bound_each_once() {
        let paths = [
            "/tmp/a/target",
            "/tmp/a",
            "/home/x",
            "/tmp",
            "/tmp/ab",
            "/tmpx",
            "/tmp/a",
        ];
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let covered = hidden(&paths, is_covered);
        assert_eq!(covered, [Path::new("/tmp/a"), Path::new("/tmp/ab")]);
        let all = hidden(&paths, |_| true);
        assert_eq!(all, ["/home/x", "/tmp", "/tmpx"].map(Path::new));
    }

    #[test]
    fn a_quote_cannot_break_the_script() {
        let contents = Contents {
            arch: Arch::Um,
            agent: Path::new("/agent"),
            busybox: Path::new("/busybox"),
            visible: vec!["/tmp/it's".into()],
        };
        assert!(script(&contents).is_err());
    }
}
