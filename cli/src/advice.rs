//! What to do next, for errors whose text cannot say it: those of the system and of the formats of files.

use std::io::{self, ErrorKind};

use manifest::ManifestError;
use storage_schema::StoreError;

/// What to do about a file that says something else than it should.
const DAMAGED: &str = "correct that place, or get the file again from whoever made it, byte for byte";

/// The next step for an error, by the first of its causes that has one.
pub(crate) fn next_step(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return of_system(error.kind());
        }
        if let Some(error) = cause.downcast_ref::<serde_json::Error>() {
            return of_json(error);
        }
        if let Some(StoreError::Format { .. }) = cause.downcast_ref() {
            return Some("use the version of this program that wrote the directory");
        }
        let is_unreadable = matches!(cause.downcast_ref(), Some(ManifestError::Malformed { .. }));
        is_unreadable.then_some(DAMAGED)
    })
}

fn of_system(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::ConnectionRefused => Some(
            "is the Coordinator running, and is this its port? The user API is on 1313; in a cluster: `kubectl \
             port-forward service/coordinator-recovery 1313`",
        ),
        ErrorKind::TimedOut => Some(
            "is the address right, and does a firewall stand between? A company's proxy is used when HTTPS_PROXY names it",
        ),
        ErrorKind::NotFound => Some(
            "files have their default names in the working directory, or in --workspace-dir: go there, or name the file",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("make room and run the same command again; what was there before is whole")
        }
        ErrorKind::ReadOnlyFilesystem => {
            Some("run it in a folder that can be written to, or name one with --workspace-dir")
        }
        ErrorKind::PermissionDenied => {
            Some("run it as a user who may read or write that, or change its permissions")
        }
        ErrorKind::AddrInUse => Some("stop what uses the port, or give another one"),
        _ => None,
    }
}

fn of_json(error: &serde_json::Error) -> Option<&'static str> {
    match error.classify() {
        serde_json::error::Category::Eof => {
            Some("the file ends too early: get it again from whoever made it, and compare its hash")
        }
        serde_json::error::Category::Syntax | serde_json::error::Category::Data => Some(DAMAGED),
        serde_json::error::Category::Io => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn errors_of_the_system_and_of_files_have_a_next_step() {
        let of = |kind: ErrorKind| {
            let error = Err::<(), _>(io::Error::from(kind)).context("cannot do it").unwrap_err();
            next_step(&error)
        };
        assert!(of(ErrorKind::ConnectionRefused).unwrap().contains("1313"));
        assert!(of(ErrorKind::NotFound).unwrap().contains("--workspace-dir"));
        assert!(of(ErrorKind::StorageFull).unwrap().contains("make room"));
        assert_eq!(of(ErrorKind::BrokenPipe), None);
        let cut = serde_json::from_str::<serde_json::Value>("{\"Policies\": {").unwrap_err();
        let cut = anyhow::Error::from(cut).context("manifest.json");
        assert!(next_step(&cut).unwrap().contains("ends too early"));
        let cut = manifest::Manifest::parse(b"{\"Policies\": {").unwrap_err();
        assert!(next_step(&cut.into()).unwrap().contains("get the file again"));
        assert_eq!(next_step(&anyhow::anyhow!("something else")), None);
    }
}
