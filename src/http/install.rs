//! `GET /install/{app}`: LiveChat sends a browser here to install the app. The code in the query is exchanged once, organization and scopes
//! are checked, and the page says that the app is installed when the event is durable. No token is kept.

mod texts;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;
use tokio::sync::OnceCell;

use super::pages::{Shown, Template, Visit, escaped, policy, remembered};
use crate::livechat::{Accounts, Api, App, Failure, Install, Kind, Reason, Redirect, TokenPair, covers};
use crate::outcome::{Outcome, PageEnd};
use texts::Text;

static PAGE: Template = Template {
    text: include_str!("pages/install.html"),
    policy: LazyLock::new(|| policy(PAGE.text, "frame-ancestors 'none'")),
};

/// What has become of an installation, as the page says it.
#[derive(Clone)]
pub enum End {
    Installed(Arc<Installation>),
    Declined(Reason),
    Missing(Vec<String>),
    Other(PageEnd),
}

impl From<PageEnd> for End {
    fn from(end: PageEnd) -> Self {
        Self::Other(end)
    }
}

/// An organization has installed the app: a code was exchanged, and all is as it has to be.
pub struct Installation {
    organization: String,
    /// Whether LiveChat sends the license's webhooks, where that is known; and whether it does so because of us.
    webhooks: Option<bool>,
    is_enabled_now: bool,
    /// The event's `data`, in the shape of an App Webhook.
    body: Bytes,
    /// Set once the event is durable. Where that fails, the next request with the code does it.
    is_durable: OnceCell<()>,
    /// Whether a page has said so. Others are reloads, which the metric does not count as installations.
    is_shown: AtomicBool,
}

pub async fn shown(visit: Visit, query: Option<&str>) -> Shown {
    let app = visit.app().clone();
    let end = match Redirect::read(query, None) {
        Redirect::NoCode | Redirect::Malformed | Redirect::Foreign => PageEnd::NoCode.into(),
        Redirect::Error(reason) => End::Declined(reason),
        Redirect::Code(code) => with_code(visit, code).await,
    };
    end.shown(&app)
}

async fn with_code(visit: Visit, code: SecretString) -> End {
    // A task of its own: a browser that leaves must not leave a token behind, or an installation without its event.
    let work = tokio::spawn(async move {
        let mut unneeded = None;
        let exchanged = async {
            let installed = install(&visit, &code, &mut unneeded).await;
            let lasts = remembered(installed.as_ref().map_or_else(End::end, |_| PageEnd::Installed));
            (installed, lasts)
        };
        let installed = visit.pages.installations.get(visit.digest(&code), Box::pin(exchanged)).await;
        let end = match installed {
            Ok(installation) => publish(&visit, installation).await,
            Err(end) => end,
        };
        // Nothing of the token is needed afterwards, whatever came of it. The event comes first, so that an end of the relay in between
        // leaves a token, which ends by itself, and not an installation that no one hears of.
        if let Some((accounts, token)) = unneeded {
            let revoked = visit.revoke(accounts, token);
            let _ = visit.until(visit.deadlines.answer, revoked).await; // the page is right without it, and the task goes on
        }
        end
    });
    work.await.unwrap_or(End::Other(PageEnd::Panic))
}

/// What becomes of a code that is new. The token for it is put into `unneeded`, whatever comes of it.
async fn install(
    visit: &Visit,
    code: &SecretString,
    unneeded: &mut Option<(Accounts, SecretString)>,
) -> Result<Arc<Installation>, End> {
    // Only who calls LiveChat has a turn: copies of the code, which wait for the answer, take none from others.
    let mut turn = visit.pages.of_install.turn(visit.client, visit.deadlines.exchange).await?;
    let (accounts, tokens) = visit.exchange(code, &visit.app().install_url(), None).await?;
    *unneeded = Some((accounts, tokens.access_token.clone()));
    check(visit, &tokens)?;
    let (webhooks, is_enabled_now) = state(visit, &tokens).await;
    turn.confirmed();
    Ok(Arc::new(Installation {
        organization: tokens.organization_id.clone(),
        webhooks,
        is_enabled_now,
        body: body(visit.app(), &tokens, webhooks, Timestamp::now()),
        is_durable: OnceCell::new(),
        is_shown: AtomicBool::new(false),
    }))
}

/// Whether the organization may install the app, and has granted what is needed.
fn check(visit: &Visit, tokens: &TokenPair) -> Result<(), End> {
    let app = visit.app();
    let organization = &tokens.organization_id;
    if !app.organizations.contains(organization) {
        return Err(visit.denied(PageEnd::NotAllowed, organization).into());
    }
    let is_granted = |scope: &&String| tokens.scopes.iter().any(|granted| covers(granted, scope));
    let needed = app.install.iter().flat_map(|install| &install.scopes);
    let missing: Vec<String> = needed.filter(|scope| !is_granted(scope)).cloned().collect();
    if !missing.is_empty() {
        visit.denied(PageEnd::MissingScopes, organization);
        return Err(End::Missing(missing));
    }
    Ok(())
}

