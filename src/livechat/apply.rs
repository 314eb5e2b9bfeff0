//! Brings LiveChat into line without losing an event: a new registration is made, and delivers, before the one that it replaces is removed.
//!
//! There is no state besides what LiveChat lists. Whoever stops in the middle and begins again ends in the wanted state.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::{Instant, sleep};

use super::catalogue::REGISTRATIONS_MAX;
use super::plan::{Facts, Plan, Why, plan};
use super::{Api, App, Failure, Registration, Wanted};
use crate::deliveries::{COPY_WITHIN, Delivered, Seen};

/// What is done about one action, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub action: String,
    /// Removed before the new one is registered, because LiveChat takes no fourth registration of an action.
    pub first: Option<Registration>,
    pub register: Option<Wanted>,
    /// The registration that stays, where none is made: what is removed waits for it as for a new one.
    pub stays: Option<String>,
    /// Removed when the new one, or the one that stays, delivers.
    pub then: Vec<Registration>,
}

impl Change {
    /// Whether no registration of the action is left for a while: its events are lost then.
    pub fn has_gap(&self) -> bool {
        self.first.is_some() && self.stays.is_none() && self.then.is_empty()
    }
}

/// What an app's registrations are to become.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub register: &'a [Wanted],
    pub remove: &'a [Registration],
    /// As they are wanted.
    pub keep: &'a [Registration],
    /// Others of the same Client ID: they count, and stay.
    pub foreign: &'a [Registration],
}

/// What is to be done, by action.
///
/// # Errors
/// Three registrations of an action stand, and none of them is the relay's: which one has to go is for a person to say.
pub fn changes(Target { register, remove, keep, foreign }: Target<'_>) -> Result<Vec<Change>, String> {
    let actions: BTreeSet<&String> =
        register.iter().map(|w| &w.action).chain(remove.iter().map(|r| &r.action)).collect();
    let change = |action: &String| {
        let of = |all: &[Registration]| all.iter().filter(|one| one.action == *action).cloned().collect::<Vec<_>>();
        let (register, mut then, keep, foreign) =
            (register.iter().find(|wanted| wanted.action == *action).cloned(), of(remove), of(keep), of(foreign));
        let is_full = then.len() + keep.len() + foreign.len() >= REGISTRATIONS_MAX;
        let first = if register.is_some() && is_full { then.pop() } else { None };
        if register.is_some() && is_full && first.is_none() {
            let ids: Vec<_> = keep.iter().chain(&foreign).map(|one| one.id.as_str()).collect();
            return Err(format!(
                "{action}: {REGISTRATIONS_MAX} webhooks are registered, as many as LiveChat takes, and none of them is this relay's to remove; say which one has to go, and remove it: `livechat-relay webhooks unregister ID` ({})",
                ids.join(", ")
            ));
        }
        let stays = keep.first().filter(|_| register.is_none()).map(|one| one.id.clone());
        Ok(Change { action: action.clone(), first, register, stays, then })
    };
    actions.into_iter().map(change).collect()
}

/// What is to be done so that LiveChat has what the configuration wants. `seen`: what the running relay has seen.
///
/// # Errors
/// As [`changes`]; the configuration does not say what it wants.
pub fn to_apply(app: &App, listed: &[Registration], seen: &Seen) -> Result<Vec<Change>, String> {
    if app.wanted.is_none() {
        return Err(format!(
            "the table [apps.livechat] of the app {} has no `webhooks`, which does not mean that all are to go: take over what is registered (`livechat-relay webhooks adopt`), or write `webhooks = []`",
            app.name
        ));
    }
    let facts = facts(app, seen);
    let Plan { add, remove, unchanged, foreign, .. } = plan(app, listed, &facts);
    let mut remove: Vec<_> = remove.into_iter().rev().map(|removal| removal.registration).collect();
    remove.sort_by_key(|one| !facts.delivered.contains_key(&one.id)); // what has delivered nothing is the first that may go
    changes(Target { register: &add, remove: &remove, keep: &unchanged, foreign: &foreign })
}

/// What is to be done so that each webhook that is wanted is registered with the key of this name: all that were not `made` with it, or
/// have not delivered with it, are replaced.
///
/// # Errors
/// As [`changes`]; something is registered at the relay that is not wanted, so nothing would take its place; or nothing is wanted.
pub fn to_rotate(
    app: &App,
    listed: &[Registration],
    made: &BTreeSet<String>,
    seen: &Seen,
    key: &str,
) -> Result<Vec<Change>, String> {
    let new = with_key(app, made, seen, key);
    let delivered = new.iter().map(|id| (id.clone(), ALIKE)).collect();
    let Plan { remove, unchanged, foreign, .. } = plan(app, listed, &Facts { delivered, ..Facts::default() });
    let unwanted: Vec<_> = remove.iter().filter(|removal| removal.why == Why::NotWanted).collect();
    if !unwanted.is_empty() || app.wanted().is_empty() {
        let ids: Vec<_> = unwanted.iter().map(|removal| removal.registration.id.as_str()).collect();
        let which = if ids.is_empty() { String::new() } else { format!(" ({})", ids.join(", ")) };
        return Err(format!(
            "rotate registers what the configuration of the app {} has in `webhooks`, and that is {}{which}: take it over (`livechat-relay webhooks adopt`), or run `livechat-relay webhooks apply` first",
            app.name,
            if ids.is_empty() { "nothing" } else { "not all that is registered here" }
        ));
    }
    let (keep, old): (Vec<_>, Vec<_>) = unchanged.into_iter().partition(|one| new.contains(&one.id));
    let is_kept = |wanted: &&Wanted| keep.iter().any(|kept| kept.action == wanted.action);
    let register: Vec<_> = app.wanted().iter().filter(|wanted| !is_kept(wanted)).cloned().collect();
    let remove: Vec<_> = old.into_iter().chain(remove.into_iter().map(|removal| removal.registration)).collect();
    changes(Target { register: &register, remove: &remove, keep: &keep, foreign: &foreign })
}

