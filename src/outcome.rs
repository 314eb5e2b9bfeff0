//! What can become of a request, an event and a connection, as closed sets: each variant is decided in one place, and is a metric label.
//!
//! | to refuse what | add a variant to | found in |
//! |---|---|---|
//! | a request by its head, or by how its body arrives | [`Refusal`] | `http` |
//! | a webhook by its body | [`Rejection`] | `event`, which knows no limits and no time |
//! | what the sender should try again | [`Unavailable`] | `relay`, or `http` before it |
//!
//! Then say in [`Outcome::answer`] what the sender is told, and add a row to `tests/it/http_table.rs` and to README's table. The metric
//! labels follow by themselves.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::event::{Rejection, labels};

/// All that can become of a request to the webhook listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The brokers have it.
    Published,
    /// It is a retry of a webhook that is durable already.
    Duplicate,
    /// The disk has it, and the brokers get it when they can.
    Spooled,
    /// Its topic will never accept it, or a rule says so: it is among the dead letters.
    DeadLettered,
    /// Its action is configured to be dropped, or a rule says so.
    Dropped,
    /// The webhook is the sender's fault.
    Rejected(Rejection),
    /// The request is, before its body is whole.
    Refused(Refusal),
    /// It could not be made durable; the sender should try again.
    Unavailable(Unavailable),
}

impl Outcome {
    /// The labels of what can become of a verified webhook.
    pub const LABELS: [&str; 6] = ["published", "duplicate", "spooled", "dead_lettered", "dropped", "unavailable"];

    /// The index of its label in [`Outcome::LABELS`].
    pub const fn number(self) -> usize {
        match self {
            Self::Published => 0,
            Self::Duplicate => 1,
            Self::Spooled => 2,
            Self::DeadLettered => 3,
            Self::Dropped => 4,
            Self::Rejected(_) | Self::Refused(_) | Self::Unavailable(_) => 5,
        }
    }
}

labels! {
    /// Why a request is refused before its body is whole.
    Refusal {
        NotFound => "not_found",
        MethodNotAllowed => "method_not_allowed",
        /// The content type is not JSON.
        ContentType => "content_type",
        /// The body is compressed.
        ContentEncoding => "content_encoding",
        BodyTooLarge => "body_too_large",
        /// It did not come within `server.body_timeout`.
        BodyTooSlow => "body_too_slow",
        /// The client left before its body was here; the answer goes to no one.
        BodyIncomplete => "body_incomplete",
        /// There is no `Host`, or more than one, or it is none (RFC 9112, section 3.2).
        BadHost => "bad_host",
        /// A transfer coding besides one `chunked` (RFC 9112, section 6.1).
        TransferCoding => "bad_transfer_coding",
        HeadTooLarge => "head_too_large",
        /// It came without TLS to a port that has TLS.
        PlainHttp => "plain_http",
        /// The client's address is in none of `server.client_networks`.
        ClientNetwork => "client_network",
        /// The secret key is wrong, and its client had too many wrong ones before.
        TooManyFailures => "too_many_failures",
    }
}

labels! {
    /// What became of a request of a page, or of what the page of an app asks for. The label also stands in answers to the page.
    PageEnd {
        /// The app's page, what it shows, or once more what has become of an installation.
        Shown => "shown",
        /// An app was installed, and the event is durable.
        Installed => "installed",
        /// A token was given to a page.
        SignedIn => "signed_in",
        /// A token of a page was revoked.
        SignedOut => "signed_out",
        /// There is no code, or it is none.
        NoCode => "no_code",
        /// LiveChat has sent the browser with an error.
        Declined => "declined",
        /// The code of a login was used before.
        CodeUsed => "code_used",
        /// LiveChat does not accept the code.
        CodeRefused => "code_refused",
        /// The token is none, or has expired.
        Unauthorized => "unauthorized",
        /// The organization may not use the page, or the token is another app's.
        NotAllowed => "not_allowed",
        /// The installation lacks scopes.
        MissingScopes => "missing_scopes",
        /// The source, or all together, have asked too often.
        TooMany => "too_many",
        /// As many as may do are calling LiveChat already.
        Busy => "busy",
        /// LiveChat cannot be reached, or fails.
        Unreachable => "unreachable",
        /// LiveChat does not know the app as it is configured.
        Misconfigured => "misconfigured",
        /// The event of an installation could not be made durable.
        NotDurable => "not_durable",
        /// The relay has a fault.
        Panic => "panic",
    }
}

