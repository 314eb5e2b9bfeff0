//! Why a call to LiveChat did not succeed, sorted by what helps; and what LiveChat says when it refuses.

use reqwest::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

pub const CONSOLE: &str = "https://platform.text.com/console/";

/// Of LiveChat's texts so much is shown.
const SHOWN_CHARS_MAX: usize = 300;

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

impl Kind {
    /// What helps the caller; absent where that depends on the call.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Version => "LiveChat does not offer this version: set api_version of the app to \"3.6\"".to_owned(),
            Self::LimitReached => format!(
                "LiveChat allows 3 webhooks for one action: remove one, by `livechat-relay webhooks unregister` or in Chat Webhooks of the app in {CONSOLE}"
            ),
            Self::LicenseExpired => "renew the subscription of LiveChat's account: see Billing in LiveChat".to_owned(),
            Self::Region(_) => "LiveChat sends the call from one region to another: try again later".to_owned(),
            Self::TooManyRequests => "wait some minutes: LiveChat unblocks by itself".to_owned(),
            Self::Unavailable => "LiveChat has a problem: try again later".to_owned(),
            _ => return None,
        })
    }
}

/// What LiveChat answers instead of what it was asked for.
#[derive(Debug)]
pub struct Refusal {
    pub kind: Kind,
    /// LiveChat's name for it, in lower case. Empty: the answer is not LiveChat's.
    pub name: String,
    /// For people, as LiveChat wrote it.
    pub said: String,
    /// The members of the request that LiveChat calls wrong.
    pub fields: Vec<String>,
}

impl Refusal {
    /// None, where the answer is none. Its body decides, in one of LiveChat's three shapes; the status only where there is no such body.
    pub fn read(status: StatusCode, body: &[u8]) -> Option<Self> {
        // A long answer is not an error, and need not be read twice.
        let body = if status.is_success() && body.len() > 1 << 16 { &[] } else { body };
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let (of_api, fields) = (&body["error"], body["invalid_fields"].as_object());
        if let Some(name) = error_name(of_api, "type") {
            let region = text(&of_api["data"], "region");
            let kind = kind(&name, region, status).unwrap_or(Kind::Validation);
            let said = text(of_api, "message").unwrap_or_default().to_owned();
            return Some(Self { kind, name, said, fields: Vec::new() });
        }
        let name = error_name(&body, "error").or_else(|| error_name(&body, "oauth_exception"));
        if name.is_none() && status.is_success() {
            return None;
        }
        let name = name.unwrap_or_default();
        let fields: Vec<_> = fields.into_iter().flatten().map(|(name, _)| name.clone()).collect();
        let said = text(&body, "error_description").or_else(|| text(&body, "exception_description"));
        // Other programs have an `error`, too, and nothing else of LiveChat's shape.
        let is_shaped =
            !name.is_empty() && (said.is_some() || !fields.is_empty() || !body["oauth_exception"].is_null());
        let other = if is_shaped { Kind::Validation } else { Kind::Unintelligible };
        let said = format!("{} {}", said.unwrap_or_default(), fields.join(", ")).trim().to_owned();
        Some(Self { kind: kind(&name, None, status).unwrap_or(other), name, said, fields })
    }
}

/// By LiveChat's names: first those of the Web APIs, then those of accounts. What it does not document is sorted by the status.
fn kind(name: &str, region: Option<&str>, status: StatusCode) -> Option<Kind> {
    Some(match name {
        "authentication"
        | "unauthorized"
        | "unauthorized_client"
        | "invalid_client"
        | "invalid_grant"
        | "missing_grant" => Kind::Authentication,
        "authorization"
        | "missing_access"
        | "not_allowed"
        | "requester_suspended"
        | "requester_awaiting_approval"
        | "access_denied"
        | "invalid_scope" => Kind::Authorization,
        "unsupported_version" => Kind::Version,
        "not_found" | "license_not_found" | "group_not_found" | "resource_not_found" | "client_id_not_found" => {
            Kind::NotFound
        }
        "limit_reached" => Kind::LimitReached,
        "license_expired" | "seats_limit_exceeded" | "wrong_product_version" => Kind::LicenseExpired,
        "too_many_requests" | "temporarily_unavailable" | "traffic_blocked" => Kind::TooManyRequests,
        "internal" | "request_timeout" | "service_unavailable" | "server_error" => Kind::Unavailable,
        // Another name could end the header, or be a host's.
        "misdirected_request" => match region.filter(|name| is_region(name)) {
            Some(region) => Kind::Region(region.to_owned()),
            None => Kind::Unintelligible,
        },
        "validation"
        | "already_exists"
        | "bad_request"
        | "invalid_request"
        | "unsupported_grant_type"
        | "unsupported_response_type"
        | "conflict" => Kind::Validation,
        _ => match status {
            StatusCode::UNAUTHORIZED => Kind::Authentication,
            StatusCode::TOO_MANY_REQUESTS => Kind::TooManyRequests,
            StatusCode::REQUEST_TIMEOUT => Kind::Unavailable,
            _ if status.is_server_error() => Kind::Unavailable,
            _ => return None,
        },
    })
}

fn is_region(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=32).contains(&name.len()) && name.bytes().all(legal)
}

/// In lower case. Something else than letters is none of LiveChat's names, and may be anything.
fn error_name(object: &Value, member: &str) -> Option<String> {
    let name = text(object, member)?.to_ascii_lowercase();
    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then_some(name)
}

/// A member that is a text, and not empty.
fn text<'a>(object: &'a Value, member: &str) -> Option<&'a str> {
    object.get(member)?.as_str().filter(|text| !text.is_empty())
}

/// What LiveChat says, for people: clipped, without what a terminal acts on, and without the secrets of the request, should it repeat them.
pub fn shown(text: &str, secrets: &[&SecretString]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().map(|secret| secret.expose_secret()).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX).collect()
}