/// Of an app's registrations those that have the key of this name: they were `made` with it, or have delivered with it.
pub fn with_key(app: &App, made: &BTreeSet<String>, seen: &Seen, key: &str) -> BTreeSet<String> {
    let delivered = seen.registrations.iter().filter(|one| one.app == app.name && one.key == key);
    delivered.map(|one| &one.webhook_id).chain(made).cloned().collect()
}

/// What the relay has got with a key that it still has: what came with another one would be refused now.
fn live(seen: &Seen) -> impl Iterator<Item = &Delivered> {
    let is_known = |one: &Delivered| seen.keys.iter().any(|key| key.app == one.app && key.key == one.key);
    seen.registrations.iter().filter(move |one| is_known(one))
}

/// What the plan of a run is made with: the registrations of an app through which the relay got webhooks.
pub fn facts(app: &App, seen: &Seen) -> Facts {
    let of_app = live(seen).filter(|one| one.app == app.name);
    Facts { delivered: of_app.map(|one| (one.webhook_id.clone(), ALIKE)).collect(), ..Facts::default() }
}

/// When a registration has delivered. None is later than another, so that of those that are the same two runs at once keep the same one.
const ALIKE: Timestamp = Timestamp::UNIX_EPOCH;

/// What LiveChat does for [`Run`].
pub trait LiveChat {
    fn list(&self) -> impl Future<Output = Result<Vec<Registration>, Failure>>;
    /// `known`: all ids that were there before.
    fn register(
        &self,
        wanted: &Wanted,
        secret_key: &SecretString,
        known: &BTreeSet<String>,
    ) -> impl Future<Output = Result<String, Failure>>;
    /// One that is not there is done.
    fn unregister(&self, id: &str) -> impl Future<Output = Result<(), Failure>>;
}

impl LiveChat for Api {
    async fn list(&self) -> Result<Vec<Registration>, Failure> {
        self.list_webhooks().await
    }

    async fn register(
        &self,
        wanted: &Wanted,
        secret_key: &SecretString,
        known: &BTreeSet<String>,
    ) -> Result<String, Failure> {
        self.register_webhook(wanted, secret_key, known).await
    }

    async fn unregister(&self, id: &str) -> Result<(), Failure> {
        self.unregister_webhook(id).await
    }
}

/// Asks the running relay what it has seen; `None` where none answers.
pub trait Relay {
    fn seen(&self) -> impl Future<Output = Option<Seen>>;
}

/// What has been done, or is awaited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Registered {
        action: String,
        id: String,
    },
    Unregistered {
        action: String,
        id: String,
    },
    /// Actions whose new registration has not delivered yet, and how long that is awaited.
    Awaiting {
        actions: Vec<String>,
        most: Duration,
    },
    /// LiveChat's listing does not have yet what was done.
    Listing {
        most: Duration,
    },
}

/// Why it ended early.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub enum Stopped {
    /// A call has failed. What was done before it is done.
    Failed(#[from] Failure),
    /// [`changes`] has an error.
    Blocked(String),
    /// What LiveChat lists is not what was done.
    Unsettled(String),
}

/// How often the relay is asked, and LiveChat's listing, which is billed, is looked at.
const POLL: Duration = Duration::from_secs(1);
const LISTINGS: u32 = 6;

/// Times that what is listed is compared with what is wanted: the second finds what another run has left, which a listing that lagged did
/// not show at first.
const PASSES_MAX: usize = 3;

/// One run.
pub struct Run<'a, L, R, P> {
    pub livechat: &'a L,
    pub relay: &'a R,
    /// What new registrations get. The relay has it.
    pub secret_key: &'a SecretString,
    /// How long after a change LiveChat may still act as before it.
    pub propagation: Duration,
    pub progress: P,
    began: Timestamp,
    /// What this run has registered.
    registered: BTreeSet<String>,
    unregistered: BTreeSet<String>,
    /// When the relay was first seen to have a delivery through a registration.
    delivers: BTreeMap<String, Instant>,
}

