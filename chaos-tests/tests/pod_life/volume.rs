//! An encrypted volume in a real guest: Debian's kernel in QEMU, the real initializer in it, the real
//! Coordinator outside, and a host that kills the guest and tampers with its disk.
//!
//! Needs Debian's qemu-system-x86, cryptsetup-bin, e2fsprogs, busybox-static, binutils, and the kernel
//! that `./test` unpacks. Uses KVM where that works, and software emulation otherwise.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use chaos_tests::program;
use manifest::KeyDigest;
use tempfile::TempDir;

use crate::deployment::{Deployment, run};

const DISK_BYTES: u64 = 64 << 20;
const GROWN_BYTES: u64 = 96 << 20;
const MIB: u64 = 1 << 20;
/// A boot under software emulation on a busy machine.
const LIMIT: Duration = Duration::from_mins(10);
const PROBE: Duration = Duration::from_secs(60);

const INIT: &str = r#"#!/bin/sh
export PATH=/bin NO_COLOR=1
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
mkdir -p /dev/shm; mount -t tmpfs t /dev/shm
step=$(sed 's/.*step=\([a-z]*\).*/\1/' /proc/cmdline)
if [ $step = probe ]; then echo GUEST probed; poweroff -f; fi
for module in virtio_pci virtio_blk virtio_net ext4 dm-crypt dm-integrity xts authenc hmac sha256 aes crc32c algif_skcipher; do
    modprobe -q $module
done
printf %0128d 7 > /secret-of-another
another="initializer cryptsetup -d /dev/vda -m /state --secret-file /secret-of-another"
case $step in
write) $another --volume-must-exist; echo GUEST stranger $? ;;
read) $another; echo GUEST stranger $? ;;
exchanged) echo shop-db-1 > /proc/sys/kernel/hostname ;;
led) owners="--workload-owners @OWNER@" ;;
esac
[ $step = exchanged ] || echo shop-db-0 > /proc/sys/kernel/hostname
ip link set lo up; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
start() {
    initializer --coordinator 10.0.2.2:@PORT@ --simulated-machine /machine --policy-hash @POLICY@ \
        --verify-coordinator /manifest.json --log-level info --volume /dev/vda:/state --stateful-set shop-db --once $owners &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ ! -e /done ]; do sleep 0.1; done
    if [ ! -e /done ]; then wait $pid; echo GUEST exit $?; poweroff -f; fi
}
# What a container runtime puts there, and nothing of device mapper.
fresh_dev() {
    mkdir -p /fresh; mount -t tmpfs f /fresh; mkdir /fresh/shm
    mknod /fresh/null c 1 3; mknod /fresh/zero c 1 5; mknod /fresh/random c 1 8; mknod /fresh/urandom c 1 9
    mknod /fresh/console c 5 1; mknod /fresh/ttyS0 c 4 64; mknod /fresh/vda b $(sed 's/:/ /' /sys/block/vda/dev)
    mount --move /fresh /dev
}
[ $step = read ] && fresh_dev
start
if [ $step = read ]; then
    kill -9 $pid; wait $pid; rm /done; umount /state; fresh_dev; start; echo GUEST open again
fi
case $step in
write) echo "patient records" > /state/hello; dd if=/dev/urandom of=/state/large bs=1M count=20 2>/dev/null
    sha256sum < /state/large > /state/sum; sync; echo GUEST written ;;
read) echo GUEST read $(cat /state/hello); sha256sum < /state/large | cmp - /state/sum && echo GUEST intact
    dd if=/dev/zero of=/state/more bs=1M count=30 2>/dev/null && sync && echo GUEST grown
    kill $pid; wait $pid; echo GUEST closed $? ;;
damaged) cat /state/large > /dev/null && echo GUEST undetected || echo GUEST detected ;;
esac
[ $step = write ] || poweroff -f
sleep 1000
"#;

/// A guest's file system in memory, its kernel, its disk.
struct Guest {
    directory: TempDir,
    kernel: PathBuf,
    accelerator: &'static [&'static str],
}

