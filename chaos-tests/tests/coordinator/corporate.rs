//! Through a company's proxy: squid, as Debian has it. It asks for a user and a password, and permits few ports.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use chaos_tests::{
    deployment::Deployment,
    process::{free_port, wait_until},
    program,
};

use crate::{run, stderr};

/// A name that only squid can resolve, so that whatever goes past it reaches nobody.
const HOST: &str = "coordinator.test";

struct Squid {
    child: Child,
    port: u16,
    deployment: Deployment,
}

impl Drop for Squid {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Squid {
    fn start(deployment: Deployment) -> Self {
        let folder = deployment.path("squid");
        fs::create_dir(&folder).unwrap();
        // Squid gives up the rights of root, and writes its logs as somebody else.
        for path in [deployment.path(""), folder.clone()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let hash = run(Command::new("openssl").args(["passwd", "-apr1", "s:e@cret"]));
        fs::write(folder.join("users"), format!("anna:{hash}")).unwrap();
        fs::write(folder.join("hosts"), format!("127.0.0.1 localhost {HOST}\n")).unwrap();
        let (port, at) = (free_port().unwrap(), folder.display());
        let (user, http) = (deployment.ports.user.port(), deployment.ports.http.port());
        let config = format!(
            "http_port 127.0.0.1:{port}\nhosts_file {at}/hosts\npid_filename {at}/pid\ncache_log {at}/cache.log\n\
             access_log stdio:{at}/access.log\ncache deny all\ncoredump_dir {at}\nshutdown_lifetime 0 seconds\n\
             visible_hostname proxy.test\nauth_param basic program /usr/lib/squid/basic_ncsa_auth {at}/users\n\
             acl users proxy_auth REQUIRED\nacl permitted port {user} {http}\nhttp_access deny !permitted\n\
             http_access allow users\nhttp_access deny all\n"
        );
        fs::write(folder.join("squid.conf"), config).unwrap();
        let mut squid = Command::new("squid");
        squid.args(["-N", "-f"]).arg(folder.join("squid.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        let child =
            squid.spawn().unwrap_or_else(|error| panic!("squid: {error}: run ./test, which installs it"));
        let mut squid = Self { child, port, deployment };
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || fs::read_to_string(folder.join("cache.log")).unwrap_or_default();
            assert!(squid.child.try_wait().unwrap().is_none(), "squid ended:\n{}", log());
            assert!(began.elapsed() < Duration::from_secs(60), "no squid:\n{}", log());
            std::thread::sleep(Duration::from_millis(50)); // until another process listens
        }
        squid
    }

    fn contrast(&self, coordinator: &str, user: &str, more: &[(&str, &str)], args: &[&str]) -> Output {
        let proxy = format!("http://{user}127.0.0.1:{}", self.port);
        let mut contrast = Command::new(program("contrast"));
        contrast.args(args).current_dir(self.deployment.path("")).env("NO_COLOR", "1");
        contrast
            .env("CONTRAST_COORDINATOR", coordinator)
            .env("HTTPS_PROXY", &proxy)
            .env("HTTP_PROXY", &proxy);
        for name in ["NO_PROXY", "no_proxy", "https_proxy", "http_proxy", "all_proxy", "ALL_PROXY"] {
            contrast.env_remove(name);
        }
        contrast.envs(more.iter().copied()).output().unwrap()
    }

    fn refused(&self, coordinator: &str, user: &str, more: &[(&str, &str)]) -> String {
        let output = self.contrast(coordinator, user, more, &["verify"]);
        assert_ne!(output.status.code(), Some(0));
        stderr(&output)
    }
}

#[test]
fn every_command_works_through_a_companys_proxy() {
    let mut squid = Squid::start(Deployment::start(&[], |_, _| {}).unwrap());
    let grpc = format!("{HOST}:{}", squid.deployment.ports.user.port());
    let http = format!("http://{HOST}:{}", squid.deployment.ports.http.port());
    let anna = "anna:s%3Ae%40cret@";
    let works = |squid: &Squid, coordinator: &str, args: &[&str]| {
        let output = squid.contrast(coordinator, anna, &[], args);
        assert!(output.status.success(), "contrast {}: {}", args.join(" "), stderr(&output));
    };
    works(&squid, &grpc, &["set"]);
    for args in [
        ["verify"].as_slice(),
        &["status"],
        &["history", "list"],
        &["audit", "export", "--out", "audit.jsonl"],
        &["audit", "checkpoint"],
        &["proposals", "list"],
    ] {
        works(&squid, &grpc, args);
    }
    works(&squid, &http, &["verify"]);
    squid.deployment.kill();
    squid.deployment.launch().unwrap();
    let says = || Ok(squid.deployment.log().contains("a seedshare owner has to run `contrast recover`"));
    wait_until("the log says what the Coordinator waits for", Duration::from_secs(60), says).unwrap();
    works(&squid, &grpc, &["recover"]);

    let seen = fs::read_to_string(squid.deployment.path("squid/access.log")).unwrap();
    assert!(seen.matches(&format!("CONNECT {grpc}")).count() >= 8, "{seen}");
    assert!(seen.contains(&format!("POST {http}/v1/attest")), "{seen}");

    let nobody = squid.refused(&grpc, "", &[]);
    assert!(nobody.contains("demands a user and a password: HTTPS_PROXY=http://USER:PASSWORD@"), "{nobody}");
    let wrong = squid.refused(&grpc, "anna:wrong@", &[]);
    assert!(wrong.contains("refuses the user or the password") && !wrong.contains("wrong@"), "{wrong}");
    let port = squid.refused(&format!("{HOST}:1"), anna, &[]);
    assert!(port.contains("permits no connection to coordinator.test:1"), "{port}");
    let past = squid.refused(&grpc, anna, &[("NO_PROXY", ".test")]);
    assert!(past.contains(&format!("cannot resolve {HOST}")), "{past}");
    // This machine itself is never behind a proxy.
    let own = squid.deployment.ports.user.to_string();
    let output = squid.contrast(&own, "", &[], &["verify"]);
    assert!(output.status.success(), "{}", stderr(&output));
}
