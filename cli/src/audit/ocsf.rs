//! Events in the Open Cybersecurity Schema Framework 1.3, one a line: each is valid by the schema of its class, with
//! whom, what and why in the fields that a SIEM asks.

use std::net::{IpAddr, SocketAddr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use storage_schema::{Event, Fact, LogId, StreamId};

use super::record::readable;

/// Longest text that the schema allows, in characters.
const MAX_TEXT: usize = 65_535;

/// A class, and its number.
#[derive(Clone, Copy)]
enum Class {
    EntityManagement = 3004,
    Authentication = 3002,
    UserAccess = 3005,
    ApplicationLifecycle = 6002,
}

impl Class {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::EntityManagement => ("Entity Management", "Identity & Access Management"),
            Self::Authentication => ("Authentication", "Identity & Access Management"),
            Self::UserAccess => ("User Access Management", "Identity & Access Management"),
            Self::ApplicationLifecycle => ("Application Lifecycle", "Application Activity"),
        }
    }
}

/// How bad it is, by the numbers of the schema.
#[derive(Clone, Copy, Debug)]
enum Severity {
    Informational = 1,
    Medium = 3,
    High = 4,
    Critical = 5,
}

/// What an event is in this schema.
struct Shape {
    class: Class,
    activity: (u64, &'static str),
    severity: Severity,
    succeeded: bool,
    /// One sentence for a reader.
    message: String,
    /// Fields of the class.
    fields: Value,
}

pub(super) fn line(log: &LogId, stream: StreamId, sequence: u64, event: &Event, raw: &[u8]) -> Value {
    let Shape { class, activity: (activity, activity_name), severity, succeeded, message, fields } =
        shape(&event.fact);
    let (class_name, category_name) = class.names();
    let class = class as u64;
    let mut line = json!({
        "category_uid": class / 1000,
        "category_name": category_name,
        "class_uid": class,
        "class_name": class_name,
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": class * 100 + activity,
        "type_name": format!("{class_name}: {activity_name}"),
        "severity_id": severity as u64,
        "severity": format!("{severity:?}"),
        "status_id": if succeeded { 1 } else { 2 },
        "status": if succeeded { "Success" } else { "Failure" },
        "time": event.at.as_millis(),
        "message": limited(&message),
        "metadata": {
            "version": "1.3.0",
            "uid": format!("{stream}/{sequence}"),
            "event_code": event.fact.kind(),
            "log_name": log.origin(&stream),
            "correlation_uid": event.request,
            "product": product(None),
        },
        "unmapped": { "replica": event.replica, "fact": readable(&event.fact) },
    });
    let raw = BASE64_STANDARD.encode(raw);
    if raw.len() <= MAX_TEXT {
        line["raw_data"] = raw.into(); // what is longer is in the form jsonl
    }
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
        line.extend(fields);
    }
    line
}

