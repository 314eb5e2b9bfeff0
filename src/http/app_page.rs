//! `GET /app/{app}`: the app's page in LiveChat. To a stranger it is a static page with a button; what it then shows is only there for a
//! token of LiveChat's that is this app's, and of an organization that may see it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::pages::{self, Body, Page, Pages, Seen, Shown, Template, digest, escaped, of_exchange, policy};
use crate::livechat::{self, Accounts, Api, App, Failure, Kind};
use crate::outcome::PageEnd;

/// Who may frame the page. LiveChat's own program checks for these, too.
const FRAMES: &str = "connect-src 'self'; frame-ancestors https://my.livechatinc.com https://*.livechatinc.com \
                      https://*.livechat.com https://*.text.com";

static PAGE: Template =
    Template { text: include_str!("pages/app.html"), policy: LazyLock::new(|| policy(PAGE.text, FRAMES)) };

/// How long LiveChat is not asked again about a token, good or bad.
const CACHED: Duration = Duration::from_secs(60);

/// Tokens that are remembered. Each that is not costs a token of the buckets in `pages`, which have fewer in that time.
const CACHED_MAX: usize = 256;

/// A token as LiveChat's are; what is none does not have it called.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;

/// What LiveChat says about the app and the organization of a token.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether the app is installed on the license. Absent: LiveChat does not say.
    is_installed: Option<bool>,
    webhooks: Option<bool>,
}

/// The page itself, which is the same for everyone.
pub fn shell(app: &App, config: &livechat::Config) -> Shown {
    let texts = [
        ("app", escaped(&app.name)),
        ("client_id", escaped(&app.client_id)),
        ("authorize", escaped(&format!("{}/", config.accounts))),
        ("page", escaped(&app.page_url())),
    ];
    let texts = texts.each_ref().map(|(name, text)| (*name, text.as_str()));
    Shown::html(PageEnd::Shown, PAGE.with(&texts), &PAGE.policy)
}

fn too_many(wait: Duration) -> Shown {
    Shown { retry_after: Some(wait), ..Shown::error(PageEnd::TooMany) }
}

/// A token for the code of a login. It is for the page alone: the relay keeps none, and lets the refresh token go.
pub async fn token(pages: &Arc<Pages>, page: &Page, body: &[u8], client: IpAddr) -> Shown {
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
    if let Err(wait) = pages.pay(client) {
        return too_many(wait);
    }
    let claim = match pages.logins.see(digest(&page.app().name, &code), Instant::now()) {
        Seen::New(claim) => claim,
        Seen::Busy => return Shown::error(PageEnd::Busy),
        Seen::Used | Seen::Unfinished(..) => return Shown::error(PageEnd::CodeUsed),
    };
    let (pages, page) = (Arc::clone(pages), page.clone());
    // As of an installation: a browser that leaves must not leave a token of a stranger behind.
    let work = tokio::spawn(async move {
        let _turn = pages.turn().await?;
        let end = sign_in(&pages, &page, &code, &SecretString::from(verifier)).await;
        if !matches!(end, Err(PageEnd::Unreachable | PageEnd::Misconfigured)) {
            claim.used();
        }
        end
    });
    match work.await.unwrap_or(Err(PageEnd::Panic)) {
        Ok(body) => Shown { end: PageEnd::SignedIn, body: Body::Json(body), retry_after: None },
        Err(end) => Shown::error(end),
    }
}

async fn sign_in(pages: &Pages, page: &Page, code: &SecretString, verifier: &SecretString) -> Result<Value, PageEnd> {
    let app = page.app();
    let failed = |failure: Failure| pages.failed(&app.name, of_exchange(&failure), &failure);
    let accounts = Accounts::new(&page.live.livechat).map_err(failed)?;
    let tokens = accounts.exchange(app, code, &app.page_url(), Some(verifier)).await.map_err(failed)?;
    if !app.organizations.contains(&tokens.organization_id) {
        if let Err(failure) = accounts.revoke(&tokens.access_token).await {
            tracing::warn!(app = app.name, error = %failure, "the token of an organization that may not see the page could not be revoked");
        }
        return Err(pages.denied(&app.name, PageEnd::NotAllowed, &tokens.organization_id));
    }
    Ok(json!({ "access_token": tokens.access_token.expose_secret() }))
}

