//! Brings LiveChat into line without losing an event: a new registration is made, and delivers, before the one that it replaces is removed.
//!
//! There is no state besides what LiveChat lists: a run that goes on where another was stopped ends in the wanted state.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan::{Change, Facts, Rotation, plan};
use super::{Api, App, Failure, Kind, Registration, Wanted};
use crate::deliveries::{COPY_WITHIN, Delivered, Seen};

/// What is to be done so that LiveChat has what the configuration wants. `seen`: what the running relay has seen. `rotation`: one that is
/// unfinished.
///
/// # Errors
/// The configuration does not say what it wants.
pub fn to_apply(
    app: &App,
    listed: &[Registration],
    seen: &Seen,
    rotation: Option<&Rotation>,
) -> Result<Vec<Change>, String> {
    if app.wanted.is_none() {
        return Err(format!(
            "the table [apps.livechat] of the app {} has no `webhooks`, which does not mean that all are to be removed: adopt what is registered (`livechat-relay webhooks adopt`), or write `webhooks = []`",
            app.name
        ));
    }
    let facts = Facts { delivered: delivered(app, seen), rotation: rotation.cloned(), ..Facts::default() };
    Ok(plan(app, listed, &facts).changes(&facts))
}

/// What the relay has got with a key that is valid now: what came with another one would be refused.
fn live(seen: &Seen) -> impl Iterator<Item = &Delivered> {
    let is_known = |one: &Delivered| seen.keys.iter().any(|key| key.app == one.app && key.key == one.key);
    seen.registrations.iter().filter(move |one| is_known(one))
}

/// The registrations of an app through which the relay got webhooks.
pub fn delivered(app: &App, seen: &Seen) -> BTreeMap<String, Delivered> {
    live(seen).filter(|one| one.app == app.name).map(|one| (one.webhook_id.clone(), one.clone())).collect()
}

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Progress {
    Registered {
        action: String,
        id: String,
    },
    Unregistered {
        action: String,
        id: String,
    },
    /// At the end of a run that was stopped: its former registration is gone, or may be, and has no successor. Its events are lost until
    /// another run registers it.
    Lost {
        action: String,
    },
    /// Why nothing seems to happen, and for how long at most.
    Waiting {
        what: String,
        most: Duration,
    },
}

impl Progress {
    /// The action whose events are lost.
    pub fn lost(&self) -> Option<&str> {
        if let Self::Lost { action } = self { Some(action) } else { None }
    }
}

/// Why it ended early.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub enum Stopped {
    /// A call has failed. What was done before it is done.
    Failed(#[from] Failure),
    /// Some actions are not as they should be. All others are.
    Refused(String),
    /// What the configuration says cannot be done.
    Blocked(String),
    /// What is registered has changed, so that it would take a loss that was not agreed.
    Changed(String),
    /// What LiveChat lists is not what was done.
    Unsettled(String),
    /// A person has stopped it, between two calls.
    Interrupted(#[from] Interrupted),
}

/// The user has ended the run, by Ctrl-C or SIGTERM.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Waits, unless the user ends the run.
///
/// # Errors
/// They do.
pub async fn pause(stop: &CancellationToken, time: Duration) -> Result<(), Interrupted> {
    let is_over = tokio::time::timeout(time, stop.cancelled()).await.is_err();
    if is_over { Ok(()) } else { Err(Interrupted) }
}

/// Whether a change takes no loss that is not in what was agreed.
fn is_agreed(change: &Change, agreed: &[Change]) -> bool {
    let mut of_action = agreed.iter().filter(|of| of.action == change.action);
    change.first.is_none() || of_action.any(|of| of.first.is_some() && (of.has_gap || !change.has_gap))
}

/// How long a delivery is awaited. `livechat.propagation` has a margin, which is all that may be less than [`COPY_WITHIN`].
pub fn patience(propagation: Duration) -> Duration {
    propagation.max(COPY_WITHIN)
}

/// A change whose successor is made.
struct Waiting<'a> {
    change: &'a Change,
    successor: Option<String>,
    since: Instant,
    began: Timestamp,
}

/// What becomes of what a successor replaces.
enum Verdict {
    Wait,
    /// It goes.
    InForce,
    /// It stays, for this reason.
    Doubtful(String),
}

