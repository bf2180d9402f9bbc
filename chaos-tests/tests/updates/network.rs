//! Network namespaces as pods. Names are resolved by files that `ip netns exec` puts over /etc/hosts.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed},
};

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A bridge that pods are plugged into; gone when dropped.
pub(crate) struct Network {
    switch: String,
    next: AtomicU8,
}

impl Network {
    pub(crate) fn new() -> Self {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let moment = chaos_tests::now().as_millis() % 1_000_000;
        let switch = format!("upd{}-{moment}-{}", std::process::id(), NETWORKS.fetch_add(1, Relaxed));
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        Self { switch, next: AtomicU8::new(1) }
    }

    pub(crate) fn namespace(&self) -> Namespace {
        let number = self.next.fetch_add(1, Relaxed);
        let (name, port) = (format!("{}-{number}", self.switch), format!("port{number}"));
        ip(&["netns", "add", &name]);
        let link = ["-n", &name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns"];
        ip(&[link.as_slice(), &[&self.switch]].concat());
        ip(&["-n", &self.switch, "link", "set", &port, "master", "br0", "up"]);
        let namespace = Namespace { name, number };
        ip(&["-n", &namespace.name, "addr", "add", &format!("{}/24", namespace.address()), "dev", "eth0"]);
        for link in ["lo", "eth0"] {
            ip(&["-n", &namespace.name, "link", "set", link, "up"]);
        }
        fs::create_dir_all(namespace.etc()).unwrap();
        namespace.resolve(&[]);
        namespace
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.switch]).output();
    }
}

/// One pod's network; gone when dropped.
pub(crate) struct Namespace {
    name: String,
    number: u8,
}

impl Namespace {
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self.number)
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// What names lead to from now on. Written over what is there in one piece: processes have the file open.
    pub(crate) fn resolve(&self, names: &[(&str, Ipv4Addr)]) {
        let lines = names.iter().map(|(name, address)| format!("{address} {name}\n"));
        let text: String = lines.collect::<String>() + "127.0.0.1 localhost\n#";
        let path = self.etc().join("hosts");
        let file = fs::File::options().write(true).create(true).truncate(false).open(path).unwrap();
        file.write_all_at(format!("{text: <511}\n").as_bytes(), 0).unwrap();
    }

    pub(crate) fn command(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread inside this network.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::spawn(move || {
            use rustix::{fd::AsFd as _, thread};
            let network = Some(thread::LinkNameSpaceType::Network);
            thread::move_into_link_name_space(namespace.as_fd(), network).unwrap();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
        let _ = fs::remove_dir_all(self.etc());
    }
}
