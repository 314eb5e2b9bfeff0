//! `backfill`: after own downtime, reads LiveChat's archives of that time, and hands their events to the running relay.

mod cursor;
mod reading;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::access::{Access, Where, unexpected};
use super::items::{count, second, time};
use super::print::{out, visible, wrapped};
use super::spool::print_json;
use super::{Failure, send};
use crate::config::{Config, Need};
use crate::control::{Answer, Request};
use crate::deliveries::Seen;
use crate::event::Tenant;
use crate::livechat::{App, ArchivePage, Archives, Credential, TokenFile, Version};
use crate::outcome::Backfilled;
use cursor::{Counts, Cursor, Step};
use reading::Reading;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// App whose events are missing; required if several apps have [apps.livechat]
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Start of the time span: 2026-11-22T14:00:00Z, 2026-11-22, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Timestamp,
    /// End of the time span [default: now, or that of the run that is continued]
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// Also read threads that began up to this long before --from: archives are searched by the beginning of a thread
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = send::duration)]
    max_thread_age: Duration,
    /// Organization whose archives are read (organization_id in webhooks); required with a personal access token
    #[arg(long, value_name = "ID", value_parser = not_blank)]
    organization: Option<String>,
    /// With API 3.3: license of the events (license_id in webhooks)
    #[arg(long, value_name = "NUMBER", conflicts_with = "organization")]
    license: Option<u64>,
    /// File with the progress, from which the next run continues [default: backfill-<app>.json in spool.directory]
    #[arg(long, value_name = "FILE")]
    cursor: Option<PathBuf>,
    /// Check everything, and show how much there is to read and how many calls that takes; makes two calls
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

const LOST: &str = "Webhooks that archives do not have are not made good: changes of properties, tags, seen marks, transfers, access, users \
    added and removed, session fields, and all of agents, bots, groups and tags.";

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = arguments.place.source.load(Need::LiveChat)?;
    let app = arguments.place.source.app(&config.livechat.apps, arguments.app.as_deref())?;
    let mut archives = Archives::new(&config.livechat, app);
    let path = arguments.cursor_path(&config, app)?;
    let relay = arguments.place.running().await?;
    let tenant = arguments.tenant(app, &seen(&relay, app).await?)?;
    let cursor = arguments.begin(app, path, tenant)?;
    if arguments.dry_run {
        cursor.try_to_write()?;
        return estimate(&mut archives, &cursor, arguments.json).await;
    }
    // Before the first call: else what it costs is for nothing where the file cannot be written.
    cursor.write()?;
    let mut reading = Reading::new(archives, relay, cursor, config.control.request_bytes_max);
    // What is in hand then is read again by the next run.
    let done = tokio::select! {
        done = reading.run() => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::Failed("interrupted".to_owned())),
    };
    reading.bar.finish_and_clear();
    if matches!(done, Err(Failure::Failed(_))) {
        if let Err(failure) = reading.note() {
            remark(&failure.to_string());
        }
        let Cursor { from, to, step, .. } = &reading.cursor;
        let goes_on = match step {
            Step::RunningChats => "starts again, with the running chats",
            Step::Archive { .. } | Step::Done => "continues where this one has ended",
        };
        remark(&format!("the same command {goes_on}: --from {from} --to {to}"));
    }
    done?;
    report(&reading.cursor, arguments.json)
}

/// An id without the spaces around it. A variable that a script has not set must not become one.
fn not_blank(id: &str) -> Result<String, &'static str> {
    let id = id.trim();
    if id.is_empty() { Err("it is blank") } else { Ok(id.to_owned()) }
}

/// What the running relay has seen of this app, which has to be its own, too.
async fn seen(relay: &Access, app: &App) -> Result<Seen, Failure> {
    match relay.ask(Request::Deliveries, |_| Ok(())).await? {
        Answer::Deliveries(seen) if seen.keys.iter().any(|key| key.app == app.name) => Ok(seen),
        Answer::Deliveries(_) => Err(Failure::Failed(format!("the running relay has no app {}", app.name))),
        other => Err(unexpected(&other)),
    }
}

