//! How many refusals are recorded, so that an attacker cannot fill the disk with them.

use std::{collections::HashMap, time::Duration};

use manifest::Timestamp;

/// Time over which is counted.
const WINDOW: Duration = Duration::from_mins(1);
/// Most from one source in a window.
const PER_SOURCE: u32 = 20;
/// Most from everybody in a window: 200 events of at most a few KiB.
const TOGETHER: u32 = 200;

/// Counts of the current window. Holds at most [`TOGETHER`] sources.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    ends: Option<Timestamp>,
    recorded: u32,
    sources: HashMap<String, u32>,
    left_out: u64,
}

impl Refusals {
    /// Whether a refusal is to be recorded: then how many were left out since the last one that was.
    pub(super) fn admit(&mut self, source: &str, now: Timestamp) -> Option<u64> {
        if self.ends.is_none_or(|ends| now >= ends) {
            self.ends = Some(now.plus(WINDOW));
            self.recorded = 0;
            self.sources.clear();
        }
        let known = self.sources.get(source).copied().unwrap_or_default();
        if known >= PER_SOURCE || self.recorded >= TOGETHER {
            self.left_out += 1;
            return None;
        }
        self.recorded += 1;
        self.sources.insert(source.to_owned(), known + 1);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_bounded_and_what_is_left_out_is_counted() {
        let mut refusals = Refusals::default();
        let now = Timestamp::from_millis(1000);
        let admitted = (0..100).filter(|_| refusals.admit("a", now).is_some()).count();
        assert_eq!(admitted, 20);
        assert_eq!(refusals.admit("b", now), Some(80));
        assert_eq!(refusals.admit("b", now), Some(0));
        assert_eq!(refusals.admit("a", now.plus(WINDOW)), Some(0));
    }

    #[test]
    fn many_sources_are_bounded_together() {
        let mut refusals = Refusals::default();
        let now = Timestamp::from_millis(1000);
        let admitted = (0..10_000).filter(|n| refusals.admit(&n.to_string(), now).is_some()).count();
        assert_eq!(admitted, 200);
        assert_eq!(refusals.sources.len(), 200);
    }
}
