//! Runs against a LiveChat in memory that is as slow as LiveChat may be, on a clock that goes as fast as the tests like. Each run is ended
//! after each of its calls, too.

use std::cell::{Cell, RefCell};

use tokio::time::timeout;

use super::*;
use crate::deliveries::{Delivered, KeyUse};
use crate::event::Token;
use crate::livechat::catalogue::REGISTRATIONS_MAX;
use crate::livechat::rotate::{to_rotate, with_key};
use crate::livechat::{Filters, Kind, Level, Version};

const PROPAGATION: Duration = Duration::from_secs(130);
const ACTIONS: [&str; 3] = ["incoming_chat", "incoming_event", "thread_tagged"];

fn wanted(action: &str) -> Wanted {
    Wanted {
        action: action.to_owned(),
        url: "https://relay/webhooks/a".to_owned(),
        level: Level::License,
        filters: Filters::default(),
        additional_data: BTreeSet::new(),
        description: "new".to_owned(),
    }
}

fn registration(id: &str, wanted: Wanted) -> Registration {
    let Wanted { action, url, level, filters, description, .. } = wanted;
    let (unknown_filters, additional_data, secret_key) = (None, None, None);
    let id = id.to_owned();
    Registration { id, action, url, level, filters, unknown_filters, additional_data, description, secret_key }
}

fn old(id: &str, action: &str) -> Registration {
    let filters = Filters { only_my_chats: Some(true), ..Filters::default() };
    registration(id, Wanted { filters, ..wanted(action) })
}

/// When a call does not come back, or not even reach LiveChat: the run is killed there.
#[derive(Clone, Copy)]
struct Kill {
    call: usize,
    is_done: bool,
}

/// LiveChat, and the relay that it delivers to.
struct Fake {
    registered: RefCell<Vec<Registered>>,
    /// From a registration to its first delivery, and from a change to the listing that has it.
    start: Duration,
    lag: Duration,
    /// Whether there are events.
    has_events: bool,
    calls: Cell<usize>,
    kill: Cell<Option<Kill>>,
    /// Of the registration of this action.
    fails: RefCell<Option<(&'static str, Kind)>>,
    /// A registration that the relay refuses each webhook of.
    refused: Cell<Option<&'static str>>,
    /// How long what was removed counts.
    counts: Cell<Duration>,
    /// Actions that had no registration in force for a moment.
    gaps: RefCell<Vec<String>>,
}

struct Registered {
    registration: Registration,
    made: Instant,
    ended: Option<Instant>,
}

impl Fake {
    fn new(before: &[Registration], start: u64, lag: u64, has_events: bool) -> Self {
        let long_ago = Instant::now();
        let registered = before.iter().map(|one| Registered { registration: one.clone(), made: long_ago, ended: None });
        Self {
            registered: RefCell::new(registered.collect()),
            start: Duration::from_secs(start),
            lag: Duration::from_secs(lag),
            has_events,
            calls: Cell::new(0),
            kill: Cell::new(None),
            fails: RefCell::new(None),
            refused: Cell::new(None),
            counts: Cell::new(Duration::ZERO),
            gaps: RefCell::default(),
        }
    }

    async fn call<T>(&self, effect: impl FnOnce() -> T) -> T {
        self.calls.set(self.calls.get() + 1);
        let kill = self.kill.get().filter(|kill| kill.call == self.calls.get());
        if kill.is_some_and(|kill| !kill.is_done) {
            return std::future::pending().await;
        }
        let effect = effect();
        if kill.is_some() {
            return std::future::pending().await;
        }
        effect
    }

    fn now(&self) -> Vec<Registration> {
        let registered = self.registered.borrow();
        registered.iter().filter(|one| one.ended.is_none()).map(|one| one.registration.clone()).collect()
    }

    fn delivering(&self) -> Vec<Registration> {
        let registered = self.registered.borrow();
        let is_refused = |one: &Registered| self.refused.get() == Some(one.registration.id.as_str());
        let delivers = |one: &&Registered| one.ended.is_none() && one.made.elapsed() >= self.start && !is_refused(one);
        registered.iter().filter(delivers).map(|one| one.registration.clone()).collect()
    }

    fn plan(&self, listed: &[Registration], actions: &[&str]) -> Vec<Change> {
        let app = App { wanted: Some(actions.iter().map(|action| wanted(action)).collect()), ..app() };
        let facts = Facts { delivered: delivered(&app, &self.seen_now()), ..Facts::default() };
        plan(&app, listed, &facts).changes(&facts)
    }