impl Guest {
    fn build(deployment: &Deployment) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        for path in ["bin", "proc", "sys", "dev", "tmp", "state"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        let unpacked = std::env::var_os("CONTRAST_GUEST_KERNEL").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel"),
            PathBuf::from,
        );
        let boot = fs::read_dir(unpacked.join("boot"))
            .unwrap_or_else(|error| panic!("{}: {error}; ./test unpacks a kernel there", unpacked.display()));
        let kernel = boot
            .map(|entry| entry.unwrap().path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
        install(&root, Path::new("/bin/busybox"), "busybox");
        for applet in [
            "sh",
            "mount",
            "mkdir",
            "sed",
            "modprobe",
            "ip",
            "kill",
            "sleep",
            "dd",
            "sha256sum",
            "sync",
            "cat",
            "cmp",
            "poweroff",
            "echo",
            "printf",
            "mknod",
            "rm",
            "umount",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        install(&root, &find("cryptsetup"), "cryptsetup");
        install(&root, &find("mkfs.ext4"), "mkfs.ext4");
        install(&root, &find("resize2fs"), "resize2fs");
        // Debug information would be the largest part of the guest.
        let stripped = directory.path().join("initializer");
        run(Command::new("strip").arg("-o").arg(&stripped).arg(program("initializer")));
        install(&root, &stripped, "initializer");
        install_modules(&root, &unpacked);
        run(Command::new("cp").arg("-r").arg(deployment.file("machine")).arg(root.join("machine")));
        fs::copy(deployment.file("manifest.json"), root.join("manifest.json")).unwrap();
        let init = INIT
            .replace("@PORT@", &deployment.port.to_string())
            .replace("@POLICY@", &deployment.policy().to_string())
            .replace("@OWNER@", &another_owner().to_string());
        fs::write(root.join("init"), init).unwrap();
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        let pack = "find . | busybox cpio -o -H newc > ../initramfs";
        run(Command::new("sh").args(["-c", pack]).current_dir(&root));
        File::create(directory.path().join("disk")).unwrap().set_len(DISK_BYTES).unwrap();
        let mut guest =
            Self { directory, kernel: kernel.unwrap(), accelerator: &["-accel", "kvm", "-cpu", "host"] };
        let kvm = Path::new("/dev/kvm").exists() && guest.boot("probe").says("probed", PROBE);
        if !kvm {
            guest.accelerator = &["-accel", "tcg", "-cpu", "max"];
        }
        guest
    }

    fn disk(&self) -> File {
        File::options().read(true).write(true).open(self.directory.path().join("disk")).unwrap()
    }

    fn boot(&self, step: &str) -> Boot {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let mut child = Command::new("qemu-system-x86_64")
            .args(self.accelerator)
            .args(["-m", "512", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-initrd", &path("initramfs")])
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 no_timer_check step={step} end")])
            .args(["-drive", &format!("file={},format=raw,if=virtio,cache=writethrough", path("disk"))])
            .args(["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile="])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let _ = sender.send(String::from_utf8_lossy(&line).trim().to_owned());
                line.clear();
            }
        });
        Boot { child, lines, log: String::new() }
    }
}

/// A workload owner who has never heard of this Coordinator.
fn another_owner() -> KeyDigest {
    KeyDigest::of(&keys::generate_workload_owner_key().unwrap().1)
}

/// A running guest; killed when dropped, as a host may do at any time.
struct Boot {
    child: Child,
    lines: mpsc::Receiver<String>,
    log: String,
}

impl Boot {
    fn says(&mut self, text: &str, limit: Duration) -> bool {
        let start = Instant::now();
        while let Some(left) = limit.checked_sub(start.elapsed()) {
            let Ok(line) = self.lines.recv_timeout(left) else { return false };
            self.log.push_str(&line);
            self.log.push('\n');
            if line.contains(text) {
                return true;
            }
        }
        false
    }

