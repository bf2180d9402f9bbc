//! What was checked, in the order it was checked: the basis of a refusal and of an explanation.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// One check that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub check: &'static str,
    /// Whether it held.
    pub verdict: Verdict,
    /// What it should have been.
    pub expected: String,
    /// What it was.
    pub found: String,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It held.
    Pass,
    /// It did not.
    Fail,
    /// The caller gave nothing to compare with. Never where something is decided.
    NotChecked,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotChecked => "not checked",
        })
    }
}

/// One check that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// What was checked.
    pub check: Cow<'static, str>,
    /// What it should have been.
    pub expected: String,
    /// What it was.
    pub found: String,
}

/// Why evidence was refused: every check that failed. As JSON it travels from a Coordinator to the
/// workload that it refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The failed checks, in the order they were made.
    pub checks: Vec<FailedCheck>,
}

impl Refusal {
    /// The failed ones of some checks.
    pub(crate) fn of(checks: &[Check]) -> Self {
        let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail);
        let checks = failed.map(|Check { check, expected, found, .. }| FailedCheck {
            check: Cow::Borrowed(check),
            expected: expected.clone(),
            found: found.clone(),
        });
        Self { checks: checks.collect() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("evidence refused: ")?;
        for (n, FailedCheck { check, expected, found }) in self.checks.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{check}: expected {expected}, found {found}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// A check failed on which the next ones depend; it is in the list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stop;

/// Collects checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checklist(Vec<Check>);

impl Checklist {
    /// Notes a check whatever its outcome; the next one is made all the same.
    pub(crate) fn note(
        &mut self,
        check: &'static str,
        holds: bool,
        expected: impl ToString,
        found: impl ToString,
    ) {
        let verdict = if holds { Verdict::Pass } else { Verdict::Fail };
        self.0.push(Check { check, verdict, expected: expected.to_string(), found: found.to_string() });
    }

    /// Notes that two byte strings are to be equal.
    pub(crate) fn equal(&mut self, check: &'static str, expected: &[u8], found: &[u8]) {
        self.note(check, expected == found, hex::encode(expected), hex::encode(found));
    }

    /// Notes a check on which the next ones depend.
    pub(crate) fn demand(
        &mut self,
        check: &'static str,
        holds: bool,
        expected: impl ToString,
        found: impl ToString,
    ) -> Result<(), Stop> {
        self.note(check, holds, expected, found);
        if holds { Ok(()) } else { Err(Stop) }
    }

    /// Notes a failed check on which the next ones depend.
    pub(crate) fn fail<T>(
        &mut self,
        check: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Result<T, Stop> {
        self.note(check, false, expected, found);
        Err(Stop)
    }

    /// Notes a check that the caller did not ask for.
    pub(crate) fn skip(&mut self, check: &'static str, found: impl ToString) {
        let expected = "nothing to compare with".to_owned();
        self.0.push(Check { check, verdict: Verdict::NotChecked, expected, found: found.to_string() });
    }

    /// How many checks failed.
    pub(crate) fn failed(&self) -> usize {
        self.0.iter().filter(|check| check.verdict == Verdict::Fail).count()
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn into_checks(self) -> Vec<Check> {
        self.0
    }

    /// The failed ones.
    pub(crate) fn into_refusal(self) -> Refusal {
        Refusal::of(&self.0)
    }
}
