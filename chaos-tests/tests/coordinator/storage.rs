//! The Coordinator's own disk: when it is full, and what is taken of it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use chaos_tests::{
    deployment::{Deployment, WEB},
    process::wait_until,
};

use crate::{done, stderr};

/// A file system of 3 MB; needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(at);
        assert!(mount.status().unwrap().success(), "cannot mount a tmpfs; the tests run as root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn readiness(deployment: &Deployment) -> String {
    deployment.get(deployment.ports.probe, "/probe/readiness").unwrap()
}

/// Issues, reads and asks while the disk is full; when it is not any more, everything goes on by itself, and
/// a start after a kill finds all of it.
#[test]
fn a_full_disk_shows_within_a_second_and_passes() {
    let mut disk = None;
    let mut deployment = Deployment::start(&[], |_, directory| {
        disk = Some(SmallDisk::mount(&directory.join("event-log")));
    })
    .unwrap();
    done(&deployment, &["set"]);
    assert!(deployment.initializer(WEB, "web").unwrap().status.success());
    assert_eq!(readiness(&deployment), "ready\n");
    let before = done(&deployment, &["history", "list"]);

    let ballast = deployment.path("event-log/ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    let refused = deployment.initializer(WEB, "full").unwrap();
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("No space left on device"), "{}", stderr(&refused));
    wait_until("the disk shows", Duration::from_secs(1), || {
        Ok(readiness(&deployment) == "the event store takes no writes\n")
    })
    .unwrap();
    // Whoever reads meanwhile gets what is there, and makes nothing worse.
    for _ in 0..3 {
        assert_eq!(done(&deployment, &["history", "list"]), before);
        assert!(!deployment.initializer(WEB, "full").unwrap().status.success());
    }
    let status = deployment.contrast(&["status"]).unwrap();
    let text = String::from_utf8_lossy(&status.stdout);
    assert_eq!(status.status.code(), Some(1), "{text}");
    assert!(text.contains("the event store takes no writes"), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    assert!(deployment.log().contains("the event store takes no writes: nothing is issued"));

    drop(file);
    fs::remove_file(&ballast).unwrap();
    wait_until("it passes", Duration::from_secs(2), || Ok(readiness(&deployment) == "ready\n")).unwrap();
    assert!(deployment.initializer(WEB, "after").unwrap().status.success());
    deployment.kill();
    deployment.launch().unwrap();
    assert_eq!(readiness(&deployment), "coordinator is in recovery mode\n");
    assert!(!deployment.log().contains("panicked"), "{}", deployment.log());
}
