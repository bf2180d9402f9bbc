//! A node.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use runtime_installer::containerd::cri::{Cri, Health};
use tempfile::TempDir;

pub(crate) const PAUSE: &str = "localhost/pause:1";

/// What keeps containerd running in the node, and restarts it when it is told to. With `sabotage` it starts no
/// containerd whose configuration names our handler.
const SUPERVISOR: &str = r#"
set -eu
node=$1 containerd=$2
mount --make-rprivate /
for folder in etc/containerd opt run/containerd var/lib/containerd; do
    mkdir -p /$folder
    mount --bind $node/root/$folder /$folder
done
while :; do
    # As k3s does: from the template if there is one, else from its own base.
    if [ -e $node/base ]; then
        template=/etc/containerd/config.toml.tmpl
        if [ -e $template ]; then
            sed -e "/{{ template \"base\" . }}/{r $node/base" -e "d}" $template > /etc/containerd/config.toml
        else
            cat $node/base > /etc/containerd/config.toml
        fi
    fi
    flag=--config
    if [ -e $node/sabotage ] && grep -rqs contrast-cc /etc/containerd; then flag=--no-such-flag; fi
    echo start >> $node/starts
    config="$flag /etc/containerd/config.toml"
    if [ -e $node/defaults ]; then config=; fi
    "$containerd" $config >> $node/containerd.log 2>&1 &
    process=$!
    echo started > $node/answer
    read -r order < $node/order
    kill $process 2> /dev/null || true
    wait $process || true
done
"#;

/// Folders with a containerd: Debian's, and newer ones if `./test` could fetch them.
pub(crate) fn containerds() -> Vec<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/containerds");
    let mut found: Vec<PathBuf> = fs::read_dir(fetched)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path().join("usr/bin"))
        .filter(|folder| folder.join("containerd").exists())
        .collect();
    found.sort();
    found.insert(0, "/usr/bin".into());
    found
}

/// The newest of them, if it is at least version 2.
pub(crate) fn containerd_2() -> Option<PathBuf> {
    containerds().into_iter().find(|folder| folder.components().any(|part| part.as_os_str() == "2"))
}

pub(crate) struct Node {
    folder: TempDir,
    supervisor: Child,
    binaries: PathBuf,
}

/// Everything in a root folder but what containerd keeps there while it runs: kind, mode, owner, contents.
pub(crate) type Snapshot = BTreeMap<PathBuf, (u32, u32, Vec<u8>)>;

impl Node {
    /// A node with Debian's containerd and a short configuration.
    pub(crate) fn new() -> Self {
        Self::with(Path::new("/usr/bin"), "version = 2\n# the node's own comment\n")
    }

    /// A node with the containerd of that folder. To its configuration is added what tests need.
    pub(crate) fn with(binaries: &Path, config: &str) -> Self {
        assert!(binaries.join("containerd").exists(), "containerd is needed: ./test installs it");
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for path in ["etc/containerd", "opt", "run/containerd", "var/lib/containerd"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::write(root.join("etc/containerd/config.toml"), config).unwrap();
        for pipe in ["order", "answer"] {
            assert!(Command::new("mkfifo").arg(folder.path().join(pipe)).status().unwrap().success());
        }
        let supervisor = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                SUPERVISOR,
                "sh",
            ])
            .arg(folder.path())
            .arg(binaries.join("containerd"))
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", binaries.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let node = Self { folder, supervisor, binaries: binaries.to_owned() };
        fs::read(node.path("answer")).unwrap();
        node.until("containerd answers", || node.health().is_some_and(|health| health.ready));
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    /// How often containerd was started.
    pub(crate) fn starts(&self) -> usize {
        fs::read_to_string(self.path("starts")).unwrap().lines().count()
    }

    pub(crate) fn cri(&self) -> Cri {
        Cri::new(&self.root().join("run/containerd/containerd.sock")).unwrap()
    }

