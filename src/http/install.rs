//! `GET /install/{app}`: LiveChat sends a browser here to install the app. The code in the query is exchanged once, organization and scopes
//! are checked, and the page says that the app is installed when the event is durable. No token is kept.

mod texts;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;
use tokio::time::Instant;

use super::pages::{
    Claim, Deadlines, Page, Pages, Paid, Seen, Shown, Template, digest, escaped, of_exchange, policy, revoke,
};
use crate::livechat::{Accounts, Api, App, Config, Failure, Install, Kind, Reason, Redirect, TokenPair, covers};
use crate::outcome::{Outcome, PageEnd};
use texts::Text;

static PAGE: Template = Template {
    text: include_str!("pages/install.html"),
    policy: LazyLock::new(|| policy(PAGE.text, "frame-ancestors 'none'")),
};

/// What has become of an installation, as the page says it.
enum End {
    /// Whether LiveChat sends the license's webhooks, where that is known; and whether it does so because of us.
    Installed {
        webhooks: Option<bool>,
        is_enabled_now: bool,
    },
    Declined(Reason),
    Missing(Vec<String>),
    Other(PageEnd),
}

impl From<PageEnd> for End {
    fn from(end: PageEnd) -> Self {
        Self::Other(end)
    }
}

/// An organization has installed the app.
struct Installation {
    organization: String,
    account: String,
    scopes: BTreeSet<String>,
    webhooks: Option<bool>,
}

pub async fn shown(
    pages: &Arc<Pages>,
    page: &Page,
    query: Option<&str>,
    client: IpAddr,
    deadlines: Deadlines,
) -> Shown {
    let end = match Redirect::read(query, None) {
        Redirect::NoCode | Redirect::Malformed | Redirect::Foreign => PageEnd::NoCode.into(),
        Redirect::Error(reason) => End::Declined(reason),
        Redirect::Code(code) => with_code(pages, page, code, client, deadlines).await,
    };
    end.shown(page.app())
}

async fn with_code(pages: &Arc<Pages>, page: &Page, code: SecretString, client: IpAddr, deadlines: Deadlines) -> End {
    let paid = match pages.of_install.pay(client) {
        Ok(paid) => paid,
        Err(end) => return end.into(),
    };
    let (pages, page) = (Arc::clone(pages), page.clone());
    // A task of its own: a browser that leaves must not leave a token behind, or an installation without its event.
    let work = match pages.installations.see(digest(&page.app().name, &code), Instant::now()) {
        Seen::Used => return PageEnd::CodeUsed.into(),
        Seen::Busy => return PageEnd::Busy.into(),
        Seen::Unfinished(claim, body) => tokio::spawn(async move {
            let end = End::Installed { webhooks: webhooks_of(&body), is_enabled_now: false };
            publish(&pages, &page, claim, body, end, deadlines).await
        }),
        Seen::New(claim) => tokio::spawn(async move { install(&pages, &page, claim, &code, paid, deadlines).await }),
    };
    work.await.unwrap_or(End::Other(PageEnd::Panic))
}

/// The whole installation. Whatever comes of it, its token is revoked: nothing of it is needed afterwards. The event comes first, so that an
/// end of the relay in between leaves a token, which ends by itself, and not an installation that no one hears of.
async fn install(
    pages: &Pages,
    page: &Page,
    claim: Claim<Bytes>,
    code: &SecretString,
    paid: Paid,
    deadlines: Deadlines,
) -> End {
    let (app, config) = (page.app(), &page.live.livechat);
    let exchanged = async {
        let turn = pages.of_install.turn().await?;
        let failed = |failure: Failure| pages.failed(&app.name, of_exchange(&failure), &failure);
        let accounts = Accounts::new(config);
        let tokens = accounts.exchange(app, code, &app.install_url(), None).await.map_err(failed)?;
        Ok((turn, accounts, tokens))
    };
    let (_turn, accounts, tokens) = match pages.until(deadlines.exchange, exchanged).await.unwrap_or_else(Err) {
        Ok(exchanged) => exchanged,
        Err(end) => {
            if end == PageEnd::CodeRefused {
                claim.used();
            } // else it may be good later: the page may be reloaded
            return end.into();
        }
    };
    let end = match check(pages, app, &tokens) {
        Ok(()) => {
            paid.give_back();
            let (webhooks, is_enabled_now) = state(pages, config, app, &tokens, deadlines).await;
            let installation = Installation {
                organization: tokens.organization_id.clone(),
                account: tokens.account_id.clone(),
                scopes: tokens.scopes.clone(),
                webhooks,
            };
            let body = Bytes::from(installation.body(&app.client_id, Timestamp::now()));
            publish(pages, page, claim, body, End::Installed { webhooks, is_enabled_now }, deadlines).await
        }
        Err(end) => {
            claim.used();
            end
        }
    };
    let revoked = revoke(accounts, tokens.access_token, &app.name);
    let _ = pages.until(deadlines.answer, revoked).await; // the page is right without it, and the task goes on
    end
}