/// What the page shows to those who may see it.
pub async fn facts(pages: &Arc<Pages>, page: &Page, token: Option<&str>, client: IpAddr) -> Shown {
    let is_token =
        |token: &&str| TOKEN_BYTES.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    let Some(token) = token.filter(is_token).map(SecretString::from) else {
        return Shown::error(PageEnd::Unauthorized);
    };
    let digest = digest(&page.app().name, &token);
    let cached = lock(pages).get(&digest).filter(|(until, _)| *until > Instant::now()).map(|(_, facts)| facts.clone());
    let facts = if let Some(facts) = cached {
        facts
    } else {
        if let Err(wait) = pages.pay(client) {
            return too_many(wait);
        }
        let facts = ask(pages, page, &token).await;
        // What LiveChat did not say may be said in a moment.
        if matches!(facts, Ok(_) | Err(PageEnd::Unauthorized | PageEnd::NotAllowed)) {
            remember(&mut lock(pages), digest, &facts, Instant::now());
        }
        facts
    };
    match facts {
        Err(end) => Shown::error(end),
        Ok(Facts { is_installed, webhooks }) => {
            let deliveries = (pages.deliveries)(&page.app().name);
            let delivery = |of: &pages::LastDelivery| json!({ "action": of.action, "last": of.last.to_string() });
            let body = json!({
                "time": Timestamp::now().to_string(),
                "installed": is_installed,
                "license_webhooks_enabled": webhooks,
                "deliveries": deliveries.iter().map(delivery).collect::<Vec<_>>(),
            });
            Shown { end: PageEnd::Shown, body: Body::Json(body), retry_after: None }
        }
    }
}

/// By the digest of the token.
pub type Cache = HashMap<pages::Digest, (Instant, Result<Facts, PageEnd>)>;

fn lock(pages: &Pages) -> MutexGuard<'_, Cache> {
    pages.facts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember(cache: &mut Cache, digest: pages::Digest, facts: &Result<Facts, PageEnd>, now: Instant) {
    cache.retain(|_, (until, _)| *until > now);
    if cache.len() < CACHED_MAX {
        cache.insert(digest, (now + CACHED, facts.clone()));
    }
}

/// Asks LiveChat whose token it is, and then, with the token, about its license.
async fn ask(pages: &Pages, page: &Page, token: &SecretString) -> Result<Facts, PageEnd> {
    let _turn = pages.turn().await?;
    let (app, config) = (page.app(), &page.live.livechat);
    let failed = |failure: &Failure| pages.failed(&app.name, PageEnd::Unreachable, failure);
    let info = Accounts::new(config).map_err(|failure| failed(&failure))?.info(token).await;
    let info = info.map_err(|failure| match failure.kind {
        // LiveChat is also seen to call a token that it does not know an invalid request.
        Kind::Authentication | Kind::Validation | Kind::NotFound => PageEnd::Unauthorized,
        _ => failed(&failure),
    })?;
    if info.client_id != app.client_id || !app.organizations.contains(&info.organization_id) {
        return Err(pages.denied(&app.name, PageEnd::NotAllowed, &info.organization_id));
    }
    let api = Api::with_token(config, app, token.clone()).map_err(|failure| failed(&failure))?;
    match api.license_webhooks_enabled().await {
        Ok(webhooks) => Ok(Facts { is_installed: Some(true), webhooks: Some(webhooks) }),
        Err(failure) => match failure.kind {
            Kind::NotFound => Ok(Facts { is_installed: Some(false), webhooks: Some(false) }),
            Kind::Authorization => Ok(Facts { is_installed: None, webhooks: None }),
            Kind::Authentication => Err(PageEnd::Unauthorized),
            _ => Err(failed(&failure)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_forgets_after_its_time() {
        let (mut cache, now) = (Cache::new(), Instant::now());
        let facts = Err(PageEnd::Unauthorized);
        let of = |n: usize| digest("app", &SecretString::from(n.to_string()));
        (0..CACHED_MAX + 10).for_each(|n| remember(&mut cache, of(n), &facts, now));
        assert_eq!(cache.len(), CACHED_MAX);
        assert!(cache.contains_key(&of(0)), "a stranger's token takes no one's place");
        remember(&mut cache, of(CACHED_MAX), &facts, now + CACHED);
        assert_eq!(cache.len(), 1);
    }
}