fn shape(fact: &Fact) -> Shape {
    let entity = |kind: &str, uid: String| json!({ "entity": { "name": kind, "type": kind, "uid": uid } });
    let app = |version: Option<&str>| json!({ "app": product(version) });
    let of = |class, activity, severity, message: String, fields| Shape {
        class,
        activity,
        severity,
        succeeded: true,
        message,
        fields,
    };
    let failed = |shape: Shape, why: &str| {
        let mut fields = shape.fields;
        fields["status_detail"] = limited(why).into();
        Shape { succeeded: false, fields, ..shape }
    };
    use Class::{ApplicationLifecycle, Authentication, EntityManagement, UserAccess};
    use Severity::{Critical, High, Informational, Medium};
    let (create, update, other) = ((1, "Create"), (3, "Update"), (99, "Other"));
    match fact {
        Fact::ManifestSet { previous, manifest, generation, .. } => {
            let activity = if previous.is_none() { create } else { update };
            let message = format!("Manifest {manifest} is in force as generation {generation}");
            of(EntityManagement, activity, Medium, message, entity("Manifest", manifest.to_string()))
        }
        Fact::SeedSharesCreated { owners, .. } => {
            let message = format!("The seed was made and encrypted to {} seedshare owners", owners.len());
            of(EntityManagement, create, Informational, message, entity("Seed shares", "seed-shares".into()))
        }
        Fact::DeploymentVouched { owner, .. } => {
            let message = format!("Workload owner {owner} vouched for the deployment");
            of(EntityManagement, update, Informational, message, entity("Deployment", owner.to_string()))
        }
        Fact::PeersEvicted { policies, keys, .. } => {
            let names = policies.iter().map(ToString::to_string).chain(keys.iter().map(ToString::to_string));
            let names: Vec<String> = names.collect();
            let message = format!("Workload owners shut out of the mesh: {}", names.join(", "));
            of(
                EntityManagement,
                (4, "Delete"),
                High,
                message,
                entity("Mesh peers", limited(&names.join(","))),
            )
        }
        Fact::ManifestProposed { manifest, transition, approval, .. } => {
            let message = format!("Workload owner {} proposed manifest {manifest}", approval.owner);
            let fields = entity("Manifest proposal", transition.to_string());
            of(EntityManagement, create, Informational, message, fields)
        }
        Fact::ProposalApproved { transition, approval } => {
            let message = format!("Workload owner {} signed the proposal {transition}", approval.owner);
            let fields = entity("Manifest proposal", transition.to_string());
            of(EntityManagement, update, Informational, message, fields)
        }
        Fact::ProposalWithdrawn { transition, owner } => {
            let message = format!("Workload owner {owner} withdrew the proposal {transition}");
            let fields = entity("Manifest proposal", transition.to_string());
            of(EntityManagement, (4, "Delete"), Informational, message, fields)
        }
        Fact::CertificateIssued { serial, policy, sans, platform, .. } => {
            let name = sans.first().map_or("a workload", String::as_str);
            let message = format!("{name} on {platform} got certificate {serial}");
            let user = json!({ "name": name, "uid": policy, "type": "System", "type_id": 3 });
            let fields = json!({ "user": user, "service": { "name": "Contrast mesh API" } });
            of(Authentication, (1, "Logon"), Informational, message, fields)
        }
        Fact::AttestationRefused { source, reason, .. } => {
            let message = format!("The evidence of {source} was refused: {reason}");
            let fields = json!({
                "user": { "name": "unknown workload", "type": "Unknown", "type_id": 0 },
                "service": { "name": "Contrast mesh API" },
                "src_endpoint": endpoint(source),
            });
            failed(of(Authentication, (1, "Logon"), High, message, fields), reason)
        }
        Fact::SecretReleased { id, serial } => {
            let message = format!("The workload secret {id} was given to the holder of certificate {serial}");
            let fields = json!({
                "user": { "name": id, "uid": serial, "type": "System", "type_id": 3 },
                "privileges": [format!("workload secret {id}")],
            });
            of(UserAccess, (1, "Assign Privileges"), Informational, message, fields)
        }
        Fact::OlderHeadAccepted { owner, given_up, accepted, .. } => {
            let message = format!(
                "Seedshare owner {owner} gave up {} events and accepted {} instead",
                given_up.size, accepted.size
            );
            of(ApplicationLifecycle, other, Critical, message, app(None))
        }
        Fact::ReplicaVouched { key, platform, .. } => {
            let key = hex::encode(key);
            let message = format!("A Coordinator on {platform} introduced its key {key}");
            of(ApplicationLifecycle, other, Informational, message, app(None))
        }
        Fact::TransitKeyUsed { key, version, serial, encrypted, decrypted, failed: not_opened, since } => {
            let version =
                version.map_or("several versions".to_owned(), |version| format!("version {version}"));
            let caller =
                serial.map_or("several callers".to_owned(), |serial| format!("certificate {serial}"));
            let message = format!(
                "The transit key {key}, {version}, was used since {since} by {caller}: {encrypted} encrypted, {decrypted} \
                 decrypted, {not_opened} not opened"
            );
            let severity = if *not_opened > 0 { Medium } else { Informational };
            of(EntityManagement, (2, "Read"), severity, message, entity("Transit key", key.clone()))
        }
        Fact::ReplicaStarted { version } => {
            let message = format!("A Coordinator of version {version} started");
            of(ApplicationLifecycle, (3, "Start"), Informational, message, app(Some(version)))
        }
        Fact::ReplicaStopped => {
            of(ApplicationLifecycle, (4, "Stop"), Informational, "A Coordinator stopped".into(), app(None))
        }
        Fact::RecoveredByUser { owner, .. } => {
            let message = format!("Seedshare owner {owner} gave the seed back");
            of(ApplicationLifecycle, other, Medium, message, app(None))
        }
        Fact::RecoveryGranted { policy, platform } => {
            let message = format!("A replica with policy {policy} on {platform} got the seed");
            of(ApplicationLifecycle, other, Medium, message, app(None))
        }
        Fact::RecoveryReceived { from } => {
            let message = format!("The seed came from the replica {from}");
            of(ApplicationLifecycle, other, Informational, message, app(None))
        }
        Fact::ServiceCertificateIssued { serial, service, .. } => {
            let message = format!("The service {service} got certificate {serial}");
            of(ApplicationLifecycle, other, Informational, message, app(None))
        }
        Fact::StorageRefused { reason } => {
            let message = format!("The storage was refused: {reason}");
            failed(of(ApplicationLifecycle, other, Critical, message, app(None)), reason)
        }
        Fact::Checkpoint { heads } => {
            let message = format!("The heads of {} streams were recorded", heads.len());
            of(ApplicationLifecycle, other, Informational, message, app(None))
        }
    }
}

