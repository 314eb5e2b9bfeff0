//! Which refusals are logged. Each reason has lines of its own for each path, one in ten seconds; strangers, who invent paths, can use up
//! neither the lines of other reasons nor those of the paths that LiveChat is told.

use std::collections::HashMap;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::event::Rejection;
use crate::outcome::{Refusal, Unavailable};
use crate::relay::{APP_WEBHOOKS, Endpoint, TOKEN_BYTES_MIN, UNKNOWN_APP};
use crate::telemetry::{Suppressed, Throttles};

const INTERVAL: Duration = Duration::from_secs(10);

/// Lines in an interval for each reason, by path: known paths; strange ones that look like a mistake in a registration at LiveChat; and
/// all the others, which scanners ask for by the thousand.
const PATHS_MAX: [usize; 3] = [256, 16, 4];

/// So much of a strange path is kept while a body comes,
const PATH_CHARS_MAX: usize = 128;

/// and of that as many segments are logged, each shorter than any token of App Webhooks.
const SEGMENTS_MAX: usize = 3;

const WEBHOOKS: &str = "/webhooks";

/// Where a request went.
pub enum Place<'a> {
    /// An app's webhooks.
    App(&'a str),
    /// Those of the only app, without its name.
    OnlyApp(&'a str),
    AppWebhooks,
    /// A page, and its app.
    Page(&'static str, &'a str),
    /// The beginning of a path that leads to an unknown app, or to nothing.
    Strange(String),
}

impl<'a> Place<'a> {
    pub fn new(endpoint: Option<&'a Endpoint>, path: &str) -> Self {
        match endpoint {
            Some(Endpoint::Webhook(Some(app))) if path == WEBHOOKS => Self::OnlyApp(&app.name),
            Some(Endpoint::Webhook(Some(app))) => Self::App(&app.name),
            Some(Endpoint::AppWebhook(..)) => Self::AppWebhooks,
            Some(Endpoint::Webhook(None)) | None => Self::Strange(path.chars().take(PATH_CHARS_MAX).collect()),
        }
    }

    pub const fn app(&self) -> &str {
        match self {
            Self::App(app) | Self::OnlyApp(app) | Self::Page(_, app) => app,
            Self::AppWebhooks => APP_WEBHOOKS,
            Self::Strange(_) => UNKNOWN_APP,
        }
    }

    /// The path as the log has it. What `is_key` says of is left out: a key may have been put into the path by mistake.
    pub fn shown(&self, is_key: impl Fn(&str) -> bool) -> String {
        match self {
            Self::App(app) => format!("{WEBHOOKS}/{app}"),
            Self::OnlyApp(_) => WEBHOOKS.to_owned(),
            Self::AppWebhooks => format!("/{APP_WEBHOOKS}/…"),
            Self::Page(page, app) => format!("/{page}/{app}"),
            Self::Strange(path) => shown(path, is_key),
        }
    }

    /// The index in [`PATHS_MAX`], and the name there.
    fn name(&self) -> (usize, &str) {
        match self {
            Self::App(app) | Self::OnlyApp(app) => (0, app),
            Self::Page(page, _) => (0, page),
            Self::AppWebhooks => (0, APP_WEBHOOKS),
            Self::Strange(path) if path.to_ascii_lowercase().contains("webhook") => (1, path),
            Self::Strange(path) => (2, path),
        }
    }
}

/// What may stand on either side of a key that was written to a wrong place.
pub const SEPARATORS: [char; 7] = [' ', ';', '=', ',', '/', '&', '?'];

/// A key that has more of them is not looked for.
const SEPARATORS_IN_KEY_MAX: usize = 16;

/// Whether a key begins within the first bytes of a text: all from its beginning, or from a separator, to a separator or the end.
pub fn begins_key(text: &str, within: usize, is_key: impl Fn(&str) -> bool) -> bool {
    let ends: Vec<usize> = text.match_indices(SEPARATORS).map(|(at, _)| at).chain([text.len()]).collect();
    let starts = [0].into_iter().chain(ends.iter().map(|end| end + 1)).take_while(|start| *start <= within);
    starts.enumerate().any(|(n, start)| {
        ends.iter().skip(n).take(1 + SEPARATORS_IN_KEY_MAX).any(|end| text.get(start..*end).is_some_and(&is_key))
    })
}

/// What of a strange path may stand in the log: neither a token nor a key, written as it is or percent-encoded, alone or with more.
fn shown(path: &str, is_key: impl Fn(&str) -> bool) -> String {
    let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    let begins_key = |n: usize| {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (segment, rest) = (segments[n], segments[n..].join("/"));
        begins_key(&rest, segment.len(), &is_key) || begins_key(&decoded(&rest), decoded(segment).len(), &is_key)
    };
    let mut shown = String::new();
    for (n, segment) in segments.iter().enumerate() {
        let is_hidden = shown.strip_prefix('/') == Some(APP_WEBHOOKS) || segment.len() >= TOKEN_BYTES_MIN;
        shown.push('/');
        if n == SEGMENTS_MAX || is_hidden || begins_key(n) {
            return shown + "…";
        }
        shown.extend(segment.escape_default());
    }
    shown
}

/// Decides by reason and path.
pub struct Refusals(HashMap<&'static str, [Throttles; 3]>);

impl Refusals {
    /// As [`Throttles::pass`], for a refusal with this label.
    pub fn pass(&self, reason: &str, place: &Place<'_>) -> Option<Suppressed> {
        let (kind, name) = place.name();
        self.0.get(reason)?[kind].pass(name)
    }
}

impl Default for Refusals {
    fn default() -> Self {
        let refusals = Refusal::ALL.iter().map(|refusal| refusal.label());
        let rejections = Rejection::ALL.iter().map(|rejection| rejection.label());
        // An app over its share is answered 503, and logged here, too.
        let reasons = refusals.chain(rejections).chain([Unavailable::AppShare.label()]);
        Self(reasons.map(|reason| (reason, PATHS_MAX.map(|paths| Throttles::with_names(INTERVAL, paths)))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_or_path_never_hides_another_and_invented_paths_are_bounded() {
        let refusals = Refusals::default();
        let strange = |path: &str| Place::new(None, path);
        let not_found = |path: &str| refusals.pass("not_found", &strange(path)).is_some();
        assert_eq!((0..1000).filter(|n| not_found(&format!("/invented{n}"))).count(), 4 + 1);
        assert!(not_found("/webhook"), "a mistake in a registration");
        assert!(!not_found("/webhook"));
        assert_eq!((0..1000).filter(|n| not_found(&format!("/webhook/{n}"))).count(), 16 - 1 + 1);
        assert_eq!(refusals.pass("unauthorized", &strange("/webhooks/unknown")), Some(None));
        for app in ["east", "west"] {
            let passed = |reason| refusals.pass(reason, &Place::App(app));
            assert_eq!((passed("app_share"), passed("app_share")), (Some(None), None), "{app}");
            assert_eq!((passed("unauthorized"), passed("not_json")), (Some(None), Some(None)), "{app}");
            assert_eq!((passed("unauthorized"), passed("not_json")), (None, None), "{app}");
        }
    }

    #[test]
    fn no_token_or_key_in_a_path_is_shown() {
        let token = "t".repeat(TOKEN_BYTES_MIN);
        for (path, expected) in [
            ("/", "/".to_owned()),
            ("*", "/*".to_owned()),
            ("/webhook", "/webhook".to_owned()),
            ("/webhooks/default/", "/webhooks/default/".to_owned()),
            ("/a/b/c/d", "/a/b/c/…".to_owned()),
            ("/é\u{1b}\"", r#"/\u{e9}\u{1b}\""#.to_owned()),
            ("/app-webhooks", "/app-webhooks".to_owned()),
            ("/app-webhooks/short", "/app-webhooks/…".to_owned()),
            (&format!("/app-webhooks/{token}/x"), "/app-webhooks/…".to_owned()),
            (&format!("/app%2Dwebhooks/{token}"), "/app%2Dwebhooks/…".to_owned()),
            (&format!("/{token}"), "/…".to_owned()),
            (&format!("/{}", &token[1..]), format!("/{}", &token[1..])),
            (&"/".repeat(10_000), "////…".to_owned()),
            ("/webhooks/a/key=1", "/webhooks/…".to_owned()),
            ("/webhooks/default/a%2Fkey%3d1/x", "/webhooks/default/…".to_owned()),
            ("/webhooks/a/key=2", "/webhooks/a/key=2".to_owned()),
            ("/webhook/secret=a/key=1", "/webhook/…".to_owned()),
            ("/webhook/secret%3Da/key=1&x=2", "/webhook/…".to_owned()),
            ("/webhook/x?y=1;secret=a%2fkey=1,", "/webhook/…".to_owned()),
        ] {
            assert_eq!(Place::new(None, path).shown(|text| text == "a/key=1"), expected, "{path}");
        }
    }
}
