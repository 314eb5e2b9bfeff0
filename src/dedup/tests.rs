//! Retries and copies, on a clock that goes as fast as the tests like.

use proptest::prelude::*;

use super::*;

fn dedup(seconds: u64, entries_max: usize) -> Dedup {
    Dedup::new(Config { window: Duration::from_secs(seconds), entries_max })
}

fn claim(dedup: &Dedup, key: u8) -> Claim {
    match dedup.check(RetryKey::Named([key; 16])) {
        Check::New(claim) => claim,
        _ => panic!("not new"),
    }
}

fn is_durable(dedup: &Dedup, key: u8) -> bool {
    matches!(dedup.check(RetryKey::Named([key; 16])), Check::Durable)
}

#[tokio::test]
async fn a_copy_gets_the_first_ones_outcome() {
    let dedup = dedup(60, 10);
    for settled in [Err(Unavailable::Kafka), Ok(())] {
        let first = claim(&dedup, 1);
        let Check::InFlight(copy) = dedup.check(RetryKey::Named([1; 16])) else { panic!("not in flight") };
        first.settle(settled);
        assert_eq!(copy.outcome().await, Some(settled));
    }
    assert!(is_durable(&dedup, 1));
}

#[tokio::test]
async fn what_failed_or_was_dropped_is_new_again() {
    let dedup = dedup(60, 10);
    claim(&dedup, 1).settle(Err(Unavailable::Kafka));
    let dropped = claim(&dedup, 1);
    let Check::InFlight(copy) = dedup.check(RetryKey::Named([1; 16])) else { panic!("not in flight") };
    drop(dropped);
    assert_eq!(copy.outcome().await, None);
    claim(&dedup, 1).settle(Ok(()));
}

