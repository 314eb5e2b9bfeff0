//! What happens to one webhook, as pure steps: bytes, policy and time in; a [`Record`] or a [`Rejection`] out.
//!
//! ```text
//! body ──receive──► Delivery ──verify──► Verified ──normalize──► Event ──route──► Record
//!      borrows body        no secret any more     CloudEvents around     topic, key, headers,
//!                                                 the untouched payload  value: the one copy
//! ```
//!
//! Each step takes the former's result by value, so that none can be skipped or done twice. Nothing here waits, reads
//! a clock or a file, or knows of HTTP and Kafka clients: what comes from outside is passed in.

pub mod normalize;
pub mod receive;
pub mod route;
pub mod verify;

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

/// Why a webhook is the sender's fault. Closed: each variant is a metric label and an HTTP answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    /// The body has bytes that are no UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The body is no JSON text.
    #[error("the body is not JSON")]
    NotJson,
    /// The body is JSON, but no object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// A member of the body's object occurs twice, so that two readers could see two different events.
    #[error("the body has a member twice")]
    MemberTwice,
    /// The body's object has more members than any webhook has.
    #[error("the body has too many members")]
    TooManyMembers,
    /// `action` is missing or no string.
    #[error("the body has no action")]
    NoAction,
    /// `payload` is missing.
    #[error("the body has no payload")]
    NoPayload,
    /// `secret_key` is missing or wrong, or the app is unknown: one answer for all, so that nobody learns which.
    #[error("unauthorized")]
    Unauthorized,
}

impl Rejection {
    /// Every variant, so that metrics can be there before their first event.
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
