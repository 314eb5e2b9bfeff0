//! `webhooks apply`: does what `webhooks plan` says, without losing an event; and the run that `rotate` shares with it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::relay::{Relay, knows, lock};
use super::show::{action as column, numbered};
use super::{Common, plan as plan_text, rotate, survey};
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::confirm;
use crate::cli::print::{DIM, ERROR, GOOD, WARNING, command, complaint, err, note, out, visible, wrapped};
use crate::cli::spool::print_json;
use crate::config::{Config, Need};
use crate::deliveries::Seen;
use crate::livechat::apply::{Progress, Relay as _, Run, patience, to_apply};
use crate::livechat::plan::{Change, plan};
use crate::livechat::{Api, App, Registration};
use crate::shutdown::on_signal;

/// What `apply` and `rotate` take.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    /// Control socket of the running relay [default: as configured]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Show each step; change nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
}

pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { common, socket, dry_run, .. } = arguments;
    let config = common.source.load(Need::Registration)?;
    let Config { livechat, control, .. } = &config;
    let app = common.source.app(&livechat.apps, common.app.as_deref())?;
    let (key, secret_key) = secret_key(app)?;
    let _lock = if *dry_run { None } else { lock(&common.source)? };
    let relay = Relay::open(socket.as_deref(), control.socket.as_deref()).await?;
    let seen = relay.seen().await;
    if seen.is_none() && relay.is_running() {
        let why =
            "a relay runs, but does not report its deliveries: it may be starting, or of another version; try again";
        return Err(Failure::Failed(why.to_owned()));
    }
    if relay.is_running() && relay.has_other_keys().await? {
        return Err(Failure::Failed(
            "secret keys have changed since the running relay read them: `livechat-relay reload` first".to_owned(),
        ));
    }
    if seen.as_ref().is_some_and(|seen| !knows(seen, &app.name, key)) {
        return Err(Failure::Failed(format!(
            "the running relay does not know the secret key {key} of the app {}, so it would refuse what is registered with it: \
             `livechat-relay reload` first",
            app.name
        )));
    }
    let api = Api::new(livechat, app).telling(tell_unclear);
    let work =
        Work { arguments, app, api, relay, propagation: livechat.propagation, again: "webhooks apply", keys: None };
    let seen = seen.unwrap_or_default();
    let rotation = rotate::unfinished(&config, app);
    let (listed, facts) = survey(common, app, &work.api, &seen, rotation.clone()).await?;
    let plan_of = |listed: &[_], _: &_, seen: &_| to_apply(app, listed, seen, rotation.as_ref());
    let changes = plan_of(&listed, &BTreeSet::new(), &seen).map_err(Failure::Failed)?;
    let shown = if common.json {
        Ok(())
    } else {
        out(format_args!("{}", plan_text::text_of_apply(common.config(), app, &plan(app, &listed, &facts)).trim_end()))
    };
    if *dry_run || changes.is_empty() {
        shown?;
        return match (common.json, changes.is_empty()) {
            (true, _) => print_json(&work.report(&changes, &[], None)),
            (false, true) => Ok(()),
            (false, false) => out(format_args!("\nStep by step:\n{}", numbered(&work.steps(&changes)).trim_end())),
        };
    }
    // Where nothing can be done there is nothing to ask: the run says why.
    let is_possible = changes.iter().any(|change| !change.is_blocked);
    if is_possible && !work.is_agreed(&changes, shown)? {
        return Ok(());
    }
    let stop = stop_on_signal()?;
    // What stood before the question need not stand now.
    let listed = if arguments.yes { listed } else { work.api.list_webhooks().await? };
    let mut done = Vec::new();
    let ended = work.run(&stop, secret_key, &changes, listed, plan_of, &mut done).await;
    work.finish(&changes, &done, ended)
}

/// What new registrations get, and its name.
pub fn secret_key(app: &App) -> Result<(&str, &SecretString), Failure> {
    let key = app.secret_key.as_ref().and_then(|key| Some((key.name.as_str(), key.secret.as_ref()?)));
    key.ok_or_else(|| {
        Failure::Usage(format!("the app {} has no secret key that is valid now: see its secret_keys", app.name))
    })
}

/// Cancelled by Ctrl-C or SIGTERM. A second one ends the process at once.
pub fn stop_on_signal() -> Result<CancellationToken, Failure> {
    let (signal, stop) = (on_signal().map_err(Failure::failed)?, CancellationToken::new());
    let cancelled = stop.clone();
    tokio::spawn(async move {
        signal.await;
        note(format_args!("stopping      after the call that is under way; a second Ctrl-C ends it at once"));
        cancelled.cancel();
    });
    Ok(stop)
}

