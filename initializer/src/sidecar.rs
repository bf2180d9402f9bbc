//! When a certificate is renewed: before it expires, and when the service mesh asks.
//!
//! The mesh asks by leaving a file when it meets a peer of another mesh CA, which mostly means that the
//! manifest has changed. Anybody can provoke that, so it is heard only now and then.

use std::{io, path::Path, time::Duration};

use anyhow::Context as _;
use manifest::Timestamp;
use x509_parser::{certificate::X509Certificate, pem::parse_x509_pem, prelude::FromDer as _};

/// The file that the mesh leaves.
const ASKED: &str = "renew";
/// Least time between two renewals that somebody asked for.
pub(crate) const ASKED_AT_MOST_EVERY: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The clock may be set, and sleep through a suspended VM: look at it now and then.
const LONGEST_SLEEP: Duration = Duration::from_mins(10);

/// When a certificate was valid from and to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
}

impl Validity {
    /// Of the first certificate in a PEM text.
    pub(crate) fn of(chain_pem: &[u8]) -> anyhow::Result<Self> {
        let (_, pem) =
            parse_x509_pem(chain_pem).context("the Coordinator's answer is not a PEM certificate")?;
        let (_, certificate) = X509Certificate::from_der(&pem.contents)
            .context("the Coordinator's answer is not a certificate")?;
        let at = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            Timestamp::from_millis(seconds.saturating_mul(1000))
        };
        let validity = certificate.validity();
        Ok(Self { from: at(validity.not_before), to: at(validity.not_after) })
    }

    /// After two thirds of what is left at `received`: time enough for a Coordinator that is away.
    pub(crate) fn renew_at(&self, received: Timestamp) -> Timestamp {
        let left = self.to.as_millis().saturating_sub(received.as_millis());
        received.plus(Duration::from_millis(left / 3 * 2))
    }
}

/// Waits until a certificate should be renewed, and says why.
pub(crate) async fn time_to_renew(
    directory: &Path,
    validity: Validity,
    received: Timestamp,
    now: impl Fn() -> Timestamp,
) -> &'static str {
    let due = validity.renew_at(received);
    let expiry = async {
        loop {
            let left = due.as_millis().saturating_sub(now().as_millis());
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left).min(LONGEST_SLEEP)).await;
        }
    };
    tokio::select! {
        () = expiry => "most of its life has passed",
        () = asked(directory, ASKED_AT_MOST_EVERY) => "the service mesh asked: the manifest may have changed",
    }
}

/// Takes away what the mesh left. Called **before** the Coordinator is asked: its answer serves whoever
/// asked until now, and who asks from now on, however early, is not overheard.
pub(crate) async fn hear(directory: &Path) {
    match tokio::fs::remove_file(directory.join(ASKED)).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(
            "cannot remove {}/{ASKED}: {error}; until it is gone, the certificate is renewed every \
             {ASKED_AT_MOST_EVERY:?}",
            directory.display()
        ),
    }
}

/// Waits until the mesh has asked. What it asks sooner than after `at_most_every` counts then.
async fn asked(directory: &Path, at_most_every: Duration) {
    tokio::time::sleep(at_most_every).await;
    let path = directory.join(ASKED);
    while !tokio::fs::try_exists(&path).await.unwrap_or(false) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_after_two_thirds_of_what_is_left() {
        let validity = Validity { from: Timestamp::from_millis(0), to: Timestamp::from_millis(90_000) };
        assert_eq!(validity.renew_at(Timestamp::from_millis(60_000)).as_millis(), 80_000);
        assert_eq!(validity.renew_at(Timestamp::from_millis(95_000)).as_millis(), 95_000, "expired: at once");
    }

    #[tokio::test]
    async fn who_asked_before_anybody_listened_is_heard_once() {
        let directory = tempfile::tempdir().unwrap();
        hear(directory.path()).await;
        std::fs::write(directory.path().join(ASKED), b"").unwrap();
        asked(directory.path(), Duration::from_millis(1)).await;
        hear(directory.path()).await;
        let again = tokio::time::timeout(2 * LOOK_EVERY, asked(directory.path(), Duration::ZERO)).await;
        assert!(again.is_err(), "the answer served it");
    }
}