impl Arguments {
    fn cursor_path(&self, config: &Config, app: &App) -> Result<PathBuf, Failure> {
        let in_spool = || Some(config.spool.as_ref()?.spool.directory.join(format!("backfill-{}.json", app.name)));
        self.cursor.clone().or_else(in_spool).ok_or_else(|| {
            Failure::Usage(
                "without spool.directory, --cursor FILE is required: the progress is written there".to_owned(),
            )
        })
    }

    /// Goes on where an earlier run has ended, or begins.
    fn begin(&self, app: &App, path: PathBuf, tenant: Tenant<'static>) -> Result<Cursor, Failure> {
        let since = SignedDuration::try_from(self.max_thread_age).ok().and_then(|age| self.from.checked_sub(age).ok());
        let since = since.ok_or_else(|| Failure::Usage("--max-thread-age is too long".to_owned()))?;
        let is_this = |cursor: &Cursor| {
            (&cursor.app, cursor.from, cursor.since, &cursor.tenant) == (&app.name, self.from, since, &tenant)
                && self.to.is_none_or(|to| to == cursor.to)
        };
        let shown = path.display();
        match Cursor::read(&path)? {
            Some(cursor) if is_this(&cursor) && cursor.step == Step::Done => {
                Err(Failure::Failed(format!("this backfill is complete; remove {shown} to read it all again")))
            }
            Some(cursor) if is_this(&cursor) => Ok(cursor),
            Some(other) if other.step != Step::Done => Err(Failure::Usage(format!(
                "{shown} belongs to another backfill, which is not complete: {}. Continue that one with these options, remove the file to start again, or name another file with --cursor",
                other.options()
            ))),
            // One that is complete has nothing to go on with.
            Some(_) | None => {
                let (from, to) = (self.from, self.to.unwrap_or_else(|| second(Timestamp::now())));
                if from >= to {
                    return Err(Failure::Usage(format!("--from {from} is not before --to {to}")));
                }
                Ok(Cursor::new(path, &app.name, from..to, since, tenant))
            }
        }
    }

    /// Whose events they are: it is part of their ids, which have to be those of LiveChat's own.
    fn tenant(&self, app: &App, seen: &Seen) -> Result<Tenant<'static>, Failure> {
        let (none, seen) = (BTreeSet::new(), seen.tenants.get(&app.name));
        let known = |configured| Known { app: &app.name, configured, seen: seen.unwrap_or(&none) };
        if app.version <= Version::V3_3 {
            let wanted = || Failure::Usage("webhooks of API 3.3 name a license: give it with --license".to_owned());
            let license = self.license.ok_or_else(wanted)?.to_string();
            remark(&known(&none).compared("--license", &license)?);
            return Ok(Tenant::License(license.into()));
        }
        let (of_token, unknown) = match &app.credential {
            Some(Credential::Tokens(path)) => {
                let file = TokenFile::new(path);
                let pair = file.read()?.filter(|pair| pair.client_id == app.client_id);
                let none =
                    || format!("{}; `livechat-relay auth login --app {}` does it", file.without_tokens(app), app.name);
                let of_token = pair.ok_or_else(|| Failure::Failed(none()))?.organization_id;
                (Some(of_token), format!("the tokens in {} do not say it", path.display()))
            }
            _ => (None, "LiveChat does not tell whose a personal access token is".to_owned()),
        };
        let of_token = of_token.filter(|id| !id.trim().is_empty());
        let known = known(&app.organizations);
        match (of_token, &self.organization) {
            (Some(of_token), Some(given)) if of_token != *given => Err(Failure::Usage(format!(
                "the tokens of {} read the archives of the organization {of_token}, and --organization is another one; leave it out",
                app.name
            ))),
            (Some(id), _) => Ok(Tenant::Organization(id.into())),
            (None, Some(id)) => {
                remark(&known.compared("--organization", id)?);
                Ok(Tenant::Organization(id.clone().into()))
            }
            (None, None) => Err(Failure::Usage(format!(
                "whose events? {unknown}: give --organization, the organization_id that the app's events on Kafka have{}",
                known.list().map(|list| format!("; known here: {list}")).unwrap_or_default()
            ))),
        }
    }
}

/// What is known here of whose webhooks an app gets.
struct Known<'a> {
    app: &'a str,
    /// Its `organizations` in the configuration.
    configured: &'a BTreeSet<String>,
    /// What the relay has had webhooks of, since its start.
    seen: &'a BTreeSet<String>,
}

