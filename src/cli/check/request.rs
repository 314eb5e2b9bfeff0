//! `check --request`: what the relay would do with a webhook that someone has kept, and which secret key it has, or why none fits. It uses
//! the relay's own steps, sends nothing, and never prints a key.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Report, described};
use crate::config::Config;
use crate::event::normalize::normalize;
use crate::event::receive::receive;
use crate::event::route::{UNLISTED, route};
use crate::event::verify::{verify, verify_app_webhook};
use crate::event::{Key, Keyring, Receipt, Rejection, Verified, explain};
use crate::relay::{App, Endpoint, Policy};

#[derive(clap::Args)]
pub struct Request {
    /// Check the body of a webhook in a file (- for standard input): which secret key it has, or why none matches, and where it would be published
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// App that the webhook was sent to [default: the app that has its key]
    #[arg(long, value_name = "NAME", requires = "request", conflicts_with = "path")]
    app: Option<String>,
    /// Path that the webhook was sent to, such as /webhooks/default
    #[arg(long, value_name = "PATH", requires = "request")]
    path: Option<String>,
}

impl Request {
    /// Whether there is a webhook to look at.
    pub const fn is_given(&self) -> bool {
        self.request.is_some()
    }

    /// Looks at the webhook, and at nothing else.
    pub fn look(&self, config: &Config, report: &Report) {
        const CHECK: &str = "request";
        report.begin(CHECK);
        let Some(file) = &self.request else { return };
        let most = config.server.webhooks.body_bytes_max;
        let body = match read(file, most) {
            Ok(body) if body.len() > most => {
                return report
                    .fail(CHECK, format!("it is longer than server.body_bytes_max, {most} bytes: it is answered 413"));
            }
            Ok(body) => body,
            Err(why) => return report.fail(CHECK, why),
        };
        let endpoint = match self.endpoint(&config.policy, &body) {
            Ok(endpoint) => endpoint,
            Err(why) => return report.fail(CHECK, why),
        };
        let (now, none) = (Timestamp::now(), Keyring::default());
        let refused = |rejection: Rejection| {
            let line = explain(rejection, &body).unwrap_or_else(|| rejection.answer().1.to_owned());
            report.fail(CHECK, format!("{}: it is answered {}", line.trim_end(), rejection.answer().0));
        };
        let verified = match &endpoint {
            Endpoint::Webhook(app) => match receive(&body) {
                Ok(delivery) => {
                    let app = app.as_ref();
                    verify(delivery, app.map_or(&none, |app| &app.keyring), now).map_err(|unverified| {
                        match unverified.rejection {
                            // What is missing is missing for each app.
                            Rejection::NoSecretKey => (Rejection::NoSecretKey, None),
                            _ => unverified.diagnose(app.map(|app| &*app.name), config.policy.keys()),
                        }
                    })
                }
                Err(rejection) => return refused(rejection),
            },
            Endpoint::AppWebhook(app, token) => {
                verify_app_webhook(token, &body, &app.keyring, now).map_err(|unverified| (unverified.rejection, None))
            }
        };
        match (verified, &endpoint) {
            (Ok((webhook, key)), Endpoint::Webhook(Some(app)) | Endpoint::AppWebhook(app, _)) => {
                report.ok("secret key", format!("{} of app {}", described(key), app.name));
                accepted(webhook, app, &config.policy, now, report);
            }
            (Err((rejection, found)), _) if rejection.answer().0 == 401 => {
                report.fail("secret key", format!("{}: it is answered 401", why(rejection, found, &endpoint)));
            }
            (Err((rejection, _)), _) => refused(rejection),
            (Ok(_), Endpoint::Webhook(None)) => report.fail("secret key", "the app is unknown: it is answered 401"),
        }
    }

    /// Where the webhook was sent.
    fn endpoint(&self, policy: &Policy, body: &[u8]) -> Result<Endpoint, String> {
        if let Some(path) = &self.path {
            return policy.endpoint(path).ok_or_else(|| {
                "nothing is taken at this path: it is answered 404; webhooks go to /webhooks/<app>, or to /webhooks where one app is configured"
                    .to_owned()
            });
        }
        if let Some(name) = &self.app {
            let known = || policy.apps.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
            let app = policy.apps.get(name).ok_or_else(|| format!("there is no app {name}; there is: {}", known()))?;
            return Ok(Endpoint::Webhook(Some(app.clone())));
        }
        if let Some(only) = policy.endpoint("/webhooks") {
            return Ok(only);
        }
        let none = Keyring::default();
        let found = receive(body).ok().and_then(|delivery| verify(delivery, &none, Timestamp::now()).err());
        let found = found.and_then(|unverified| unverified.diagnose(None, policy.keys()).1);
        Ok(Endpoint::Webhook(found.and_then(|(app, _)| policy.apps.get(app).cloned())))
    }
}

fn read(file: &Path, most: usize) -> Result<Vec<u8>, String> {
    let (mut body, most) = (Vec::new(), most as u64 + 1);
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut body)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(most).read_to_end(&mut body))
    };
    read.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    Ok(body)
}

/// Why a webhook is answered 401, and what to do.
fn why(rejection: Rejection, found: Option<(&str, &Key)>, endpoint: &Endpoint) -> String {
    let found = found.map(|(app, key)| (app, described(key)));
    match (rejection, found, endpoint) {
        (_, _, Endpoint::AppWebhook(..)) => "the path does not end in the token of [app_webhooks]".to_owned(),
        (Rejection::NoSecretKey, ..) => {
            "the body has no string \"secret_key\". LiveChat sends the key there, and no signature in any header"
                .to_owned()
        }
        (Rejection::OtherApp, Some((app, key)), _) => {
            format!(
                "it is {key} of app {app}, and the webhook was sent to app {}; correct the URL of its registration, or its key",
                endpoint.app()
            )
        }
        (Rejection::UnknownApp, Some((app, key)), _) => {
            format!("it is {key} of app {app}, and the path names no app; register /webhooks/{app}")
        }
        (Rejection::Expired, Some((app, key)), _) => {
            format!("{key} of app {app} fits, and has ended; register the webhook with another key")
        }
        (Rejection::NotYetValid, Some((app, key)), _) => format!("{key} of app {app} fits, and is not valid yet"),
        _ => "no key of any app fits: the webhook is registered with a key that the configuration does not have"
            .to_owned(),
    }
}

/// What a webhook becomes that is verified.
fn accepted(webhook: Verified<'_>, app: &App, policy: &Policy, now: Timestamp, report: &Report) {
    let event = normalize(webhook, Receipt { app: &app.name, time: now, fresh_id: Uuid::now_v7 });
    match event.action {
        Some(_) => report.ok("action", &*event.name),
        None => report.warn("action", format!("{}, which the relay does not know: {UNLISTED}", event.name)),
    }
    if !event.faults.is_empty() {
        let faults: Vec<_> = event.faults.iter().map(|fault| fault.label()).collect();
        report.warn("payload", format!("not as LiveChat documents it: {}", faults.join(", ")));
    }
    let rule = policy.rules.find(&event, &app.routing.topics);
    let by = rule.map_or(String::new(), |rule| format!(" (rule {})", rule.name));
    match route(event, &app.routing, rule, None) {
        Some(prepared) => report.ok("topic", format!("{}{by}", prepared.record.topic)),
        None => report.ok("topic", format!("none: such events are dropped{by}")),
    }
}
