//! Who used which key of the transit engine how often, for the log, and how much a key may still encrypt.
//!
//! An event for each use would let a workload fill the log. So a caller's first use of a key is recorded before its
//! answer leaves, and what follows within a quarter of an hour is counted and recorded together at its end. The sum of
//! all events is the number of uses; a crash loses what was counted and not yet recorded, never that there were uses.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keys::WorkloadSecretId;
use manifest::{SerialNumber, Timestamp};
use storage_schema::Fact;

/// Time over which uses are counted for one event.
const INTERVAL: Duration = Duration::from_mins(15);
/// What is counted apart: so many callers, keys and versions together, and so many versions for one caller. The rest is
/// counted together, by key.
const MOST_ROWS: usize = 4096;
const MOST_VERSIONS: usize = 16;
/// Messages that one replica encrypts with one version of a key from its start. Nonces are random, and after 2^32 two
/// of them are alike with a probability that NIST SP 800-38D (8.3) does not allow any more.
const MOST_ENCRYPTIONS: u64 = 1 << 31;
/// Versions of one key whose encryptions are counted apart; all others of it share one count.
const MOST_COUNTED: usize = 64;

/// How often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    pub(super) encrypted: u64,
    pub(super) decrypted: u64,
    /// Attempts to decrypt what the key did not make.
    pub(super) failed: u64,
}

impl Uses {
    fn add(&mut self, more: Self) {
        self.encrypted += more.encrypted;
        self.decrypted += more.decrypted;
        self.failed += more.failed;
    }
}

/// What is counted together. `None` stands for all those that are not counted apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row {
    key: WorkloadSecretId,
    version: Option<u32>,
    serial: Option<SerialNumber>,
}

struct Count {
    since: Timestamp,
    /// Not in an event yet.
    uses: Uses,
    /// Whether an event says already that there are uses in this interval.
    recorded: bool,
}

#[derive(Default)]
struct Counts {
    rows: HashMap<Row, Count>,
    encrypted: HashMap<WorkloadSecretId, BTreeMap<Option<u32>, u64>>,
}

/// The counts of this replica.
#[derive(Default)]
pub(crate) struct TransitUses(Mutex<Counts>);

/// Facts to record; what could not be recorded goes back ([`TransitUses::restore`]).
pub(super) struct ToRecord(Vec<(Row, Timestamp, Uses)>);

impl ToRecord {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn facts(&self) -> Vec<Fact> {
        let fact =
            |(Row { key, version, serial }, since, uses): &(Row, Timestamp, Uses)| Fact::TransitKeyUsed {
                key: key.as_str().to_owned(),
                version: *version,
                serial: *serial,
                encrypted: uses.encrypted,
                decrypted: uses.decrypted,
                failed: uses.failed,
                since: *since,
            };
        self.0.iter().map(fact).collect()
    }
}

impl TransitUses {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // What runs under the lock leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a key may not encrypt any more.
    pub(super) fn is_spent(&self, key: &WorkloadSecretId, version: u32) -> bool {
        let counts = self.counts();
        let of_key = counts.encrypted.get(key);
        let count = of_key.and_then(|of_key| of_key.get(&Some(version)).or_else(|| of_key.get(&None)));
        count.is_some_and(|count| *count >= MOST_ENCRYPTIONS)
    }

    /// Takes note of what a request did with a key, by version. What is returned must be on disk before its answer
    /// leaves.
    pub(super) fn note(
        &self,
        key: &WorkloadSecretId,
        serial: SerialNumber,
        used: BTreeMap<u32, Uses>,
        now: Timestamp,
    ) -> ToRecord {
        let mut counts = self.counts();
        let mut to_record: Vec<Row> = Vec::new();
        for (version, uses) in used {
            counts.count_encrypted(key, version, uses.encrypted);
            let row = counts.row(key, version, serial);
            let count = counts.rows.entry(row.clone()).or_insert(Count {
                since: now,
                uses: Uses::default(),
                recorded: false,
            });
            count.uses.add(uses);
            if !count.recorded && !to_record.contains(&row) {
                to_record.push(row);
            }
        }
        ToRecord(to_record.into_iter().filter_map(|row| counts.take(row)).collect())
    }

    /// What was counted in intervals that are over; with `all`, in those that are not over as well.
    pub(super) fn due(&self, now: Timestamp, all: bool) -> ToRecord {
        let mut counts = self.counts();
        let over = |count: &Count| all || now >= count.since.plus(INTERVAL);
        let rows: Vec<Row> =
            counts.rows.iter().filter(|(_, count)| over(count)).map(|(row, _)| row.clone()).collect();
        let mut due = Vec::new();
        for row in rows {
            if let Some(Count { since, uses, .. }) = counts.rows.remove(&row)
                && uses != Uses::default()
            {
                due.push((row, since, uses));
            }
        }
        ToRecord(due)
    }

    /// Takes note that this is on record. Until then whoever comes with the same key and version records the use as well:
    /// nobody's answer leaves before an event says that there are answers.
    pub(super) fn confirm(&self, recorded: &ToRecord) {
        let mut counts = self.counts();
        for (row, ..) in &recorded.0 {
            if let Some(count) = counts.rows.get_mut(row) {
                count.recorded = true;
            }
        }
    }

