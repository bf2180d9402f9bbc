//! `contrast history`: the event log of a live Coordinator.

use std::path::PathBuf;

use manifest::{Manifest, Timestamp};
use serde::Serialize;
use serde_json::Value;
use wire::history::EventsRequest;

use crate::{
    client::{Coordinator, failure, read_manifest},
    printer::Printer,
    set::read_key,
};

/// List the events that a Coordinator recorded.
///
/// Example: contrast history -c coordinator.example:1313 --workload-owner-key workload-owner.pem
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The Coordinator, as host:port.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The manifest in force: the Coordinator is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Also list certificates and refusals, which only workload owners may see.
    #[arg(long)]
    workload_owner_key: Option<PathBuf>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Record {
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    pub(crate) at: Timestamp,
    pub(crate) kind: String,
    pub(crate) fact: Value,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let key = args.workload_owner_key.as_deref().map(read_key).transpose()?;
    let records = fetch(&args.coordinator, &manifest, key.as_deref().map(String::as_str)).await?;
    printer.result(&table(&records), &records)
}

pub(crate) async fn fetch(
    address: &str,
    manifest: &Manifest,
    key: Option<&str>,
) -> anyhow::Result<Vec<Record>> {
    let coordinator = Coordinator::connect(address, manifest, key).await?;
    let request = EventsRequest { from: 0, replicas: key.is_some() };
    let answer = coordinator.history().events(request).await.map_err(failure)?.into_inner();
    answer.events.into_iter().map(record).collect()
}

fn record(record: wire::history::EventRecord) -> anyhow::Result<Record> {
    let event: Value = serde_json::from_str(&record.json)?;
    let (kind, fact) = match &event["fact"] {
        Value::Object(map) => {
            let (kind, fact) = map.iter().next().map(|(k, v)| (k.clone(), v.clone())).unwrap_or_default();
            (kind, fact)
        }
        Value::String(kind) => (kind.clone(), Value::Null),
        _ => (String::new(), Value::Null),
    };
    let at = Timestamp::from_millis(event["at"].as_u64().unwrap_or_default());
    Ok(Record { stream: record.stream, sequence: record.sequence, at, kind, fact })
}

pub(crate) fn table(records: &[Record]) -> String {
    let mut text = format!("{:<25} {:<18} {:<20} {}\n", "TIME", "STREAM", "EVENT", "WHAT");
    for record in records {
        let what = ["transition", "sans", "reason", "id", "version", "owners"]
            .iter()
            .find_map(|key| record.fact.get(*key))
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            .unwrap_or_default();
        let stream: String = record.stream.chars().take(16).collect();
        text += &format!("{:<25} {stream:<18} {:<20} {what:.70}\n", record.at, record.kind);
    }
    text
}