    /// Runs to the end, or to where it is killed.
    async fn run(&self, actions: &[&str]) -> (Option<Result<(), Stopped>>, Vec<Progress>) {
        let (ended, progress) = self.run_until(actions, &CancellationToken::new(), |_| ()).await;
        (ended, progress)
    }

    /// As `run`; `at` is told each step.
    async fn run_until(
        &self,
        actions: &[&str],
        stop: &CancellationToken,
        at: impl Fn(&Progress),
    ) -> (Option<Result<(), Stopped>>, Vec<Progress>) {
        let mut progress = Vec::new();
        let key = SecretString::from("the secret key");
        let run = Run::new(self, self, &key, PROPAGATION, stop, |step| {
            at(&step);
            progress.push(step);
        });
        let all = async {
            let listed = self.list().await?;
            let agreed = self.plan(&listed, actions);
            run.to_end(&agreed, listed, |listed, _, _| Ok(self.plan(listed, actions))).await
        };
        let ended = timeout(Duration::from_secs(3600), all).await.ok();
        (ended, progress)
    }
}

impl LiveChat for Fake {
    async fn list(&self) -> Result<Vec<Registration>, Failure> {
        self.call(|| {
            let is_listed = |one: &&Registered| {
                one.made.elapsed() >= self.lag && one.ended.is_none_or(|ended| ended.elapsed() < self.lag)
            };
            Ok(self.registered.borrow().iter().filter(is_listed).map(|one| one.registration.clone()).collect())
        })
        .await
    }

    async fn register(&self, wanted: &Wanted, _: &SecretString, known: &BTreeSet<String>) -> Result<String, Failure> {
        let failure = |kind| Failure { kind, what: format!("{} fails", wanted.action), remedy: "wait".to_owned() };
        if let Some((_, kind)) = self.fails.borrow().as_ref().filter(|(action, _)| *action == wanted.action) {
            return Err(failure(kind.clone()));
        }
        let counts = |one: &&Registered| one.ended.is_none_or(|ended| ended.elapsed() < self.counts.get());
        let is_of_action = |one: &&Registered| one.registration.action == wanted.action;
        if self.registered.borrow().iter().filter(is_of_action).filter(counts).count() >= REGISTRATIONS_MAX {
            return Err(failure(Kind::LimitReached));
        }
        self.call(|| {
            let mut registered = self.registered.borrow_mut();
            let id = format!("new-{}", registered.len());
            assert!(!known.contains(&id));
            let registration = registration(&id, wanted.clone());
            registered.push(Registered { registration, made: Instant::now(), ended: None });
            Ok(id)
        })
        .await
    }

