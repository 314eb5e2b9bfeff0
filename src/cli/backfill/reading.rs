//! Reads running chats and archives, page by page, and hands what they have within the time to the running relay. The cursor goes on when
//! that is durable.

use std::collections::HashSet;
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::cursor::{Counts, Cursor, Step};
use crate::cli::Failure;
use crate::cli::access::{Access, unexpected};
use crate::cli::items::{count, progress, show};
use crate::cli::print::note;
use crate::control::{Answer, Request};
use crate::event::Archived;
use crate::livechat::backfill::{running_before, webhooks};
use crate::livechat::{Archives, Kind};
use crate::outcome::Backfilled;

/// What a request has besides its events.
const REQUEST_BYTES: u64 = 512;

/// How long after the first try events are handed over that the relay cannot make durable, and the pause between: as long as LiveChat itself
/// does it. The relay takes up to 30 s to answer a try. What was durable at the first is handed over with the rest, so the last one has to begin
/// while the relay remembers that: for `retries.window`, two minutes unless configured.
const TRIED_FOR: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(5);

/// How often the archive is begun again because its next page is not to be had: a page that was too large halves the next ones, 100 to 1.
const RESTARTS_MAX: u32 = 8;

/// A run.
pub struct Reading {
    pub archives: Archives,
    pub relay: Access,
    /// As it is in its file.
    pub cursor: Cursor,
    /// Those of the cursor, and of what was read since.
    counts: Counts,
    /// What the relay takes as one request.
    request_bytes_max: u64,
    /// Those of earlier runs.
    calls_before: u64,
    pub bar: ProgressBar,
}

impl Reading {
    pub fn new(archives: Archives, relay: Access, cursor: Cursor, request_bytes_max: u64) -> Self {
        let (counts, calls_before) = (cursor.counts.clone(), cursor.counts.calls);
        Self { archives, relay, cursor, counts, request_bytes_max, calls_before, bar: progress(0) }
    }

    /// The running chats first: one that ends meanwhile is then in the archive as well, and not in neither.
    pub async fn run(&mut self) -> Result<(), Failure> {
        if self.cursor.step == Step::RunningChats {
            self.running_chats().await?;
            self.cursor.before_archive = self.counts.clone();
            self.advance(Step::Archive { page_id: None })?;
        }
        self.archive().await?;
        self.advance(Step::Done)
    }

    async fn running_chats(&mut self) -> Result<(), Failure> {
        let (mut page_id, mut seen) = (None, HashSet::new());
        loop {
            let page = self.archives.running_chats(page_id.as_deref()).await?;
            self.bar.set_message("running chats");
            let to = self.cursor.to;
            for id in page.chats.iter().filter_map(|summary| running_before(summary, to)) {
                match self.archives.chat(&id).await {
                    Ok(chat) => {
                        self.counts.running_chats += 1;
                        let events = self.webhooks(&chat);
                        self.hand_over(events).await?;
                    }
                    Err(failure) if failure.kind == Kind::NotFound => {} // no longer there, or not for this account
                    Err(failure) => return Err(failure.into()),
                }
            }
            page_id = next("list_chats", page.next_page_id, &mut seen)?;
            if page_id.is_none() {
                return Ok(());
            }
        }
    }

