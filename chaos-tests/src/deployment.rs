//! A Coordinator as a process of its own, with everything that its operators hold.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use attestation::simulated::{SimulatedKind, SimulatedMachine};
use manifest::{Manifest, ManifestBody, OwnerKey, PolicyEntry, PolicyHash, ReferenceValues, Role};

use crate::{now, process::free_port, program};

/// Policy of the Coordinator.
pub const COORDINATOR: &[u8] = b"policy of the Coordinator";
/// Policy of the workload `web`, whose secret id is `web`.
pub const WEB: &[u8] = b"policy of the workload web";

const START: Duration = Duration::from_secs(60);

/// Where a Coordinator listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// User API.
    pub user: SocketAddr,
    /// Mesh API.
    pub mesh: SocketAddr,
    /// Probes and metrics.
    pub probe: SocketAddr,
    /// HTTP API.
    pub http: SocketAddr,
    /// Transit engine.
    pub transit: SocketAddr,
}

/// A deployment in a temporary directory; its process is killed when it is dropped.
pub struct Deployment {
    directory: tempfile::TempDir,
    /// Where it listens.
    pub ports: Ports,
    options: Vec<String>,
    /// The command that is the Coordinator, for its program.
    command: Box<dyn Fn(&Path) -> Command + Send + Sync>,
    child: Option<Child>,
}

fn free_ports() -> anyhow::Result<Ports> {
    let free = || Ok::<_, anyhow::Error>(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)));
    Ok(Ports { user: free()?, mesh: free()?, probe: free()?, http: free()?, transit: free()? })
}

type SlowKeys = (Vec<(String, Vec<u8>)>, (String, OwnerKey));

/// A simulated machine and a seedshare owner, the same for all deployments of a test run: RSA keys take
/// seconds.
fn slow_keys() -> anyhow::Result<&'static SlowKeys> {
    static KEYS: OnceLock<Result<SlowKeys, String>> = OnceLock::new();
    let make = || {
        let directory = tempfile::tempdir()?;
        SimulatedMachine::create(directory.path(), SimulatedKind::Snp, now())?;
        let mut machine = Vec::new();
        for entry in fs::read_dir(directory.path())? {
            let entry = entry?;
            machine.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
        }
        let (pem, public) = keys::generate_seedshare_owner_key()?;
        anyhow::Ok((machine, (pem.to_string(), OwnerKey::from_der(public))))
    };
    let keys = KEYS.get_or_init(|| make().map_err(|error| error.to_string()));
    keys.as_ref().map_err(|error| anyhow::anyhow!(error.clone()))
}

impl Deployment {
    /// Makes keys, a simulated machine and a manifest that `change` has the last word on, and starts the
    /// Coordinator with further options.
    pub fn start(options: &[&str], change: impl FnOnce(&mut ManifestBody, &Path)) -> anyhow::Result<Self> {
        Self::start_by(|program| Command::new(program), options, change)
    }

