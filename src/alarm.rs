//! One timer for waits that follow each other and hardly ever last: it stays set from one to the next, and is set anew only where
//! it would come too late. A timer of its own for each wait costs two locks that all threads share, and more memory touched than
//! the wait itself.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

/// The timer; one wait at a time. It may wake the task that has waited last once more, for nothing.
#[derive(Default)]
pub struct Alarm(Mutex<Option<Pin<Box<Sleep>>>>);

impl Alarm {
    /// Waits until `time`.
    pub const fn at(&self, time: Instant) -> At<'_> {
        At { alarm: self, time }
    }
}

pub struct At<'a> {
    alarm: &'a Alarm,
    time: Instant,
}

impl Future for At<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut sleep = self.alarm.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.time)));
        if sleep.deadline() > self.time {
            sleep.as_mut().reset(self.time);
        }
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= self.time {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(self.time); // it was set for another wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    /// Waits on an alarm until so many milliseconds after `start`; not for less.
    async fn wait(alarm: &Alarm, start: Instant, millis: u64) {
        let time = start + Duration::from_millis(millis);
        alarm.at(time).await;
        assert!(Instant::now() >= time, "{millis}");
    }

    /// A wait that is polled, and dropped.
    async fn give_up(alarm: &Alarm, time: Instant) {
        tokio::select! {
            biased;
            () = alarm.at(time) => panic!("it is not time yet"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn each_wait_lasts_until_its_time_and_ends_whatever_the_alarm_was_set_for_before() {
        let (alarm, start) = (Alarm::default(), Instant::now());
        for millis in [5, 9, 9, 20, 12] {
            wait(&alarm, start, millis).await;
        }
        give_up(&alarm, start + Duration::from_secs(3600)).await;
        wait(&alarm, start, 40).await; // else it would last an hour
        let soon = Instant::now() + Duration::from_secs(60);
        give_up(&alarm, soon).await;
        give_up(&alarm, soon + Duration::from_secs(60)).await;
        wait(&alarm, start, 60).await;
    }

    #[tokio::test]
    async fn an_alarm_that_has_rung_for_nobody_is_set_anew() {
        let (alarm, start) = (Alarm::default(), Instant::now());
        tokio::select! {
            biased;
            () = alarm.at(start + Duration::from_secs(3600)) => panic!("an hour has passed"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        give_up(&alarm, Instant::now() + Duration::from_millis(20)).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        wait(&alarm, start, 60).await;
    }

    #[tokio::test]
    async fn the_next_wait_may_be_another_tasks() {
        let (alarm, start) = (Arc::new(Alarm::default()), Instant::now());
        give_up(&alarm, start + Duration::from_secs(3600)).await;
        let its = Arc::clone(&alarm);
        tokio::spawn(async move { wait(&its, start, 10).await }).await.expect("no panic");
        give_up(&alarm, Instant::now() + Duration::from_secs(1)).await;
        let its = Arc::clone(&alarm);
        tokio::spawn(async move { wait(&its, Instant::now(), 1100).await }).await.expect("no panic");
    }
}
