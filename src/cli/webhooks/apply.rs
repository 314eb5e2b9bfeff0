//! `webhooks apply`: does what `webhooks plan` says, without losing an event.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};

use super::relay::{Relay, knows, lock};
use super::show::action as column;
use super::{Common, chosen, confirm, plan as plan_text, survey};
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::{DIM, GOOD, WARNING, note, out, visible};
use crate::cli::spool::print_json;
use crate::config::{Config, Need};
use crate::livechat::apply::{self, Change, Progress, Relay as _, Run, Stopped, to_apply};
use crate::livechat::plan::{Facts, plan};
use crate::livechat::{Api, App};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The control socket of the running relay, instead of the one that the configuration leads to
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Say what would be done, step by step, and do nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { common, socket, yes, dry_run } = arguments;
    let Config { livechat, control, .. } = common.source.load(Need::Registration)?;
    let app = chosen(&livechat.apps, common.app.as_deref())?;
    let (key, secret_key) = secret_key(app)?;
    let _lock = if *dry_run { None } else { lock(&common.source)? };
    let relay = Relay::open(socket.as_deref(), control.socket.as_deref()).await?;
    let seen = relay.seen().await;
    if seen.is_none() && relay.is_running() {
        let why =
            "a relay runs, and does not say what it has seen: it may be starting, or of another version; try again";
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
    let api = Api::new(&livechat, app).telling(tell_unclear);
    let (listed, facts) = survey(common, app, &api).await?;
    let seen = seen.unwrap_or_default();
    let facts = Facts { delivered: apply::facts(app, &seen).delivered, ..facts };
    let changes = to_apply(app, &listed, &seen).map_err(Failure::Failed)?;
    if !common.json {
        out(format_args!("{}", plan_text::text(app, &plan(app, &listed, &facts)).trim_end()))?;
    }
    if *dry_run || changes.is_empty() {
        return if common.json { print_json(&report(app, &changes, &[], None)) } else { show(&changes) };
    }
    if !is_agreed(&changes, relay.is_running(), livechat.propagation, *yes)? {
        return Ok(());
    }
    let mut done = Vec::new();
    let run = Run::new(&api, &relay, secret_key, livechat.propagation, |step| {
        tell(&step);
        done.push(step);
    });
    let ended = run.to_end(listed, |listed, _, seen| to_apply(app, listed, seen)).await;
    finish(app, &changes, &done, ended, common.json, api.calls())
}

/// What new registrations get, and its name.
pub fn secret_key(app: &App) -> Result<(&str, &SecretString), Failure> {
    let key = app.secret_key.as_ref().and_then(|key| Some((key.name.as_str(), key.secret.as_ref()?)));
    key.ok_or_else(|| {
        Failure::Usage(format!("the app {} has no secret key that is valid now: see its secret_keys", app.name))
    })
}

/// Says what a person should know before anything is done, and asks them, unless they have said yes.
///
/// # Errors
/// As [`confirm`].
pub fn is_agreed(changes: &[Change], has_relay: bool, propagation: Duration, is_yes: bool) -> Result<bool, Failure> {
    let gaps: Vec<_> = changes.iter().filter(|change| change.has_gap()).map(|change| change.action.as_str()).collect();
    if !gaps.is_empty() {
        note(format_args!(
            "{WARNING}Three registrations stand, so the old one has to go first, and events are lost for up to {:?}:{WARNING:#} {}",
            propagation * 2,
            gaps.join(", ")
        ));
    }
    if !has_relay && changes.iter().any(|change| change.register.is_some()) {
        note(format_args!(
            "{WARNING}No relay answers on this machine:{WARNING:#} where none runs elsewhere, what LiveChat sends is lost until `livechat-relay serve` runs."
        ));
    }
    let waits =
        changes.iter().any(|change| !change.then.is_empty() && (change.register.is_some() || change.stays.is_some()));
    if waits && !has_relay {
        note(format_args!(
            "No relay answers, so each old registration stays for {propagation:?} after its successor was made."
        ));
    }
    if is_yes { Ok(true) } else { confirm("Do this?") }
}

