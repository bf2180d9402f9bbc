//! Through a proxy that ends TLS: nginx, as Debian has it.

use std::{
    fs,
    process::{Child, Command},
};

use chaos_tests::{deployment::Deployment, process::free_port};

use crate::{done, run, stderr};

struct Nginx(Child, u16);

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends with it.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn nginx(deployment: &Deployment) -> Nginx {
    let at = |name: &str| deployment.path(name).display().to_string();
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    run(openssl.args(["-keyout", &at("proxy.key"), "-out", &at("proxy.pem")]));
    let port = free_port().unwrap();
    let config = format!(
        "daemon off; master_process off; pid {0}; error_log {1};\nevents {{}}\nhttp {{\n\
         log_format seen escape=none '$request_uri $request_body'; access_log {6} seen;\n\
         client_body_temp_path {2}; proxy_temp_path {2}; fastcgi_temp_path {2}; uwsgi_temp_path {2};\n\
         scgi_temp_path {2}; client_max_body_size 20m;\nserver {{ listen 127.0.0.1:{port} ssl;\n\
         ssl_certificate {3}; ssl_certificate_key {4};\nlocation / {{ proxy_pass http://{5}; }} }} }}\n",
        at("nginx.pid"),
        at("nginx.log"),
        at("nginx"),
        at("proxy.pem"),
        at("proxy.key"),
        deployment.ports.http,
        at("seen"),
    );
    fs::write(deployment.path("nginx.conf"), config).unwrap();
    let child = Command::new("nginx").args(["-e", &at("nginx.log"), "-c", &at("nginx.conf")]).spawn();
    let child = child.unwrap_or_else(|error| panic!("nginx: {error}: run ./test, which installs it"));
    let mut nginx = Nginx(child, port);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(nginx.0.try_wait().unwrap().is_none(), "nginx ended: see {}", at("nginx.log"));
        std::thread::sleep(std::time::Duration::from_millis(20)); // until another process listens
    }
    nginx
}

#[test]
fn setting_verifying_and_recovering_work_through_a_proxy_that_ends_tls() {
    let mut deployment = Deployment::start(&[], |_, _| {}).unwrap();
    let nginx = nginx(&deployment);
    let url = format!("https://localhost:{}", nginx.1);
    let contrast = |deployment: &Deployment, args: &[&str]| {
        let output = deployment.contrast_at(&url, &[args, &["--http-ca", "proxy.pem"]].concat()).unwrap();
        assert!(output.status.success(), "contrast {}: {}", args.join(" "), stderr(&output));
    };
    contrast(&deployment, &["set"]);
    contrast(&deployment, &["verify"]);
    let first = fs::read_to_string(deployment.path("checkpoint.note")).unwrap();

    // The proxy's certificate is checked, although nothing relies on it.
    let output = deployment.contrast_at(&url, &["verify"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--http-ca"), "{}", stderr(&output));

    let mut next = deployment.manifest().unwrap().body().clone();
    next.minimum_api_version = "v1".into();
    fs::write(deployment.path("next.json"), next.to_json()).unwrap();
    let change = ["set", "-m", "next.json", "--workload-owner-key", "workload-owner.pem"];
    // Over HTTP, too, a change that is to follow another transition than the one in force is not made.
    let nothing_before = "00".repeat(32);
    let elsewhere = ["--atomic", "--latest-transition", &nothing_before, "--http-ca", "proxy.pem"];
    let output = deployment.contrast_at(&url, &[change.as_slice(), &elsewhere].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("history moved on"), "{}", stderr(&output));
    contrast(&deployment, &["verify"]);
    contrast(&deployment, &[change.as_slice(), &["--atomic"]].concat());
    contrast(&deployment, &["verify", "-m", "next.json"]);

    deployment.kill();
    deployment.launch().unwrap();
    let waiting =
        deployment.contrast_at(&url, &["verify", "-m", "next.json", "--http-ca", "proxy.pem"]).unwrap();
    assert_eq!(waiting.status.code(), Some(1));
    assert!(stderr(&waiting).contains("coordinator is in recovery mode"), "{}", stderr(&waiting));
    contrast(&deployment, &["recover", "-m", "next.json"]);
    contrast(&deployment, &["verify", "-m", "next.json"]);
    assert_ne!(fs::read_to_string(deployment.path("checkpoint.note")).unwrap(), first, "it moved along");

    // What the proxy saw of the recovery serves it nothing.
    let seen = fs::read_to_string(deployment.path("seen")).unwrap();
    let sealed = seen.lines().find_map(|line| line.strip_prefix("/v1/recover ")).unwrap();
    let again = ["-sk", "-H", "Content-Type: application/json", "--data", sealed];
    let again = run(Command::new("curl").args(again).arg(format!("{url}/v1/recover")));
    assert!(again.contains("was accepted before"), "{again}");

    // A proxy that leads to another Coordinator, genuine and with the same manifest, is noticed.
    let other = Deployment::start(&[], |_, _| {}).unwrap();
    fs::copy(deployment.path("next.json"), other.path("manifest.json")).unwrap();
    done(&other, &["set"]);
    let direct = format!("http://{}", other.ports.http);
    let output = deployment.contrast_at(&direct, &["verify", "-m", "next.json"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("this is another Coordinator"), "{}", stderr(&output));
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let _ = fs::remove_dir_all(to);
    let mut cp = Command::new("cp");
    run(cp.arg("-r").arg(from).arg(to));
}

#[test]
fn a_coordinator_whose_storage_was_rolled_back_refuses_the_seed_itself() {
    let mut deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    deployment.kill();
    copy(&deployment.path("event-log"), &deployment.path("before"));
    deployment.launch().unwrap();
    done(&deployment, &["recover"]);
    let mut next = deployment.manifest().unwrap().body().clone();
    next.minimum_api_version = "v1".into();
    fs::write(deployment.path("next.json"), next.to_json()).unwrap();
    done(&deployment, &["set", "-m", "next.json", "--workload-owner-key", "workload-owner.pem"]);
    deployment.kill();
    copy(&deployment.path("before"), &deployment.path("event-log"));
    deployment.launch().unwrap();
    let url = format!("http://{}", deployment.ports.http);
    for address in [deployment.ports.user.to_string(), url] {
        let output = deployment.contrast_at(&address, &["recover"]).unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("the Coordinator shows a past"), "{}", stderr(&output));
    }
    crate::drive(&deployment, "rollback");
}