impl PageEnd {
    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::Shown | Self::Installed | Self::SignedIn | Self::SignedOut => 200,
            Self::NoCode | Self::Declined | Self::CodeUsed | Self::CodeRefused => 400,
            Self::Unauthorized => 401,
            Self::NotAllowed | Self::MissingScopes => 403,
            Self::TooMany => 429,
            Self::Busy | Self::Unreachable | Self::Misconfigured | Self::NotDurable | Self::Panic => 503,
        }
    }
}

labels! {
    /// What became of a configuration that was read again.
    Reload {
        Applied => "applied",
        /// It is as the relay runs with it, but for what needs a restart.
        Unchanged => "unchanged",
        /// It has mistakes: the former one stays.
        Invalid => "invalid",
        /// A file cannot be read at the moment: the former one stays.
        Unreadable => "unreadable",
    }
}

labels! {
    /// What a registration at LiveChat is, compared with what the configuration wants.
    RegistrationState {
        AsWanted => "as_wanted",
        /// It is wanted, and not there.
        Missing => "missing",
        /// It comes to this relay, at another address than the app's.
        Misaddressed => "misaddressed",
        /// It comes to this relay, and is not wanted, or not so.
        NotWanted => "not_wanted",
        /// It has the app's Client ID, and comes to another address or is of an action that the relay does not know.
        Foreign => "foreign",
    }
}

impl Outcome {
    /// Every HTTP status that [`Outcome::answer`] has.
    pub fn statuses() -> BTreeSet<u16> {
        let refused = Refusal::ALL.iter().map(|refusal| Self::Refused(*refusal));
        let rejected = Rejection::ALL.iter().map(|rejection| Self::Rejected(*rejection));
        let unavailable = Unavailable::ALL.iter().map(|reason| Self::Unavailable(*reason));
        let all = refused.chain(rejected).chain(unavailable).chain([Self::Published]);
        all.map(|outcome| outcome.answer().0).collect()
    }

    /// What a sender is told: an HTTP status, and, but for 200, a line that says what is wrong and no more than the sender may know. Where
    /// the facts are at hand, `http` replaces the line by one that names them.
    pub const fn answer(self) -> (u16, &'static str) {
        match self {
            Self::Published | Self::Duplicate | Self::Spooled | Self::DeadLettered | Self::Dropped => (200, ""),
            Self::Unavailable(_) => (503, "the event could not be stored; try again later\n"),
            Self::Rejected(rejection) => rejection.answer(),
            Self::Refused(refusal) => match refusal {
                Refusal::NotFound => (
                    404,
                    "not found; POST webhooks to /webhooks/<app>, or to /webhooks if only one app is configured\n",
                ),
                Refusal::MethodNotAllowed => (405, "method not allowed; use POST\n"),
                Refusal::ContentType => (415, "send Content-Type: application/json (in UTF-8)\n"),
                Refusal::ContentEncoding => (415, "send the body without a Content-Encoding\n"),
                Refusal::BodyTooLarge => (413, "the body is larger than server.body_bytes_max\n"),
                Refusal::BodyTooSlow => (408, "the body took longer than server.body_timeout\n"),
                Refusal::BodyIncomplete => (400, "the body ended early\n"),
                Refusal::BadHost => (400, "send one valid Host header\n"),
                Refusal::TransferCoding => (400, "the only supported Transfer-Encoding is chunked\n"),
                Refusal::HeadTooLarge => (431, "the headers are larger than server.header_bytes_max\n"),
                Refusal::PlainHttp => (400, "this port speaks HTTPS; use https://\n"),
                Refusal::ClientNetwork => (403, "your address is not in the relay's server.client_networks\n"),
                Refusal::TooManyFailures => (429, "too many webhooks with a wrong secret key; try again later\n"),
            },
        }
    }
}

/// What has become of the events of a backfill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backfilled {
    pub published: u64,
    pub spooled: u64,
    /// The relay has published the same event a moment ago.
    pub duplicate: u64,
    pub dead_lettered: u64,
    pub dropped: u64,
    /// Not durable: they have to be sent again.
    pub unavailable: u64,
    /// Why the first of those is not.
    pub reason: Option<String>,
}

