//! What happens to one webhook, as pure steps: bytes, policy and time in; a [`PreparedRecord`] out, or a
//! [`Rejection`], or nothing where the action is dropped.
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

pub mod initial;

pub mod normalize;

pub mod rules;

pub mod route;

// What they use.
pub mod actions;
mod archived;
mod attributes;
mod hash;
pub(crate) mod json;
mod labels;
mod pointers;
mod traceparent;

pub use archived::Archived;
pub use attributes::Attributes;
pub(crate) use labels::labels;
pub use normalize::{Author, Event, Fault, Origin, Receipt, Tenant};
pub use receive::{Delivery, explain};
pub use route::{Keys, Mode, PreparedRecord, Record, RetryKey, Routing, Topics};
pub use rules::Rules;
pub use traceparent::traceparent;
pub use verify::{Key, Keyring, Token, Validity, Verified};

labels! {
    /// Why a webhook is refused: the sender is at fault.
    Rejection {
        NotUtf8 => "not_utf8",
        NotJson => "not_json",
        NotAnObject => "not_an_object",
        /// The body's object has a member twice: two JSON parsers could read two different events.
        MemberTwice => "member_twice",
        /// The body's object has more than [`receive::MEMBERS_MAX`] members.
        TooManyMembers => "too_many_members",
        /// `action` (in an App Webhook: `event`) is missing or not a string.
        NoAction => "no_action",
        NoPayload => "no_payload",
        /// `secret_key` is no app's. This and all that follow get the same answer, so that it tells a stranger neither which apps there are
        /// nor whether a key is one.
        Unauthorized => "unauthorized",
        /// `secret_key` is missing, or no text.
        NoSecretKey => "no_secret_key",
        /// The path names an app that is unknown.
        UnknownApp => "unknown_app",
        /// `secret_key` is that of another app.
        OtherApp => "key_of_another_app",
        /// `secret_key` is one of the app's, and past its `not_after`.
        Expired => "expired",
        /// `secret_key` is one of the app's, and before its `not_before`.
        NotYetValid => "not_yet_valid",
    }
}

impl Rejection {
    /// What the sender is told: the number of an HTTP status, and a line that says what is wrong. `http` makes a response of it.
    pub const fn answer(self) -> (u16, &'static str) {
        match self {
            Self::NotUtf8 => (400, "the body is not UTF-8\n"),
            Self::NotJson => (400, "the body is not JSON\n"),
            Self::NotAnObject => (400, "the body is not a JSON object\n"),
            Self::MemberTwice => (400, "duplicate key in the JSON object\n"),
            Self::TooManyMembers => (400, "the body has more than 64 members\n"),
            Self::NoAction => (400, "the body has no string \"action\" (\"event\" in an App Webhook)\n"),
            Self::NoPayload => (400, "the body has no member \"payload\"\n"),
            Self::Unauthorized
            | Self::NoSecretKey
            | Self::UnknownApp
            | Self::OtherApp
            | Self::Expired
            | Self::NotYetValid => (401, "unauthorized\n"),
        }
    }
}