/// How often the relay is asked, and LiveChat's listing, which is billed, is looked at.
const POLL: Duration = Duration::from_secs(1);
const LISTINGS: u32 = 6;

/// Times that what is listed is compared with what is wanted: the second finds what another run has left, which a listing that lagged did
/// not show at first; the last finds nothing to do.
const PASSES_MAX: usize = 4;

/// One run.
pub struct Run<'a, L, R, P> {
    pub livechat: &'a L,
    pub relay: &'a R,
    /// What new registrations get. The relay has it.
    pub secret_key: &'a SecretString,
    /// How long after a change LiveChat may still act as before it.
    pub propagation: Duration,
    /// Cancelled, it ends after the call that is under way.
    pub stop: &'a CancellationToken,
    pub progress: P,
    began: Timestamp,
    /// What this run has registered.
    registered: BTreeSet<String>,
    unregistered: BTreeSet<String>,
    /// Actions that are left as they are, and why.
    refused: BTreeMap<String, String>,
    /// Actions whose registration was removed first, at the price of a gap, and that have no successor yet.
    lost: BTreeSet<String>,
    /// When the relay was first seen to have a delivery through a registration.
    delivers: BTreeMap<String, Instant>,
    /// What LiveChat has listed last while old registrations were to go, and when.
    listed: BTreeSet<String>,
    listed_at: Option<Instant>,
}

impl<'a, L: LiveChat, R: Relay, P: FnMut(Progress)> Run<'a, L, R, P> {
    pub fn new(
        livechat: &'a L,
        relay: &'a R,
        secret_key: &'a SecretString,
        propagation: Duration,
        stop: &'a CancellationToken,
        progress: P,
    ) -> Self {
        Self {
            livechat,
            relay,
            secret_key,
            propagation,
            stop,
            progress,
            began: Timestamp::now(),
            registered: BTreeSet::new(),
            unregistered: BTreeSet::new(),
            refused: BTreeMap::new(),
            lost: BTreeSet::new(),
            delivers: BTreeMap::new(),
            listed: BTreeSet::new(),
            listed_at: None,
        }
    }

    /// Does what `plan` says of what is listed, until that is nothing. `plan` is told which registrations this run has made, and what the
    /// relay has seen. `agreed`: what a person has seen of it; a loss that is not in it is not taken.
    ///
    /// # Errors
    /// [`Stopped`]: what was done, and is lost, was reported; another run goes on from there.
    pub async fn to_end(
        mut self,
        agreed: &[Change],
        listed: Vec<Registration>,
        plan: impl Fn(&[Registration], &BTreeSet<String>, &Seen) -> Result<Vec<Change>, String>,
    ) -> Result<(), Stopped> {
        let ended = self.passes(agreed, listed, plan).await;
        for action in std::mem::take(&mut self.lost) {
            (self.progress)(Progress::Lost { action });
        }
        ended
    }

    async fn passes(
        &mut self,
        agreed: &[Change],
        mut listed: Vec<Registration>,
        plan: impl Fn(&[Registration], &BTreeSet<String>, &Seen) -> Result<Vec<Change>, String>,
    ) -> Result<(), Stopped> {
        for _ in 0..PASSES_MAX {
            let seen = self.look().await.unwrap_or_default();
            let mut changes = plan(&listed, &self.registered, &seen).map_err(Stopped::Blocked)?;
            let blocked = changes.iter().filter(|change| change.is_blocked);
            let why = blocked.filter_map(|change| Some((change.action.clone(), change.full()?.to_string())));
            self.refused.extend(why);
            changes.retain(|change| !self.refused.contains_key(&change.action));
            if changes.is_empty() {
                let refused: Vec<_> = self.refused.values().cloned().collect();
                return if refused.is_empty() { Ok(()) } else { Err(Stopped::Refused(refused.join("\n"))) };
            }
            if let Some(loss) = changes.iter().find(|change| !is_agreed(change, agreed)) {
                let lost = if loss.has_gap { ", and its events would be lost meanwhile" } else { "" };
                return Err(Stopped::Changed(format!(
                    "what is registered has changed since the plan was made: a registration of {} would now have to be removed before its new one is registered{lost}",
                    loss.action
                )));
            }
            self.pass(&changes, &listed).await?;
            listed = self.settled_listing().await?;
        }
        let why = "LiveChat's list did not match what was done; is another `apply` running? Run it again later";
        Err(Stopped::Unsettled(why.to_owned()))
    }

