//! `GET /app/{app}`: the app's page in LiveChat. To a stranger it is a static page with a button; what it then shows is only there for a
//! token of LiveChat's that is this app's, and of an organization that may see it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::pages::{self, Body, Deadlines, Page, Pages, Seen, Shown, Template, digest, escaped, of_exchange, policy};
use crate::deliveries::Delivered;
use crate::livechat::{self, Accounts, Api, App, Failure, Kind, covers};
use crate::outcome::PageEnd;

/// Who may frame the page. LiveChat's own program checks for these, too.
const FRAMES: &str = "connect-src 'self'; frame-ancestors https://my.livechatinc.com https://*.livechatinc.com \
                      https://*.livechat.com https://*.text.com";

static PAGE: Template =
    Template { text: include_str!("pages/app.html"), policy: LazyLock::new(|| policy(PAGE.text, FRAMES)) };

/// How long LiveChat is not asked again about a token that may see nothing, and at most about one that may: it may be revoked meanwhile.
const REFUSED: Duration = Duration::from_secs(60);
const CONFIRMED_MAX: Duration = Duration::from_secs(10 * 60);

/// Tokens that are remembered. Refused ones cost what `pages::Gate` has, which is less in that time.
pub const VIEWERS_MAX: usize = 1024;

/// How long LiveChat is not asked again about a license, for all visitors, and after it has failed.
const ASKED: Duration = Duration::from_secs(60);
const FAILED: Duration = Duration::from_secs(10);

/// Licenses that are remembered, of apps and their organizations, which the configuration lists.
pub const STATES_MAX: usize = 1024;

/// What a token needs to be told about its license, and all that the page asks for.
const SCOPE: &str = "webhooks.state:ro";

/// A token as LiveChat's are; what is none does not have it called.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;

/// Whose a token is.
#[derive(Clone, Debug)]
pub struct Viewer {
    client_id: String,
    organization: String,
    /// Whether it has [`SCOPE`].
    may_ask: bool,
}

impl Viewer {
    /// By the configuration of now.
    fn is_allowed(&self, app: &App) -> bool {
        self.client_id == app.client_id && app.organizations.contains(&self.organization)
    }
}

/// What LiveChat says about the app and the organization of a token.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// Whether the app is installed on the license. Absent: LiveChat does not say.
    is_installed: Option<bool>,
    webhooks: Option<bool>,
}

const UNKNOWN: State = State { is_installed: None, webhooks: None };

/// The page itself, which is the same for everyone.
pub fn shell(app: &App, config: &livechat::Config) -> Shown {
    let texts = [
        ("app", escaped(&app.name)),
        ("client_id", escaped(&app.client_id)),
        ("authorize", escaped(&format!("{}/", config.accounts.origin()))),
        ("page", escaped(&app.page_url())),
        ("scope", SCOPE.to_owned()),
    ];
    let texts = texts.each_ref().map(|(name, text)| (*name, text.as_str()));
    Shown::html(PageEnd::Shown, PAGE.with(&texts), &PAGE.policy)
}

