//! Events as lines of JSON, in three dialects.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::ValueEnum;
use manifest::{SerialNumber, Timestamp};
use serde_json::{Value, json};
use storage_schema::{Event, Fact, LogId, StreamId};

/// Dialects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Ours: complete and verifiable (`contrast audit verify`).
    Jsonl,
    /// Open Cybersecurity Schema Framework 1.3, one event a line.
    Ocsf,
    /// CloudEvents 1.0, one event a line.
    Cloudevents,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) kinds: Vec<String>,
    pub(crate) workload: Option<String>,
    pub(crate) serial: Option<SerialNumber>,
}

impl Filter {
    /// Whether everything is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { since, until, kinds, workload, serial } = self;
        since.is_none() && until.is_none() && kinds.is_empty() && workload.is_none() && serial.is_none()
    }

    /// Whether this event is wanted.
    pub(crate) fn wants(&self, event: &Event) -> bool {
        self.since.is_none_or(|since| event.at >= since)
            && self.until.is_none_or(|until| event.at < until)
            && (self.kinds.is_empty()
                || self.kinds.iter().any(|kind| kind.eq_ignore_ascii_case(event.fact.kind())))
            && self.workload.as_deref().is_none_or(|workload| is_about(&event.fact, workload))
            && self.serial.is_none_or(|wanted| serial(&event.fact) == Some(wanted))
    }
}

/// Every kind of event, as `--kind` names them.
pub(crate) const KINDS: [&str; 21] = [
    "ManifestSet",
    "ManifestProposed",
    "ProposalApproved",
    "ProposalWithdrawn",
    "SeedSharesCreated",
    "DeploymentVouched",
    "PeersEvicted",
    "RecoveredByUser",
    "RecoveryGranted",
    "RecoveryReceived",
    "ReplicaStarted",
    "ReplicaStopped",
    "StorageRefused",
    "CertificateIssued",
    "ServiceCertificateIssued",
    "AttestationRefused",
    "OlderHeadAccepted",
    "ReplicaVouched",
    "TransitKeyUsed",
    "SecretReleased",
    "Checkpoint",
];

fn is_about(fact: &Fact, workload: &str) -> bool {
    match fact {
        Fact::CertificateIssued { policy, sans, .. } => {
            sans.iter().any(|san| san == workload)
                || (workload.len() >= 8 && policy.to_string().starts_with(workload))
        }
        Fact::PeersEvicted { policies, .. } => {
            workload.len() >= 8 && policies.iter().any(|policy| policy.to_string().starts_with(workload))
        }
        Fact::SecretReleased { id, .. } | Fact::TransitKeyUsed { key: id, .. } => {
            id == workload || id.rsplit('/').next() == Some(workload)
        }
        _ => false,
    }
}

fn serial(fact: &Fact) -> Option<SerialNumber> {
    match fact {
        Fact::CertificateIssued { serial, .. }
        | Fact::ServiceCertificateIssued { serial, .. }
        | Fact::SecretReleased { serial, .. } => Some(*serial),
        Fact::TransitKeyUsed { serial, .. } => *serial,
        _ => None,
    }
}

/// The event's kind and content, bytes as base64.
pub(super) fn readable(fact: &Fact) -> Value {
    let content = match serde_json::to_value(fact) {
        Ok(Value::Object(variant)) => variant.into_iter().next().map(|(_, content)| content),
        _ => None, // a kind without content is a bare string
    };
    content.map_or(json!({}), with_base64)
}

/// A list of numbers is bytes: no event has other lists of numbers.
fn with_base64(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, with_base64(value))).collect(),
        Value::Array(items) => {
            let byte = |item: &Value| item.as_u64().and_then(|byte| u8::try_from(byte).ok());
            match items.iter().map(byte).collect::<Option<Vec<u8>>>() {
                Some(bytes) if !bytes.is_empty() => BASE64_STANDARD.encode(bytes).into(),
                _ => items.into_iter().map(with_base64).collect(),
            }
        }
        other => other,
    }
}

/// Our own line. `raw` is what the log signs; everything else repeats it for the reader, and is
/// compared with it by `contrast audit verify`.
pub(crate) fn native(stream: StreamId, sequence: u64, event: &Event, raw: &[u8]) -> Value {
    json!({
        "type": "event",
        "stream": stream.to_string(),
        "sequence": sequence,
        "at": event.at.to_string(),
        "replica": event.replica,
        "request": event.request,
        "kind": event.fact.kind(),
        "fact": readable(&event.fact),
        "raw": BASE64_STANDARD.encode(raw),
    })
}

/// CloudEvents 1.0, structured mode.
pub(crate) fn cloud_event(log: &LogId, stream: StreamId, sequence: u64, event: &Event, raw: &[u8]) -> Value {
    let mut line = json!({
        "specversion": "1.0",
        "id": format!("{stream}/{sequence}"),
        "source": format!("/{}", log.origin(&stream)),
        "type": format!("contrast.{}.v1", event.fact.kind()),
        "time": event.at.to_string(),
        "datacontenttype": "application/json",
        "data": {
            "replica": event.replica, "request": event.request,
            "fact": readable(&event.fact), "raw": BASE64_STANDARD.encode(raw),
        },
    });
    if let Some(serial) = serial(&event.fact) {
        line["subject"] = serial.to_string().into();
    }
    line
}

#[cfg(test)]
mod tests {
    use manifest::{ReplicaId, RequestId};

    use super::*;

    fn event(fact: Fact) -> Event {
        Event {
            at: Timestamp::from_millis(1_800_000_000_000),
            replica: ReplicaId::from_bytes([1; 16]),
            request: RequestId::from_bytes([2; 16]),
            fact,
        }
    }

    #[test]
    fn every_dialect_says_what_happened() {
        let log = LogId::new(keys::LogKey::from_secret(&[1; 32]).unwrap().public());
        let reason = "evidence refused: VMPL: expected 0, found 2".to_owned();
        let refused = event(Fact::AttestationRefused {
            source: "192.0.2.7".into(),
            reason,
            evidence: None,
            left_out: 0,
        });
        let line = native(StreamId::Control, 3, &refused, b"raw");
        assert_eq!(line["kind"], "AttestationRefused");
        assert_eq!(line["fact"]["source"], "192.0.2.7");
        let line = cloud_event(&log, StreamId::Control, 3, &refused, b"raw");
        assert_eq!((line["specversion"].as_str(), line["id"].as_str()), (Some("1.0"), Some("control/3")));
        assert_eq!(readable(&Fact::ReplicaStopped), json!({}));
        let owners = Fact::RecoveryReceived { from: "peer".into() };
        assert_eq!(readable(&owners), json!({ "from": "peer" }));
    }

    #[test]
    fn filters_choose() {
        let stopped = event(Fact::ReplicaStopped);
        let released = event(Fact::SecretReleased {
            id: "shop/deployment/web".into(),
            serial: SerialNumber::from_bytes([7; 16]),
        });
        let web = Filter { workload: Some("web".into()), ..Filter::default() };
        assert!(web.wants(&released) && !web.wants(&stopped));
        let kind = Filter { kinds: vec!["replicastopped".into()], ..Filter::default() };
        assert!(kind.wants(&stopped) && !kind.wants(&released));
        let late = Filter { since: Some(Timestamp::from_millis(u64::MAX)), ..Filter::default() };
        assert!(!late.wants(&stopped));
        let serial = Filter { serial: Some(SerialNumber::from_bytes([7; 16])), ..Filter::default() };
        assert!(serial.wants(&released) && !serial.wants(&stopped));
    }
}