    fn expect(&mut self, text: &str) {
        assert!(self.says(text, LIMIT), "the guest did not say {text:?}:\n{}", self.log);
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(name: &str) -> PathBuf {
    let directories = ["/usr/sbin", "/sbin", "/usr/bin"].map(Path::new);
    directories.map(|directory| directory.join(name)).into_iter().find(|path| path.exists()).unwrap()
}

/// A program with its libraries.
fn install(root: &Path, path: &Path, name: &str) {
    fs::copy(path, root.join("bin").join(name)).unwrap();
    let libraries = Command::new("ldd").arg(path).output().unwrap();
    let more = "/lib/x86_64-linux-gnu/libgcc_s.so.1"; // loaded when a thread of cryptsetup ends
    let text = format!("{}\n{more}", String::from_utf8_lossy(&libraries.stdout));
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}

/// The few modules that are needed, and what they need.
fn install_modules(root: &Path, unpacked: &Path) {
    let version = fs::read_dir(unpacked.join("lib/modules")).unwrap().next().unwrap().unwrap().file_name();
    run(Command::new("busybox").args(["depmod", "-b"]).arg(unpacked).arg(&version));
    let from = unpacked.join("lib/modules").join(&version);
    let to = root.join("lib/modules").join(&version);
    fs::create_dir_all(&to).unwrap();
    for list in ["modules.dep", "modules.alias"] {
        fs::copy(from.join(list), to.join(list)).unwrap();
    }
    let parts = [
        "drivers/virtio",
        "drivers/block/virtio",
        "drivers/net/virtio",
        "net/core",
        "drivers/net/net_failover",
        "fs/ext4",
        "fs/jbd2",
        "fs/mbcache",
        "lib/crc",
        "lib/libcrc",
        "drivers/md/dm-",
        "crypto/",
        "arch/x86/crypto",
        "lib/crypto",
    ];
    let dependencies = fs::read_to_string(from.join("modules.dep")).unwrap();
    for module in dependencies.lines().filter_map(|line| line.split(':').next()) {
        let wanted = parts
            .iter()
            .any(|part| module.strip_prefix("kernel/").is_some_and(|path| path.starts_with(part)));
        if wanted {
            fs::create_dir_all(to.join(module).parent().unwrap()).unwrap();
            fs::copy(from.join(module), to.join(module)).unwrap();
        }
    }
}

#[test]
fn a_volume_outlives_its_guest_and_tampering_is_noticed() {
    let deployment = Deployment::start();
    let guest = Guest::build(&deployment);

    // The host leads a pod to a genuine Coordinator of his own, whose secrets he knows: nothing is formatted with them.
    let mut boot = guest.boot("led");
    boot.expect("0 of the 1 workload owners");
    boot.expect("GUEST exit 1");
    drop(boot);
    let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    guest.disk().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "the disk is as blank as before");

    // Killed as soon as formatting has begun: the next start begins anew.
    let mut boot = guest.boot("write");
    boot.expect("/dev/vda holds no volume, and --volume-must-exist is set");
    boot.expect("GUEST stranger 1");
    boot.expect("formatting");
    drop(boot);
    // Killed after data was written.
    guest.boot("write").expect("GUEST written");

    // The provider makes the disk larger. A pod with another workload secret comes first, and changes nothing.
    let disk = guest.disk();
    disk.set_len(GROWN_BYTES).unwrap();
    let mut boot = guest.boot("read");
    boot.expect("Another WorkloadSecretID");
    boot.expect("GUEST stranger 1");
    // In a container with a /dev of its own, and once more in another one after the helper was killed.
    boot.expect("GUEST open again");
    boot.expect("GUEST read patient records");
    boot.expect("GUEST intact");
    boot.expect("GUEST grown"); // by a file for which there was no room
    boot.expect("GUEST closed 0");
    drop(boot);

    // The host gives the disk of pod 0 to pod 1, which has the same secret and mount point.
    let mut boot = guest.boot("exchanged");
    boot.expect("the volume of pod 0 of this StatefulSet, and this is pod 1");
    boot.expect("GUEST exit 1");
    drop(boot);

    // A host changes a byte in each mebibyte after the first 32, where the large file is.
    let sealed = {
        let mut bytes = vec![0; 16 << 20];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    if let Some(path) = std::env::var_os("CONTRAST_SAVE_HEADER") {
        fs::write(path, &sealed).unwrap();
    }
    for place in (32 * MIB..GROWN_BYTES).step_by(usize::try_from(MIB).unwrap()) {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, place + 1000).unwrap();
        disk.write_all_at(&[byte[0] ^ 1], place + 1000).unwrap();
    }
    guest.boot("damaged").expect("GUEST detected");

    // A host puts a well-formed LUKS header in its place, whose passphrase it knows. (Headers with a null cipher,
    // even authentic ones, are in crates/encrypted-volume/tests: they need no guest.)
    let foreign = deployment.path("foreign");
    fs::write(&foreign, vec![0; 17 << 20]).unwrap();
    let passphrase = deployment.path("passphrase");
    fs::write(&passphrase, "known to the host").unwrap();
    run(Command::new("cryptsetup")
        .args([
            "luksFormat",
            "--batch-mode",
            "--type",
            "luks2",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
        ])
        .args(["--offset", "32768", "--key-file"])
        .arg(&passphrase)
        .arg(&foreign));
    let header = fs::read(&foreign).unwrap();
    disk.write_all_at(&header[..1 << 20], 0).unwrap();
    let mut boot = guest.boot("read");
    boot.expect("is not the one that this workload sealed");
    boot.expect("GUEST exit 1");
}