/// Whether LiveChat sends the license's webhooks, as far as that can be known, after enabling them where they are to be. The app is
/// installed whatever comes of this.
async fn state(visit: &Visit, tokens: &TokenPair) -> (Option<bool>, bool) {
    let app = visit.app();
    let enable_webhooks = matches!(&app.install, Some(Install { enable_webhooks: true, .. }));
    let asked = async {
        let api = Api::with_token(&visit.live().livechat, app, tokens.access_token.clone());
        let is_on = api.license_webhooks_enabled().await?;
        if is_on || !enable_webhooks {
            return Ok((is_on, false));
        }
        match api.enable_license_webhooks().await {
            Ok(()) => Ok((true, true)),
            Err(failure) => {
                visit.failed(PageEnd::Unreachable, &failure);
                Ok((false, false))
            }
        }
    };
    match visit.until(visit.deadlines.calls, asked).await {
        Ok(Ok((is_on, is_enabled_now))) => (Some(is_on), is_enabled_now),
        Ok(Err(failure)) => {
            let failure: Failure = failure;
            let end = if failure.kind == Kind::Authorization { PageEnd::MissingScopes } else { PageEnd::Unreachable };
            visit.failed(end, &failure);
            (None, false)
        }
        Err(_) => (None, false), // it is logged
    }
}

fn body(app: &App, tokens: &TokenPair, webhooks: Option<bool>, now: Timestamp) -> Bytes {
    let mut payload = json!({ "scopes": tokens.scopes });
    if let Some(webhooks) = webhooks {
        payload["licenseWebhooksEnabled"] = webhooks.into();
    }
    let body = json!({
        "event": "installed",
        "date": now.to_string(),
        "clientID": app.client_id,
        "organizationID": tokens.organization_id,
        "accountID": tokens.account_id,
        "payload": payload,
    });
    body.to_string().into()
}

/// Makes the event durable, once.
async fn publish(visit: &Visit, installation: Arc<Installation>) -> End {
    let Installation { organization, body, is_durable, .. } = &*installation;
    let (pages, policy, name) = (&visit.pages, &visit.live().policy, &visit.app().name);
    let outcome = async {
        let mut reading = pages.budget.begin().map_err(Outcome::Unavailable)?;
        reading.grow_to(body.len()).map_err(Outcome::Unavailable)?;
        let held = reading.complete().map_err(Outcome::Unavailable)?;
        let app = policy.apps.get(name).ok_or(Outcome::Unavailable(crate::outcome::Unavailable::Panic))?;
        let accepted = pages.relay.accept_installation(policy, app, body).map_err(Outcome::Rejected)?;
        Ok::<_, Outcome>(pages.relay.deliver(accepted, held, visit.deadlines.answer).outcome().await)
    };
    let published = async {
        match outcome.await {
            Ok(Outcome::Unavailable(_)) | Err(Outcome::Unavailable(_)) => {
                tracing::warn!(
                    app = name,
                    organization,
                    "the event of an installation could not be stored; the page asks to be reloaded"
                );
                Err(PageEnd::NotDurable)
            }
            Err(outcome) => {
                tracing::error!(
                    app = name,
                    ?outcome,
                    "an installation did not lead to an event: this is a bug of the relay"
                );
                Err(PageEnd::Panic)
            }
            Ok(_) => {
                tracing::info!(app = name, organization, "an organization has installed the app");
                Ok(())
            }
        }
    };
    match is_durable.get_or_try_init(|| published).await {
        Ok(()) => End::Installed(installation),
        Err(end) => end.into(),
    }
}

impl End {
    fn end(&self) -> PageEnd {
        match self {
            Self::Installed(_) => PageEnd::Installed,
            Self::Declined(_) => PageEnd::Declined,
            Self::Missing(_) => PageEnd::MissingScopes,
            Self::Other(end) => *end,
        }
    }

    fn shown(&self, app: &App) -> Shown {
        let end = match self {
            Self::Installed(installation) if installation.is_shown.swap(true, Ordering::Relaxed) => PageEnd::Shown,
            _ => self.end(),
        };
        let kind = match end {
            PageEnd::Installed | PageEnd::Shown => "yes",
            PageEnd::TooMany | PageEnd::Busy | PageEnd::Unreachable | PageEnd::NotDurable => "wait",
            _ => "no",
        };
        let Text { title, lines } = self.text();
        let title = title.replace("{app}", &app.name);
        let mut lines: String = lines.iter().map(|line| format!("<p>{}</p>\n", escaped(line))).collect();
        if let Self::Missing(scopes) = self {
            let items: String =
                scopes.iter().map(|scope| format!("<li><code>{}</code></li>", escaped(scope))).collect();
            lines += &format!("<ul>{items}</ul>\n");
        }
        let text = PAGE.with(&[("end", kind), ("title", &escaped(&title)), ("lines", &lines)]);
        Shown::html(end, text, &PAGE.policy)
    }

    fn text(&self) -> Text {
        match self {
            Self::Installed(installation) => Text::of_installed(installation.webhooks, installation.is_enabled_now),
            Self::Declined(reason) => Text::of_reason(*reason),
            _ => Text::of_end(self.end()),
        }
    }
}