/// What is changed, and with what.
pub struct Work<'a> {
    pub arguments: &'a Arguments,
    pub app: &'a App,
    pub api: Api,
    pub relay: Relay,
    pub propagation: Duration,
    /// The command that goes on where this one is stopped.
    pub again: &'static str,
    /// What there is of secret keys, where it is stopped.
    pub keys: Option<String>,
}

impl Work<'_> {
    /// Says what a person should know before anything is done, and asks them, unless they have said yes. `shown`: whether the plan was
    /// printed.
    ///
    /// # Errors
    /// As [`confirm`]; or they have not seen the plan that they would agree to.
    pub fn is_agreed(&self, changes: &[Change], shown: Result<(), Failure>) -> Result<bool, Failure> {
        let warn = |what: &str| complaint(WARNING, "warning:", what);
        let gaps: Vec<_> =
            changes.iter().filter(|change| change.has_gap).map(|change| change.action.as_str()).collect();
        if !gaps.is_empty() {
            let most = self.propagation * 2;
            warn(&format!(
                "there are three registrations, so the old one must be removed first, and events are lost for up to {most:?}: {}",
                gaps.join(", ")
            ));
        }
        if !self.relay.is_running() && changes.iter().any(|change| change.register.is_some()) {
            let serve = command(self.arguments.common.config(), "serve");
            warn(&format!(
                "no relay answers on this machine: if none runs elsewhere, what LiveChat sends is lost until `{serve}` runs"
            ));
        }
        if !self.relay.is_running() && changes.iter().any(waits) {
            let time = patience(self.propagation);
            let what = format!(
                "No relay answers, so each old registration stays for {time:?} after its successor was registered."
            );
            note(format_args!("{}", wrapped(&what, 0)));
        }
        if self.arguments.yes {
            return Ok(true);
        }
        shown?;
        confirm(&question(changes))
    }

    /// What is done, in few words.
    pub fn steps(&self, changes: &[Change]) -> Vec<String> {
        let webhooks = |number: usize| count(number as u64, "webhook");
        let first = changes.iter().filter(|change| change.first.is_some()).count();
        let new = changes.iter().filter(|change| change.register.is_some() && !change.is_blocked).count();
        let old: usize = changes.iter().map(|change| change.then.len()).sum();
        let steps = [
            (first, format!("unregister {} first, because LiveChat allows three of an action", webhooks(first))),
            (new, format!("register {}", webhooks(new))),
            (
                changes.iter().filter(|change| waits(change)).count(),
                format!("wait until the new ones deliver, {} s at most", patience(self.propagation).as_secs()),
            ),
            (old, format!("unregister {}", webhooks(old))),
        ];
        steps.into_iter().filter(|(number, _)| *number > 0).map(|(_, step)| step).collect()
    }

    /// Does what `plan` says until that is nothing. `done` gets each step.
    ///
    /// # Errors
    /// Why it ended early, and how things stand.
    pub async fn run(
        &self,
        stop: &CancellationToken,
        secret_key: &SecretString,
        changes: &[Change],
        listed: Vec<Registration>,
        plan: impl Fn(&[Registration], &BTreeSet<String>, &Seen) -> Result<Vec<Change>, String>,
        done: &mut Vec<Progress>,
    ) -> Result<(), Failure> {
        let run = Run::new(&self.api, &self.relay, secret_key, self.propagation, stop, |step| {
            tell(&step);
            done.push(step);
        });
        let ended = run.to_end(changes, listed, plan).await;
        ended.map_err(|why| self.stopped(&why, &standing(changes, done)))
    }

    /// Reports what has become of it, when all is over: so a standard output that is closed ends nothing half way, and hides no failure.
    ///
    /// # Errors
    /// The one with which it `ended`; or it cannot be printed.
    pub fn finish(&self, changes: &[Change], done: &[Progress], ended: Result<(), Failure>) -> Result<(), Failure> {
        let printed = if self.arguments.common.json {
            print_json(&self.report(changes, done, ended.as_ref().err()))
        } else if ended.is_ok() {
            let (new, old, calls) = (registered(done).len(), unregistered(done).len(), self.api.calls());
            out(format_args!("{GOOD}done{GOOD:#}: {new} registered, {old} unregistered, {calls} calls"))
        } else {
            Ok(())
        };
        ended.and(printed)
    }

    /// Why it ended early, how things stand, and how it goes on.
    pub fn stopped(&self, why: &dyn std::fmt::Display, standing: &str) -> Failure {
        let (keys, again) = (self.keys.as_deref().unwrap_or_default(), self.arguments.common.command(self.again));
        Failure::Failed(format!("{why}\n  {standing}{keys}`{again}` continues from here"))
    }

    /// For programs: what is to be done, and what was done of it.
    pub fn report(&self, changes: &[Change], done: &[Progress], failure: Option<&Failure>) -> Value {
        let done: Vec<_> = done.iter().filter(|step| !matches!(step, Progress::Waiting { .. })).collect();
        json!({ "app": self.app.name, "changes": changes, "done": done, "failure": failure.map(Failure::to_string) })
    }
}