impl Backfilled {
    pub fn count(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Published => &mut self.published,
            Outcome::Spooled => &mut self.spooled,
            Outcome::Duplicate => &mut self.duplicate,
            Outcome::DeadLettered => &mut self.dead_lettered,
            Outcome::Dropped => &mut self.dropped,
            Outcome::Unavailable(_) | Outcome::Rejected(_) | Outcome::Refused(_) => &mut self.unavailable,
        } += 1;
        if let (None, Outcome::Unavailable(reason)) = (&self.reason, outcome) {
            self.reason = Some(reason.label().to_owned());
        }
    }

    /// Adds what has become of others.
    pub fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.spooled += other.spooled;
        self.duplicate += other.duplicate;
        self.dead_lettered += other.dead_lettered;
        self.dropped += other.dropped;
    }
}

labels! {
    /// Why an event could not be made durable.
    Unavailable {
        /// The brokers did not ack it in time.
        Kafka => "kafka",
        /// The response deadline came first.
        Deadline => "deadline",
        /// The producer's queue is full.
        QueueFull => "queue_full",
        /// It is too large for its topic, and there is nowhere to keep it.
        TooLarge => "too_large",
        /// The brokers refuse it as invalid, and there is nowhere to keep it.
        Invalid => "invalid",
        /// Too many bytes of webhooks are held.
        Overloaded => "overloaded",
        /// Its app holds as many bytes of webhooks as are free, and there are other apps.
        AppShare => "app_share",
        /// Its body was still coming when others needed the room.
        SlowBody => "slow_body",
        ShuttingDown => "shutting_down",
        SpoolFull => "spool_full",
        SpoolFailed => "spool_failed",
        /// The relay has a fault.
        Panic => "panic",
    }
}

labels! {
    /// Why a record is a dead letter.
    DeadLetterReason {
        TooLarge => "too_large",
        Invalid => "invalid",
        /// What was read from the spool is not what was written.
        Corrupted => "corrupted",
        /// A rule says so.
        Rule => "rule",
    }
}

labels! {
    /// How a connection has ended.
    ConnectionEnd {
        /// The client ended it, or the last answer said so.
        Client => "client",
        /// The TLS handshake was not done in time.
        HandshakeTimeout => "handshake_timeout",
        /// What came was no TLS, or none that the relay speaks, or the client does not trust the certificate.
        HandshakeFailed => "handshake_failed",
        /// No request's head came in time.
        HeaderTimeout => "header_timeout",
        /// There was no request for long.
        KeepaliveTimeout => "keepalive_timeout",
        /// The client did not read its answers.
        WriteTimeout => "write_timeout",
        /// It has lasted as long as it may.
        Lifetime => "lifetime",
        /// A request was refused before any webhook was verified.
        Refused => "refused",
        /// What came was no HTTP.
        Malformed => "malformed",
        /// It began without the PROXY protocol header that `server.client_address` wants, or with one that it does not.
        ProxyProtocol => "proxy_protocol",
        /// Others needed its place.
        Evicted => "evicted",
        Shutdown => "shutdown",
        /// The relay has a fault.
        Panic => "panic",
    }
}

impl From<DeadLetterReason> for Unavailable {
    /// What is said of a record that should have become a dead letter, and could not.
    fn from(reason: DeadLetterReason) -> Self {
        match reason {
            DeadLetterReason::TooLarge => Self::TooLarge,
            DeadLetterReason::Invalid | DeadLetterReason::Corrupted | DeadLetterReason::Rule => Self::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_label_stands_twice() {
        fn all(labels: impl Iterator<Item = &'static str>) {
            let mut labels: Vec<_> = labels.collect();
            labels.sort_unstable();
            assert!(labels.windows(2).all(|pair| pair[0] != pair[1]), "{labels:?}");
        }
        all(Refusal::ALL.iter().map(|r| r.label()).chain(Rejection::ALL.iter().map(|r| r.label())));
        all(Unavailable::ALL.iter().map(|u| u.label()));
        all(DeadLetterReason::ALL.iter().map(|d| d.label()));
        all(ConnectionEnd::ALL.iter().map(|c| c.label()));
    }

    #[test]
    fn what_is_not_durable_is_answered_with_an_error_of_http() {
        let statuses = Outcome::statuses();
        assert!(statuses.iter().all(|status| *status == 200 || (400..600).contains(status)), "{statuses:?}");
        assert!(Unavailable::ALL.iter().all(|reason| Outcome::Unavailable(*reason).answer().0 == 503));
    }
}
