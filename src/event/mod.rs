//! What happens to one webhook, as pure steps: bytes, policy and time in; a [`PreparedRecord`] or a [`Rejection`] out.
//!
//! ```text
//! body ──receive──► Delivery ──verify──► Verified ──normalize──► Event ──route──► PreparedRecord
//!      borrows body        without the secret     CloudEvents            topic, key, headers, retry key;
//!                          key from here on       attributes             value: the only copy of the payload
//! ```
//!
//! Each step takes the result of the one before by value, so none can be skipped or done twice. An App Webhook goes the same way,
//! but its token is verified before its body is read. Nothing here waits, reads a clock or a file, or depends on HTTP or a Kafka
//! client: callers pass in what comes from outside.

// The steps, in the order of the flow; blank lines keep rustfmt from sorting them.
pub mod receive;

pub mod verify;

pub mod normalize;

pub mod route;

// What they use.
pub mod actions;
mod hash;
mod json;
mod pointers;
mod traceparent;

pub use normalize::{Event, Fault, Receipt};
pub use receive::Delivery;
pub use route::{Keys, Mode, PreparedRecord, Record, RetryKey, Routing, Topics};
pub use traceparent::traceparent;
pub use verify::{Key, Keyring, Verified, VerifiedAppWebhook};

/// Why a webhook is refused: the sender is at fault. Each variant is a metric label and has an HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    /// The body is not valid UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The body is not valid JSON.
    #[error("the body is not JSON")]
    NotJson,
    /// The body is JSON, but not an object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// The body's object has a member twice: two JSON parsers could read two different events.
    #[error("the body has a member twice")]
    MemberTwice,
    /// The body's object has more than [`receive::MEMBERS_MAX`] members.
    #[error("the body has too many members")]
    TooManyMembers,
    /// `action` (in an App Webhook: `event`) is missing or not a string.
    #[error("the body has no action")]
    NoAction,
    /// `payload` is missing.
    #[error("the body has no payload")]
    NoPayload,
    /// `secret_key` is missing or wrong, or the app is unknown. All three get the same answer, so that it does not tell a stranger
    /// which apps there are.
    #[error("unauthorized")]
    Unauthorized,
}

impl Rejection {
    /// Every variant, so that each has a metric from the start.
    pub const ALL: [Self; 8] = [
        Self::NotUtf8,
        Self::NotJson,
        Self::NotAnObject,
        Self::MemberTwice,
        Self::TooManyMembers,
        Self::NoAction,
        Self::NoPayload,
        Self::Unauthorized,
    ];

    /// What the sender is told: an HTTP status, and a line that says what is wrong.
    pub const fn answer(self) -> (u16, &'static str) {
        match self {
            Self::NotUtf8 => (400, "the body is not UTF-8\n"),
            Self::NotJson => (400, "the body is not JSON\n"),
            Self::NotAnObject => (400, "the body is not a JSON object\n"),
            Self::MemberTwice => (400, "the body has a member twice\n"),
            Self::TooManyMembers => (400, "the body has too many members\n"),
            Self::NoAction => (400, "the body has no action\n"),
            Self::NoPayload => (400, "the body has no payload\n"),
            Self::Unauthorized => (401, "unauthorized\n"),
        }
    }

    /// The metric label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::MemberTwice => "member_twice",
            Self::TooManyMembers => "too_many_members",
            Self::NoAction => "no_action",
            Self::NoPayload => "no_payload",
            Self::Unauthorized => "unauthorized",
        }
    }
}
