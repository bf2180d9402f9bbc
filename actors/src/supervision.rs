//! A panic costs one answer, not the service.
//!
//! actix's supervisor restarts an actor that stopped; a panic ends the task or thread that the
//! actor, and its supervisor, live on. So a handler on a pool runs its work through
//! [`rebuild_on_panic`]: the caller gets an error, and actix makes the actor anew from its factory,
//! which for the ledger means from the log. A handler that answers with a future, which owns all it
//! works on, wraps it in [`survive_panic`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use actix::{Actor, ActorContext as _, SyncContext};
use futures_util::FutureExt as _;

/// Runs `work`; `None` after a panic, and then the actor is replaced before its next message.
pub(crate) fn rebuild_on_panic<A, R>(ctx: &mut SyncContext<A>, work: impl FnOnce() -> R) -> Option<R>
where
    A: Actor<Context = SyncContext<A>>,
{
    // The state that a panic may have left half-changed is dropped with the actor.
    let outcome = catch_unwind(AssertUnwindSafe(work)).ok();
    if outcome.is_none() {
        tracing::error!(actor = std::any::type_name::<A>(), "panicked; it is rebuilt");
        ctx.stop();
    }
    outcome
}

/// Awaits `work`; `None` after a panic.
pub(crate) async fn survive_panic<A, R>(work: impl Future<Output = R>) -> Option<R> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await.ok();
    if outcome.is_none() {
        tracing::error!(actor = std::any::type_name::<A>(), "panicked; its other requests go on");
    }
    outcome
}

#[cfg(test)]
mod tests {
    use actix::{Handler, Message, SyncArbiter};

    use super::*;

    struct Fragile(u32);

    impl Actor for Fragile {
        type Context = SyncContext<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "Option<u32>")]
    struct Add(u32);

    impl Handler<Add> for Fragile {
        type Result = Option<u32>;

        fn handle(&mut self, Add(n): Add, ctx: &mut Self::Context) -> Option<u32> {
            rebuild_on_panic(ctx, || {
                self.0 += n;
                assert_ne!(n, 13, "a bug");
                self.0
            })
        }
    }

    #[test]
    fn a_panic_costs_one_answer_and_the_actor_begins_anew() {
        actix::System::new().block_on(async {
            let actor = SyncArbiter::start(1, || Fragile(100));
            assert_eq!(actor.send(Add(1)).await, Ok(Some(101)));
            assert_eq!(actor.send(Add(13)).await, Ok(None));
            assert_eq!(actor.send(Add(2)).await, Ok(Some(102)), "from the factory, not from the ruins");
        });
    }
}
