//! `backfill`: after own downtime, reads LiveChat's archives of that time, and hands their events to the running relay.

mod cursor;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::access::{Access, Where, unexpected};
use super::items::{count, field, progress, show, time};
use super::print::{note, out};
use super::webhooks::chosen;
use super::{Failure, send};
use crate::config::{Config, Need};
use crate::control::{Answer, Request};
use crate::event::Archived;
use crate::livechat::backfill::{Span, Tenant, Thread, running_before, thread};
use crate::livechat::{self, Archives, Credential, Kind, TokenFile, Version};
use crate::outcome::Backfilled;
use cursor::{Cursor, Step};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// The app whose events are missing; needed where several apps have [apps.livechat]
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// From this time on: 2026-11-22T14:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Timestamp,
    /// Before this time; now, or where an earlier run that goes on ended
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// How long before --from a thread may have begun that has events after it. Archives are asked by a thread's beginning
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = send::duration)]
    max_thread_age: Duration,
    /// The organization whose archives are read, as webhooks have it in organization_id; needed with a personal access token
    #[arg(long, value_name = "ID")]
    organization: Option<String>,
    /// With API 3.3: the license of the events, as webhooks have it in license_id
    #[arg(long, value_name = "NUMBER", conflicts_with = "organization")]
    license: Option<u64>,
    /// The file that says how far it is, to go on there [default: backfill-<app>.json in spool.directory]
    #[arg(long, value_name = "FILE")]
    cursor: Option<PathBuf>,
    /// Say how much there is, and how many calls that takes; two calls
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// What was read, and what became of it. Of what is sent to the relay twice, `delivered` has both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    running_chats: u64,
    threads: u64,
    incoming_chat: u64,
    incoming_event: u64,
    chat_deactivated: u64,
    /// Threads whose events LiveChat does not show.
    restricted_threads: u64,
    /// Events without a time that can be read.
    undated_events: u64,
    /// Calls that LiveChat may bill.
    calls: u64,
    delivered: Backfilled,
}

/// Events in one request at most; their bytes are bounded by `control.request_bytes_max`.
const BATCH_MAX: usize = 100;

/// What a request has besides its events.
const REQUEST_BYTES: u64 = 512;

/// How often a batch is tried that the relay cannot make durable, and the pause between: a minute, as LiveChat itself does it.
const TRIES_MAX: u32 = 12;
const PAUSE: Duration = Duration::from_secs(5);

/// How often the archive is begun again because its next page is not to be had: a page that was too large halves the next ones, 100 to 1.
const RESTARTS_MAX: u32 = 8;

const LOST: &str = "Webhooks that archives do not have are not made good: changes of properties, tags, seen marks, transfers, access, users \
    added and removed, session fields, and all of agents, bots, groups and tags.";

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = arguments.place.source.load(Need::LiveChat)?;
    let app = chosen(&config.livechat.apps, arguments.app.as_deref())?;
    let path = arguments.cursor_path(&config, app)?;
    let archives = Archives::new(&config.livechat, app);
    let cursor = arguments.begin(app, &path)?;
    let span = Span { from: cursor.from, to: cursor.to };
    let since = SignedDuration::try_from(arguments.max_thread_age).ok().and_then(|age| span.from.checked_sub(age).ok());
    let since = since.ok_or_else(|| Failure::Usage("--max-thread-age is too long".to_owned()))?;
    if arguments.dry_run {
        return estimate(&archives, since, span, arguments.json).await;
    }
    let tenant = arguments.tenant(app)?;
    let relay = arguments.place.running().await?;
    let request_bytes_max = config.control.request_bytes_max;
    let calls_before = cursor.counts.calls;
    let bar = progress(0);
    let mut backfill = Backfill {
        archives,
        relay,
        cursor,
        path,
        tenant,
        span,
        since,
        request_bytes_max,
        calls_before,
        bar,
        batch: Vec::new(),
        batch_bytes: 0,
    };
    let done = backfill.run().await;
    backfill.bar.finish_and_clear();
    if matches!(done, Err(Failure::Failed(_))) {
        let Cursor { from, to, .. } = &backfill.cursor;
        note(format_args!("the same command goes on where this one has ended: --from {from} --to {to}"));
    }
    done?;
    report(&backfill.cursor, arguments.json)
}