/// The steps, in their order.
pub fn show(changes: &[Change]) -> Result<(), Failure> {
    for (what, change) in changes.iter().flat_map(steps) {
        out(format_args!("  {what} {}", visible(&change)))?;
    }
    Ok(())
}

fn steps(change: &Change) -> Vec<(&'static str, String)> {
    let Change { action, first, register, stays, then } = change;
    let named = |id: &String| format!("{action} ({id})");
    let mut steps: Vec<_> = first.iter().map(|old| ("unregister first", named(&old.id))).collect();
    steps.extend(register.iter().map(|_| ("register", action.clone())));
    if !then.is_empty() && (register.is_some() || stays.is_some()) {
        steps.push(("wait for a delivery of", stays.as_ref().map_or(action.clone(), named)));
    }
    steps.extend(then.iter().map(|old| ("unregister", named(&old.id))));
    steps
}

/// Says what has been done, or is awaited.
pub fn tell(step: &Progress) {
    match step {
        Progress::Registered { action, id } => {
            note(format_args!("registered    {} {DIM}{}{DIM:#}", column(action), visible(id)));
        }
        Progress::Unregistered { action, id } => {
            note(format_args!("unregistered  {} {DIM}{}{DIM:#}", column(action), visible(id)));
        }
        Progress::Awaiting { actions, most } => note(format_args!(
            "waiting       for deliveries through {}, {} s at most",
            count(actions.len() as u64, "new registration"),
            most.as_secs()
        )),
        Progress::Full { action, most } => note(format_args!(
            "waiting       for LiveChat to take another registration of {}, {} s at most",
            visible(action),
            most.as_secs()
        )),
        Progress::Listing { most } => {
            note(format_args!("waiting       for LiveChat's list to show all this, {} s at most", most.as_secs()));
        }
    }
}

/// Says why nothing seems to happen.
pub fn tell_unclear(what: &str, most: Duration) {
    note(format_args!(
        "waiting       {}: LiveChat's list is looked at, for {} s at most",
        visible(what),
        most.as_secs()
    ));
}

/// Reports the end. What was done before a failure is said with it.
pub fn finish(
    app: &App,
    changes: &[Change],
    done: &[Progress],
    ended: Result<(), Stopped>,
    is_json: bool,
    calls: u64,
) -> Result<(), Failure> {
    let why = ended.as_ref().err().map(ToString::to_string);
    if is_json {
        print_json(&report(app, changes, done, why.as_deref()))?;
    }
    let count = |is: fn(&Progress) -> bool| done.iter().filter(|step| is(step)).count();
    let registered = count(|step| matches!(step, Progress::Registered { .. }));
    let unregistered = count(|step| matches!(step, Progress::Unregistered { .. }));
    if let Some(why) = why {
        let what = format!(
            "{why}\n  {registered} registered and {unregistered} unregistered before that; the rest is as it was. Run it again: it goes on from there"
        );
        return Err(Failure::Failed(what));
    }
    if is_json {
        return Ok(());
    }
    out(format_args!("{GOOD}done{GOOD:#}: {registered} registered, {unregistered} unregistered, {calls} calls"))
}

/// For programs: the steps, and what was done of them.
pub fn report(app: &App, changes: &[Change], done: &[Progress], failure: Option<&str>) -> Value {
    let steps = changes.iter().flat_map(steps).map(|(step, of)| json!({ "step": step, "of": of })).collect::<Vec<_>>();
    let done = done.iter().filter_map(|step| match step {
        Progress::Registered { action, id } => Some(json!({ "step": "register", "action": action, "id": id })),
        Progress::Unregistered { action, id } => Some(json!({ "step": "unregister", "action": action, "id": id })),
        Progress::Awaiting { .. } | Progress::Full { .. } | Progress::Listing { .. } => None,
    });
    json!({ "app": app.name, "steps": steps, "done": done.collect::<Vec<_>>(), "failure": failure })
}