    async fn pass(&mut self, changes: &[Change], listed: &[Registration]) -> Result<(), Stopped> {
        let mut known: BTreeSet<String> = listed.iter().map(|one| one.id.clone()).collect();
        let mut waiting = Vec::new();
        for change in changes {
            if let Some(first) = &change.first {
                self.go_on()?;
                let removed = self.unregister(first).await;
                // A call without an answer may have done it.
                let may_be_gone = match &removed {
                    Ok(is_gone) => *is_gone,
                    Err(Stopped::Failed(failure)) => matches!(failure.kind, Kind::Unavailable | Kind::Unintelligible),
                    Err(_) => false,
                };
                if change.has_gap && may_be_gone {
                    self.lost.insert(change.action.clone());
                }
                if !removed? {
                    continue;
                }
            }
            let mut successor = change.stays.clone();
            if let Some(wanted) = &change.register {
                let Some(id) = self.register(wanted, change.first.is_some(), &known).await? else { continue };
                self.lost.remove(&change.action);
                known.insert(id.clone());
                self.registered.insert(id.clone());
                (self.progress)(Progress::Registered { action: change.action.clone(), id: id.clone() });
                successor = Some(id);
            }
            waiting.push(Waiting { change, successor, since: Instant::now(), began: Timestamp::now() });
        }
        waiting.retain(|one| !one.change.then.is_empty());
        let mut awaited = None;
        while !waiting.is_empty() {
            let seen = self.look().await;
            let mut later = Vec::new();
            for one in waiting {
                match self.verdict(&one, seen.as_ref()) {
                    Verdict::Wait => later.push(one),
                    Verdict::InForce if !self.is_listed(one.successor.as_ref()).await? => {
                        if one.since.elapsed() < self.patience() * 2 {
                            later.push(one);
                        } else {
                            let action = &one.change.action;
                            let why = "what replaces the others is not in LiveChat's list: another run may have removed it. The others stay; run it again";
                            self.refused.insert(action.clone(), format!("{action}: {why}"));
                        }
                    }
                    Verdict::InForce => {
                        for old in &one.change.then {
                            self.go_on()?;
                            self.unregister(old).await?;
                        }
                    }
                    Verdict::Doubtful(why) => drop(self.refused.insert(one.change.action.clone(), why)),
                }
            }
            waiting = later;
            let Some(last) = waiting.iter().map(|one| one.since).max() else { break };
            let is_longer = last.elapsed() >= self.patience();
            let actions: Vec<_> = waiting.iter().map(|one| one.change.action.clone()).collect();
            let news = Some((actions.clone(), is_longer));
            if news != awaited {
                let patience = self.patience() * if is_longer { 2 } else { 1 };
                let of =
                    if let [one] = actions.as_slice() { one.clone() } else { format!("{} actions", actions.len()) };
                self.tell_waiting(format!("for deliveries of {of}"), patience.saturating_sub(last.elapsed()));
                awaited = news;
            }
            pause(self.stop, POLL).await?;
        }
        Ok(())
    }

    /// Registers, and notes where LiveChat does not want it. Where one `was_removed` for it just now, LiveChat may count that one still;
    /// and nothing stops the run before the first try, or the action would have one less for nothing.
    async fn register(
        &mut self,
        wanted: &Wanted,
        was_removed: bool,
        known: &BTreeSet<String>,
    ) -> Result<Option<String>, Stopped> {
        let began = Instant::now();
        if !was_removed {
            self.go_on()?;
        }
        loop {
            let failure = match self.livechat.register(wanted, self.secret_key, known).await {
                Ok(id) => return Ok(Some(id)),
                Err(failure) => failure,
            };
            let left = self.propagation.saturating_sub(began.elapsed());
            if !was_removed || failure.kind != Kind::LimitReached || left.is_zero() {
                self.note(&wanted.action, failure)?;
                return Ok(None);
            }
            // It counts what was removed still, and takes no other one.
            self.tell_waiting(format!("for LiveChat to accept another registration of {}", wanted.action), left);
            pause(self.stop, left.min(self.propagation / LISTINGS)).await?;
        }
    }

