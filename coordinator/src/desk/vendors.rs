//! Asks vendors, on threads of its own.
//!
//! A question takes seconds, and whoever reaches a port can cause one: evidence names the chip whose certificate is
//! missing, and until it is there nobody knows whether the chip exists. So questions take no thread that the rest of the
//! Coordinator needs, no source has more than a few, and the next question is always one of the source that has the
//! fewest under way: who comes with his first waits for one answer, not for a flood.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actors::AskError;
use program::{Sources, UnderWay, network};
use tokio::sync::oneshot;

/// Questions under way at once: as many threads.
const MOST_UNDER_WAY: usize = 8;
/// Questions under way or waiting, and of one source.
const MOST: usize = 64;
const MOST_OF_SOURCE: usize = 8;
/// How long a question may wait and take, all together.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Question>,
    /// By source.
    under_way: HashMap<IpAddr, usize>,
    /// Threads, and those of them that wait for a question.
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Question {
    source: IpAddr,
    /// Asks and answers; does nothing if nobody waits for the answer any more.
    ask: Box<dyn FnOnce() + Send>,
    _counted: UnderWay,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Threads that ask vendors; they end when this is dropped.
pub(crate) struct Vendors {
    shared: Arc<Shared>,
    sources: Arc<Sources>,
}

impl Default for Vendors {
    fn default() -> Self {
        Self { shared: Arc::default(), sources: Sources::new(MOST_OF_SOURCE) }
    }
}

impl Vendors {
    /// Runs `ask` on behalf of a source, when it is its turn. `Ok(None)`: it panicked, or took too long.
    pub(super) async fn ask<R: Send + 'static>(
        &self,
        source: IpAddr,
        ask: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Option<R>, AskError> {
        let counted = self.sources.begin(source).ok_or(AskError::Full(MOST_OF_SOURCE))?;
        let (reply, answer) = oneshot::channel();
        let ask = move || {
            if !reply.is_closed() {
                let _ = reply.send(ask());
            }
        };
        let question = Question { source: network(source), ask: Box::new(ask), _counted: counted };
        {
            let mut queue = self.shared.queue();
            if queue.waiting.len() + queue.under_way.values().sum::<usize>() >= MOST {
                return Err(AskError::Full(MOST));
            }
            queue.waiting.push_back(question);
            if queue.idle < queue.waiting.len() && queue.threads < MOST_UNDER_WAY {
                let shared = Arc::clone(&self.shared);
                let started = std::thread::Builder::new().name("vendors".into()).spawn(move || shared.work());
                match started {
                    Ok(_) => queue.threads += 1,
                    Err(error) => tracing::error!(%error, "no thread to ask vendors with"),
                }
            }
        }
        self.shared.changed.notify_one();
        Ok(tokio::time::timeout(PATIENCE, answer).await.ok().and_then(Result::ok))
    }
}

impl Drop for Vendors {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // What runs under the lock leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.queue();
        while !queue.closed {
            let Some(Question { source, ask, _counted }) = queue.next() else {
                queue.idle += 1;
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
                continue;
            };
            *queue.under_way.entry(source).or_default() += 1;
            drop(queue);
            if catch_unwind(AssertUnwindSafe(ask)).is_err() {
                tracing::error!("a question to a vendor panicked");
            }
            drop(_counted);
            queue = self.queue();
            if let Some(count) = queue.under_way.get_mut(&source) {
                *count -= 1;
                if *count == 0 {
                    queue.under_way.remove(&source);
                }
            }
        }
        queue.threads -= 1;
    }
}

impl Queue {
    /// The oldest question of the source that has the fewest under way.
    fn next(&mut self) -> Option<Question> {
        let under_way =
            |question: &Question| self.under_way.get(&question.source).copied().unwrap_or_default();
        let (place, _) = self.waiting.iter().enumerate().min_by_key(|(_, question)| under_way(question))?;
        self.waiting.remove(place)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// A vendor that answers when it is told to: each answer is let go by one message.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_of_many_sources_keeps_nobody_elses_question_waiting_for_more_than_one_answer() {
        let vendors = Arc::new(Vendors::default());
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let slow = |last: u8| {
            let (vendors, wait) = (Arc::clone(&vendors), Arc::clone(&wait));
            let (most, now) = (Arc::clone(&most), Arc::clone(&now));
            let ask = move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _ = wait.lock().unwrap().recv(); // an error: the vendor hung up
                now.fetch_sub(1, Ordering::SeqCst);
                last
            };
            tokio::spawn(async move { vendors.ask(address(last), ask).await })
        };
        // Six strangers ask more often than they may.
        let mut floods = Vec::new();
        for _ in 0..MOST_OF_SOURCE + 3 {
            floods.extend((1..=6).map(slow));
        }
        let turned_away = || floods.iter().filter(|flood| flood.is_finished()).count();
        let under_way = || vendors.shared.queue().under_way.values().sum::<usize>();
        while turned_away() < 6 * 3 || under_way() < MOST_UNDER_WAY {
            tokio::task::yield_now().await;
        }
        let good = {
            let vendors = Arc::clone(&vendors);
            tokio::spawn(async move { vendors.ask(address(100), || 100).await })
        };
        while !vendors.shared.queue().waiting.iter().any(|question| question.source == address(100)) {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap(); // one answer of the flood comes
        assert_eq!(good.await.unwrap(), Ok(Some(100)));
        assert_eq!(most.load(Ordering::SeqCst), MOST_UNDER_WAY);
        drop(go); // the vendor hangs up
        let mut refused = 0;
        for flood in floods {
            match flood.await.unwrap() {
                Err(AskError::Full(MOST_OF_SOURCE)) => refused += 1,
                answer => drop(answer.unwrap()),
            }
        }
        assert_eq!(refused, 6 * 3, "each source has its {MOST_OF_SOURCE}");
    }

    #[tokio::test]
    async fn a_panic_costs_one_question() {
        let vendors = Vendors::default();
        for _ in 0..2 * MOST_UNDER_WAY {
            let answer = vendors.ask(address(1), || assert!(address(1).is_ipv6())).await;
            assert_eq!(answer, Ok(None));
        }
        assert_eq!(vendors.ask(address(1), || 7).await, Ok(Some(7)));
    }
}
