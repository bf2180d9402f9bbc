//! Certificates as OpenSSL and pkilint see them.

use std::{fs, path::Path, process::Command};

use chaos_tests::deployment::{Deployment, WEB};
use manifest::PolicyHash;

use crate::{done, python, run};

/// Findings of the linter from WARNING up, one a line.
fn findings(certificate: &Path) -> Vec<String> {
    let output = python("lint_pkix_cert")
        .args(["lint", "-s", "WARNING", "-f", "CSV"])
        .arg(certificate)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    assert!(head.contains("severity"), "not the linter's output: {text}");
    lines.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

#[test]
fn certificates_satisfy_openssl_and_a_linter() {
    let names = [
        "web.shop.svc.cluster.local",
        "*.shop.svc.cluster.local",
        "10.0.0.7",
        "2001:db8::7",
        "spiffe://shop.example/web",
    ];
    let deployment = Deployment::start(&["--certificate-seconds", "3600"], |body, _| {
        let entry = body.policies.get_mut(&PolicyHash::of(WEB)).unwrap();
        entry.sans = names.map(str::to_owned).to_vec();
    })
    .unwrap();
    done(&deployment, &["set"]);
    let output = deployment.initializer(WEB, "web").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let at = |name: &str| deployment.path(&format!("web/tls-config/{name}"));
    let chain = fs::read_to_string(at("certChain.pem")).unwrap();
    let second = chain.rfind("-----BEGIN").unwrap();
    fs::write(at("leaf.pem"), &chain[..second]).unwrap();
    fs::write(at("intermediate.pem"), &chain[second..]).unwrap();

    let verify = |ca: &str, purpose: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(at(ca));
        run(openssl.arg("-untrusted").arg(at("intermediate.pem")).arg(at("leaf.pem")));
    };
    for purpose in ["sslserver", "sslclient"] {
        verify("mesh-ca.pem", purpose);
        verify("coordinator-root-ca.pem", purpose);
    }
    let mut openssl = Command::new("openssl");
    let text = run(openssl.args(["x509", "-noout", "-text", "-in"]).arg(at("leaf.pem")));
    for name in [
        "DNS:web.shop.svc.cluster.local",
        "DNS:*.shop.svc.cluster.local",
        "IP Address:10.0.0.7",
        "IP Address:2001:DB8:0:0:0:0:0:7",
        "URI:spiffe://shop.example/web",
        "CN = web.shop.svc.cluster.local",
    ] {
        assert!(text.contains(name), "{name} is missing in {text}");
    }
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-checkend", "3700", "-in"]).arg(at("leaf.pem"));
    assert!(!openssl.output().unwrap().status.success(), "it lives for an hour");

    for name in ["leaf.pem", "intermediate.pem", "mesh-ca.pem", "coordinator-root-ca.pem"] {
        let mut found = findings(&at(name));
        // The linter holds to RFC 5280, which knows no wildcards (RFC 6125 does), and checks URIs by a
        // list of web schemes.
        let excepted = |line: &str| {
            line.contains("invalid_domain_name_syntax") && line.contains("\"*.shop.")
                || line.contains("invalid_uri_syntax") && line.contains("\"spiffe://")
        };
        found.retain(|line| !excepted(line));
        assert_eq!(found, Vec::<String>::new(), "{name}");
    }
}