/// The ids of what was registered.
pub fn registered(done: &[Progress]) -> BTreeSet<String> {
    let id = |step: &Progress| if let Progress::Registered { id, .. } = step { Some(id.clone()) } else { None };
    done.iter().filter_map(id).collect()
}

fn unregistered(done: &[Progress]) -> BTreeSet<String> {
    let id = |step: &Progress| if let Progress::Unregistered { id, .. } = step { Some(id.clone()) } else { None };
    done.iter().filter_map(id).collect()
}

/// How things stand after a run that ended early.
fn standing(changes: &[Change], done: &[Progress]) -> String {
    let unregistered = unregistered(done);
    let is_new =
        |action: &str| done.iter().any(|step| matches!(step, Progress::Registered { action: of, .. } if of == action));
    let is_old = |one: &Registration| !unregistered.contains(&one.id);
    let both = changes.iter().filter(|change| is_new(&change.action) && change.then.iter().any(is_old)).count();
    let rest = match count(both as u64, "action") {
        _ if both == 0 => "the rest is unchanged".to_owned(),
        both => format!(
            "of {both} the old webhook and the new one are registered, and the relay drops the copies that it recognizes"
        ),
    };
    let lost: Vec<_> = done.iter().filter_map(Progress::lost).collect();
    let lost = match lost.join(", ") {
        lost if lost.is_empty() => lost,
        lost => format!(
            "Events of {lost} are lost: the former webhook is removed, or may be, and no new one is registered. "
        ),
    };
    format!("{} registered and {} unregistered before that; {rest}. {lost}", registered(done).len(), unregistered.len())
}

/// What a person agrees to, in a line: the plan may have scrolled away.
pub fn question(changes: &[Change]) -> String {
    let webhooks = |number: usize| count(number as u64, "webhook");
    let new = changes.iter().filter(|change| change.register.is_some() && !change.is_blocked).count();
    let old = changes.iter().map(|change| change.removed().count()).sum();
    let what = match (new, old) {
        (0, 0) => return "Do this?".to_owned(), // all is registered with the new key
        (new, 0) => format!("Register {}", webhooks(new)),
        (0, old) => format!("Unregister {}", webhooks(old)),
        (new, old) => format!("Register {}, and unregister {old},", webhooks(new)),
    };
    let calls: usize = changes.iter().map(Change::calls).sum();
    format!("{what} at LiveChat ({})?", count(calls as u64, "call"))
}

/// Whether something is removed once something else delivers.
fn waits(change: &Change) -> bool {
    !change.then.is_empty() && (change.register.is_some() || change.stays.is_some())
}

/// Says what has been done, as a plan would, or is awaited.
fn tell(step: &Progress) {
    match step {
        Progress::Registered { action, id } => {
            err(format_args!("  {GOOD}+{GOOD:#}   {}  {DIM}{}{DIM:#}", column(action), visible(id)));
        }
        Progress::Unregistered { action, id } => {
            err(format_args!("  {ERROR}-{ERROR:#}   {}  {DIM}{}{DIM:#}", column(action), visible(id)));
        }
        Progress::Lost { action } => {
            err(format_args!("  {ERROR}!{ERROR:#}   {}  {DIM}its events are lost{DIM:#}", column(action)));
        }
        Progress::Waiting { what, most } => tell_waiting(what, *most),
    }
}

fn tell_waiting(what: &str, most: Duration) {
    let text = format!("{}, {} s at most", visible(what), most.as_secs());
    note(format_args!("waiting       {}", wrapped(&text, 14)));
}

/// Says why nothing seems to happen.
pub fn tell_unclear(what: &str, most: Duration) {
    tell_waiting(&format!("{what}: checking LiveChat's list"), most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_things_stand_names_the_actions_whose_events_are_lost() {
        let step = |is_new: bool, action: &str, id: &str| match (action.to_owned(), id.to_owned()) {
            (action, id) if is_new => Progress::Registered { action, id },
            (action, id) => Progress::Unregistered { action, id },
        };
        let done = [
            step(true, "incoming_chat", "1"),
            step(false, "incoming_event", "2"),
            Progress::Lost { action: "incoming_event".to_owned() },
        ];
        assert_eq!(
            standing(&[], &done),
            "1 registered and 1 unregistered before that; the rest is unchanged. Events of incoming_event are lost: the former webhook is removed, or may be, and no new one is registered. "
        );
        assert!(!standing(&[], &done[..2]).contains("lost"));
    }
}
