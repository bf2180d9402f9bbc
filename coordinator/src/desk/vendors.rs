//! Bounds the questions to vendors: each takes a thread for seconds, and vendors shut out addresses that ask too
//! much, so one source must not use up what all workloads need.

use std::{net::IpAddr, sync::Arc};

use actors::AskError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sources::{Sources, UnderWay};

/// Questions under way at once, and of one source.
const MOST: usize = 16;
const MOST_OF_SOURCE: usize = 8;

pub(crate) struct Vendors {
    room: Arc<Semaphore>,
    sources: Arc<Sources>,
}

/// A question under way.
pub(super) struct Question {
    _room: OwnedSemaphorePermit,
    _source: UnderWay,
}

impl Default for Vendors {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MOST)), sources: Sources::new(MOST_OF_SOURCE) }
    }
}

impl Vendors {
    pub(super) fn question(&self, source: IpAddr) -> Result<Question, AskError> {
        let source = self.sources.begin(source).ok_or(AskError::Full(MOST_OF_SOURCE))?;
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| AskError::Full(MOST))?;
        Ok(Question { _room: room, _source: source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_few_questions_and_others_have_theirs() {
        let vendors = Vendors::default();
        let ask = |last: u8| vendors.question([192, 0, 2, last].into());
        let held: Vec<_> = std::iter::from_fn(|| ask(1).ok()).collect();
        assert_eq!(held.len(), MOST_OF_SOURCE);
        let others: Vec<_> = std::iter::from_fn(|| ask(2).ok()).collect();
        assert_eq!(others.len(), MOST - MOST_OF_SOURCE);
        assert_eq!(ask(3).err(), Some(AskError::Full(MOST)));
        drop(held);
        assert!(ask(3).is_ok());
    }
}
