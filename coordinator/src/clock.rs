//! The time, for the actors: everything behind the doors takes it as an argument.

use actors::Clock;
use manifest::Timestamp;
pub(crate) use program::now;

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        now()
    }
}