/// A token for the code of a login. It is for the page alone: the relay keeps none, and lets the refresh token go.
pub async fn token(pages: &Arc<Pages>, page: &Page, body: &[u8], client: IpAddr, deadlines: Deadlines) -> Shown {
    #[derive(Deserialize)]
    struct Login {
        code: String,
        code_verifier: String,
    }
    let login: Option<Login> = serde_json::from_slice(body).ok();
    let verifier = |text: &str| (43..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    let login = login.filter(|login| verifier(&login.code_verifier));
    let Some((code, verifier)) = login.and_then(|login| Some((livechat::code(&login.code)?, login.code_verifier)))
    else {
        return Shown::error(PageEnd::NoCode);
    };
    let paid = match pages.of_app.pay(client) {
        Ok(paid) => paid,
        Err(end) => return Shown::error(end),
    };
    let claim = match pages.logins.see(digest(&page.app().name, &code), Instant::now()) {
        Seen::New(claim) => claim,
        Seen::Busy => return Shown::error(PageEnd::Busy),
        Seen::Used | Seen::Unfinished(..) => return Shown::error(PageEnd::CodeUsed),
    };
    let (pages, page) = (Arc::clone(pages), page.clone());
    // As of an installation: a browser that leaves must not leave a token of a stranger behind.
    let work = tokio::spawn(async move {
        let end = pages.until(deadlines.calls, sign_in(&pages, &page, &code, &SecretString::from(verifier))).await;
        let end = end.unwrap_or_else(Err);
        match end {
            Ok(_) => paid.give_back(),
            Err(PageEnd::Unreachable | PageEnd::Misconfigured | PageEnd::Busy) => return end,
            Err(_) => {}
        }
        claim.used();
        end
    });
    match work.await.unwrap_or(Err(PageEnd::Panic)) {
        Ok(body) => Shown { end: PageEnd::SignedIn, body: Body::Json(body) },
        Err(end) => Shown::error(end),
    }
}

async fn sign_in(pages: &Pages, page: &Page, code: &SecretString, verifier: &SecretString) -> Result<Value, PageEnd> {
    let _turn = pages.of_app.turn().await?;
    let app = page.app();
    let failed = |failure: Failure| pages.failed(&app.name, of_exchange(&failure), &failure);
    let accounts = Accounts::new(&page.live.livechat);
    let tokens = accounts.exchange(app, code, &app.page_url(), Some(verifier)).await.map_err(failed)?;
    if !app.organizations.contains(&tokens.organization_id) {
        let end = pages.denied(&app.name, PageEnd::NotAllowed, &tokens.organization_id);
        let _ = pages::revoke(accounts, tokens.access_token, &app.name).await; // a task that has panicked has said so
        return Err(end);
    }
    Ok(json!({ "access_token": tokens.access_token.expose_secret() }))
}

/// A token that may be one of LiveChat's.
fn plausible(token: Option<&str>) -> Option<SecretString> {
    let is_token =
        |token: &&str| TOKEN_BYTES.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    token.filter(is_token).map(SecretString::from)
}

/// What the page shows to those who may see it.
pub async fn facts(
    pages: &Arc<Pages>,
    page: &Page,
    token: Option<&str>,
    client: IpAddr,
    deadlines: Deadlines,
) -> Shown {
    let Some(token) = plausible(token) else {
        return Shown::error(PageEnd::Unauthorized);
    };
    let state = Box::pin(async {
        let viewer = viewer(pages, page, &token, client).await?;
        state(pages, page, viewer, &token).await
    });
    match pages.until(deadlines.calls, state).await.unwrap_or_else(Err) {
        Err(end) => Shown::error(end),
        Ok(State { is_installed, webhooks }) => {
            let deliveries = last_by_action(pages.relay.deliveries().all(), &page.app().name);
            let delivery = |(action, last): (String, Timestamp)| json!({ "action": action, "last": last.to_string() });
            let body = json!({
                "time": Timestamp::now().to_string(),
                "installed": is_installed,
                "license_webhooks_enabled": webhooks,
                "deliveries": deliveries.into_iter().map(delivery).collect::<Vec<_>>(),
            });
            Shown { end: PageEnd::Shown, body: Body::Json(body) }
        }
    }
}

/// When webhooks of each action last came, of whichever registration.
fn last_by_action(delivered: Vec<Delivered>, app: &str) -> BTreeMap<String, Timestamp> {
    let mut by_action = BTreeMap::new();
    for one in delivered.into_iter().filter(|one| one.app == app) {
        let last = by_action.entry(one.action).or_insert(one.last);
        *last = one.last.max(*last);
    }
    by_action
}

/// Whose the token is, as LiveChat says, or has said a moment ago.
async fn viewer(pages: &Pages, page: &Page, token: &SecretString, client: IpAddr) -> Result<Viewer, PageEnd> {
    let app = page.app();
    let asked = async {
        match info(pages, page, token, client).await {
            Ok((viewer, lasts)) if viewer.is_allowed(app) => (Ok(viewer), lasts.min(CONFIRMED_MAX)),
            Ok((viewer, _)) => {
                pages.denied(&app.name, PageEnd::NotAllowed, &viewer.organization);
                (Ok(viewer), REFUSED)
            }
            Err(PageEnd::Unauthorized) => (Err(PageEnd::Unauthorized), REFUSED),
            Err(end) => (Err(end), Duration::ZERO), // what LiveChat did not say may be said in a moment
        }
    };
    let viewer = pages.viewers.get(digest(&app.name, token), asked).await?;
    if viewer.is_allowed(app) { Ok(viewer) } else { Err(PageEnd::NotAllowed) }
}

/// Asks LiveChat whose token it is, and for how long.
async fn info(pages: &Pages, page: &Page, token: &SecretString, client: IpAddr) -> Result<(Viewer, Duration), PageEnd> {
    let paid = pages.of_app.pay(client)?;
    let _turn = pages.of_app.turn().await?;
    let app = page.app();
    let failed = |failure: &Failure| pages.failed(&app.name, PageEnd::Unreachable, failure);
    let info = Accounts::new(&page.live.livechat).info(token).await;
    let info = info.map_err(|failure| match failure.kind {
        // LiveChat is also seen to call a token that it does not know an invalid request.
        Kind::Authentication | Kind::Validation | Kind::NotFound => PageEnd::Unauthorized,
        _ => failed(&failure),
    })?;
    let may_ask = info.scopes.iter().any(|scope| covers(scope, SCOPE));
    let viewer = Viewer { client_id: info.client_id, organization: info.organization_id, may_ask };
    if viewer.is_allowed(app) {
        paid.give_back();
    }
    Ok((viewer, info.expires_in))
}

/// What LiveChat says of the viewer's license, or has said to another viewer a moment ago. The call is billed.
async fn state(pages: &Pages, page: &Page, viewer: Viewer, token: &SecretString) -> Result<State, PageEnd> {
    if !viewer.may_ask {
        return Ok(UNKNOWN);
    }
    let app = page.app();
    let asked = async {
        let asked = async {
            let _turn = pages.of_app.turn().await?;
            let api = Api::with_token(&page.live.livechat, app, token.clone());
            match api.license_webhooks_enabled().await {
                Ok(webhooks) => Ok(State { is_installed: Some(true), webhooks: Some(webhooks) }),
                Err(failure) if failure.kind == Kind::NotFound => {
                    Ok(State { is_installed: Some(false), webhooks: Some(false) })
                }
                Err(failure) if failure.kind == Kind::Authorization => Ok(UNKNOWN),
                Err(failure) => {
                    if failure.kind == Kind::Authentication {
                        pages.viewers.forget(&digest(&app.name, token)); // it has ended: the next answer says so
                    }
                    Err(pages.failed(&app.name, PageEnd::Unreachable, &failure))
                }
            }
        };
        let state: Result<State, PageEnd> = asked.await;
        let lasts = if matches!(state, Ok(State { is_installed: Some(_), .. })) { ASKED } else { FAILED };
        (state, lasts)
    };
    pages.states.get((app.name.clone(), viewer.organization), asked).await
}

/// Ends a token at LiveChat, and the other one of its pair: a stranger must not find it in the browser.
pub async fn sign_out(
    pages: &Arc<Pages>,
    page: &Page,
    token: Option<&str>,
    client: IpAddr,
    deadlines: Deadlines,
) -> Shown {
    let Some(token) = plausible(token) else {
        return Shown::error(PageEnd::Unauthorized);
    };
    let app = page.app();
    pages.viewers.forget(&digest(&app.name, &token));
    let revoked = async {
        let _paid = pages.of_app.pay(client)?;
        let _turn = pages.of_app.turn().await?;
        let failed = |failure: Failure| pages.failed(&app.name, PageEnd::Unreachable, &failure);
        Accounts::new(&page.live.livechat).revoke(&token).await.map_err(failed)
    };
    match pages.until(deadlines.calls, revoked).await.unwrap_or_else(Err) {
        Ok(()) => Shown { end: PageEnd::SignedOut, body: Body::Json(json!({})) },
        Err(end) => Shown::error(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_has_the_newest_delivery_of_its_registrations_of_this_app() {
        let of = |app: &str, webhook_id: &str, action: &str, second| {
            let [app, webhook_id, action] = [app, webhook_id, action].map(str::to_owned);
            let last = Timestamp::from_second(second).expect("a time");
            Delivered { app, webhook_id, action, key: String::new(), deliveries: 1, first: last, last }
        };
        let all = vec![
            of("a", "1", "x", 3),
            of("a", "2", "x", 5),
            of("a", "3", "x", 4),
            of("a", "4", "y", 1),
            of("b", "5", "x", 9),
        ];
        let last: Vec<_> =
            last_by_action(all, "a").into_iter().map(|(action, last)| (action, last.as_second())).collect();
        assert_eq!(last, [("x".to_owned(), 5), ("y".to_owned(), 1)]);
    }
}
