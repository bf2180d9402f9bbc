//! How one part asks an actor: bounded, and with the span of the request that caused it.

use std::sync::Arc;

use actix::{Actor, Addr, Handler, Message, dev::ToEnvelope};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Span;

/// A message and the tracing span it was sent in, so that what an actor logs names its request.
pub struct Traced<M> {
    /// The message.
    pub message: M,
    /// The sender's span.
    pub span: Span,
    /// The place that it takes: until the actor is done with it, even if the sender has gone.
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl<M: Message> Message for Traced<M> {
    type Result = M::Result;
}

/// Why an actor did not take or did not answer a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// As much is under way as the actor takes; nothing was done.
    #[error("{0} requests are under way already; try again in a second")]
    Full(usize),
    /// A bug ended the actor while it had the question; it is being rebuilt.
    #[error("an actor is restarting; try again")]
    Restarting,
}

/// What can be sent to an actor on another thread.
pub trait Question: Message<Result: Send> + Send + 'static {}

impl<M: Message<Result: Send> + Send + 'static> Question for M {}

/// An actor that answers such questions.
pub trait Answers<M: Question>: Actor<Context: ToEnvelope<Self, Traced<M>>> + Handler<Traced<M>> {}

impl<M: Question, A: Actor<Context: ToEnvelope<A, Traced<M>>> + Handler<Traced<M>>> Answers<M> for A {}

/// An actor's address, with a bound on the questions that are waiting or under way.
pub struct Mailbox<A: Actor> {
    address: Addr<A>,
    room: Arc<Semaphore>,
    capacity: usize,
}

impl<A: Actor> Clone for Mailbox<A> {
    fn clone(&self) -> Self {
        Self { address: self.address.clone(), room: Arc::clone(&self.room), capacity: self.capacity }
    }
}

impl<A: Actor> Mailbox<A> {
    /// At most `capacity` questions at once, over all clones.
    pub fn new(address: Addr<A>, capacity: usize) -> Self {
        Self { address, room: Arc::new(Semaphore::new(capacity)), capacity }
    }

    /// How many questions are waiting or under way.
    pub fn under_way(&self) -> usize {
        self.capacity.saturating_sub(self.room.available_permits())
    }

    /// Asks and waits for the answer. A full mailbox is an error at once, never a queue that grows.
    pub async fn ask<M: Question>(&self, message: M) -> Result<M::Result, AskError>
    where
        A: Answers<M>,
    {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| AskError::Full(self.capacity))?;
        // Here as well: an actor that answers later is done with the message before that.
        let room = Arc::new(room);
        self.send(message, Some(Arc::clone(&room))).await
    }

    /// The same for what the Coordinator asks itself, one question at a time: there is always room for that.
    pub async fn ask_own<M: Question>(&self, message: M) -> Result<M::Result, AskError>
    where
        A: Answers<M>,
    {
        self.send(message, None).await
    }

    async fn send<M: Question>(
        &self,
        message: M,
        room: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Result<M::Result, AskError>
    where
        A: Answers<M>,
    {
        let message = Traced { message, span: Span::current(), _room: room };
        self.address.send(message).await.map_err(|_| AskError::Restarting)
    }
}

#[cfg(test)]
mod tests {
    use actix::{Context, ResponseFuture};

    use super::*;

    struct Slow;

    impl Actor for Slow {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Wait(tokio::sync::oneshot::Receiver<()>);

    impl Handler<Traced<Wait>> for Slow {
        type Result = ResponseFuture<()>;

        fn handle(
            &mut self,
            Traced { message: Wait(end), .. }: Traced<Wait>,
            _: &mut Self::Context,
        ) -> Self::Result {
            Box::pin(async { end.await.unwrap() })
        }
    }

    #[test]
    fn a_full_mailbox_is_an_error_at_once_and_has_room_again() {
        actix::System::new().block_on(async {
            let mailbox = Mailbox::new(Slow.start(), 1);
            let (finish, end) = tokio::sync::oneshot::channel();
            let first = actix::spawn({
                let mailbox = mailbox.clone();
                async move { mailbox.ask(Wait(end)).await }
            });
            tokio::task::yield_now().await;
            let (done, other) = tokio::sync::oneshot::channel();
            assert_eq!(mailbox.ask(Wait(other)).await, Err(AskError::Full(1)));
            finish.send(()).unwrap();
            assert_eq!(first.await.unwrap(), Ok(()));
            assert!(done.send(()).is_err(), "the refused message was dropped");
            let (done, end) = tokio::sync::oneshot::channel();
            done.send(()).unwrap();
            assert_eq!(mailbox.ask(Wait(end)).await, Ok(()));
        });
    }
}