impl<'a, L: LiveChat, R: Relay, P: FnMut(Progress)> Run<'a, L, R, P> {
    pub fn new(
        livechat: &'a L,
        relay: &'a R,
        secret_key: &'a SecretString,
        propagation: Duration,
        progress: P,
    ) -> Self {
        let (registered, unregistered, delivers) = Default::default();
        let began = Timestamp::now();
        Self { livechat, relay, secret_key, propagation, progress, began, registered, unregistered, delivers }
    }

    /// Does what `plan` says of what is listed, until that is nothing. `plan` is told which registrations this run has made, and what the
    /// relay has seen.
    ///
    /// # Errors
    /// [`Stopped`]: what was done was reported; another run goes on from there.
    pub async fn to_end(
        mut self,
        mut listed: Vec<Registration>,
        plan: impl Fn(&[Registration], &BTreeSet<String>, &Seen) -> Result<Vec<Change>, String>,
    ) -> Result<(), Stopped> {
        for _ in 0..PASSES_MAX {
            let seen = self.look().await;
            let changes = plan(&listed, &self.registered, &seen).map_err(Stopped::Blocked)?;
            if changes.is_empty() {
                return Ok(());
            }
            self.pass(&changes, &listed).await?;
            listed = self.settled_listing().await?;
        }
        let why = "LiveChat's list differs from what was done each time; does another `apply` run? Run it again later";
        Err(Stopped::Unsettled(why.to_owned()))
    }

    async fn pass(&mut self, changes: &[Change], listed: &[Registration]) -> Result<(), Stopped> {
        let mut known: BTreeSet<String> = listed.iter().map(|one| one.id.clone()).collect();
        let mut waiting = Vec::new();
        for change in changes {
            if let Some(first) = &change.first {
                self.unregister(first).await?;
            }
            let mut successor = change.stays.clone();
            if let Some(wanted) = &change.register {
                let id = self.livechat.register(wanted, self.secret_key, &known).await?;
                known.insert(id.clone());
                self.registered.insert(id.clone());
                (self.progress)(Progress::Registered { action: change.action.clone(), id: id.clone() });
                successor = Some(id);
            }
            waiting.push((change, successor, Instant::now()));
        }
        waiting.retain(|(change, ..)| !change.then.is_empty());
        let mut awaited = Vec::new();
        while !waiting.is_empty() {
            self.look().await;
            let (ready, later): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|(_, successor, since)| successor.as_ref().is_none_or(|id| self.is_in_force(id, *since)));
            waiting = later;
            for old in ready.iter().flat_map(|(change, ..)| &change.then) {
                self.unregister(old).await?;
            }
            let actions: Vec<_> = waiting.iter().map(|(change, ..)| change.action.clone()).collect();
            let Some(last) = waiting.iter().map(|(.., since)| *since).max() else { break };
            if actions != awaited {
                let most = self.patience().saturating_sub(last.elapsed());
                (self.progress)(Progress::Awaiting { actions: actions.clone(), most });
                awaited = actions;
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Notes which registrations have delivered since the run began: what came earlier says nothing of a key that was changed.
    async fn look(&mut self) -> Seen {
        let seen = self.relay.seen().await.unwrap_or_default();
        for one in live(&seen).filter(|one| one.last >= self.began) {
            self.delivers.entry(one.webhook_id.clone()).or_insert_with(Instant::now);
        }
        seen
    }

    /// Whether a registration delivers: the relay has seen that, and long enough ago for [`COPY_WITHIN`]; or LiveChat has had its time.
    fn is_in_force(&self, id: &str, since: Instant) -> bool {
        since.elapsed() >= self.patience() || self.delivers.get(id).is_some_and(|first| first.elapsed() >= COPY_WITHIN)
    }

    /// How long a delivery is awaited. `livechat.propagation` has a margin, which is all that may be less than [`COPY_WITHIN`].
    fn patience(&self) -> Duration {
        self.propagation.max(COPY_WITHIN)
    }

    async fn unregister(&mut self, old: &Registration) -> Result<(), Stopped> {
        self.livechat.unregister(&old.id).await?;
        self.unregistered.insert(old.id.clone());
        (self.progress)(Progress::Unregistered { action: old.action.clone(), id: old.id.clone() });
        Ok(())
    }

    /// What LiveChat lists, once that has what this run has done: then it also has what a run before it did. Where that takes too long, what
    /// was done counts.
    async fn settled_listing(&mut self) -> Result<Vec<Registration>, Stopped> {
        for n in 0..=LISTINGS {
            let listed = self.livechat.list().await?;
            let has = |id: &String| listed.iter().any(|one| one.id == *id);
            let is_settled = self.registered.iter().all(|id| has(id) || self.unregistered.contains(id))
                && !self.unregistered.iter().any(has);
            if is_settled {
                return Ok(listed);
            }
            if n < LISTINGS {
                let most = self.propagation / LISTINGS;
                (self.progress)(Progress::Listing { most: most * (LISTINGS - n) });
                sleep(most).await;
            }
        }
        let why = "LiveChat took each step, but its list does not show them all; look at it with `livechat-relay webhooks plan` in some minutes";
        Err(Stopped::Unsettled(why.to_owned()))
    }
}
