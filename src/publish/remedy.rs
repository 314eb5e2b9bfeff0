//! Every error that a produce can meet, by what helps: one table. What it does not name is waited out: no event is lost
//! because a code was unknown to us.

use rdkafka::types::RDKafkaErrorCode;

/// What helps against an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// It passes by itself: the cluster is away, slow, or electing. The event is spooled and published again.
    Wait,
    /// The topic or the permissions have to be mended by a person. The topic's lane waits in the spool; others go on.
    Mend,
    /// The topic will never take this record. It goes to the dead letters; others go on.
    Park,
    /// The producer is beyond help, and is built anew; the event is spooled and published by the next one.
    Rebuild,
}

use RDKafkaErrorCode as Code;
use Remedy::{Mend, Park, Rebuild, Wait};

/// The table. The first column is librdkafka's name, under which the metric `livechat_relay_kafka_errors_total` has it, too.
pub const REMEDIES: [(Code, Remedy); 59] = [
    // The record: too large for its topic (max.message.bytes), or refused as it is.
    (Code::MessageSizeTooLarge, Park),
    (Code::InvalidMessageSize, Park),
    (Code::MessageBatchTooLarge, Park),
    (Code::InvalidRecord, Park),
    (Code::InvalidTimestamp, Park),
    // The topic: missing, forbidden, or set so that nothing can be written.
    (Code::UnknownTopic, Mend),
    (Code::UnknownTopicOrPartition, Mend),
    (Code::UnknownTopicId, Mend),
    (Code::UnknownPartition, Mend),
    (Code::InvalidTopic, Mend),
    (Code::TopicAuthorizationFailed, Mend),
    (Code::ClusterAuthorizationFailed, Mend),
    (Code::PolicyViolation, Mend),
    (Code::InvalidConfig, Mend),
    (Code::UnsupportedForMessageFormat, Mend),
    (Code::UnsupportedCompressionType, Mend),
    (Code::UnsupportedVersion, Mend),
    (Code::UnsupportedFeature, Mend),
    (Code::InvalidRequest, Mend),
    (Code::InvalidRequiredAcks, Mend),
    (Code::Authentication, Mend),
    (Code::SaslAuthenticationFailed, Mend),
    (Code::UnsupportedSASLMechanism, Mend),
    (Code::SSL, Mend),
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
    (Code::InvalidDifferentRecord, Wait), // another record of its batch is to blame
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
