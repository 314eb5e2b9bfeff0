//! `spool drop`: erases events that wait, and dead letters.

use super::{print_json, waiting};
use crate::cli::Failure;
use crate::cli::access::{Access, Where, unexpected};
use crate::cli::items::{self, Filters, progress};
use crate::cli::print::{confirm, note, out};
use crate::control::{Answer, Dropped, List, Request};

#[derive(clap::Args)]
pub struct Drop {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    filters: Filters,
    /// List what would be dropped, and drop nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a drop does, for a person who is asked.
pub const ERASED: &str = "They are erased from this spool; copies that are on Kafka remain there.";

impl Drop {
    pub async fn run(self) -> Result<(), Failure> {
        if self.filters.filter().is_empty() {
            let needed = "say what to drop: --topic, --key, --id, --action, --app, --since or --until";
            return Err(Failure::Usage(needed.to_owned()));
        }
        if self.dry_run {
            let access = self.place.open().await?;
            let listed = self.look(&access, true).await;
            if let Ok((0, 0)) = listed {
                items::note_other_topic(&access, &self.filters).await?;
            }
            access.close().await;
            let (events, dead_letters) = listed?;
            if !self.json {
                note(format_args!("{} would be dropped; nothing was", items::both(events, dead_letters)));
            }
            return Ok(());
        }
        if !self.yes && !self.is_confirmed().await? {
            return Ok(());
        }
        // Only now is the directory of a stopped relay locked: a person may take their time.
        let access = self.place.open_to_change().await?;
        let dropped = self.drop(&access).await;
        if let Ok(Dropped { events: 0, dead_letters: 0, .. }) = dropped {
            items::note_other_topic(&access, &self.filters).await?;
        }
        access.close().await;
        let dropped = dropped?;
        if self.json {
            print_json(&dropped)?
        } else {
            report(&dropped)?
        }
        unfinished(&dropped)
    }

    /// How many events and dead letters match.
    async fn look(&self, access: &Access, shows: bool) -> Result<(u64, u64), Failure> {
        let mut found = [0, 0];
        for (dead_letters, found) in [false, true].into_iter().zip(&mut found) {
            let list = List { dead_letters, ..waiting(&self.filters, None) };
            let listed = if shows {
                items::list(access, list, self.json).await?
            } else {
                let bar = progress(0);
                let listed = access.list(list, |read, of| items::show(&bar, read, of), |_| Ok(())).await?;
                bar.finish_and_clear();
                listed
            };
            *found = listed.listed;
            items::warn_of(&listed);
        }
        Ok(found.into())
    }

    /// Says how much matches, and asks.
    async fn is_confirmed(&self) -> Result<bool, Failure> {
        let access = self.place.open().await?;
        let found = self.look(&access, false).await;
        if let Ok((0, 0)) = found {
            note(format_args!("nothing matches, and nothing was dropped"));
            items::note_other_topic(&access, &self.filters).await?;
        }
        access.close().await;
        let (events, dead_letters) = found?;
        if events + dead_letters == 0 {
            return Ok(false);
        }
        let found = items::both(events, dead_letters);
        confirm(&format!("Drop {found}? {ERASED}"))
    }

    async fn drop(&self, access: &Access) -> Result<Dropped, Failure> {
        let bar = progress(0);
        let asked = access.ask(Request::Drop { filter: self.filters.filter() }, |answer| {
            if let Answer::Progress { read, of } = answer {
                items::show(&bar, read, of);
            }
            Ok(())
        });
        let answer = asked.await?;
        bar.finish_and_clear();
        match answer {
            Answer::Dropped(dropped) => Ok(dropped),
            other => Err(unexpected(&other)),
        }
    }
}

fn report(dropped: &Dropped) -> Result<(), Failure> {
    out(format_args!("{} dropped", items::both(dropped.events, dropped.dead_letters)))?;
    if dropped.events + dropped.dead_letters == 0 {
        return Ok(());
    }
    if dropped.erased {
        out(format_args!("no file of the spool has them any more"))?;
    }
    out(format_args!(
        "copies that are on Kafka remain there; one that was on its way there at this moment may still arrive"
    ))
}

/// What a drop has not done, as a failure.
pub fn unfinished(dropped: &Dropped) -> Result<(), Failure> {
    let mut missing = Vec::new();
    if let Some(why) = &dropped.why {
        missing.push(format!(
            "they are not published any more, but their bytes stay on the disk until the rest of their files is on Kafka: {why}"
        ));
    }
    if dropped.not_compared > 0 {
        missing.push(format!("{} damaged entries could not be compared with the filter", dropped.not_compared));
    }
    missing.extend(dropped.problems.iter().map(|problem| format!("not searched: {problem}")));
    missing.extend(dropped.unknown.iter().map(|number| format!("there is no dead letter {number}")));
    if missing.is_empty() { Ok(()) } else { Err(Failure::Failed(missing.join("\n"))) }
}
