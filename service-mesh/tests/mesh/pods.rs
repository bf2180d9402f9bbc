//! Network namespaces as pods, and certificates as the Coordinator makes them.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use keys::{CaKey, LeafRequest, MeshCa, Salt, Seed, SeedEngine};
use manifest::Timestamp;
pub(crate) use program::now;
use rcgen::KeyPair;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(90);

/// Waits until `done`; fails when that takes too long.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network that pods are plugged into; gone when dropped.
pub(crate) struct Network {
    switch: String,
    next: AtomicU8,
}

impl Network {
    pub(crate) fn new() -> Self {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        // Process ids come back in containers, where namespaces of a run that was killed may be left.
        let moment = now().as_millis() % 1_000_000;
        let switch = format!("mesh{}-{moment}-{}", std::process::id(), NETWORKS.fetch_add(1, Relaxed));
        run("ip", &["netns", "add", &switch]);
        run("ip", &["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &switch, "link", "set", "br0", "up"]);
        Self { switch, next: AtomicU8::new(1) }
    }

    pub(crate) fn pod(&self) -> Pod {
        let number = self.next.fetch_add(1, Relaxed);
        let namespace = format!("{}-{number}", self.switch);
        let port = format!("port{number}");
        run("ip", &["netns", "add", &namespace]);
        let link = ["-n", &namespace, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns"];
        run("ip", &[link.as_slice(), &[&self.switch]].concat());
        run("ip", &["-n", &self.switch, "link", "set", &port, "master", "br0", "up"]);
        let pod = Pod { namespace, number, directory: tempfile::tempdir().unwrap() };
        for address in [format!("{}/24", pod.v4()), format!("{}/64", pod.v6())] {
            let nodad = if address.contains(':') { &["nodad"][..] } else { &[] };
            let add = ["-n", &pod.namespace, "addr", "add", &address, "dev", "eth0"];
            run("ip", &[add.as_slice(), nodad].concat());
        }
        for link in ["lo", "eth0"] {
            run("ip", &["-n", &pod.namespace, "link", "set", link, "up"]);
        }
        pod
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.switch]).output();
    }
}

/// A network namespace with an address in the network; gone when dropped.
pub(crate) struct Pod {
    namespace: String,
    number: u8,
    directory: TempDir,
}

impl Pod {
    pub(crate) fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 77, 0, self.number).into()
    }

    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    pub(crate) fn v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into()).into()
    }

    /// Where its certificates are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn tls(&self, file: &str) -> String {
        self.directory().join("tls-config").join(file).display().to_string()
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]).args(args);
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn output<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Output {
        self.command(program, args).output().unwrap()
    }

    /// What curl gets, or its error.
    pub(crate) fn curl(&self, args: &[&str]) -> Result<String, String> {
        let output = self.output("curl", &[&["-sS", "--noproxy", "*", "--max-time", "20"], args].concat());
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Runs `work` on a thread inside the pod's network.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = fs::File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        std::thread::spawn(move || {
            use rustix::{fd::AsFd as _, thread};
            let network = Some(thread::LinkNameSpaceType::Network);
            thread::move_into_link_name_space(namespace.as_fd(), network).unwrap();
            work()
        })
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The mesh, once it serves, with its standard output in a file.
    pub(crate) fn mesh_with_output(&self, options: &[&str], output: &Path) -> Mesh {
        let mesh = self.launch_mesh(options, fs::File::create(output).unwrap().into());
        mesh.wait_for("the mesh is up");
        mesh
    }

    /// The mesh with these options; it may still wait for its certificate.
    pub(crate) fn start_mesh(&self, options: &[&str]) -> Mesh {
        self.launch_mesh(options, Stdio::inherit())
    }

    fn launch_mesh(&self, options: &[&str], output: Stdio) -> Mesh {
        let directory = self.directory().display().to_string();
        let args = [
            &["--directory", &directory, "--admin-port", "9901", "--log-level", "service_mesh=debug"],
            options,
        ]
        .concat();
        let log = std::env::var_os("KEEPLOG").map_or(self.directory().join("mesh.log"), |d| {
            PathBuf::from(d).join(format!("{}.log", self.number))
        });
        let mut command = self.command(env!("CARGO_BIN_EXE_service-mesh"), &args);
        command
            .env("NO_COLOR", "1")
            .stdout(output)
            .stderr(fs::File::options().create(true).append(true).open(&log).unwrap());
        Mesh { process: Process(command.spawn().unwrap()), log }
    }

    /// The mesh, once it serves.
    pub(crate) fn mesh(&self, options: &[&str]) -> Mesh {
        let mesh = self.start_mesh(options);
        mesh.wait_for("the mesh is up");
        mesh
    }

    /// A web server that nobody here wrote, which answers `hello`.
    pub(crate) fn nginx(&self, port: u16) -> Process {
        let directory = self.directory().join("nginx");
        fs::create_dir_all(&directory).unwrap();
        let config = format!(
            "daemon off; error_log stderr; pid {0}/pid; events {{}} http {{ access_log off;
             client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
             uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; server {{ listen {port}; listen [::]:{port};
             location / {{ return 200 \"hello from $server_addr\\n\"; }} }} }}",
            directory.display()
        );
        fs::write(directory.join("nginx.conf"), config).unwrap();
        let path = directory.join("nginx.conf").display().to_string();
        let process = Process(self.command("nginx", &["-c", &path]).stderr(Stdio::null()).spawn().unwrap());
        let url = format!("http://127.0.0.1:{port}/");
        eventually("nginx answers", || self.curl(&[&url]).is_ok());
        process
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

/// A program; killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // nginx's workers end when their master is told to.
        let _ = Command::new("kill").arg(self.0.id().to_string()).output();
        let ended = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            matches!(self.0.try_wait(), Ok(Some(_)))
        });
        if !ended {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// A running mesh.
pub(crate) struct Mesh {
    pub(crate) process: Process,
    log: PathBuf,
}

impl Mesh {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn wait_for(&self, line: &str) {
        self.wait_for_times(line, 1);
    }

    pub(crate) fn wait_for_times(&self, line: &str, times: usize) {
        eventually(line, || self.log().matches(line).count() >= times);
    }

    /// Memory that is really there, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// A CA hierarchy of one manifest.
pub(crate) struct Deployment {
    engine: SeedEngine,
    ca: MeshCa,
}

impl Deployment {
    pub(crate) fn new() -> Self {
        Self::at(now())
    }

    /// One that began at some other time.
    pub(crate) fn at(begin: Timestamp) -> Self {
        let engine = SeedEngine::new(Seed::generate().unwrap(), Salt::generate().unwrap()).unwrap();
        let ca = MeshCa::new(&engine, CaKey::generate().unwrap(), begin).unwrap();
        Self { engine, ca }
    }

    /// The same deployment, whose next manifest has a mesh CA of its own.
    pub(crate) fn changed(self) -> Self {
        let ca = MeshCa::new(&self.engine, CaKey::generate().unwrap(), now()).unwrap();
        Self { ca, ..self }
    }

    /// Writes what the initializer writes.
    pub(crate) fn initialise(&self, pod: &Pod, name: &str) {
        self.write(pod.directory(), name, now());
    }

    pub(crate) fn write(&self, directory: &Path, name: &str, at: Timestamp) {
        let key = KeyPair::generate().unwrap();
        let sans = [name.to_owned()];
        let request = LeafRequest {
            spki_der: &rcgen::PublicKeyData::subject_public_key_info(&key),
            sans: &sans,
            workload_secret_id: None,
            claims: &[],
            lifetime: keys::DEFAULT_LEAF_LIFETIME,
        };
        let leaf = self.ca.issue(&request, at).unwrap();
        let public = self.ca.public();
        let tls = directory.join("tls-config");
        fs::create_dir_all(&tls).unwrap();
        for (file, content) in [
            ("key.pem", key.serialize_pem()),
            ("certChain.pem", format!("{}{}", leaf.pem, public.intermediate_pem)),
            ("mesh-ca.pem", public.mesh_pem.clone()),
            ("coordinator-root-ca.pem", public.root_pem.clone()),
        ] {
            let beside = tls.join(format!("{file}.new"));
            fs::write(&beside, content).unwrap();
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o400)).unwrap();
            fs::rename(beside, tls.join(file)).unwrap();
        }
    }
}