    /// The same with a command that starts the program elsewhere, such as in a control group.
    pub fn start_by(
        command: impl Fn(&Path) -> Command + Send + Sync + 'static,
        options: &[&str],
        change: impl FnOnce(&mut ManifestBody, &Path),
    ) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (machine, seedshare_owner) = slow_keys()?;
        fs::create_dir(directory.path().join("machine"))?;
        for (name, content) in machine {
            fs::write(directory.path().join("machine").join(name), content)?;
        }
        let machine = SimulatedMachine::open(&directory.path().join("machine"))?;
        let mut body = Self::manifest_body(machine.reference_values());
        for (name, policy) in [("coordinator", COORDINATOR), ("web", WEB)] {
            fs::create_dir_all(directory.path().join("policies"))?;
            fs::write(directory.path().join("policies").join(name), policy)?;
        }
        let (pem, public) = keys::generate_workload_owner_key()?;
        fs::write(directory.path().join("workload-owner.pem"), pem.as_bytes())?;
        body.workload_owner_pub_keys = vec![OwnerKey::from_der(public)];
        fs::write(directory.path().join("seedshare-owner.pem"), &seedshare_owner.0)?;
        body.seedshare_owner_pub_keys = vec![seedshare_owner.1.clone()];
        change(&mut body, directory.path());
        fs::write(directory.path().join("manifest.json"), body.to_json())?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let command = Box::new(command);
        let mut deployment = Self { directory, ports: free_ports()?, options, command, child: None };
        deployment.launch()?;
        Ok(deployment)
    }

    fn manifest_body(reference_values: ReferenceValues) -> ManifestBody {
        let entry = |name: &str, secret: &str, role| PolicyEntry {
            sans: vec![name.to_owned(), "*".to_owned()],
            workload_secret_id: secret.to_owned(),
            role,
            going_out: false,
        };
        ManifestBody {
            policies: [
                (PolicyHash::of(COORDINATOR), entry("coordinator", "", Role::Coordinator)),
                (PolicyHash::of(WEB), entry("web", "web", Role::None)),
            ]
            .into(),
            reference_values,
            ..ManifestBody::default()
        }
    }

    /// Starts the Coordinator, for the first time or again.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.path("coordinator.log"))?;
        let Ports { user, mesh, probe, http, transit } = self.ports;
        let child = (self.command)(&program("coordinator"))
            .args(["--user-listen", &user.to_string(), "--mesh-listen", &mesh.to_string()])
            .args(["--probe-listen", &probe.to_string(), "--http-listen", &http.to_string()])
            .args(["--transit-listen", &transit.to_string(), "--metrics", "on"])
            .args(["--policy-hash", &PolicyHash::of(COORDINATOR).to_string()])
            .arg("--simulated-machine")
            .arg(self.path("machine"))
            .arg("--state-dir")
            .arg(self.path("event-log"))
            .args(&self.options)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let started = Instant::now();
        while TcpStream::connect(probe).is_err() {
            anyhow::ensure!(started.elapsed() < START, "no start within {START:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20)); // until another process listens
        }
        Ok(())
    }

    /// The Coordinator's process; 0 while there is none.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The Coordinator's process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A file of the deployment.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The manifest that was made first.
    pub fn manifest(&self) -> anyhow::Result<Manifest> {
        Ok(Manifest::parse(&fs::read(self.path("manifest.json"))?)?)
    }

    /// What the Coordinator logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("coordinator.log")).unwrap_or_default()
    }

    /// Runs `contrast` in the deployment's directory, against its Coordinator.
    pub fn contrast(&self, args: &[&str]) -> std::io::Result<Output> {
        self.contrast_at(&self.ports.user.to_string(), args)
    }

    /// Runs `contrast` against another address of the Coordinator.
    pub fn contrast_at(&self, coordinator: &str, args: &[&str]) -> std::io::Result<Output> {
        Command::new(program("contrast"))
            .args(args)
            .current_dir(self.directory.path())
            .env("CONTRAST_COORDINATOR", coordinator)
            .env("NO_COLOR", "1")
            .env_remove("CONTRAST_OUTPUT")
            .output()
    }

    /// Runs an initializer with a policy; its files are in the directory of that name.
    pub fn initializer(&self, policy: &[u8], directory: &str) -> std::io::Result<Output> {
        Command::new(program("initializer"))
            .args(["--once", "--coordinator", &self.ports.mesh.to_string()])
            .args(["--policy-hash", &PolicyHash::of(policy).to_string()])
            .arg("--directory")
            .arg(self.path(directory))
            .arg("--simulated-machine")
            .arg(self.path("machine"))
            .env("NO_COLOR", "1")
            .output()
    }

    /// The body of an answer to a GET on a plain HTTP port.
    pub fn get(&self, address: SocketAddr, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(START))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        self.kill();
    }
}
