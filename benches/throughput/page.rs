//! The page of the figures: for each dimension what was measured, its picture and its table; before them the footprint.

use crate::footprint::Footprint;
use crate::growth::{Dimension, Growth, Quartiles, Row};
use crate::rig::Brokers;

const HEAD: &str = "\
# How cost grows

Written by `make bench-plots`; do not edit. Sender, brokers and relay share one machine, so that CPU time per event and
ratios mean more than events/s. The values of a dimension take turns, and each figure is the median of their runs, a ratio that of
the ratios within a turn; in the pictures a bar has the middle half of them. The grey band is within 10 % of the first value, or of
64 connections.
";

pub fn write(growths: &[Growth], footprint: Option<&Footprint>) -> String {
    let footprint = footprint.map(Footprint::section);
    let sections: Vec<String> = footprint.into_iter().chain(growths.iter().map(Growth::section)).collect();
    format!("{HEAD}\n{}", sections.join("\n"))
}

impl Growth {
    fn section(&self) -> String {
        let name = self.dimension.name();
        let mut text = format!(
            "## {}\n\n{} {}\n\n![CPU time per event and events per second]({name}.svg)\n\n",
            self.dimension.title(),
            self.dimension.note(),
            self.how()
        );
        let last = match self.dimension {
            Dimension::Body => "CPU µs/kB".to_owned(),
            Dimension::Backlog => "events/s to the direct way's (middle half)".to_owned(),
            _ => format!("CPU to that at {} (middle half)", self.dimension.label(self.usual().value)),
        };
        text += &format!(
            "| {} | events/s | p50 ms | p99 ms | CPU µs/event | RSS MB | {last} |\n|--:|--:|--:|--:|--:|--:|--:|\n",
            self.dimension.unit()
        );
        self.rows.iter().for_each(|row| text += &self.line(row));
        if let Some(direct) = &self.direct {
            text += &format!(
                "| direct | {} | {:.2} | {:.2} | {:.1} | | 1 |\n",
                thousands(direct.per_second),
                direct.p50_ms,
                direct.p99_ms,
                direct.cpu_micros
            );
        }
        text
    }

    fn line(&self, row: &Row) -> String {
        let Row { value, median, rss_mb, ratio: Quartiles { lower, median: ratio, upper }, .. } = row;
        let last = match self.dimension {
            Dimension::Body => format!("{:.2}", median.cpu_micros / value),
            _ => format!("{ratio:.2} ({lower:.2} to {upper:.2})"),
        };
        format!(
            "| {} | {} | {:.2} | {:.2} | {:.1} | {rss_mb:.0} | {last} |\n",
            self.dimension.label(*value),
            thousands(median.per_second),
            median.p50_ms,
            median.p99_ms,
            median.cpu_micros
        )
    }

    fn how(&self) -> String {
        let brokers = match self.brokers {
            Brokers::Kafka => "a real Kafka",
            Brokers::Mock => "librdkafka's mock cluster",
        };
        let connections = match self.connections {
            0 => String::new(),
            number => format!(", {number} connections"),
        };
        format!("({} runs of {} events{connections}, on {brokers}.)", self.runs, thousands(self.events as f64))
    }
}

impl Dimension {
    fn title(self) -> &'static str {
        match self {
            Self::Body => "Body size",
            Self::Connections => "Connections",
            Self::Topics => "Topics",
            Self::Apps => "Apps",
            Self::Keys => "Keys of an app",
            Self::Replicas => "Replicas of the relay",
            Self::Backlog => "Backlog of the spool",
            Self::Footprint => "Footprint",
        }
    }

    fn note(self) -> &'static str {
        match self {
            Self::Body => "One action; a text of its payload is made longer. Fewer events where they are large.",
            Self::Connections => {
                "Each sends an event after the answer to its last. At least four events a connection; for one \
                 connection a tenth of the events."
            }
            Self::Topics => "So many actions in turn, each with its own topic; bodies of 2 kB.",
            Self::Apps => "Events go to all apps in turn, each with its own key.",
            Self::Keys => "An app's events come with the last of its keys.",
            Self::Replicas => {
                "64 connections and so many events to each, one sender for all. Events/s and memory are those of all replicas together. \
                 They share one machine, so events/s cannot grow: CPU time an event tells."
            }
            Self::Backlog => {
                "Kafka is away, so that each event is answered after an fsync, on top of what waits already; a run \
                 adds some MB. In the same rounds a relay whose Kafka is there takes the same events: the direct way."
            }
            Self::Footprint => "",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Body => "kB of a body",
            Self::Connections => "connections",
            Self::Topics => "topics",
            Self::Apps => "apps",
            Self::Keys => "keys",
            Self::Replicas => "replicas",
            Self::Backlog => "GB in the spool",
            Self::Footprint => "",
        }
    }

    /// A value as people write it.
    pub fn label(self, value: f64) -> String {
        match self {
            Self::Body | Self::Backlog if value < 10.0 => value.to_string(),
            _ => thousands(value),
        }
    }
}

impl Footprint {
    fn section(&self) -> String {
        let Self { rss_mb, idle_kb, idle_connections, start, binary_mb, lone } = self;
        format!(
            "## Footprint\n\nOn a real Kafka, with the topics already there.\n\n| | | goal |\n|---|--:|--:|\n\
             | memory after 512 busy connections | {rss_mb:.0} MB | |\n\
             | memory of an idle connection ({} of them, each after one event) | {idle_kb:.1} kB | ≤ 12 kB |\n\
             | start until `/readyz` says 200, median of {} ({:.0} to {:.0}) | {:.0} ms | ≤ 150 ms |\n\
             | the binary | {binary_mb:.1} MB | |\n\
             | a lone sender's p50: relay, floor, difference | {:.2}, {:.2}, {:.2} ms | |\n",
            thousands(*idle_connections as f64),
            start.number,
            start.least_ms,
            start.most_ms,
            start.median_ms,
            lone.relay_p50_ms,
            lone.floor_p50_ms,
            lone.above_ms
        )
    }
}

/// A whole number with commas.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}
