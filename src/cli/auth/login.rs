//! `auth login`: an address for the browser, the code that comes back, and the tokens for it in their file.

use std::io::{BufRead as _, Read as _};
use std::time::Duration;

use jiff::SignedDuration;
use reqwest::Url;
use secrecy::SecretString;
use serde_json::json;

use super::callback::{Arrival, Listener, Page};
use super::{revoke, tokens};
use crate::cli::Failure;
use crate::cli::print::{GOOD, note, out, visible};
use crate::cli::spool::print_json;
use crate::cli::webhooks::Common;
use crate::config::Need;
use crate::livechat::{self, Accounts, App, CONSOLE, Login, TokenFile, TokenPair};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The browser is on another machine: read the address that it ends at from standard input
    #[arg(long)]
    paste: bool,
}

/// No address that LiveChat sends a browser to is longer.
const PASTED_BYTES_MAX: u64 = 16 << 10;

pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (livechat, app) = arguments.common.load(Need::LiveChat)?;
    let file = TokenFile::new(tokens(&app)?);
    // A file that cannot be written is found before a person is asked for anything.
    drop(file.lock().await?.reserve()?);
    let accounts = Accounts::new(&livechat);
    let redirect_uri = format!("http://localhost:{}/", livechat.login_port);
    let login = accounts.login(&app, &redirect_uri)?;
    let listener = if arguments.paste { None } else { Some(Listener::bind(livechat.login_port).await?) };
    introduce(&login, &redirect_uri, arguments.paste, livechat.login_timeout);
    let pending = Pending { accounts, file, app, login, redirect_uri };
    let (pair, former) = match listener {
        Some(listener) => pending.in_browser(listener, livechat.login_timeout).await?,
        None => pending.by_paste(livechat.login_timeout).await?,
    };
    pending.end(former).await;
    report(&pending, &pair, arguments.common.json)
}

/// On standard error: programs read the other one.
fn introduce(login: &Login, redirect_uri: &str, is_pasted: bool, timeout: Duration) {
    let next = if is_pasted {
        "then sends the browser to an address that it cannot open. Copy that address from the browser, and paste it here."
    } else {
        "then sends the browser back here."
    };
    let waits = SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX);
    anstream::eprintln!(
        "Open this address in a browser, and let the app in:\n\n  {}\n\nLiveChat {next} The command waits {waits:#} for it.\n\n\
         If LiveChat shows an error instead, end the command with Ctrl-C, correct what it says, and log in again. Often\n\
         {redirect_uri} is missing in the app's Redirect URI whitelist:\n{CONSOLE} (App Authorization)\n",
        login.url
    );
}

/// What a login has put into the file, and what was in it before.
type Kept = (TokenPair, Result<Option<TokenPair>, livechat::Failure>);

/// A login that is under way.
struct Pending {
    accounts: Accounts,
    file: TokenFile,
    app: App,
    login: Login,
    redirect_uri: String,
}

impl Pending {
    async fn in_browser(&self, listener: Listener, timeout: Duration) -> Result<Kept, Failure> {
        let hint = || {
            Failure::Failed(format!(
                "no browser came back within {timeout:?}; LiveChat shows errors on its own page: look at the browser. It needs {} in \
                 the app's Redirect URI whitelist ({CONSOLE}, App Authorization), and an account that may have the app's scopes. Where the \
                 browser is on another machine, add --paste",
                self.redirect_uri
            ))
        };
        let arrived = tokio::time::timeout(timeout, listener.arrival(&self.login.state)).await;
        let (callback, mut connections) = arrived.map_err(|_| hint())??;
        let outcome = match callback.arrival {
            Arrival::Code(code) => self.finish(&code).await,
            other => Err(refused(other)),
        };
        let _ = callback.page.send(if outcome.is_ok() { Page::Done } else { Page::Failed }); // the browser may have gone
        connections.finish().await;
        outcome
    }

    async fn by_paste(&self, timeout: Duration) -> Result<Kept, Failure> {
        let read = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().lock().take(PASTED_BYTES_MAX).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(timeout, read).await;
        let line = line.map_err(|_| Failure::Failed(format!("nothing was pasted within {timeout:?}")))?;
        let line = line.map_err(Failure::failed)?.map_err(|e| Failure::Failed(format!("standard input: {e}")))?;
        match pasted(line.trim(), &self.login.state) {
            Arrival::Code(code) => self.finish(&code).await,
            other => Err(refused(other)),
        }
    }

    /// The tokens, in their file.
    async fn finish(&self, code: &SecretString) -> Result<Kept, Failure> {
        let pair = self.accounts.exchange(&self.app, code, &self.redirect_uri, Some(&self.login.verifier)).await?;
        let kept = async {
            let locked = self.file.lock().await?;
            let former = self.file.read();
            locked.reserve()?.replace(&pair).map(|()| former)
        };
        match kept.await {
            Ok(former) => Ok((pair, former)),
            Err(failure) => {
                // What is in no file can be ended by no one later.
                let ended = revoke(&self.accounts, &pair).await;
                let ended = ended
                    .map_or_else(|e| format!("they could not be revoked: {e}"), |()| "they were revoked".to_owned());
                Err(Failure::Failed(format!("the new tokens are not kept, and {ended}: {failure}")))
            }
        }
    }