/// Whether the organization may install the app, and has granted what is needed.
fn check(pages: &Pages, app: &App, tokens: &TokenPair) -> Result<(), End> {
    let organization = &tokens.organization_id;
    if !app.organizations.contains(organization) {
        return Err(pages.denied(&app.name, PageEnd::NotAllowed, organization).into());
    }
    let is_granted = |scope: &&String| tokens.scopes.iter().any(|granted| covers(granted, scope));
    let needed = app.install.iter().flat_map(|install| &install.scopes);
    let missing: Vec<String> = needed.filter(|scope| !is_granted(scope)).cloned().collect();
    if !missing.is_empty() {
        pages.denied(&app.name, PageEnd::MissingScopes, organization);
        return Err(End::Missing(missing));
    }
    Ok(())
}

/// Whether LiveChat sends the license's webhooks, as far as that can be known, after enabling them where they are to be. The app is
/// installed whatever comes of this.
async fn state(
    pages: &Pages,
    config: &Config,
    app: &App,
    tokens: &TokenPair,
    deadlines: Deadlines,
) -> (Option<bool>, bool) {
    let enable_webhooks = matches!(&app.install, Some(Install { enable_webhooks: true, .. }));
    let asked = async {
        let api = Api::with_token(config, app, tokens.access_token.clone());
        let is_on = api.license_webhooks_enabled().await?;
        if is_on || !enable_webhooks {
            return Ok((is_on, false));
        }
        match api.enable_license_webhooks().await {
            Ok(()) => Ok((true, true)),
            Err(failure) => {
                pages.failed(&app.name, PageEnd::Unreachable, &failure);
                Ok((false, false))
            }
        }
    };
    match pages.until(deadlines.calls, asked).await {
        Ok(Ok((is_on, is_enabled_now))) => (Some(is_on), is_enabled_now),
        Err(_) => (None, false),
        Ok(Err(failure)) => {
            let failure: Failure = failure;
            let end = if failure.kind == Kind::Authorization { PageEnd::MissingScopes } else { PageEnd::Unreachable };
            pages.failed(&app.name, end, &failure);
            (None, false)
        }
    }
}

impl Installation {
    /// The event's `data`, in the shape of an App Webhook.
    fn body(&self, client_id: &str, now: Timestamp) -> String {
        let Self { organization, account, scopes, webhooks } = self;
        let mut payload = json!({ "scopes": scopes });
        if let Some(webhooks) = webhooks {
            payload["licenseWebhooksEnabled"] = (*webhooks).into();
        }
        let body = json!({
            "event": "installed",
            "date": now.to_string(),
            "clientID": client_id,
            "organizationID": organization,
            "accountID": account,
            "payload": payload,
        });
        body.to_string()
    }
}

fn webhooks_of(body: &[u8]) -> Option<bool> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body["payload"]["licenseWebhooksEnabled"].as_bool()
}

/// Makes the event durable. Where that fails, the same code does the rest later.
async fn publish(pages: &Pages, page: &Page, claim: Claim<Bytes>, body: Bytes, end: End, deadlines: Deadlines) -> End {
    let (policy, name) = (&page.live.policy, &page.app().name);
    let outcome = async {
        let mut reading = pages.budget.begin().map_err(Outcome::Unavailable)?;
        reading.grow_to(body.len()).map_err(Outcome::Unavailable)?;
        let held = reading.complete().map_err(Outcome::Unavailable)?;
        let app = policy.apps.get(name).ok_or(Outcome::Unavailable(crate::outcome::Unavailable::Panic))?;
        let accepted = pages.relay.accept_installation(policy, app, &body).map_err(Outcome::Rejected)?;
        Ok::<_, Outcome>(pages.relay.deliver(accepted, held, deadlines.answer).outcome().await)
    };
    match outcome.await {
        Ok(Outcome::Unavailable(_)) | Err(Outcome::Unavailable(_)) => {
            claim.unfinished(body);
            tracing::warn!(
                app = name,
                "the event of an installation could not be stored; the page says that it is to be reloaded"
            );
            PageEnd::NotDurable.into()
        }
        Err(outcome) => {
            tracing::error!(app = name, ?outcome, "the event of an installation is none: a fault of the relay");
            PageEnd::Panic.into()
        }
        Ok(_) => {
            claim.used();
            tracing::info!(app = name, "an organization has installed the app");
            end
        }
    }
}

impl End {
    fn end(&self) -> PageEnd {
        match self {
            Self::Installed { .. } => PageEnd::Installed,
            Self::Declined(_) => PageEnd::Declined,
            Self::Missing(_) => PageEnd::MissingScopes,
            Self::Other(end) => *end,
        }
    }

    fn shown(&self, app: &App) -> Shown {
        let end = self.end();
        let kind = match end {
            PageEnd::Installed => "yes",
            PageEnd::TooMany | PageEnd::Busy | PageEnd::Unreachable | PageEnd::NotDurable | PageEnd::CodeUsed => "wait",
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
            Self::Installed { webhooks, is_enabled_now } => Text::of_installed(*webhooks, *is_enabled_now),
            Self::Declined(reason) => Text::of_reason(*reason),
            _ => Text::of_end(self.end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_an_installation_is_read_back_for_the_page() {
        let webhooks = |webhooks| {
            let [organization, account] = ["o\"1", "a"].map(str::to_owned);
            let scopes = BTreeSet::from(["s:ro".to_owned()]);
            let installation = Installation { organization, account, scopes, webhooks };
            webhooks_of(installation.body("c", Timestamp::UNIX_EPOCH).as_bytes())
        };
        assert_eq!([Some(true), Some(false), None].map(webhooks), [Some(true), Some(false), None]);
    }
}