    /// Notes what LiveChat refuses of one action alone. What it would refuse of all others, too, ends the run.
    fn note(&mut self, action: &str, failure: Failure) -> Result<(), Stopped> {
        if !matches!(failure.kind, Kind::Validation | Kind::NotFound | Kind::LimitReached) {
            return Err(failure.into());
        }
        self.refused.insert(action.to_owned(), failure.to_string());
        Ok(())
    }

    /// Whether LiveChat lists a successor, as of now or some seconds ago: another run, on another machine, may know of other deliveries,
    /// and remove it while this one waits.
    async fn is_listed(&mut self, successor: Option<&String>) -> Result<bool, Stopped> {
        let Some(id) = successor else { return Ok(true) };
        let is_due = self.listed_at.is_none_or(|at| at.elapsed() >= self.propagation / LISTINGS);
        if is_due {
            self.go_on()?;
            self.listed = self.livechat.list().await?.into_iter().map(|one| one.id).collect();
            self.listed_at = Some(Instant::now());
        }
        Ok(self.listed.contains(id))
    }

    /// Notes which registrations have delivered since the run began: what came earlier says nothing of a key that was changed. `None`: no
    /// relay answers.
    async fn look(&mut self) -> Option<Seen> {
        let seen = self.relay.seen().await?;
        for one in live(&seen).filter(|one| one.last >= self.began) {
            self.delivers.entry(one.webhook_id.clone()).or_insert_with(Instant::now);
        }
        Some(seen)
    }

    /// Whether a successor delivers: the relay has seen that, and long enough ago for [`COPY_WITHIN`]; or LiveChat has had its time, and
    /// nothing says that only the old ones deliver.
    fn verdict(&self, Waiting { change, successor, since, began }: &Waiting<'_>, seen: Option<&Seen>) -> Verdict {
        let Some(id) = successor else { return Verdict::InForce };
        let delivers = self.delivers.get(id);
        if delivers.is_some_and(|first| first.elapsed() >= COPY_WITHIN) {
            return Verdict::InForce;
        }
        if since.elapsed() < self.patience() {
            return Verdict::Wait;
        }
        // What this run has made has one URL and one key: where one delivers, the others do, as soon as something happens.
        let has_made = |id: &String| self.registered.contains(id);
        let is_proven = has_made(id) && self.delivers.keys().any(has_made);
        let is_old = |one: &&Delivered| one.last >= *began && change.then.iter().any(|old| old.id == one.webhook_id);
        let Some(old) = seen.and_then(|seen| live(seen).find(is_old)) else { return Verdict::InForce };
        if delivers.is_some() || is_proven {
            return Verdict::InForce;
        }
        // It may have come while LiveChat had not got so far: as long again for another one.
        if since.elapsed() < self.patience() * 2 {
            return Verdict::Wait;
        }
        Verdict::Doubtful(format!(
            "{}: {} delivers, and {id}, which is to replace it, has delivered nothing: it may have a wrong secret key or URL (`livechat-relay check --request` tests them), or filters that few events pass. Nothing of this action was removed; where it should be, `livechat-relay webhooks unregister {}`",
            change.action, old.webhook_id, old.webhook_id
        ))
    }

    fn patience(&self) -> Duration {
        patience(self.propagation)
    }

    fn tell_waiting(&mut self, what: String, most: Duration) {
        (self.progress)(Progress::Waiting { what, most });
    }

    /// Whether the user has not ended the run.
    fn go_on(&self) -> Result<(), Interrupted> {
        if self.stop.is_cancelled() { Err(Interrupted) } else { Ok(()) }
    }

    /// Whether it is removed.
    async fn unregister(&mut self, old: &Registration) -> Result<bool, Stopped> {
        if let Err(failure) = self.livechat.unregister(&old.id).await {
            self.note(&old.action, failure)?;
            return Ok(false);
        }
        self.unregistered.insert(old.id.clone());
        (self.progress)(Progress::Unregistered { action: old.action.clone(), id: old.id.clone() });
        Ok(true)
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
                if n == 0 {
                    self.tell_waiting("for LiveChat's list to show all this".to_owned(), self.propagation);
                }
                pause(self.stop, self.propagation / LISTINGS).await?;
            }
        }
        let why = "LiveChat accepted each step, but its list does not show them all; see `livechat-relay webhooks plan` in some minutes";
        Err(Stopped::Unsettled(why.to_owned()))
    }
}
