//! Why a call of LiveChat did not succeed, sorted by what helps.

/// What helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another login, or another personal access token.
    Authentication,
    /// A scope, an administrator's role, or a Client ID of the token's organization.
    Authorization,
    /// Another request: LiveChat's message names the member.
    Validation,
    /// Another version of the API.
    Version,
    /// Nothing: what was named is not there.
    NotFound,
    /// Fewer registrations of the action.
    LimitReached,
    /// The account's subscription.
    LicenseExpired,
    /// The same call with `X-Region`.
    Region(String),
    /// Time: LiveChat wants fewer calls.
    TooManyRequests,
    /// Another try: LiveChat failed, or could not be reached. What was asked for may have happened.
    Unavailable,
    /// What answers is not LiveChat, or speaks another language: HTML, a redirect, too much.
    Unintelligible,
    /// The machine's own side, such as a file of tokens that cannot be written.
    Local,
}

/// One sentence on what happened, one on what to do. Neither has a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct Failure {
    pub kind: Kind,
    /// `register_webhook: LiveChat says "Limit reached" (limit_reached)`.
    pub what: String,
    /// What to do, and where in LiveChat's console.
    pub remedy: String,
}
