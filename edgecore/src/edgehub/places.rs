//! The cloudcores that there are, and the way to each. They are dialed one after another, and the next one beside those before when
//! none of them has answered at all (RFC 8305 does so with addresses): one that is gone in silence costs seconds. What has been
//! answered is waited for longer, so that a cloudcore that all come back to at once is slow and not the reason for more.

use std::{collections::VecDeque, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use runtime::{
    chain,
    link::{Heard, Link, LinkError},
};
use rustls::ClientConfig;
use tokio::time::{self, Instant};
use tracing::debug;

use super::transports::{Manner, Server, Transports};

/// How long one that answers nothing is waited for before the next is dialed, too.
const NEXT: Duration = Duration::from_secs(2);
/// The same, while a session is in doubt, with one that has said nothing for seconds already.
const NEXT_IN_DOUBT: Duration = Duration::from_millis(500);
/// The same, with one that has begun to answer.
const NEXT_TO_SLOW: Duration = Duration::from_secs(10);

/// One of the cloudcores, and what is known about the way there.
pub(super) struct Place {
    pub(super) server: Server,
    pub(super) transports: Transports,
}

struct Dial<'a> {
    number: usize,
    begun: Instant,
    heard: Heard,
    link: BoxFuture<'a, Result<Link, LinkError>>,
}

impl Dial<'_> {
    /// When the next is to be dialed, if it were for this one.
    fn patience(&self, manner: Manner) -> Instant {
        let patience = match manner {
            _ if self.heard.is_noted() => NEXT_TO_SLOW,
            Manner::Usual => NEXT,
            Manner::InDoubt => NEXT_IN_DOUBT,
        };
        self.begun + patience
    }
}

/// The first link that is up, and with which of the cloudcores. They are dialed in their order, from the one at `from` on. An error is that
/// of the last one that failed, when none is being dialed any more: whoever called goes on with the next one, in his own time.
pub(super) async fn dial(
    places: &mut [Place],
    from: usize,
    tls: &Arc<ClientConfig>,
    manner: Manner,
) -> Result<(usize, Link), (usize, LinkError)> {
    let mut waiting: VecDeque<(usize, &mut Place)> = places.iter_mut().enumerate().collect();
    waiting.rotate_left(from);
    let mut dials: Vec<Dial<'_>> = Vec::new();
    loop {
        let next = dials.iter().map(|dial| dial.patience(manner)).max();
        if next.is_none_or(|next| next <= Instant::now())
            && let Some((number, place)) = waiting.pop_front()
        {
            let heard = Heard::default();
            let link = place.transports.connect(tls, manner, heard.clone()).boxed();
            dials.push(Dial { number, begun: Instant::now(), heard, link });
            continue;
        }
        let answered = poll_fn(|context| {
            let polled =
                dials.iter_mut().enumerate().find_map(|(index, dial)| match dial.link.poll_unpin(context) {
                    Poll::Ready(link) => Some((index, link)),
                    Poll::Pending => None,
                });
            polled.map_or(Poll::Pending, Poll::Ready)
        });
        // What has begun goes on when the other arm wins.
        let (index, link) = tokio::select! {
            answered = answered => answered,
            () = time::sleep_until(next.unwrap_or_else(Instant::now)), if !waiting.is_empty() => continue,
        };
        let number = dials.swap_remove(index).number;
        match link {
            Ok(link) => return Ok((number, link)),
            Err(error) if dials.is_empty() => return Err((number, error)),
            Err(error) => debug!(error = %chain(&error), number, "no link with one of the cloudcores"),
        }
    }
}
