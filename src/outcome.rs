//! Why an event could not be made durable, and why a record became a dead letter: two closed lists, with one place each for the
//! words that metrics, headers and the log have for them.

/// Why an event could not be made durable: it is answered 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unavailable {
    /// The brokers did not take it.
    Kafka,
    /// Its `server.response_deadline` was over.
    Deadline,
    /// The producer's queue is full.
    QueueFull,
    /// It is larger than its topic allows, and no dead letter could be stored.
    TooLarge,
    /// The brokers refuse it as invalid, and no dead letter could be stored.
    Invalid,
    /// Too many bytes are in flight.
    Overloaded,
    /// Its body was given up for those of others, which came faster.
    SlowBody,
    /// The relay stops.
    ShuttingDown,
    /// The spool is full.
    SpoolFull,
    /// The last write to the spool, or its fsync, failed.
    SpoolFailed,
    /// A fault of the relay itself.
    Panic,
}

impl Unavailable {
    /// Every variant, so that metrics can be there before their first event.
    pub const ALL: [Self; 11] = [
        Self::Kafka,
        Self::Deadline,
        Self::QueueFull,
        Self::TooLarge,
        Self::Invalid,
        Self::Overloaded,
        Self::SlowBody,
        Self::ShuttingDown,
        Self::SpoolFull,
        Self::SpoolFailed,
        Self::Panic,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Deadline => "deadline",
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::SlowBody => "slow_body",
            Self::ShuttingDown => "shutting_down",
            Self::SpoolFull => "spool_full",
            Self::SpoolFailed => "spool_failed",
            Self::Panic => "panic",
        }
    }
}

/// Why a record is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadLetterReason {
    /// It is larger than its topic allows.
    TooLarge,
    /// The brokers refuse it as invalid.
    Invalid,
    /// The disk has changed it while it was in the spool.
    Corrupted,
}

impl DeadLetterReason {
    /// Every variant, so that metrics can be there before their first event.
    pub const ALL: [Self; 3] = [Self::TooLarge, Self::Invalid, Self::Corrupted];

    /// The metric label, and the value of the header `dead-letter-reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::Corrupted => "corrupted",
        }
    }
}

impl From<DeadLetterReason> for Unavailable {
    /// What is said of a record that should have become a dead letter, and could not.
    fn from(reason: DeadLetterReason) -> Self {
        match reason {
            DeadLetterReason::TooLarge => Self::TooLarge,
            DeadLetterReason::Invalid | DeadLetterReason::Corrupted => Self::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_reasons_share_a_label() {
        assert_eq!(
            Unavailable::ALL.map(Unavailable::label).iter().collect::<HashSet<_>>().len(),
            Unavailable::ALL.len()
        );
        let dead_letters = DeadLetterReason::ALL.map(DeadLetterReason::label);
        assert_eq!(dead_letters.iter().collect::<HashSet<_>>().len(), dead_letters.len());
    }
}
