//! `GET /app/{app}`: the app's page in LiveChat. To a stranger it is a static page with a button; what it then shows is only there for a
//! token of LiveChat's that is this app's, and of an organization that may see it.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::pages::{Shown, Template, Visit, escaped, policy, remembered};
use crate::deliveries::Delivered;
use crate::livechat::{self, Api, App, Kind, covers};
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
pub async fn token(visit: Visit, body: &[u8]) -> Result<Shown, PageEnd> {
    #[derive(Deserialize)]
    struct Login {
        code: String,
        code_verifier: String,
    }
    let Login { code, code_verifier: verifier } = serde_json::from_slice(body).map_err(|_| PageEnd::NoCode)?;
    let is_verifier = (43..=128).contains(&verifier.len()) && verifier.bytes().all(|byte| byte.is_ascii_graphic());
    let code = livechat::code(&code).filter(|_| is_verifier).ok_or(PageEnd::NoCode)?;
    // As of an installation: a browser that leaves must not leave a token of a stranger behind.
    let work = tokio::spawn(async move {
        let (mut token, verifier) = (None, SecretString::from(verifier));
        let exchanged = async {
            match sign_in(&visit, &code, &verifier).await {
                Ok(exchanged) => {
                    token = Some(exchanged);
                    (Ok(()), remembered(PageEnd::SignedIn))
                }
                Err(end) => (Err(end), remembered(end)),
            }
        };
        visit.pages.logins.get(visit.digest(&code), exchanged).await?;
        let token = token.ok_or(PageEnd::CodeUsed)?; // it is for who came first
        Ok(Shown::json(PageEnd::SignedIn, json!({ "access_token": token.expose_secret() })))
    });
    work.await.unwrap_or(Err(PageEnd::Panic))
}

async fn sign_in(visit: &Visit, code: &SecretString, verifier: &SecretString) -> Result<SecretString, PageEnd> {
    let mut turn = visit.pages.of_app.turn(visit.client, visit.deadlines.exchange).await?;
    let (accounts, tokens) = visit.exchange(code, &visit.app().page_url(), Some(verifier)).await?;
    if visit.app().organizations.contains(&tokens.organization_id) {
        turn.confirmed();
        return Ok(tokens.access_token);
    }
    let revoked = visit.revoke(accounts, tokens.access_token);
    let _ = visit.until(visit.deadlines.calls, revoked).await; // the task goes on
    Err(visit.denied(PageEnd::NotAllowed, &tokens.organization_id))
}

/// A token that may be one of LiveChat's.
fn plausible(token: Option<&str>) -> Result<SecretString, PageEnd> {
    let is_token =
        |token: &&str| TOKEN_BYTES.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    token.filter(is_token).map(SecretString::from).ok_or(PageEnd::Unauthorized)
}

