//! The gate of a lane that is about to turn direct again: who comes meanwhile waits, but not for long.

use std::pin::pin;

use super::*;

const SHORT: Duration = Duration::from_millis(40);

fn started(directory: &Path, switch_timeout: Duration) -> Spool {
    let config = Config { switch_timeout, ..config(directory) };
    Spool::start(config, Arc::new(Metrics::new())).expect("a spool")
}

/// An entry that is on the disk; its number.
async fn append(spool: &Spool, topic: &Arc<str>) -> u64 {
    let record = Record { topic: Arc::clone(topic), ..entry(1, 10).record };
    assert_eq!(spool.append(spool.ticket(topic), record).await, Ok(Ok(())));
    spool.page(topic, 0, 1000, usize::MAX).last().expect("an entry").number
}

/// Whether a future that was polled waits.
async fn waits(mut future: std::pin::Pin<&mut impl Future<Output = Way>>) -> bool {
    tokio::select! {
        biased;
        _ = &mut future => false,
        () = std::future::ready(()) => true,
    }
}

#[tokio::test]
async fn who_comes_while_the_rest_is_on_its_way_waits_for_the_last_ack_and_goes_direct() {
    let directory = tempfile::tempdir().expect("a directory");
    let (spool, topic) = (started(directory.path(), Duration::from_secs(60)), lane_name(0));
    let (first, last) = (append(&spool, &topic).await, append(&spool, &topic).await);
    assert_eq!(spool.way(&topic).await, Way::Spool);
    assert!(spool.lanes(|lanes| lanes.close(&topic)));
    let mut way = pin!(spool.way(&topic));
    assert!(waits(way.as_mut()).await);
    spool.acked(&topic, first);
    assert!(waits(way.as_mut()).await, "one is not acked");
    assert_eq!(spool.way(&lane_name(1)).await, Way::Direct, "another lane has its own gate");
    spool.acked(&topic, last);
    assert_eq!(way.await, Way::Direct);
    assert_eq!(spool.way(&topic).await, Way::Direct);
    assert!(!spool.lanes(|lanes| lanes.close(&topic)), "there is nothing to wait for");
    spool.close();
}

#[tokio::test]
async fn who_waits_at_the_gate_goes_through_the_spool_when_replay_fails_or_a_ticket_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let (spool, topic) = (started(directory.path(), Duration::from_secs(60)), lane_name(0));
    let number = append(&spool, &topic).await;
    assert!(spool.lanes(|lanes| lanes.close(&topic)));
    let mut ways = [Box::pin(spool.way(&topic)), Box::pin(spool.way(&topic))];
    for way in &mut ways {
        assert!(waits(way.as_mut()).await);
    }
    spool.lanes(|lanes| lanes.keep_spooling(&topic));
    for way in ways {
        assert_eq!(way.await, Way::Spool);
    }
    // All is acked, but one is still on its way into the spool.
    let ticket = spool.ticket(&topic);
    assert!(spool.lanes(|lanes| lanes.close(&topic)));
    let mut way = pin!(spool.way(&topic));
    assert!(waits(way.as_mut()).await);
    spool.acked(&topic, number);
    assert!(waits(way.as_mut()).await, "the ticket may become an entry");
    drop(ticket);
    assert_eq!(way.await, Way::Direct);
    spool.close();
}

#[tokio::test]
async fn nobody_waits_at_the_gate_for_longer_than_the_switch_timeout() {
    let directory = tempfile::tempdir().expect("a directory");
    let (spool, topic) = (started(directory.path(), SHORT), lane_name(0));
    append(&spool, &topic).await;
    assert!(spool.lanes(|lanes| lanes.close(&topic)));
    let began = Instant::now();
    let late = async {
        assert_eq!(spool.way(&topic).await, Way::Spool);
        assert!(began.elapsed() >= SHORT);
    };
    // Whoever has waited long enough opens the gate for all.
    let (first, second) = tokio::join!(late, async {
        let way = spool.way(&topic).await;
        assert!(began.elapsed() >= SHORT);
        way
    });
    assert_eq!((first, second), ((), Way::Spool));
    let began = Instant::now();
    assert_eq!(spool.way(&topic).await, Way::Spool);
    assert!(began.elapsed() < SHORT, "the gate is open");
    spool.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_last_ack_is_missed_by_those_who_come_to_the_gate_at_that_moment() {
    let directory = tempfile::tempdir().expect("a directory");
    let (spool, topic) = (started(directory.path(), Duration::from_secs(60)), lane_name(0));
    for _ in 0..200 {
        let number = append(&spool, &topic).await;
        assert!(spool.lanes(|lanes| lanes.close(&topic)));
        let ways = (0..4).map(|_| {
            let (spool, topic) = (spool.clone(), Arc::clone(&topic));
            tokio::spawn(async move { spool.way(&topic).await })
        });
        let ways: Vec<_> = ways.collect();
        spool.acked(&topic, number);
        for way in ways {
            let way = tokio::time::timeout(Duration::from_secs(20), way).await;
            assert_eq!(way.expect("it is told").expect("no panic"), Way::Direct);
        }
    }
    spool.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_is_not_read_again_though_it_is_deleted_while_a_page_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let (spool, topic) = (started(directory.path(), SHORT), lane_name(0));
    let record = Record { topic: Arc::clone(&topic), ..entry(1, 10).record };
    let mut last = None;
    for _ in 0..4 {
        let appended: Vec<_> = (0..100).map(|_| spool.append(spool.ticket(&topic), record.clone())).collect();
        for fsynced in appended {
            last = Some(fsynced.await);
        }
    }
    assert_eq!(last, Some(Ok(Ok(()))));
    let mut numbers = spool.page(&topic, 0, usize::MAX, usize::MAX);
    numbers.reverse();
    while let Some(Item { number, .. }) = numbers.pop() {
        spool.acked(&topic, number);
        let page = spool.page(&topic, 0, usize::MAX, usize::MAX);
        let (first, next) = (page.first().map(|found| found.number), numbers.last().map(|found| found.number));
        assert_eq!(first, next, "{number} was acked");
    }
    spool.close();
}