fn product(version: Option<&str>) -> Value {
    let version = version.unwrap_or(env!("CARGO_PKG_VERSION"));
    json!({ "name": "Contrast Coordinator", "vendor_name": "Contrast", "version": version })
}

/// Where a refused peer called from.
fn endpoint(source: &str) -> Value {
    match (source.parse::<SocketAddr>(), source.parse::<IpAddr>()) {
        (Ok(address), _) => json!({ "ip": address.ip().to_string(), "port": address.port() }),
        (_, Ok(address)) => json!({ "ip": address.to_string() }),
        _ => json!({ "name": limited(source) }),
    }
}

fn limited(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use manifest::{ReplicaId, RequestId, Timestamp};

    use super::*;

    #[test]
    fn a_refusal_says_who_called_and_why_he_was_refused() {
        let log = LogId::new(keys::LogKey::from_secret(&[1; 32]).unwrap().public());
        let reason = "evidence refused: VMPL: expected 0, found 2".to_owned();
        let fact =
            Fact::AttestationRefused { source: "192.0.2.7".into(), reason, evidence: None, left_out: 0 };
        let event = Event {
            at: Timestamp::from_millis(1_800_000_000_000),
            replica: ReplicaId::from_bytes([1; 16]),
            request: RequestId::from_bytes([2; 16]),
            fact,
        };
        let line = line(&log, StreamId::Control, 3, &event, b"raw");
        assert_eq!((line["type_uid"].as_u64(), line["status_id"].as_u64()), (Some(300_201), Some(2)));
        assert_eq!(line["src_endpoint"]["ip"], "192.0.2.7");
        assert_eq!(line["status_detail"], "evidence refused: VMPL: expected 0, found 2");
        assert_eq!(
            line["message"],
            "The evidence of 192.0.2.7 was refused: evidence refused: VMPL: expected 0, found 2"
        );
        assert_eq!(endpoint("[2001:db8::1]:77"), json!({ "ip": "2001:db8::1", "port": 77 }));
    }
}