/// What the page shows to those who may see it.
pub async fn facts(visit: &Visit, token: Option<&str>) -> Result<Shown, PageEnd> {
    let token = plausible(token)?;
    let state = Box::pin(async {
        let viewer = viewer(visit, &token).await?;
        state(visit, viewer, &token).await
    });
    let State { is_installed, webhooks } = visit.until(visit.deadlines.calls, state).await??;
    let deliveries = last_by_action(visit.pages.relay.deliveries().all(), &visit.app().name);
    let delivery = |(action, last): (String, Timestamp)| json!({ "action": action, "last": last.to_string() });
    let facts = json!({
        "time": Timestamp::now().to_string(),
        "installed": is_installed,
        "license_webhooks_enabled": webhooks,
        "deliveries": deliveries.into_iter().map(delivery).collect::<Vec<_>>(),
    });
    Ok(Shown::json(PageEnd::Shown, facts))
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
async fn viewer(visit: &Visit, token: &SecretString) -> Result<Viewer, PageEnd> {
    let app = visit.app();
    let asked = async {
        match info(visit, token).await {
            Ok((viewer, lasts)) if viewer.is_allowed(app) => (Ok(viewer), lasts.min(CONFIRMED_MAX)),
            Ok((viewer, _)) => {
                visit.denied(PageEnd::NotAllowed, &viewer.organization);
                (Ok(viewer), REFUSED)
            }
            Err(PageEnd::Unauthorized) => (Err(PageEnd::Unauthorized), REFUSED),
            Err(end) => (Err(end), Duration::ZERO), // what LiveChat did not say may be said in a moment
        }
    };
    let viewer = visit.pages.viewers.get(visit.digest(token), asked).await?;
    if viewer.is_allowed(app) { Ok(viewer) } else { Err(PageEnd::NotAllowed) }
}

/// Asks LiveChat whose token it is, and for how long.
async fn info(visit: &Visit, token: &SecretString) -> Result<(Viewer, Duration), PageEnd> {
    let mut turn = visit.pages.of_app.turn(visit.client, visit.deadlines.calls).await?;
    let info = visit.accounts().info(token).await;
    let info = info.map_err(|failure| match failure.kind {
        // LiveChat is also seen to call a token that it does not know an invalid request.
        Kind::Authentication | Kind::Validation | Kind::NotFound => PageEnd::Unauthorized,
        _ => visit.failed(PageEnd::Unreachable, &failure),
    })?;
    let may_ask = info.scopes.iter().any(|scope| covers(scope, SCOPE));
    let viewer = Viewer { client_id: info.client_id, organization: info.organization_id, may_ask };
    if viewer.is_allowed(visit.app()) {
        turn.confirmed();
    }
    Ok((viewer, info.expires_in))
}

/// What LiveChat says of the viewer's license, or has said to another viewer a moment ago. The call is billed.
async fn state(visit: &Visit, viewer: Viewer, token: &SecretString) -> Result<State, PageEnd> {
    if !viewer.may_ask {
        return Ok(UNKNOWN);
    }
    let key = (visit.app().name.clone(), viewer.organization);
    let asked = async {
        let state = ask_state(visit, token).await;
        let lasts = if matches!(state, Ok(State { is_installed: Some(_), .. })) { ASKED } else { FAILED };
        (state, lasts)
    };
    visit.pages.states.get(key, asked).await
}

async fn ask_state(visit: &Visit, token: &SecretString) -> Result<State, PageEnd> {
    let _permit = visit.pages.of_app.permit(visit.deadlines.calls).await?;
    let api = Api::with_token(&visit.live().livechat, visit.app(), token.clone());
    let enabled = api.license_webhooks_enabled().await;
    enabled.map(|webhooks| State { is_installed: Some(true), webhooks: Some(webhooks) }).or_else(|failure| {
        match failure.kind {
            Kind::NotFound => return Ok(State { is_installed: Some(false), webhooks: Some(false) }),
            Kind::Authorization => return Ok(UNKNOWN),
            Kind::Authentication => visit.pages.viewers.forget(&visit.digest(token)), // it has ended: the next answer says so
            _ => {}
        }
        Err(visit.failed(PageEnd::Unreachable, &failure))
    })
}

/// Ends a token at LiveChat, and the other one of its pair: a stranger must not find it in the browser.
pub async fn sign_out(visit: &Visit, token: Option<&str>) -> Result<Shown, PageEnd> {
    let token = plausible(token)?;
    let mut turn = visit.pages.of_app.turn(visit.client, visit.deadlines.exchange).await?;
    let accounts = visit.accounts();
    let revoked = visit.until(visit.deadlines.calls, accounts.revoke(&token)).await?;
    revoked.map_err(|failure| visit.failed(PageEnd::Unreachable, &failure))?;
    // LiveChat calls a token that it does not know revoked, too: that it was a viewer's is only known here.
    let viewer = visit.pages.viewers.take(&visit.digest(&token));
    if matches!(viewer, Some(Ok(viewer)) if viewer.is_allowed(visit.app())) {
        turn.confirmed();
    }
    Ok(Shown::json(PageEnd::SignedOut, json!({})))
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