    async fn unregister(&self, id: &str) -> Result<(), Failure> {
        self.call(|| {
            let of = |one: &&mut Registered| one.registration.id == id && one.ended.is_none();
            let ended = self.registered.borrow_mut().iter_mut().find(of).map(|one| {
                one.ended = Some(Instant::now());
                one.registration.action.clone()
            });
            let Some(action) = ended else { return Ok(()) };
            if !self.delivering().iter().any(|one| one.action == action) {
                self.gaps.borrow_mut().push(action);
            }
            Ok(())
        })
        .await
    }
}

impl Relay for Fake {
    async fn seen(&self) -> Option<Seen> {
        Some(self.seen_now())
    }
}

impl Fake {
    fn seen_now(&self) -> Seen {
        let seen = |one: Registration| {
            let (app, key, now) = ("a".to_owned(), "k".to_owned(), Timestamp::now());
            Delivered { app, webhook_id: one.id, action: one.action, key, deliveries: 1, first: now, last: now }
        };
        let registrations = self.delivering().into_iter().filter(|_| self.has_events).map(seen).collect();
        Seen { registrations, keys: keys(&["k"]), ..Seen::default() }
    }
}

/// The keys that the relay has.
fn keys(names: &[&str]) -> Vec<KeyUse> {
    names.iter().map(|key| KeyUse { app: "a".to_owned(), key: (*key).to_owned(), uses: 0, last: None }).collect()
}

fn are_wanted(fake: &Fake) -> bool {
    let now = fake.now();
    now.len() == ACTIONS.len() && ACTIONS.iter().all(|action| now.iter().any(|one| one.is_as(&wanted(action))))
}

fn before() -> Vec<Registration> {
    ACTIONS.iter().enumerate().map(|(n, action)| old(&format!("old-{n}"), action)).collect()
}

#[tokio::test(start_paused = true)]
async fn each_registration_is_replaced_when_its_successor_delivers_or_livechat_has_had_its_time() {
    for (start, lag, has_events, took) in [
        (0, 0, true, 10..=15),
        (60, 0, true, 70..=75),
        (129, 0, false, 130..=135),
        (60, 100, true, 100..=260), // it goes when the new one is listed, and that is listed as late again
        (129, 120, false, 130..=400),
    ] {
        let fake = Fake::new(&before(), start, lag, has_events);
        tokio::time::advance(PROPAGATION).await;
        let began = Instant::now();
        let (ended, progress) = fake.run(&ACTIONS).await;
        assert!(matches!(ended, Some(Ok(()))), "{ended:?}");
        assert!(are_wanted(&fake) && fake.gaps.borrow().is_empty(), "{progress:?}");
        assert!(took.contains(&began.elapsed().as_secs()), "{start} {lag}: {:?}", began.elapsed());
        let count = |is: fn(&Progress) -> bool| progress.iter().filter(|step| is(step)).count();
        let made = count(|step| matches!(step, Progress::Registered { .. }));
        assert_eq!((made, count(|step| matches!(step, Progress::Unregistered { .. }))), (3, 3));
    }
}

/// Killed after each of its calls, or before LiveChat has it, and begun again at once.
#[tokio::test(start_paused = true)]
async fn killed_at_any_step_and_run_again_it_ends_in_the_wanted_state_without_a_gap() {
    for (start, lag, has_events) in [(0, 0, true), (60, 0, true), (129, 0, false), (60, 110, true), (129, 110, false)] {
        let mut call = 0;
        loop {
            call += 1;
            let mut was_killed = false;
            for is_done in [false, true] {
                let fake = Fake::new(&before(), start, lag, has_events);
                tokio::time::advance(PROPAGATION).await;
                fake.kill.set(Some(Kill { call, is_done }));
                let killed = async {
                    let mut progress = Vec::new();
                    let key = SecretString::from("the secret key");
                    let stop = CancellationToken::new();
                    let run = Run::new(&fake, &fake, &key, PROPAGATION, &stop, |step| progress.push(step));
                    let listed = fake.list().await?;
                    let agreed = fake.plan(&listed, &ACTIONS);
                    run.to_end(&agreed, listed, |listed, _, _| Ok(fake.plan(listed, &ACTIONS))).await
                };
                tokio::pin!(killed);
                // It hangs in the call that it is killed in; all else is awaited.
                let hangs = async {
                    while fake.calls.get() < call {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                };
                was_killed = tokio::select! {
                    biased;
                    ended = &mut killed => { assert!(ended.is_ok(), "{ended:?}"); false }
                    () = hangs => true,
                };
                fake.kill.set(None);
                let (ended, progress) = fake.run(&ACTIONS).await;
                assert!(matches!(ended, Some(Ok(()))), "call {call}: {ended:?}");
                assert!(fake.gaps.borrow().is_empty(), "call {call}: a gap: {progress:?}");
                assert!(are_wanted(&fake), "call {call}, lag {lag}: {:?}", fake.now());
            }
            if !was_killed {
                break;
            }
        }
        assert!(call > 8, "{call} calls: a listing, three registrations and three removals at least");
    }
}

fn app() -> App {
    App {
        name: "a".to_owned(),
        client_id: "c".to_owned(),
        client_secret: None,
        public_url: "https://relay".to_owned(),
        version: Version::V3_6,
        credential: None,
        wanted: Some(ACTIONS.map(wanted).into()),
        secret_key: None,
        key_directory: None,
        install: None,
        page: false,
        organizations: BTreeSet::new(),
    }
}

/// What the relay has seen: a delivery through each of these registrations, with a key.
fn seen(of: &[(&str, &str)]) -> Seen {
    let one = |(id, key): &(&str, &str)| {
        let (app, action, now) = ("a".to_owned(), "incoming_chat".to_owned(), Timestamp::UNIX_EPOCH);
        Delivered {
            app,
            webhook_id: (*id).to_owned(),
            action,
            key: (*key).to_owned(),
            deliveries: 1,
            first: now,
            last: now,
        }
    };
    Seen { registrations: of.iter().map(one).collect(), keys: keys(&["k", "old", "new"]), ..Seen::default() }
}

#[test]
fn a_rotation_keeps_what_has_the_new_key_and_replaces_all_else() {
    let of = |id: &str, action: &str| registration(id, wanted(action));
    let listed = [
        of("old-chat", "incoming_chat"),
        of("new-chat", "incoming_chat"),
        of("old-event", "incoming_event"),
        of("made-event", "incoming_event"),
        of("unknown-tag", "thread_tagged"),
    ];
    let seen = seen(&[("new-chat", "new"), ("old-chat", "old")]);
    let made = BTreeSet::from(["made-event".to_owned()]);
    let rotate = |listed: &[Registration]| {
        let new = with_key(&app(), listed, &made, &seen, ("new", Some(&SecretString::from("the new key"))));
        to_rotate(&app(), listed, &seen, new)
    };
    let changes = rotate(&listed).expect("a plan");
    let short = |change: &Change| {
        let then = change.then.iter().map(|one| one.id.as_str()).collect::<Vec<_>>().join(" ");
        format!("{} {} {:?} {then}", change.action, change.register.is_some(), change.stays)
    };
    assert_eq!(
        changes.iter().map(short).collect::<Vec<_>>(),
        [
            "incoming_chat false Some(\"new-chat\") old-chat",
            "incoming_event false Some(\"made-event\") old-event",
            "thread_tagged true None unknown-tag",
        ]
    );
    assert!(rotate(&listed[1..2]).is_ok_and(|changes| changes.len() == 2));
    // LiveChat's listing may show the keys, then it tells what another run has made.
    let shows =
        |key: &str| Registration { secret_key: Some(Token::new(&key.into())), ..of("unknown-tag", "thread_tagged") };
    let count = |shown: &str| rotate(&[&listed[..4], &[shows(shown)]].concat()).map(|changes| changes.len());
    assert_eq!((count("the new key"), count("another key")), (Ok(2), Ok(3)));
}

#[test]
fn a_rotation_removes_nothing_that_it_would_not_register_again() {
    let (chat, bot) = (registration("chat", wanted("incoming_chat")), registration("bot", wanted("bot_created")));
    let rotate = |wanted: Option<Vec<Wanted>>, listed: &[Registration]| {
        let app = App { wanted, ..app() };
        to_rotate(&app, listed, &Seen::default(), BTreeSet::new()).expect_err("it refuses")
    };
    for nothing in [None, Some(Vec::new())] {
        assert!(rotate(nothing.clone(), &[]).contains("that is nothing: adopt what is registered"));
        assert!(rotate(nothing, std::slice::from_ref(&chat)).contains("(chat)"));
    }
    assert!(
        rotate(Some(vec![wanted("incoming_chat")]), &[chat, bot]).contains("not all that is registered here (bot)")
    );
}

#[test]
fn without_a_word_about_webhooks_none_is_removed_and_an_empty_list_removes_them() {
    let listed = before();
    let apply = |wanted| to_apply(&App { wanted, ..app() }, &listed, &Seen::default(), None);
    assert!(apply(None).is_err_and(|why| why.contains("has no `webhooks`")));
    assert!(apply(Some(Vec::new())).is_ok_and(|changes| changes.len() == 3));
}

/// Of two that are the same one has the wrong secret key, now that the old one is no longer there.
#[test]
fn a_copy_that_has_delivered_with_a_key_that_is_gone_is_not_the_one_that_stays() {
    let app = App { wanted: Some(vec![wanted("incoming_chat")]), ..app() };
    let removed = |listed: [&str; 2], seen: &Seen| {
        let listed = listed.map(|id| registration(id, wanted("incoming_chat")));
        let changes = to_apply(&app, &listed, seen, None).expect("a plan");
        changes.into_iter().flat_map(|change| change.then).map(|one| one.id).collect::<Vec<_>>()
    };
    let gone = seen(&[("a", "k"), ("b", "gone")]);
    let both = seen(&[("a", "k"), ("b", "k")]);
    for order in [["a", "b"], ["b", "a"]] {
        assert_eq!(removed(order, &gone), ["b"]);
        assert_eq!(removed(order, &both), ["a"], "whatever the order of the listing");
    }
}

#[tokio::test(start_paused = true)]
async fn two_runs_at_once_end_in_the_wanted_state() {
    let fake = Fake::new(&before(), 5, 0, true);
    tokio::time::advance(PROPAGATION).await;
    let ((one, _), (other, _)) = tokio::join!(fake.run(&ACTIONS), fake.run(&ACTIONS));
    assert!(matches!((&one, &other), (Some(Ok(())), Some(Ok(())))), "{one:?} {other:?}");
    assert!(are_wanted(&fake) && fake.gaps.borrow().is_empty(), "{:?}", fake.now());
}

/// A run on another machine knows of other deliveries, and removes another one.
#[tokio::test(start_paused = true)]
async fn nothing_goes_for_a_registration_that_another_run_has_removed_meanwhile() {
    let fake = Fake::new(&[old("a", "incoming_chat")], 0, 0, false);
    tokio::time::advance(PROPAGATION).await;
    let other = async {
        while fake.now().len() < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        fake.unregister("new-1").await
    };
    let ((ended, _), removed) = tokio::join!(fake.run(&["incoming_chat"]), other);
    assert!(matches!(ended, Some(Err(_))) && removed.is_ok(), "{ended:?}");
    assert_eq!(fake.now().iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_action_that_is_no_longer_wanted_goes_at_once() {
    let fake = Fake::new(&before(), 0, 0, true);
    let began = Instant::now();
    let (ended, _) = fake.run(&[]).await;
    assert!(matches!(ended, Some(Ok(()))) && fake.now().is_empty() && began.elapsed().as_secs() < 5);
}

#[tokio::test(start_paused = true)]
async fn of_three_one_goes_first_and_the_others_when_the_new_one_delivers() {
    let three = ["a", "b", "c"].map(|id| old(id, "incoming_chat"));
    let fake = Fake::new(&three, 5, 0, true);
    tokio::time::advance(PROPAGATION).await;
    let plan = fake.plan(&three, &["incoming_chat"]);
    let [change] = plan.as_slice() else { panic!("{plan:?}") };
    assert!(change.first.as_ref().is_some_and(|first| first.id == "a") && change.then.len() == 2 && !change.has_gap);
    let (ended, _) = fake.run(&["incoming_chat"]).await;
    assert!(matches!(ended, Some(Ok(()))) && fake.now().len() == 1 && fake.gaps.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn where_three_of_others_stand_a_person_has_to_say_which_one_goes_and_the_other_actions_go_on() {
    let others = |id: &str| registration(id, Wanted { url: "https://crm/".to_owned(), ..wanted("incoming_chat") });
    let fake = Fake::new(&[others("a"), others("b"), others("c"), old("d", "incoming_event")], 0, 0, true);
    tokio::time::advance(PROPAGATION).await;
    let (ended, _) = fake.run(&ACTIONS).await;
    let Some(Err(Stopped::Refused(why))) = ended else { panic!("{ended:?}") };
    assert!(why.starts_with("incoming_chat cannot be registered: LiveChat allows 3 of an action"), "{why}");
    let mut ids: Vec<_> = fake.now().into_iter().map(|one| one.id).collect();
    ids.sort();
    assert_eq!(ids, ["a", "b", "c", "new-4", "new-5"]);
}

/// Two of others, and the relay's one, which differs: it has to go before LiveChat takes the new one.
fn full() -> Vec<Registration> {
    let others = |id: &str| registration(id, Wanted { url: "https://crm/".to_owned(), ..wanted("incoming_chat") });
    vec![others("a"), others("b"), old("c", "incoming_chat")]
}

fn lost(progress: &[Progress]) -> Vec<&str> {
    progress.iter().filter_map(Progress::lost).collect()
}

#[tokio::test(start_paused = true)]
async fn a_stop_after_the_removal_that_comes_first_comes_after_the_registration_too() {
    let fake = Fake::new(&full(), 0, 0, true);
    tokio::time::advance(PROPAGATION).await;
    let stop = CancellationToken::new();
    let at = |step: &Progress| {
        if matches!(step, Progress::Unregistered { .. }) {
            stop.cancel();
        }
    };
    let (_, progress) = fake.run_until(&["incoming_chat"], &stop, at).await;
    assert!(matches!(progress[..2], [Progress::Unregistered { .. }, Progress::Registered { .. }]), "{progress:?}");
    assert!(lost(&progress).is_empty() && fake.now().iter().any(|one| one.is_as(&wanted("incoming_chat"))));
}

#[tokio::test(start_paused = true)]
async fn an_action_that_is_left_without_a_registration_is_named_and_another_run_registers_it() {
    let refused = |ended: &Option<Result<(), Stopped>>| matches!(ended, Some(Err(Stopped::Refused(_))));
    let failed = |ended: &Option<Result<(), Stopped>>| matches!(ended, Some(Err(Stopped::Failed(_))));
    for (kind, is_as_expected) in [(Kind::Validation, &refused as &dyn Fn(&_) -> bool), (Kind::Unavailable, &failed)] {
        let fake = Fake::new(&full(), 0, 0, true);
        tokio::time::advance(PROPAGATION).await;
        fake.fails.replace(Some(("incoming_chat", kind)));
        let (ended, progress) = fake.run(&["incoming_chat"]).await;
        assert!(is_as_expected(&ended), "{ended:?}");
        assert_eq!(lost(&progress), ["incoming_chat"], "{progress:?}");
        fake.fails.replace(None);
        let (ended, progress) = fake.run(&["incoming_chat"]).await;
        assert!(matches!(ended, Some(Ok(()))) && lost(&progress).is_empty(), "{ended:?}");
        assert_eq!(fake.now().len(), 3);
    }
    // The user ends it while LiveChat counts what was removed.
    let fake = Fake::new(&full(), 0, 0, true);
    tokio::time::advance(PROPAGATION).await;
    fake.counts.set(PROPAGATION);
    let stop = CancellationToken::new();
    let at = |step: &Progress| {
        if matches!(step, Progress::Waiting { .. }) {
            stop.cancel();
        }
    };
    let (ended, progress) = fake.run_until(&["incoming_chat"], &stop, at).await;
    assert!(matches!(ended, Some(Err(Stopped::Interrupted(_)))), "{ended:?}");
    assert_eq!(lost(&progress), ["incoming_chat"], "{progress:?}");
}

/// Between the question and the answer others have registered two: what was agreed does not say that the old one goes first.
#[tokio::test(start_paused = true)]
async fn a_loss_that_was_not_agreed_is_not_taken() {
    let fake = Fake::new(&full(), 0, 0, true);
    tokio::time::advance(PROPAGATION).await;
    let (key, stop) = (SecretString::from("the secret key"), CancellationToken::new());
    let agreed = fake.plan(&full()[2..], &["incoming_chat"]);
    assert!(agreed.len() == 1 && agreed[0].first.is_none());
    let run = Run::new(&fake, &fake, &key, PROPAGATION, &stop, |step| panic!("{step:?}"));
    let ended = run.to_end(&agreed, full(), |listed, _, _| Ok(fake.plan(listed, &["incoming_chat"]))).await;
    let Err(Stopped::Changed(why)) = ended else { panic!("{ended:?}") };
    assert!(
        why.contains("a registration of incoming_chat would now have to be removed") && why.contains("lost"),
        "{why}"
    );
    assert_eq!((fake.calls.get(), fake.now().len()), (0, 3));
}

/// The user ends it after a registration, in a wait, or after a removal: no other call begins, and another run goes on.
#[tokio::test(start_paused = true)]
async fn interrupted_at_any_step_it_makes_no_further_call_and_another_run_goes_on() {
    for (last, calls) in [(1, 2), (2, 3), (3, 4), (4, 4), (5, 6), (6, 7)] {
        let fake = Fake::new(&before(), 0, 0, true);
        tokio::time::advance(PROPAGATION).await;
        let (stop, steps) = (CancellationToken::new(), Cell::new(0));
        let at = |_: &Progress| {
            steps.set(steps.get() + 1);
            if steps.get() == last {
                stop.cancel();
            }
        };
        let (ended, progress) = fake.run_until(&ACTIONS, &stop, at).await;
        assert!(matches!(ended, Some(Err(Stopped::Interrupted(_)))), "{last} {ended:?} {progress:?}");
        assert_eq!((fake.calls.get(), fake.gaps.borrow().len()), (calls, 0), "{last} {progress:?}");
        assert!(matches!(fake.run(&ACTIONS).await.0, Some(Ok(()))) && are_wanted(&fake), "{last}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_ends_the_run_and_leaves_what_it_would_have_replaced() {
    let fake = Fake::new(&before(), 0, 0, true);
    tokio::time::advance(PROPAGATION).await;
    fake.fails.replace(Some(("incoming_event", Kind::Unavailable)));
    let (ended, progress) = fake.run(&ACTIONS).await;
    assert!(matches!(ended, Some(Err(Stopped::Failed(_)))), "{ended:?}");
    assert!(matches!(progress.as_slice(), [Progress::Registered { action, .. }] if action == "incoming_chat"));
    assert_eq!(fake.now().len(), 4, "nothing was removed");
    fake.fails.replace(None);
    assert!(matches!(fake.run(&ACTIONS).await.0, Some(Ok(()))) && are_wanted(&fake));
}

#[tokio::test(start_paused = true)]
async fn an_action_that_livechat_refuses_stays_as_it_is_and_the_others_go_on() {
    for kind in [Kind::Validation, Kind::NotFound, Kind::LimitReached] {
        let fake = Fake::new(&before(), 0, 0, true);
        tokio::time::advance(PROPAGATION).await;
        fake.fails.replace(Some(("incoming_event", kind)));
        let (ended, _) = fake.run(&ACTIONS).await;
        let Some(Err(Stopped::Refused(why))) = ended else { panic!("{ended:?}") };
        assert!(why.contains("incoming_event fails"), "{why}");
        let mut ids: Vec<_> = fake.now().into_iter().map(|one| one.id).collect();
        ids.sort();
        assert_eq!(ids, ["new-3", "new-4", "old-1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn where_livechat_counts_what_was_removed_first_the_new_one_is_tried_until_it_does_not() {
    for (counts, is_done) in [(100, true), (300, false)] {
        let three = ["a", "b", "c"].map(|id| old(id, "incoming_chat"));
        let fake = Fake::new(&three, 5, 0, true);
        tokio::time::advance(PROPAGATION).await;
        fake.counts.set(Duration::from_secs(counts));
        let (ended, progress) = fake.run(&["incoming_chat"]).await;
        assert!(
            progress
                .iter()
                .any(|step| matches!(step, Progress::Waiting { what, .. } if what.contains("to accept another")))
                && fake.gaps.borrow().is_empty()
        );
        assert_eq!(matches!(ended, Some(Ok(()))), is_done, "{ended:?}");
        assert_eq!(fake.now().len(), if is_done { 1 } else { 2 });
    }
}

/// What is as wanted was made in the console, with a wrong secret key; another one delivers.
#[tokio::test(start_paused = true)]
async fn the_only_registration_that_delivers_is_not_removed() {
    let both = [registration("wrong-key", wanted("incoming_chat")), old("delivers", "incoming_chat")];
    for (has_events, left) in [(true, vec!["wrong-key", "delivers"]), (false, vec!["wrong-key"])] {
        let fake = Fake::new(&both, 0, 0, has_events);
        tokio::time::advance(PROPAGATION).await;
        fake.refused.set(Some("wrong-key"));
        let (ended, _) = fake.run(&["incoming_chat"]).await;
        assert_eq!(fake.now().iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), left);
        match ended {
            Some(Err(Stopped::Refused(why))) if has_events => {
                assert!(why.contains("delivers delivers, and wrong-key"), "{why}");
            }
            Some(Ok(())) if !has_events => {}
            other => panic!("{other:?}"),
        }
    }
}

/// They have one URL and one key: what only the old one delivers is what the new filter does not let pass.
#[tokio::test(start_paused = true)]
async fn a_registration_of_this_run_is_not_doubted_where_another_one_delivers() {
    let fake = Fake::new(&before(), 0, 0, true);
    tokio::time::advance(PROPAGATION).await;
    fake.refused.set(Some("new-4"));
    let began = Instant::now();
    let (ended, _) = fake.run(&ACTIONS).await;
    assert!(matches!(ended, Some(Ok(()))) && are_wanted(&fake), "{ended:?}");
    assert!((130..=135).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());

    let fake = Fake::new(&before()[1..2], 0, 0, true);
    tokio::time::advance(PROPAGATION).await;
    fake.refused.set(Some("new-1"));
    let (ended, _) = fake.run(&ACTIONS[1..2]).await;
    assert!(matches!(ended, Some(Err(Stopped::Refused(_)))) && fake.now().len() == 2, "alone it is: {ended:?}");
}