    async fn archive(&mut self) -> Result<(), Failure> {
        let (mut seen, mut restarts, mut threads) = (HashSet::new(), 0, 0);
        while let Step::Archive { page_id } = self.cursor.step.clone() {
            let page = match self.archives.page(self.cursor.since, self.cursor.to, page_id.as_deref()).await {
                Ok(page) => page,
                // The page was too large, or its id is not known any more: LiveChat keeps ids for a month.
                Err(failure)
                    if page_id.is_some()
                        && restarts < RESTARTS_MAX
                        && matches!(failure.kind, Kind::Validation | Kind::NotFound | Kind::Unintelligible) =>
                {
                    self.bar.suspend(|| note(format_args!("{failure}: the archive is read from its beginning")));
                    (seen, restarts, threads) = (HashSet::new(), restarts + 1, 0);
                    let delivered = std::mem::take(&mut self.counts.delivered);
                    self.counts = Counts { delivered, ..self.cursor.before_archive.clone() };
                    self.advance(Step::Archive { page_id: None })?;
                    continue;
                }
                Err(failure) => return Err(failure.into()),
            };
            self.bar.set_message("archived threads");
            let read = page.chats.len() as u64;
            threads += read;
            self.counts.threads += read;
            let events = page.chats.iter().flat_map(|chat| self.webhooks(chat)).collect();
            self.hand_over(events).await?;
            show(&self.bar, threads, page.found_chats.unwrap_or(threads));
            match next("list_archives", page.next_page_id, &mut seen)? {
                Some(id) => self.advance(Step::Archive { page_id: Some(id) })?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Notes how far it is. All that was read before is durable.
    fn advance(&mut self, step: Step) -> Result<(), Failure> {
        self.cursor.step = step;
        self.cursor.counts = self.counts.clone();
        self.note()
    }

    /// Notes what was called and delivered until now, also since the last step: that is read again, and counted again.
    pub fn note(&mut self) -> Result<(), Failure> {
        self.cursor.counts.calls = self.calls_before + self.archives.calls();
        self.cursor.counts.delivered = self.counts.delivered.clone();
        self.cursor.write()
    }

    fn webhooks(&mut self, chat: &RawValue) -> Vec<Archived> {
        let Cursor { from, to, tenant, .. } = &self.cursor;
        webhooks(chat, &(*from..*to), tenant, &mut self.counts.found)
    }

    async fn hand_over(&mut self, events: Vec<Archived>) -> Result<(), Failure> {
        for events in requests(events, self.request_bytes_max.saturating_sub(REQUEST_BYTES))? {
            let request = Request::Backfill { app: self.cursor.app.clone(), events };
            let ask = async || match self.relay.ask(request.clone(), |_| Ok(())).await? {
                Answer::Backfilled(done) => Ok(done),
                other => Err(unexpected(&other)),
            };
            let waiting =
                |why: &str| self.bar.set_message(format!("the relay cannot store events ({why}); trying again"));
            until_durable(ask, waiting, &mut self.counts.delivered).await?;
        }
        Ok(())
    }
}

/// The page that comes after one, if any.
fn next(method: &str, page_id: Option<String>, seen: &mut HashSet<String>) -> Result<Option<String>, Failure> {
    match page_id {
        Some(id) if !seen.insert(id.clone()) => Err(Failure::Failed(format!(
            "{method} leads from page to page in a circle: LiveChat's answer has a page id that it had before"
        ))),
        page_id => Ok(page_id),
    }
}

/// The events in their order, in requests of so many bytes at most.
fn requests(events: Vec<Archived>, bytes_max: u64) -> Result<Vec<Vec<Archived>>, Failure> {
    let (mut requests, mut free) = (Vec::<Vec<Archived>>::new(), 0);
    for event in events {
        let bytes = serde_json::to_vec(&event).map_err(Failure::failed)?.len() as u64 + 1; // a comma
        if bytes > bytes_max {
            return Err(Failure::Failed(format!(
                "an event has {bytes} bytes, which a request to the relay does not hold: raise control.request_bytes_max, and restart the relay"
            )));
        }
        match requests.last_mut() {
            Some(last) if bytes <= free => last.push(event),
            _ => {
                requests.push(vec![event]);
                free = bytes_max;
            }
        }
        free -= bytes;
    }
    Ok(requests)
}

/// Hands events over until they are durable, all of them again each time: the relay recognizes what it has. Of what it was handed twice,
/// `delivered` has both.
async fn until_durable(
    hand_over: impl AsyncFn() -> Result<Backfilled, Failure>,
    waiting: impl Fn(&str),
    delivered: &mut Backfilled,
) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let done = hand_over().await?;
        delivered.add(&done);
        let Backfilled { unavailable, reason, .. } = done;
        if unavailable == 0 {
            return Ok(());
        }
        let why = reason.unwrap_or_default();
        if began.elapsed() + PAUSE >= TRIED_FOR {
            let events = count(unavailable, "event");
            return Err(Failure::Failed(format!("the relay cannot make {events} durable ({why}); nothing is skipped")));
        }
        waiting(&why);
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What comes of events that are refused so many times, each after so long; and how often they were handed over, and for how long.
    async fn healed_after(refusals: u32, takes: Duration) -> (Result<(), String>, Backfilled, u32, Duration) {
        let (tries, began, mut delivered) = (Cell::new(0), Instant::now(), Backfilled::default());
        let hand_over = async || {
            tries.set(tries.get() + 1);
            tokio::time::sleep(takes).await;
            Ok(if tries.get() > refusals {
                Backfilled { spooled: 2, duplicate: 1, ..Backfilled::default() }
            } else {
                let reason = Some("spool_full".to_owned());
                Backfilled { published: 1, unavailable: 2, reason, ..Backfilled::default() }
            })
        };
        let done = until_durable(hand_over, |why| assert_eq!(why, "spool_full"), &mut delivered).await;
        (done.map_err(|failure| failure.to_string()), delivered, tries.get(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_durable_is_handed_over_again_for_a_minute() {
        for refusals in [0, 1, 11] {
            let healed = healed_after(refusals, Duration::ZERO).await;
            let all = Backfilled { published: refusals.into(), spooled: 2, duplicate: 1, ..Backfilled::default() };
            assert_eq!(healed, (Ok(()), all, refusals + 1, PAUSE * refusals));
        }
        let failure = "the relay cannot make 2 events durable (spool_full); nothing is skipped";
        let (done, delivered, tries, took) = healed_after(12, Duration::ZERO).await;
        assert_eq!((done, delivered.published, tries, took), (Err(failure.to_owned()), 12, 12, PAUSE * 11));
        // The relay's answers take long: no try begins after the minute, so that the first one's events are still known as duplicates.
        let (done, delivered, tries, took) = healed_after(12, Duration::from_secs(30)).await;
        assert_eq!((done, delivered.published, tries), (Err(failure.to_owned()), 2, 2));
        assert_eq!(took, Duration::from_secs(65));
    }

    #[test]
    fn requests_have_the_events_in_their_order_and_no_more_bytes_than_the_relay_takes() {
        let event = |n: usize| Archived { body: "x".repeat(n), author: None };
        let bytes = |n| serde_json::to_vec(&event(n)).expect("JSON").len() as u64 + 1;
        let lengths = |requests: Vec<Vec<Archived>>| -> Vec<Vec<usize>> {
            requests.iter().map(|events| events.iter().map(|event| event.body.len()).collect()).collect()
        };
        let of = |lengths: &[usize]| lengths.iter().map(|n| event(*n)).collect::<Vec<_>>();
        let most = bytes(3) + bytes(4);
        let made = requests(of(&[3, 4, 4, 4, 1]), most).expect("they fit");
        assert_eq!(lengths(made), [vec![3, 4], vec![4], vec![4, 1]]);
        assert!(requests(Vec::new(), most).expect("none").is_empty());
        let failure = requests(of(&[1, 50]), most).expect_err("too large").to_string();
        assert!(failure.contains("control.request_bytes_max"), "{failure}");
    }

    #[test]
    fn a_page_id_that_comes_again_ends_the_reading() {
        let (mut seen, id) = (HashSet::new(), |id: &str| Some(id.to_owned()));
        assert_eq!(next("m", id("1"), &mut seen).expect("new"), id("1"));
        assert_eq!(next("m", id("2"), &mut seen).expect("new"), id("2"));
        let failure = next("m", id("1"), &mut seen).expect_err("a circle").to_string();
        assert!(failure.starts_with("m leads from page to page in a circle"), "{failure}");
        assert_eq!(next("m", None, &mut seen).expect("the last"), None);
    }
}
