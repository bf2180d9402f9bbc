//! The one place of all programs that reads the system's clock. Behind it, time is an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use manifest::Timestamp;

/// The time now.
#[expect(clippy::disallowed_methods, reason = "the edge where time enters every program")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