impl Arguments {
    fn cursor_path(&self, config: &Config, app: &livechat::App) -> Result<PathBuf, Failure> {
        let in_spool = || Some(config.spool.as_ref()?.spool.directory.join(format!("backfill-{}.json", app.name)));
        let path = self.cursor.clone().or_else(in_spool);
        path.ok_or_else(|| {
            Failure::Usage("without spool.directory, --cursor FILE says where to note how far it is".to_owned())
        })
    }

    /// Goes on where an earlier run has ended, or begins.
    fn begin(&self, app: &livechat::App, path: &std::path::Path) -> Result<Cursor, Failure> {
        let (from, shown) = (self.from, path.display());
        let is_this =
            |cursor: &Cursor| cursor.app == app.name && cursor.from == from && self.to.is_none_or(|to| to == cursor.to);
        match Cursor::read(path)? {
            Some(cursor) if is_this(&cursor) && cursor.step == Step::Done => {
                Err(Failure::Failed(format!("this backfill is complete; remove {shown} to read it all again")))
            }
            Some(cursor) if is_this(&cursor) => Ok(cursor),
            Some(Cursor { app, from, to, step, .. }) if step != Step::Done => Err(Failure::Usage(format!(
                "{shown} is of the backfill of app {app} --from {from} --to {to}, which is not complete; go on with that, remove the file, or name another one with --cursor"
            ))),
            // One that is complete has nothing to go on with.
            Some(_) | None => {
                let to = self.to.unwrap_or_else(Timestamp::now);
                if from >= to {
                    return Err(Failure::Usage(format!("--from {from} is not before --to {to}")));
                }
                let (app, counts, before_archive) = (app.name.clone(), Counts::default(), Counts::default());
                Ok(Cursor { app, from, to, step: Step::RunningChats, counts, before_archive })
            }
        }
    }

    /// Whose events they are: without it their ids would not be those of LiveChat's own.
    fn tenant(&self, app: &livechat::App) -> Result<Tenant, Failure> {
        if app.version <= Version::V3_3 {
            let wanted = || Failure::Usage("webhooks of API 3.3 name a license: give it with --license".to_owned());
            return self.license.map(|license| Tenant::License(license.to_string())).ok_or_else(wanted);
        }
        let of_token = match &app.credential {
            Some(Credential::Tokens(path)) => TokenFile::new(path).read().map_err(Failure::failed)?,
            _ => None,
        };
        let of_token = of_token.map(|pair| pair.organization_id).filter(|id| !id.is_empty());
        match (of_token, &self.organization) {
            (Some(of_token), Some(given)) if of_token != *given => Err(Failure::Usage(format!(
                "the tokens of {} read the archives of the organization {of_token}, and --organization is another one; leave it out",
                app.name
            ))),
            (Some(id), _) => Ok(Tenant::Organization(id)),
            (None, Some(id)) => Ok(Tenant::Organization(id.clone())),
            (None, None) => Err(Failure::Usage(
                "whose events? A personal access token does not say it: give --organization, the organization_id that the app's events on Kafka have"
                    .to_owned(),
            )),
        }
    }
}

/// A run.
struct Backfill {
    archives: Archives,
    relay: Access,
    cursor: Cursor,
    path: PathBuf,
    tenant: Tenant,
    span: Span,
    /// The beginning of the oldest thread that is read.
    since: Timestamp,
    request_bytes_max: u64,
    calls_before: u64,
    bar: ProgressBar,
    /// Events that are not sent yet, and their bytes in a request.
    batch: Vec<Archived>,
    batch_bytes: u64,
}

impl Backfill {
    /// The running chats first: one that ends meanwhile is then in the archive as well, and not in neither.
    async fn run(&mut self) -> Result<(), Failure> {
        if self.cursor.step == Step::RunningChats {
            self.running_chats().await?;
            self.cursor.before_archive = self.cursor.counts.clone();
            self.advance(Step::Archive { page_id: None })?;
        }
        self.archive().await?;
        self.advance(Step::Done)
    }