    /// Counts again what could not be recorded.
    pub(super) fn restore(&self, not_recorded: ToRecord) {
        let mut counts = self.counts();
        for (row, since, uses) in not_recorded.0 {
            let count =
                counts.rows.entry(row).or_insert(Count { since, uses: Uses::default(), recorded: false });
            count.uses.add(uses);
        }
    }
}

impl Counts {
    fn row(&self, key: &WorkloadSecretId, version: u32, serial: SerialNumber) -> Row {
        let (key, apart) = (key.clone(), Some(serial));
        let row = Row { key, version: Some(version), serial: apart };
        if self.rows.contains_key(&row) {
            return row;
        }
        let of_caller = self.rows.keys().filter(|known| known.key == row.key && known.serial == apart);
        match (self.rows.len() < MOST_ROWS, of_caller.count() < MOST_VERSIONS) {
            (true, true) => row,
            (true, false) => Row { version: None, ..row },
            (false, _) => Row { version: None, serial: None, ..row },
        }
    }

    fn take(&mut self, row: Row) -> Option<(Row, Timestamp, Uses)> {
        let count = self.rows.get_mut(&row)?;
        Some((row, count.since, std::mem::take(&mut count.uses)))
    }

    fn count_encrypted(&mut self, key: &WorkloadSecretId, version: u32, more: u64) {
        if more == 0 {
            return;
        }
        let of_key = self.encrypted.entry(key.clone()).or_default();
        let apart = of_key.contains_key(&Some(version)) || of_key.len() < MOST_COUNTED;
        let count = of_key.entry(apart.then_some(version)).or_default();
        *count = count.saturating_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn key(name: &str) -> WorkloadSecretId {
        WorkloadSecretId::new(name).unwrap()
    }

    fn caller(number: u16) -> SerialNumber {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        SerialNumber::from_bytes(bytes)
    }

    fn encrypted(version: u32, count: u64) -> BTreeMap<u32, Uses> {
        BTreeMap::from([(version, Uses { encrypted: count, ..Uses::default() })])
    }

    fn sum(recorded: &[ToRecord]) -> u64 {
        recorded.iter().flat_map(|some| &some.0).map(|(_, _, uses)| uses.encrypted).sum()
    }

    #[test]
    fn the_first_use_is_recorded_at_once_and_the_rest_together() {
        let uses = TransitUses::default();
        let first = uses.note(&key("web"), caller(1), encrypted(1, 3), NOW);
        assert_eq!((first.facts().len(), sum(std::slice::from_ref(&first))), (1, 3));
        let beside = uses.note(&key("web"), caller(1), encrypted(1, 2), NOW);
        assert_eq!(sum(std::slice::from_ref(&beside)), 2, "the first is not on record yet");
        uses.confirm(&first);
        for _ in 0..10_000 {
            assert!(uses.note(&key("web"), caller(1), encrypted(1, 1), NOW).is_empty());
        }
        assert!(uses.due(NOW.plus(INTERVAL.mul_f32(0.9)), false).is_empty());
        let rest = uses.due(NOW.plus(INTERVAL), false);
        assert_eq!((rest.facts().len(), sum(std::slice::from_ref(&rest))), (1, 10_000));
        assert!(uses.due(NOW.plus(INTERVAL), true).is_empty());
        assert!(!uses.note(&key("web"), caller(1), encrypted(1, 1), NOW.plus(INTERVAL)).is_empty());
    }

    #[test]
    fn what_was_not_recorded_is_recorded_with_the_next_use() {
        let uses = TransitUses::default();
        let first = uses.note(&key("web"), caller(1), encrypted(1, 3), NOW);
        uses.restore(first);
        let next = uses.note(&key("web"), caller(1), encrypted(1, 4), NOW);
        assert_eq!(sum(std::slice::from_ref(&next)), 7);
    }

    #[test]
    fn events_are_bounded_whatever_callers_and_versions_there_are_and_none_is_left_out() {
        let uses = TransitUses::default();
        let mut recorded = Vec::new();
        for number in 0..200 {
            for version in 0..100 {
                let first = uses.note(&key("web"), caller(number), encrypted(version, 1), NOW);
                uses.confirm(&first);
                recorded.push(first);
            }
        }
        recorded.push(uses.due(NOW, true));
        assert_eq!(sum(&recorded), 200 * 100);
        let events: usize = recorded.iter().map(|some| some.0.len()).sum();
        assert!(events <= 2 * (MOST_ROWS + 1), "{events}");
    }

    #[test]
    fn a_key_is_spent_by_version_before_two_nonces_may_be_alike() {
        let uses = TransitUses::default();
        uses.note(&key("web"), caller(1), encrypted(7, MOST_ENCRYPTIONS - 1), NOW);
        assert!(!uses.is_spent(&key("web"), 7));
        uses.note(&key("web"), caller(2), encrypted(7, 1), NOW);
        assert!(
            uses.is_spent(&key("web"), 7) && !uses.is_spent(&key("web"), 8) && !uses.is_spent(&key("db"), 7)
        );
        // Versions are the caller's choice: those beyond the first ones share a count.
        for version in 100..200 {
            uses.note(&key("db"), caller(1), encrypted(version, MOST_ENCRYPTIONS / 100), NOW);
        }
        assert!(!uses.is_spent(&key("db"), 100) && !uses.is_spent(&key("db"), 1000));
        uses.note(&key("db"), caller(1), encrypted(300, MOST_ENCRYPTIONS), NOW);
        assert!(uses.is_spent(&key("db"), 1000) && !uses.is_spent(&key("db"), 100));
    }
}