    pub(crate) fn health(&self) -> Option<Health> {
        self.cri().health().ok()
    }

    /// Names of containerd's handlers, as it says over CRI.
    pub(crate) fn handlers(&self) -> Vec<String> {
        self.health().expect("containerd answers").handlers.into_keys().collect()
    }

    /// The installer with arguments, ready to run on this node.
    pub(crate) fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let orders =
            format!("echo restart > {0}/order; read -r x < {0}/answer", self.folder.path().display());
        command
            .args(arguments)
            .env("HOST_MOUNT", self.root())
            .env("HOST_PROCESS", self.supervisor().to_string())
            .env("RESTART_COMMAND", orders)
            .env("HEALTH_SECONDS", "60")
            .env("CONTRAST_LOG_LEVEL", "warn");
        command
    }

    /// Runs the installer.
    pub(crate) fn installer(&self, config: &Path, arguments: &[&str]) -> Ran {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_runtime-installer")), arguments);
        Ran::of(command.env("CONFIG_DIR", config).output().unwrap())
    }

    /// Id of the process that is 1 inside: `unshare`'s only child.
    fn supervisor(&self) -> u32 {
        let id = self.supervisor.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub(crate) fn sabotage(&self, on: bool) {
        let path = self.path("sabotage");
        if on { fs::write(path, "").unwrap() } else { fs::remove_file(path).unwrap() }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new();
        for part in ["etc", "opt"] {
            add(&self.root().join(part), &mut snapshot);
        }
        // containerd makes it when it starts.
        snapshot.retain(|path, _| !path.starts_with(self.root().join("opt/containerd")));
        snapshot
    }

    /// Gives containerd an image whose only program waits, for sandboxes.
    pub(crate) fn import_pause(&self) {
        let archive = self.path("pause.tar");
        fs::write(&archive, pause_image()).unwrap();
        let socket = self.root().join("run/containerd/containerd.sock");
        let import = |flags: &[&str]| {
            let mut ctr = Command::new(self.binaries.join("ctr"));
            ctr.arg("-a").arg(&socket).args(["-n", "k8s.io", "images", "import", "--snapshotter", "native"]);
            Ran::of(ctr.args(flags).arg(&archive).output().unwrap())
        };
        // Newer ones would leave it to the server, whose unpacker knows one snapshotter only.
        if import(&["--local"]).code != 0 {
            import(&[]).done();
        }
    }

    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            let log = || fs::read_to_string(self.path("containerd.log")).unwrap();
            assert!(Instant::now() < deadline, "not in 60 s: {what}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("containerd.log")).unwrap_or_default();
            eprintln!("{}", log.lines().rev().take(20).collect::<Vec<_>>().join("\n"));
        }
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

/// What a program said.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap_or(-1);
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Demands that it ended with `code` and a message that has `words`.
    #[track_caller]
    pub(crate) fn said(&self, code: i32, words: &str) {
        assert!(
            self.code == code && self.stderr.contains(words),
            "code {}\n{}\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
    }
}

fn add(path: &Path, snapshot: &mut Snapshot) {
    let about = fs::symlink_metadata(path).unwrap();
    let contents = if about.is_symlink() {
        fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
    } else if about.is_file() {
        fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    snapshot.insert(path.to_owned(), (about.permissions().mode(), about.uid(), contents));
    if about.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            add(&entry.unwrap().path(), snapshot);
        }
    }
}

/// An OCI archive with one static program that waits for ever.
fn pause_image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("pause.c");
        fs::write(&source, "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n").unwrap();
        let program = folder.path().join("pause");
        assert!(
            Command::new("cc")
                .arg("-static")
                .arg("-o")
                .arg(&program)
                .arg(&source)
                .status()
                .unwrap()
                .success()
        );
        crate::bundle::image(&[("pause", 0o755, &fs::read(program).unwrap())], PAUSE).archive()
    })
}