    async fn running_chats(&mut self) -> Result<(), Failure> {
        let (mut page_id, mut seen) = (None::<String>, HashSet::new());
        loop {
            let page = self.archives.running_chats(page_id.as_deref()).await.map_err(Failure::failed)?;
            self.bar.set_message("running chats");
            let to = self.span.to;
            for id in page.chats.iter().filter_map(|summary| running_before(summary, to)) {
                match self.archives.chat(&id).await {
                    Ok(chat) => {
                        self.take(&chat).await?;
                        self.cursor.counts.running_chats += 1;
                    }
                    Err(failure) if failure.kind == Kind::NotFound => {} // no longer there, or not for this account
                    Err(failure) => return Err(Failure::failed(failure)),
                }
            }
            self.flush().await?;
            match page.next_page_id {
                Some(id) if !seen.insert(id.clone()) => return Err(repeated("list_chats")),
                Some(id) => page_id = Some(id),
                None => return Ok(()),
            }
        }
    }

    async fn archive(&mut self) -> Result<(), Failure> {
        let (mut seen, mut restarts, mut threads) = (HashSet::new(), 0, 0);
        while let Step::Archive { page_id } = self.cursor.step.clone() {
            let page = match self.archives.page(self.since, self.span.to, page_id.as_deref()).await {
                Ok(page) => page,
                // The page was too large, or its id is not known any more: LiveChat keeps ids for a month.
                Err(failure)
                    if page_id.is_some()
                        && restarts < RESTARTS_MAX
                        && matches!(failure.kind, Kind::Validation | Kind::NotFound | Kind::Unintelligible) =>
                {
                    self.bar.suspend(|| note(format_args!("{failure}: the archive is read from its beginning")));
                    restarts += 1;
                    seen.clear();
                    threads = 0;
                    let delivered = self.cursor.counts.delivered.clone();
                    self.cursor.counts = Counts { delivered, ..self.cursor.before_archive.clone() };
                    self.advance(Step::Archive { page_id: None })?;
                    continue;
                }
                Err(failure) => return Err(Failure::failed(failure)),
            };
            self.bar.set_message("archived threads");
            for chat in &page.chats {
                self.take(chat).await?;
                threads += 1;
                self.cursor.counts.threads += 1;
                show(&self.bar, threads, page.found_chats.unwrap_or(threads));
            }
            self.flush().await?;
            match page.next_page_id {
                Some(id) if !seen.insert(id.clone()) => return Err(repeated("list_archives")),
                Some(id) => self.advance(Step::Archive { page_id: Some(id) })?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Notes how far it is. All that was read before is durable.
    fn advance(&mut self, step: Step) -> Result<(), Failure> {
        self.cursor.step = step;
        self.cursor.counts.calls = self.calls_before + self.archives.calls();
        self.cursor.write(&self.path)
    }

    async fn take(&mut self, chat: &RawValue) -> Result<(), Failure> {
        let Thread { webhooks, made, is_restricted, undated } = thread(chat, &self.span, &self.tenant);
        let counts = &mut self.cursor.counts;
        for (count, made) in
            [&mut counts.incoming_chat, &mut counts.incoming_event, &mut counts.chat_deactivated].into_iter().zip(made)
        {
            *count += made;
        }
        counts.restricted_threads += u64::from(is_restricted);
        counts.undated_events += undated;
        for webhook in webhooks {
            let bytes = serde_json::to_vec(&webhook).map_err(Failure::failed)?.len() as u64 + 1;
            let most = self.request_bytes_max.saturating_sub(REQUEST_BYTES);
            if bytes > most {
                return Err(Failure::Failed(format!(
                    "an event has {bytes} bytes, which a request to the relay does not hold: raise control.request_bytes_max, and restart the relay"
                )));
            }
            if self.batch.len() == BATCH_MAX || self.batch_bytes + bytes > most {
                self.flush().await?;
            }
            self.batch_bytes += bytes;
            self.batch.push(webhook);
        }
        Ok(())
    }

    /// Hands over what was read. What is not durable is tried again, all of the batch: the relay recognizes what it has.
    async fn flush(&mut self) -> Result<(), Failure> {
        self.batch_bytes = 0;
        let events = std::mem::take(&mut self.batch);
        if events.is_empty() {
            return Ok(());
        }
        let request = Request::Backfill { app: self.cursor.app.clone(), events };
        for tries in 1.. {
            let done = match self.relay.ask(request.clone(), |_| Ok(())).await? {
                Answer::Backfilled(done) => done,
                other => return Err(unexpected(&other)),
            };
            self.cursor.counts.delivered.add(&done);
            let why = done.reason.unwrap_or_default();
            match done.unavailable {
                0 => break,
                n if tries >= TRIES_MAX => {
                    let events = count(n, "event");
                    return Err(Failure::Failed(format!(
                        "the relay cannot make {events} durable ({why}); nothing is skipped"
                    )));
                }
                _ => {
                    self.bar.set_message(format!("the relay cannot store events ({why}); trying again"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }
}

fn repeated(method: &str) -> Failure {
    Failure::Failed(format!(
        "{method} leads from page to page in a circle: LiveChat's answer has a page id that it had before"
    ))
}

/// How much there is, by the first page of both.
async fn estimate(archives: &Archives, since: Timestamp, span: Span, json: bool) -> Result<(), Failure> {
    let archived = archives.page(since, span.to, None).await.map_err(Failure::failed)?;
    let running = archives.running_chats(None).await.map_err(Failure::failed)?;
    let found = |page: &livechat::ArchivePage| page.found_chats.unwrap_or(page.chats.len() as u64);
    let (threads, chats) = (found(&archived), found(&running));
    let per_page = archived.chats.len().max(1) as u64;
    let pages = if archived.next_page_id.is_some() { threads.div_ceil(per_page) } else { 1 };
    let calls = pages + chats.div_ceil(100).max(1) + chats;
    if json {
        return out(format_args!(
            "{:#}",
            serde_json::json!({ "from": span.from, "to": span.to, "threads": threads, "running_chats": chats, "calls": calls })
        ));
    }
    field("time", &format!("{} to {}; threads that began from {since} on are read", span.from, span.to))?;
    field("there are", &format!("about {}, and {}", count(threads, "archived thread"), count(chats, "running chat")))?;
    field("calls", &format!("about {calls}, which LiveChat may bill; this estimate took {}", archives.calls()))
}

fn report(cursor: &Cursor, json: bool) -> Result<(), Failure> {
    let Cursor { app, from, to, counts, .. } = cursor;
    if json {
        return out(format_args!(
            "{:#}",
            serde_json::json!({ "app": app, "from": from, "to": to, "counts": counts, "not_archived": LOST })
        ));
    }
    let Counts { running_chats, threads, incoming_chat, incoming_event, chat_deactivated, .. } = counts;
    let calls = count(counts.calls, "call");
    field(
        "read",
        &format!(
            "{}, {}; {calls} that LiveChat may bill",
            count(*threads, "archived thread"),
            count(*running_chats, "running chat")
        ),
    )?;
    field(
        "within",
        &format!("{incoming_chat} incoming_chat, {incoming_event} incoming_event, {chat_deactivated} chat_deactivated"),
    )?;
    let Backfilled { published, spooled, duplicate, dead_lettered, dropped, .. } = counts.delivered;
    let became = format!(
        "published {published}, spooled {spooled}, duplicate {duplicate}, dead-lettered {dead_lettered}, dropped {dropped}"
    );
    field("became", &became)?;
    if counts.restricted_threads > 0 {
        field(
            "hidden",
            &format!(
                "the events of {}: older than the account's plan shows",
                count(counts.restricted_threads, "thread")
            ),
        )?;
    }
    if counts.undated_events > 0 {
        field("undated", &format!("{} without a time were left out", count(counts.undated_events, "event")))?;
    }
    note(format_args!("{LOST}"));
    Ok(())
}
