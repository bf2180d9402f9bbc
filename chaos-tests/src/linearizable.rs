//! Whether what clients saw of the manifest history could have happened one step after another.
//!
//! The history of manifests is a register that is changed by compare-and-swap on its transition. The search
//! is that of Wing and Gong with the memory of Lowe: whichever operations may come next are tried, and no
//! set of finished operations is tried twice in the same state.

use std::{collections::HashSet, time::Duration};

use manifest::TransitionHash;

/// What a client asked and what it was told.
#[derive(Clone, Debug)]
pub struct Operation {
    /// When it was sent, after the start of the run.
    pub sent: Duration,
    /// When the answer came; `None`: the outcome is not known, it may take effect at any time after.
    pub answered: Option<Duration>,
    /// What the sender believed to be in force.
    pub previous: Option<TransitionHash>,
    /// What it wanted to be in force.
    pub next: TransitionHash,
    /// What it was told.
    pub outcome: Outcome,
}

/// The answer to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was made.
    Made,
    /// It was not made, because something else was in force.
    Stale,
    /// Nobody knows.
    Unknown,
}

/// Looks for an order that explains what was seen. The error names the operations that no order explains.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.sent);
    let mut search = Search { operations: &operations, seen: HashSet::new(), best: 0 };
    let mut done = vec![0_u64; operations.len().div_ceil(64)];
    if search.explain(&mut done, None, 0) {
        return Ok(());
    }
    let from = search.best.saturating_sub(3);
    let rest: Vec<String> = operations.iter().skip(from).take(12).map(|op| format!("{op:?}")).collect();
    Err(format!("no order explains operation {} and those around it:\n{}", search.best, rest.join("\n")))
}

struct Search<'a> {
    operations: &'a [Operation],
    seen: HashSet<(Vec<u64>, Option<TransitionHash>)>,
    /// Most operations that were explained, for the report.
    best: usize,
}

impl Search<'_> {
    fn explain(&mut self, done: &mut Vec<u64>, state: Option<TransitionHash>, count: usize) -> bool {
        self.best = self.best.max(count);
        let is_done = |done: &[u64], n: usize| done[n / 64] & (1 << (n % 64)) != 0;
        let open: Vec<usize> = (0..self.operations.len()).filter(|n| !is_done(done, *n)).collect();
        // Whoever was answered before another one was sent comes before it.
        let deadline = open.iter().filter_map(|n| self.operations[*n].answered).min();
        let Some(deadline) = deadline else { return true }; // what is left may never have taken effect
        if !self.seen.insert((done.clone(), state)) {
            return false;
        }
        for n in open {
            let operation = &self.operations[n];
            if operation.sent > deadline {
                break;
            }
            let next = match operation.outcome {
                Outcome::Made | Outcome::Unknown if operation.previous == state => Some(operation.next),
                Outcome::Stale if operation.previous != state => state,
                _ => continue,
            };
            done[n / 64] |= 1 << (n % 64);
            if self.explain(done, next, count + 1) {
                return true;
            }
            done[n / 64] &= !(1 << (n % 64));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(n: u8) -> Option<TransitionHash> {
        (n > 0).then(|| TransitionHash::from_bytes([n; 32]))
    }

    fn op(sent: u64, answered: u64, previous: u8, next: u8, outcome: Outcome) -> Operation {
        Operation {
            sent: Duration::from_millis(sent),
            answered: (answered > 0).then(|| Duration::from_millis(answered)),
            previous: t(previous),
            next: TransitionHash::from_bytes([next; 32]),
            outcome,
        }
    }

    #[test]
    fn what_could_have_happened_is_accepted() {
        use Outcome::{Made, Stale, Unknown};
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[op(0, 5, 0, 1, Made), op(6, 9, 1, 2, Made)]), Ok(()));
        // At once: one wins.
        assert_eq!(check(&[op(0, 9, 0, 1, Made), op(1, 8, 0, 2, Stale)]), Ok(()));
        // An unanswered one took effect, or did not.
        assert_eq!(check(&[op(0, 0, 0, 1, Unknown), op(5, 9, 1, 2, Made)]), Ok(()));
        assert_eq!(check(&[op(0, 0, 0, 1, Unknown), op(5, 9, 0, 2, Made)]), Ok(()));
    }

    #[test]
    fn what_could_not_is_refused() {
        use Outcome::{Made, Stale};
        let twice = [op(0, 5, 0, 1, Made), op(6, 9, 0, 2, Made)];
        assert!(check(&twice).is_err(), "two changes of one state");
        let wrongly_stale = [op(0, 5, 0, 1, Made), op(6, 9, 1, 2, Stale)];
        assert!(check(&wrongly_stale).is_err(), "refused as stale, though it was the latest");
        let from_nowhere = [op(0, 5, 7, 1, Made)];
        assert!(check(&from_nowhere).is_err());
        let before_it_was_sent = [op(0, 5, 1, 2, Made), op(6, 9, 0, 1, Made)];
        assert!(check(&before_it_was_sent).is_err());
    }
}