    /// Ends the tokens of the login before: they are in no file any longer. The new ones are good, whatever comes of it.
    async fn end(&self, former: Result<Option<TokenPair>, livechat::Failure>) {
        let ended = match former {
            Ok(Some(former)) => revoke(&self.accounts, &former).await,
            former => former.map(drop),
        };
        if let Err(failure) = ended {
            note(format_args!("the tokens of the login before this one may still be good: {}", visible(&failure.what)));
        }
    }
}

/// What a person has pasted: the address, its query, or the code alone, for which PKCE has to do.
fn pasted(text: &str, state: &SecretString) -> Arrival {
    if text.is_empty() {
        return Arrival::Nothing;
    }
    let query = text.split_once('?').map(|(_, query)| query).or_else(|| text.starts_with("code=").then_some(text));
    match query {
        Some(query) => {
            Url::parse(&format!("http://localhost/?{query}")).map_or(Arrival::Nothing, |url| Arrival::at(&url, state))
        }
        None if text.contains(['/', '=']) => Arrival::Nothing,
        None => livechat::code(text).map_or(Arrival::Nothing, Arrival::Code),
    }
}

fn refused(arrival: Arrival) -> Failure {
    Failure::Failed(match arrival {
        Arrival::Refused(why) => {
            format!("LiveChat did not let the app in: {why}; begin again, and allow it in the browser")
        }
        Arrival::Foreign => {
            "this address belongs to another login: its state is another one, or missing; begin again".to_owned()
        }
        Arrival::Nothing | Arrival::Code(_) => {
            "there is no code in it; paste the whole address that the browser ends at, from http to its end".to_owned()
        }
    })
}

fn report(pending: &Pending, pair: &TokenPair, is_json: bool) -> Result<(), Failure> {
    let (app, scopes) = (&pending.app.name, pair.scopes.iter().map(String::as_str).collect::<Vec<_>>());
    if is_json {
        return print_json(&json!({
            "app": app, "account_id": pair.account_id, "organization_id": pair.organization_id, "scopes": scopes,
            "expires_at": pair.expires_at,
        }));
    }
    out(format_args!(
        "{GOOD}logged in{GOOD:#}: the app {app} acts for the account {} of the organization {}\nscopes: {}\n\
         `livechat-relay auth status --app {app}` says what they are good for",
        pair.account_id,
        pair.organization_id,
        scopes.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::livechat::{Config, Version};

    #[tokio::test]
    async fn a_browser_that_does_not_come_back_is_waited_for_so_long_and_the_hint_names_the_whitelist() {
        let config = Config::of("http://localhost:1");
        let app = App {
            name: "shop".to_owned(),
            client_id: "client-1".to_owned(),
            client_secret: None,
            public_url: "https://relay.example".to_owned(),
            version: Version::V3_6,
            credential: None,
            wanted: None,
            secret_key: None,
            key_directory: None,
            install: None,
            page: false,
            organizations: std::collections::BTreeSet::new(),
        };
        let accounts = Accounts::new(&config);
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let redirect_uri = format!("http://localhost:{free}/");
        let login = accounts.login(&app, &redirect_uri).expect("a login");
        let file = TokenFile::new(std::path::Path::new("/nonexistent/tokens.json"));
        let pending = Pending { accounts, file, app, login, redirect_uri: redirect_uri.clone() };
        let listener = Listener::bind(free).await.expect("the port");
        let failure = pending.in_browser(listener, Duration::from_millis(5)).await.map(drop).expect_err("no browser");
        let told = failure.to_string();
        assert!(
            told.contains(&redirect_uri) && told.contains("look at the browser") && told.contains("--paste"),
            "{told}"
        );
    }

    #[test]
    fn an_address_its_query_and_a_bare_code_are_understood_and_another_s_address_is_not() {
        let state = SecretString::from("state-1");
        for text in [
            "http://localhost:7413/?code=dal%3Aabc&state=state-1",
            "http://localhost:7413/?state=state-1&code=dal%253Aabc#",
            "?code=dal:abc&state=state-1",
            "code=dal:abc&state=state-1",
            "dal:abc",
            "dal%3Aabc",
        ] {
            let Arrival::Code(code) = pasted(text, &state) else { panic!("{text}") };
            assert_eq!(code.expose_secret(), "dal:abc", "{text}");
        }
        for text in ["http://localhost:7413/?code=abc&state=state-2", "?code=abc", "code=abc&state="] {
            assert!(matches!(pasted(text, &state), Arrival::Foreign), "{text}");
        }
        for text in ["", "http://localhost:7413/", "two words", "?state=state-1"] {
            assert!(matches!(pasted(text, &state), Arrival::Nothing), "{text}");
        }
        let Arrival::Refused(why) = pasted("?error=access_denied&state=state-1", &state) else { panic!("not refused") };
        assert_eq!(why, "access_denied");
    }
}