#[tokio::test(start_paused = true)]
async fn entries_are_forgotten_by_age_and_by_number_but_not_while_they_are_in_flight() {
    let dedup = dedup(60, 2);
    claim(&dedup, 1).settle(Ok(()));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(is_durable(&dedup, 1));
    tokio::time::advance(Duration::from_millis(1)).await;
    claim(&dedup, 1).settle(Ok(()));
    claim(&dedup, 2).settle(Ok(()));
    claim(&dedup, 3).settle(Ok(()));
    assert!(is_durable(&dedup, 2) && is_durable(&dedup, 3));
    let in_flight = [claim(&dedup, 4), claim(&dedup, 5)];
    assert!(matches!(dedup.check(RetryKey::Named([6; 16])), Check::Untracked));
    assert!(matches!(dedup.check(RetryKey::Named([4; 16])), Check::InFlight(_)));
    drop(in_flight);
    claim(&dedup, 4).settle(Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_limits_keeps_what_they_have_room_for_and_all_that_is_in_flight() {
    let dedup = dedup(60, 4);
    let set = |seconds, entries_max| dedup.set(Config { window: Duration::from_secs(seconds), entries_max });
    (1..=3).for_each(|key| claim(&dedup, key).settle(Ok(())));
    let first = claim(&dedup, 4);
    set(60, 2);
    assert!(is_durable(&dedup, 3) && !dedup.state().by_key.contains_key(&Key::Named([2; 16])));
    set(0, 2);
    let Check::Untracked = dedup.check(RetryKey::Named([3; 16])) else { panic!("it is off") };
    set(60, 2);
    let Check::InFlight(copy) = dedup.check(RetryKey::Named([4; 16])) else { panic!("it is in flight") };
    first.settle(Ok(()));
    assert_eq!(copy.outcome().await, Some(Ok(())));
    claim(&dedup, 3).settle(Ok(()));
    tokio::time::advance(Duration::from_secs(30)).await;
    set(20, 2);
    claim(&dedup, 3).settle(Ok(()));
    assert!(is_durable(&dedup, 3) && !dedup.state().by_key.contains_key(&Key::Named([4; 16])));
}

#[test]
fn off_is_off() {
    assert!(matches!(dedup(0, 10).check(RetryKey::Named([1; 16])), Check::Untracked));
    assert!(matches!(dedup(60, 0).check(RetryKey::Named([1; 16])), Check::Untracked));
}

proptest! {
    /// Against a model that is a list: what it calls durable was settled so within the window, and the bound holds.
    #[test]
    fn it_never_invents_a_durable_event(steps in proptest::collection::vec((0_u8..6, 0_u8..4, 0_u64..30), 0..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let dedup = dedup(40, 4);
            let (mut durable, mut claims) = (Vec::<(u8, Instant)>::new(), Vec::<(u8, Claim)>::new());
            for (key, step, seconds) in steps {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                match (step, claims.iter().position(|(k, _)| *k == key)) {
                    (0, Some(i)) => { claims.remove(i).1.settle(Ok(())); durable.push((key, Instant::now())); }
                    (1, Some(i)) => claims.remove(i).1.settle(Err(Unavailable::Kafka)),
                    (2, Some(i)) => drop(claims.remove(i)),
                    (_, in_flight) => match dedup.check(RetryKey::Named([key; 16])) {
                        Check::New(claim) => { prop_assert!(in_flight.is_none()); claims.push((key, claim)); }
                        Check::InFlight(_) => prop_assert!(in_flight.is_some()),
                        Check::Durable => prop_assert!(durable.iter().any(|(k, at)| *k == key && at.elapsed().as_secs() <= 40)),
                        Check::Untracked => prop_assert!(claims.len() == 4),
                    },
                }
                let state = dedup.state();
                prop_assert!(state.by_key.len() <= 4);
                prop_assert_eq!(state.by_key.len(), state.durable.iter().map(VecDeque::len).sum::<usize>() + claims.len());
            }
            Ok(())
        })?;
    }
}

/// A delivery by the registration with this letter, of one content.
fn check_copy(dedup: &Dedup, registration: char) -> Check {
    dedup.check(RetryKey::Unnamed { content: [1; 16], registration: [registration as u8; 16] })
}

fn claim_copy(dedup: &Dedup, registration: char) -> Claim {
    match check_copy(dedup, registration) {
        Check::New(claim) => claim,
        _ => panic!("{registration} is not new"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_registration_delivers_too_is_a_copy_and_each_copy_is_of_one_event() {
    for (deliveries, published) in [
        ("AA", "AA"),
        ("AB", "A"),
        ("BA", "B"),
        ("ABAB", "AA"),
        ("AABB", "AA"),
        ("ABBA", "AB"),
        ("ABABAB", "AAA"),
        ("AAAB", "AAA"),
        ("ABCABC", "AA"),
        ("ACBBCA", "AB"),
    ] {
        let dedup = dedup(60, 100);
        let is_new = |registration: &char| match check_copy(&dedup, *registration) {
            Check::New(claim) => {
                claim.settle(Ok(()));
                true
            }
            Check::Durable => false,
            _ => panic!("each has ended before the next"),
        };
        assert_eq!(deliveries.chars().filter(is_new).collect::<String>(), published, "{deliveries}");
    }
}

/// Another content is another event, and so is the same one for another app or topic, which the content's hash is of, too.
#[tokio::test]
async fn another_content_is_no_copy() {
    let dedup = dedup(60, 100);
    claim_copy(&dedup, 'A').settle(Ok(()));
    assert!(matches!(dedup.check(RetryKey::Unnamed { content: [2; 16], registration: [b'B'; 16] }), Check::New(_)));
    assert!(matches!(dedup.check(RetryKey::Named([1; 16])), Check::New(_)));
}

/// The first copy fails: before the second comes, while the second waits for it, and again and again.
#[tokio::test(start_paused = true)]
async fn a_copy_of_what_failed_is_published() {
    let failed = Err(Unavailable::Kafka);
    let dedup = dedup(60, 100);
    claim_copy(&dedup, 'A').settle(failed);
    claim_copy(&dedup, 'B').settle(Ok(()));
    assert!(matches!(check_copy(&dedup, 'A'), Check::Durable), "the retry of the first is a copy of the second");

    tokio::time::advance(COPY_WITHIN * 2).await;
    let first = claim_copy(&dedup, 'A');
    let Check::InFlight(copy) = check_copy(&dedup, 'B') else { panic!("not in flight") };
    first.settle(failed);
    assert_eq!(copy.outcome().await, Some(failed), "no 200 for what failed");
    claim_copy(&dedup, 'B').settle(Ok(()));
    assert!(matches!(check_copy(&dedup, 'A'), Check::Durable));

    tokio::time::advance(COPY_WITHIN * 2).await;
    for _ in 0..3 {
        let first = claim_copy(&dedup, 'A');
        let Check::InFlight(copy) = check_copy(&dedup, 'B') else { panic!("not in flight") };
        drop(first);
        assert_eq!(copy.outcome().await, None, "it tries itself");
        claim_copy(&dedup, 'B').settle(failed);
    }
    let state = dedup.state();
    assert!(state.unnamed.is_empty() && state.by_key.is_empty());
}

/// A new registration delivers its first event, which an old one that is now removed does not. An equal event from before is none that
/// the new one could have delivered.
#[tokio::test(start_paused = true)]
async fn a_late_copy_is_published_rather_than_an_event_lost() {
    let dedup = dedup(60, 100);
    claim_copy(&dedup, 'A').settle(Ok(()));
    tokio::time::advance(COPY_WITHIN).await;
    assert!(matches!(check_copy(&dedup, 'B'), Check::Durable));
    claim_copy(&dedup, 'A').settle(Ok(()));
    tokio::time::advance(COPY_WITHIN + Duration::from_millis(1)).await;
    claim_copy(&dedup, 'B').settle(Ok(()));
}

/// One registration replaces another while the same thing happens again and again: before, while both deliver, and after. What was
/// delivered before the new one was in force takes no event from it.
#[tokio::test(start_paused = true)]
async fn equal_events_are_all_published_while_one_registration_replaces_another() {
    for overlap in [COPY_WITHIN, COPY_WITHIN * 3] {
        let dedup = dedup(60, 1000);
        let (begin, end) = (COPY_WITHIN, COPY_WITHIN + overlap);
        let (mut events, mut published) = (0, 0);
        let began = Instant::now();
        while began.elapsed() < end + COPY_WITHIN * 2 {
            events += 1;
            let of = [('A', began.elapsed() <= end), ('B', began.elapsed() > begin)];
            for registration in of.into_iter().filter(|(_, is_in_force)| *is_in_force).map(|(of, _)| of) {
                if let Check::New(claim) = check_copy(&dedup, registration) {
                    claim.settle(Ok(()));
                    published += 1;
                }
            }
            tokio::time::advance(Duration::from_millis(200)).await;
        }
        assert_eq!(published, events, "{overlap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_equal_events_is_bounded_and_leaves_nothing_behind() {
    let dedup = dedup(60, 200);
    (0..1000).for_each(|_| claim_copy(&dedup, 'A').settle(Ok(())));
    assert_eq!(dedup.state().unnamed[&[1; 16]].len(), EQUAL_MAX);
    assert_eq!(dedup.state().by_key.len(), 200);
    let copies = (0..100).filter(|_| matches!(check_copy(&dedup, 'B'), Check::Durable)).count();
    assert_eq!(copies, EQUAL_MAX);
    tokio::time::advance(COPY_WITHIN + Duration::from_millis(1)).await;
    claim(&dedup, 7).settle(Ok(()));
    let state = dedup.state();
    assert!(state.unnamed.is_empty() && state.by_key.len() == 1);
}

proptest! {
    /// However deliveries and failures come, no registration has more events answered as durable than were made durable.
    #[test]
    fn no_event_is_lost_to_a_copy(steps in proptest::collection::vec((0_usize..3, 0_u8..4, 0_u64..5), 0..100)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let dedup = dedup(60, 1000);
            let (mut published, mut answered) = (0, [0; 3]);
            let mut claims: Vec<(usize, Claim)> = Vec::new();
            for (registration, step, seconds) in steps {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                match step {
                    0 if !claims.is_empty() => {
                        let (registration, claim) = claims.remove(0);
                        claim.settle(Ok(()));
                        (published, answered[registration]) = (published + 1, answered[registration] + 1);
                    }
                    1 if !claims.is_empty() => claims.remove(0).1.settle(Err(Unavailable::Kafka)),
                    _ => match check_copy(&dedup, ['A', 'B', 'C'][registration]) {
                        Check::New(claim) => claims.push((registration, claim)),
                        Check::Durable => answered[registration] += 1,
                        Check::InFlight(_) => {}
                        Check::Untracked => prop_assert!(false, "there is room"),
                    },
                }
                prop_assert!(answered.iter().all(|answered| *answered <= published));
                let state = dedup.state();
                prop_assert!(state.unnamed.values().flatten().all(|e| state.by_key.contains_key(&Key::Unnamed([1; 16], e.number))));
            }
            Ok(())
        })?;
    }
}
