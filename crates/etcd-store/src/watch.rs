//! News: somebody appended. Lost news is no harm, because whoever waits for it also looks from time to
//! time; so the watch begins anew wherever it was cut.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch::Sender;
use tokio_stream::StreamExt as _;

use crate::{
    api::{WatchCreateRequest, WatchRequest, watch_client::WatchClient, watch_request::RequestUnion},
    client::Client,
    keys::Keys,
};

/// etcd says at the latest after ten minutes that it is still there; a dead connection is noticed by
/// the keep-alive of HTTP/2 within seconds.
const SILENCE: Duration = Duration::from_mins(15);
const PAUSE: Duration = Duration::from_millis(300);

/// Counts up with each change, and whenever the watch begins, until nobody listens any more.
pub(crate) async fn follow(client: Arc<Client>, keys: Keys, news: Sender<u64>) {
    let mut member = client.next_member();
    // Resumes behind what was seen, so that nothing in between is missed.
    let mut from = 0;
    while !news.is_closed() {
        match follow_one(&client, member, &keys, &news, &mut from).await {
            Ok(()) => {}
            Err(status) => tracing::debug!(status = %status.message(), "watch of etcd ended; it begins anew"),
        }
        news.send_modify(|count| *count += 1);
        member += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow_one(
    client: &Client,
    member: usize,
    keys: &Keys,
    news: &Sender<u64>,
    from: &mut i64,
) -> Result<(), tonic::Status> {
    let asked = client.asked(member).await?;
    let (key, range_end) = keys.segments();
    let create = WatchCreateRequest { key, range_end, start_revision: *from, progress_notify: true };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The stream of requests stays open as long as the watch does.
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut client = WatchClient::new(asked.channel.clone());
    let answer = client.watch(asked.request(requests));
    let limit = Duration::from_secs(5);
    let answer = tokio::time::timeout(limit, answer).await;
    let mut answers = answer.map_err(|_| tonic::Status::deadline_exceeded("no watch"))??.into_inner();
    loop {
        let next = tokio::time::timeout(SILENCE, answers.message()).await;
        let Some(answer) = next.map_err(|_| tonic::Status::deadline_exceeded("silence"))?? else {
            return Ok(());
        };
        if answer.canceled {
            // What was to be resumed may have been compacted away: begin from now on.
            *from = 0;
            return Err(tonic::Status::aborted(answer.cancel_reason));
        }
        if let Some(header) = &answer.header {
            *from = header.revision + 1;
        }
        news.send_modify(|count| *count += 1);
    }
}
