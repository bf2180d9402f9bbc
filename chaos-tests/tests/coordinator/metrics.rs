//! Metrics, and what is built on them.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use chaos_tests::deployment::{Deployment, WEB};

use crate::{done, drive, repository, run};

/// Names of metrics in a text of PromQL, JSON or YAML.
fn names(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_name(c)).filter(|word| word.starts_with("contrast_") && !word.ends_with('_')).collect()
}

/// What Prometheus' own tool says of a text, which must be nothing.
fn promtool(args: &[&str], input: &str) {
    let tool = repository().join("target/tools/prometheus/usr/bin/promtool");
    let mut tool = Command::new(tool).args(args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let tool = tool.as_mut().unwrap_or_else(|error| panic!("promtool: {error}: run ./test, which brings it"));
    tool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let mut said = String::new();
    tool.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(tool.wait().unwrap().success(), "promtool {args:?}: {said}");
}

#[test]
fn prometheus_own_tool_finds_nothing_wrong_with_metrics_and_rules() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let get = |accept: &str| {
        let header = format!("Accept: {accept}");
        let url = format!("http://{}/metrics", deployment.ports.probe);
        run(Command::new("curl").args(["-sS", "-D", "-", "--noproxy", "*", "-H", &header, &url]))
    };
    let (head, classic) =
        get("*/*").split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).unwrap();
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    promtool(&["check", "metrics"], &classic);
    for name in [
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_open_fds",
        "contrast_coordinator_state_disk_free_bytes",
        "contrast_coordinator_ca_expiry_timestamp_seconds{ca=\"mesh\"}",
    ] {
        let line = classic
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name}\n{classic}"));
        assert!(line.trim().parse::<f64>().unwrap() > 1.0, "{name}{line}");
    }
    let open = get("application/openmetrics-text; version=1.0.0");
    assert!(open.contains("application/openmetrics-text") && open.ends_with("# EOF\n"), "{open}");
    let rules = repository().join("deploy/monitoring/alerts.yml");
    promtool(&["check", "rules", rules.to_str().unwrap()], "");
}

/// Every certificate costs allocations, and a careless change can double them without anybody noticing.
#[test]
fn a_certificate_takes_a_bounded_number_of_allocations() {
    /// About a tenth above what was counted when this was last changed.
    const MOST: u64 = 1500;
    const CERTIFICATES: u64 = 20;
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let allocations = || {
        let text = deployment.get(deployment.ports.probe, "/metrics").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("contrast_coordinator_allocations_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let issue = |count: u64| {
        for _ in 0..count {
            assert!(deployment.initializer(WEB, "web").unwrap().status.success());
        }
    };
    issue(3);
    let before = allocations();
    issue(CERTIFICATES);
    let each = (allocations() - before) / CERTIFICATES;
    assert!(each < MOST, "{each} allocations for each certificate, {MOST} are the bound");
}

#[test]
fn metrics_have_their_names_and_dashboard_and_alerts_name_no_others() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    drive(&deployment, "handshakes");
    assert!(deployment.initializer(WEB, "web").unwrap().status.success());
    assert!(!deployment.initializer(b"a policy that nobody allowed", "other").unwrap().status.success());
    deployment.get(deployment.ports.http, "/v1/status").unwrap();
    let text = deployment.get(deployment.ports.probe, "/metrics").unwrap();
    for line in [
        "contrast_coordinator_manifest_generation 1",
        "contrast_meshapi_attestation_failures_total 1",
        "contrast_grpc_server_started_total{grpc_type=\"unary\",grpc_service=\"meshapi.MeshAPI\",grpc_method=\"NewMeshCert\"} 2",
        "grpc_method=\"NewMeshCert\",grpc_code=\"OK\"} 1",
        "grpc_method=\"NewMeshCert\",grpc_code=\"PermissionDenied\"} 1",
        "grpc_method=\"SetManifest\",grpc_code=\"OK\"} 1",
        "contrast_grpc_server_msg_sent_total{grpc_type=\"unary\",grpc_service=\"meshapi.MeshAPI\",grpc_method=\"NewMeshCert\"} 1",
        "contrast_coordinator_verification_seconds_count{outcome=\"accepted\"} 2",
        "contrast_coordinator_issuing_seconds_count{outcome=\"issued\"} 1",
        "contrast_coordinator_refused_total{listener=\"user\",reason=\"handshake\"} 5",
        "contrast_coordinator_http_requests_total{listener=\"http\",route=\"/v1/status\",code=\"200\"} 1",
        "contrast_coordinator_queue_depth{actor=\"ledger\"} 0",
        "contrast_grpc_server_handling_seconds_bucket{le=\"0.0005\"",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }

    let mut known: BTreeSet<&str> = names(&text);
    // Only where there is something that expires, which simulated evidence has not.
    known.insert("contrast_coordinator_endorsements_expiry_timestamp_seconds");
    let folder = repository().join("deploy/monitoring");
    for name in ["alerts.yml", "dashboard.json"] {
        let content = fs::read_to_string(folder.join(name)).unwrap();
        let used = names(&content);
        assert!(used.len() > 5, "{name} uses metrics");
        let unknown: Vec<&&str> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{name} names {unknown:?}, which the Coordinator does not have");
    }
    let dashboard = fs::read(folder.join("dashboard.json")).unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&dashboard).unwrap()["panels"].is_array());
}