impl Known<'_> {
    /// Compares with it what the command line says, which LiveChat does not confirm; how far it is right then.
    ///
    /// # Errors
    /// It is none of what is known: the events of one organization would be published as another's.
    fn compared(&self, option: &str, id: &str) -> Result<String, Failure> {
        let what = option.trim_start_matches('-');
        let reason = match self.list() {
            _ if self.seen.contains(id) => "The running relay has had webhooks of it.",
            _ if self.configured.contains(id) => "It is among the organizations of the app in the configuration.",
            None => {
                "There is nothing here to compare it with: the relay has had no webhook of the app since its start. Make sure that it is right."
            }
            Some(known) => {
                // Not "add it to organizations in [apps.livechat]": that lets it install the app and see its page, too.
                return Err(Failure::Usage(format!(
                    "{option} {id} is not one that is known of the app {}: {known}. Events of one {what} would be published as another's. If it is right, wait until the relay has had a webhook of it: a new chat there sends one. Then the same command passes",
                    self.app
                )));
            }
        };
        Ok(format!("The {what} {id} is taken from {option}: LiveChat does not tell whose its archives are. {reason}"))
    }

    fn list(&self) -> Option<String> {
        let all: Vec<_> = self.configured.union(self.seen).cloned().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// For a person, beside the output.
fn remark(text: &str) {
    anstream::eprintln!("{}", wrapped(&visible(text), 0));
}

/// A name and what it has.
fn field(name: &str, text: &str) -> Result<(), Failure> {
    out(format_args!("{name:<10} {}", wrapped(&visible(text), 11)))
}

/// How much there is, by the first page of both.
async fn estimate(archives: &mut Archives, cursor: &Cursor, is_json: bool) -> Result<(), Failure> {
    let Cursor { from, to, since, .. } = cursor;
    let archived = archives.page(*since, *to, None).await?;
    let running = archives.running_chats(None).await?;
    let found = |page: &ArchivePage| page.found_chats.unwrap_or(page.chats.len() as u64);
    let (threads, chats) = (found(&archived), found(&running));
    let per_page = archived.chats.len().max(1) as u64;
    let pages = if archived.next_page_id.is_some() { threads.div_ceil(per_page) } else { 1 };
    let calls = pages + chats.div_ceil(100).max(1) + chats;
    if is_json {
        return print_json(&json!({
            "from": from, "to": to, "threads": threads, "running_chats": chats, "calls": calls
        }));
    }
    field("time", &format!("{from} to {to}; threads that began from {since} on are read"))?;
    field("there are", &format!("about {}, and {}", count(threads, "archived thread"), count(chats, "running chat")))?;
    field("calls", &format!("about {calls}, which LiveChat may bill; this estimate took {}", archives.calls()))
}

fn report(cursor: &Cursor, is_json: bool) -> Result<(), Failure> {
    let Cursor { app, from, to, counts, .. } = cursor;
    if is_json {
        return print_json(&json!({ "app": app, "from": from, "to": to, "counts": counts, "not_archived": LOST }));
    }
    let Counts { running_chats, threads, calls, found, delivered, .. } = counts;
    let (threads, chats) = (count(*threads, "archived thread"), count(*running_chats, "running chat"));
    field("read", &format!("{threads}, {chats}; {} that LiveChat may bill", count(*calls, "call")))?;
    let [chats, events, ends] = [found.incoming_chat, found.incoming_event, found.chat_deactivated];
    field("within", &format!("{chats} incoming_chat, {events} incoming_event, {ends} chat_deactivated"))?;
    let Backfilled { published, spooled, duplicate, dead_lettered, dropped, .. } = delivered;
    field(
        "became",
        &format!(
            "published {published}, spooled {spooled}, duplicate {duplicate}, dead-lettered {dead_lettered}, dropped {dropped}"
        ),
    )?;
    if found.restricted_threads > 0 {
        let threads = count(found.restricted_threads, "thread");
        field("hidden", &format!("the events of {threads}: older than the account's plan shows"))?;
    }
    if found.undated_events > 0 {
        field("undated", &format!("{} without a time were left out", count(found.undated_events, "event")))?;
    }
    remark(LOST);
    Ok(())
}
