//! Every error that a produce can meet, by what helps: one table. What it does not name is waited out: no event is lost
//! because a code was unknown to us.

use rdkafka::types::RDKafkaErrorCode;

/// What helps against an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// It passes by itself: the cluster is unreachable, slow, or electing a leader. The event is spooled and published again.
    Wait,
    /// An operator has to act: on the topic, the permissions, or the brokers. The topic's lane waits in the spool; others go on.
    Operator,
    /// The clocks of the relay and of the brokers differ by more than the topic allows. The lane waits in the spool, until either clock, or
    /// the topic's setting, is right: the timestamp is that of the attempt.
    Clocks,
    /// The record is not to blame, but another one of its batch. It is sent again, alone.
    Alone,
    /// The record is refused; or its batch is, whole, for the sake of another record in it. It is sent again, alone; what is refused
    /// then, its topic will never accept: it becomes a dead letter. Others go on.
    DeadLetter,
    /// The producer's state is fatal: another one takes its place, and publishes the event, which is spooled meanwhile.
    Rebuild,
}

use RDKafkaErrorCode as Code;
use Remedy::{Alone, Clocks, DeadLetter, Operator, Rebuild, Wait};

/// The table. The first column is librdkafka's name, under which the metric `livechat_relay_kafka_errors_total` has it, too.
pub const REMEDIES: [(Code, Remedy); 59] = [
    // The record: too large for its topic (max.message.bytes), or refused as it is.
    (Code::MessageSizeTooLarge, DeadLetter),
    (Code::InvalidMessageSize, DeadLetter),
    (Code::MessageBatchTooLarge, DeadLetter),
    (Code::InvalidRecord, DeadLetter),
    (Code::InvalidTimestamp, Clocks),
    (Code::InvalidDifferentRecord, Alone),
    // The topic: missing, forbidden, or set so that nothing can be written.
    (Code::UnknownTopic, Operator),
    (Code::UnknownTopicOrPartition, Operator),
    (Code::UnknownTopicId, Operator),
    (Code::UnknownPartition, Operator),
    (Code::InvalidTopic, Operator),
    (Code::TopicAuthorizationFailed, Operator),
    (Code::ClusterAuthorizationFailed, Operator),
    (Code::PolicyViolation, Operator),
    (Code::InvalidConfig, Operator),
    (Code::UnsupportedForMessageFormat, Operator),
    (Code::UnsupportedCompressionType, Operator),
    (Code::UnsupportedVersion, Operator),
    (Code::UnsupportedFeature, Operator),
    (Code::InvalidRequest, Operator),
    (Code::InvalidRequiredAcks, Operator),
    (Code::Authentication, Operator),
    (Code::SaslAuthenticationFailed, Operator),
    (Code::UnsupportedSASLMechanism, Operator),
    (Code::SSL, Operator),
    // The cluster: away, slow, electing a leader, short of replicas or of disk.
    (Code::MessageTimedOut, Wait),
    (Code::OperationTimedOut, Wait),
    (Code::TimedOutQueue, Wait),
    (Code::RequestTimedOut, Wait),
    (Code::BrokerTransportFailure, Wait),
    (Code::AllBrokersDown, Wait),
    (Code::Resolve, Wait),
    (Code::NetworkException, Wait),
    (Code::InvalidMessage, Wait), // the bytes were damaged on their way, says the broker's checksum
    (Code::BadMessage, Wait),     // the broker's answer makes no sense: it may have the record
    (Code::LeaderNotAvailable, Wait),
    (Code::NotLeaderForPartition, Wait),
    (Code::FencedLeaderEpoch, Wait),
    (Code::UnknownLeaderEpoch, Wait),
    (Code::BrokerNotAvailable, Wait),
    (Code::ReplicaNotAvailable, Wait),
    (Code::NotEnoughReplicas, Wait),
    (Code::NotEnoughReplicasAfterAppend, Wait),
    (Code::ISRInsufficient, Wait),
    (Code::KafkaStorageError, Wait),
    (Code::ThrottlingQuotaExceeded, Wait),
    (Code::QueueFull, Wait),
    (Code::PurgeQueue, Wait),
    (Code::PurgeInflight, Wait),
    (Code::NoOffset, Wait), // ours: an ack that the broker itself did not give
    (Code::Unknown, Wait),
    // The idempotent producer has lost its place in a partition's sequence, and takes a new one by itself.
    (Code::UnknownProducerId, Wait),
    (Code::InvalidProducerEpoch, Wait),
    (Code::InvalidProducerIdMapping, Wait),
    (Code::ProducerFenced, Wait),
    // It cannot: librdkafka calls it fatal, and refuses every record from then on.
    (Code::Fatal, Rebuild),
    (Code::Fenced, Rebuild),
    (Code::OutOfOrderSequenceNumber, Rebuild),
    (Code::Inconsistent, Rebuild),
];

impl Remedy {
    pub fn of(code: Code) -> Self {
        REMEDIES.iter().find(|(known, _)| *known == code).map_or(Wait, |(_, remedy)| *remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_stands_twice_and_what_is_unknown_is_waited_out() {
        let codes: std::collections::HashSet<_> = REMEDIES.iter().map(|(code, _)| format!("{code:?}")).collect();
        assert_eq!(codes.len(), REMEDIES.len());
        assert_eq!(Remedy::of(Code::OffsetOutOfRange), Wait);
    }
}
