//! Reads lanes of the spool, and finds what matches a filter.

use std::sync::Arc;

use super::{Answer, Filter, Gone, Item, List, Listed, Out};
use crate::spool::{self, DAMAGED, DEAD_LETTERS, Spool};

impl List {
    pub(super) fn answer(&self, spool: &Spool, out: Out<'_>) -> Result<Listed, Gone> {
        let lanes = if self.dead_letters { vec![Arc::from(DEAD_LETTERS)] } else { lanes_of(spool, &self.filter) };
        let mut scan = Scan::new(spool, &self.filter, &lanes);
        let mut left = self.limit.unwrap_or(u64::MAX);
        for lane in &lanes {
            if left == 0 {
                break;
            }
            scan.lane(lane, self.from, out, |found, out| {
                out(Answer::Item(Item::new(found, lane, self.values)))?;
                left -= 1;
                Ok(left > 0)
            })?;
        }
        Ok(scan.found)
    }
}

/// Reads lanes, and finds what matches.
pub(super) struct Scan<'a> {
    spool: &'a Spool,
    filter: &'a Filter,
    pub(super) found: Listed,
}

/// The lanes of events that may match.
pub(super) fn lanes_of(spool: &Spool, filter: &Filter) -> Vec<Arc<str>> {
    let names = spool.lanes(|lanes| lanes.sizes()).into_keys();
    names.filter(|lane| filter.is_of_topic(lane) || lane == DAMAGED).map(Arc::from).collect()
}

impl<'a> Scan<'a> {
    pub(super) fn new(spool: &'a Spool, filter: &'a Filter, lanes: &[Arc<str>]) -> Self {
        let of = lanes.iter().map(|lane| spool.lanes(|lanes| lanes.waiting(lane))).sum();
        Self { spool, filter, found: Listed { of, ..Listed::default() } }
    }

    /// Hands over what matches of a lane, until `take` wants no more. After each page a line says how far it is, so that it is noticed
    /// when the client has left.
    pub(super) fn lane(
        &mut self,
        lane: &str,
        mut from: u64,
        out: Out<'_>,
        mut take: impl FnMut(spool::Item, Out<'_>) -> Result<bool, Gone>,
    ) -> Result<(), Gone> {
        const PAGE: (usize, usize) = (1000, 4 << 20);
        loop {
            let page = self.spool.page(lane, from, PAGE.0, PAGE.1);
            let Some(last) = page.last() else { return Ok(()) };
            from = last.number + 1;
            for item in page {
                self.found.read += 1;
                let Some(is_wanted) = self.filter.matches(lane, &item.entry) else {
                    self.found.not_compared += 1;
                    continue;
                };
                if is_wanted {
                    self.found.listed += 1;
                    if !take(item, out)? {
                        return Ok(());
                    }
                }
            }
            out(Answer::Progress { read: self.found.read, of: self.found.of })?;
        }
    }
}
