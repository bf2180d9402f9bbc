//! The images that `build-images` makes. Needs root (chroot), Debian's busybox-static and the packages that
//! deploy/images/volume-tools takes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

use serde_json::Value;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let all = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&all).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn blob(images: &Path, descriptor: &Value) -> std::path::PathBuf {
    images.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_initializers_image_can_open_encrypted_volumes() {
    let work = tempfile::tempdir().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let place = |name: &str| work.path().join(name);
    let (tools, binaries) = (place("tools"), place("binaries"));
    let script = workspace.join("deploy/images/volume-tools");
    run(Command::new(script).arg(&tools).env("ANY_VERSION", "1"));
    // Any static program will do for what is asked here.
    fs::create_dir(&binaries).unwrap();
    for name in ["initializer", "service-mesh"] {
        fs::copy("/bin/busybox", binaries.join(name)).unwrap();
    }
    let build = |out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_build-images"));
        command.arg("--workspace").arg(&workspace).arg("--binaries").arg(&binaries);
        run(command
            .arg("--volume-tools")
            .arg(&tools)
            .arg("--out")
            .arg(out)
            .env("SOURCE_DATE_EPOCH", "1700000000"))
    };
    let images = place("images");
    let printed = build(&images);
    // Another time, another owner, another order of the files on disk: the same image.
    let copy = place("copy");
    run(Command::new("cp").arg("-r").arg(&tools).arg(&copy));
    run(Command::new("chown").args(["-R", "nobody"]).arg(&copy));
    fs::remove_dir_all(&tools).unwrap();
    fs::rename(&copy, &tools).unwrap();
    assert_eq!(build(&place("again")), printed);

    let root = place("root");
    fs::create_dir(&root).unwrap();
    let manifest = json(&blob(&images, &json(&images.join("index.json"))["manifests"][0]));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        run(Command::new("tar").arg("-xzf").arg(blob(&images, layer)).arg("-C").arg(&root));
    }
    let inside = |command: &str| {
        let config = json(&blob(&images, &manifest["config"]));
        let path = config["config"]["Env"][0].as_str().unwrap().strip_prefix("PATH=").unwrap().to_owned();
        let words: Vec<&str> = command.split(' ').collect();
        run(Command::new("/usr/sbin/chroot").arg(&root).args(words).env_clear().env("PATH", path))
    };
    assert!(inside("cryptsetup --version").starts_with("cryptsetup 2."));
    assert!(inside("mkfs.ext4 -V").contains("mke2fs 1."));
    // More than a greeting: a header with its key derivation, a file system made and grown.
    fs::create_dir(root.join("dev")).unwrap();
    for (name, minor) in [("random", "8"), ("urandom", "9")] {
        run(Command::new("mknod").arg(root.join("dev").join(name)).args(["c", "1", minor]));
    }
    fs::write(root.join("etc/mtab"), "").unwrap(); // a pod has /proc/mounts
    fs::write(root.join("tmp/disk"), vec![0; 32 << 20]).unwrap();
    fs::write(root.join("tmp/key"), "secret").unwrap();
    let format = "cryptsetup luksFormat --batch-mode --type luks2 --pbkdf argon2id --pbkdf-memory 10240 \
                  --pbkdf-force-iterations 4 --key-file /tmp/key --header /tmp/header /tmp/disk";
    inside(&format.split_whitespace().collect::<Vec<_>>().join(" "));
    assert!(fs::read(root.join("tmp/header")).unwrap().starts_with(b"LUKS\xba\xbe"));
    inside("mkfs.ext4 -q -F -b 4096 /tmp/disk 4096");
    assert!(inside("resize2fs -f /tmp/disk 8192").contains("8192"));

    // The mesh starts the initializer, and so brings it and says what it is made of.
    let mesh = json(&blob(&images, &json(&images.join("index.json"))["manifests"][1]));
    let files = run(Command::new("tar").arg("-tzf").arg(blob(&images, &mesh["layers"][0])));
    assert!(
        ["service-mesh", "initializer"].iter().all(|name| files.lines().any(|file| file == *name)),
        "{files}"
    );
    let sbom = json(&images.join("service-mesh.cdx.json"));
    let names: Vec<&str> =
        sbom["components"].as_array().unwrap().iter().filter_map(|found| found["name"].as_str()).collect();
    assert!(names.contains(&"initializer") && names.contains(&"atls"), "{names:?}");

    let sbom = json(&images.join("initializer.cdx.json"));
    let component = |name: &str| {
        sbom["components"].as_array().unwrap().iter().find(|found| found["name"] == name).cloned()
    };
    let purl = component("cryptsetup-bin").unwrap()["purl"].as_str().unwrap().to_owned();
    assert!(purl.starts_with("pkg:deb/debian/cryptsetup-bin@"), "{purl}");
}

/// Answers questions about IPv4 addresses with three of them, and others with none.
fn name_server(socket: &std::net::UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, asker)) = socket.recv_from(&mut question) {
        // Behind the header of 12 bytes: the name, its end, type and class.
        let Some(end) = question[12..length].iter().position(|byte| *byte == 0).map(|zero| 12 + zero + 5)
        else {
            continue;
        };
        let addresses: u8 = if question[end - 3] == 1 { 3 } else { 0 };
        let mut answer =
            [&question[..2], &[0x81, 0x80, 0, 1, 0, addresses, 0, 0, 0, 0], &question[12..end]].concat();
        for last in 1..=addresses {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, last]);
        }
        let _ = socket.send_to(&answer, asker);
    }
}

/// The images hold static programs and no library that glibc could load to resolve names, such as that of the
/// headless service by which replicas find each other.
#[test]
fn a_static_program_resolves_names_in_an_empty_image() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("resolve.rs");
    let program = "fn main() { for a in std::net::ToSocketAddrs::to_socket_addrs(&(\"peers\", 7777)).unwrap() \
                   { println!(\"{a}\") } }";
    fs::write(&source, program).unwrap();
    let binary = root.path().join("resolve");
    run(Command::new("rustc")
        .args(["-C", "target-feature=+crt-static", "-o"])
        .arg(&binary)
        .arg(&source)
        .current_dir(root.path()));
    // An address of its own, which no resolver of this machine uses.
    let socket = std::net::UdpSocket::bind("127.7.7.7:53").unwrap();
    std::thread::spawn(move || name_server(&socket));
    fs::create_dir(root.path().join("etc")).unwrap();
    let resolver = "nameserver 127.7.7.7\nsearch shop.svc.cluster.local\n";
    fs::write(root.path().join("etc/resolv.conf"), resolver).unwrap();
    let found = run(Command::new("chroot").arg(root.path()).arg("/resolve"));
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, ["10.0.0.1:7777", "10.0.0.2:7777", "10.0.0.3:7777"]);
}
