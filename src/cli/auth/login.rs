//! `auth login`: an address for the browser, the code that comes back, and the tokens for it in their file.

use std::io::{BufRead as _, Read as _};
use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use secrecy::SecretString;
use serde_json::json;

use super::callback::{Listener, Page, finish};
use super::{revoke, tokens};
use crate::cli::Failure;
use crate::cli::print::{GOOD, note, out, visible, with_commands, wrapped};
use crate::cli::spool::print_json;
use crate::cli::webhooks::Common;
use crate::config::Need;
use crate::livechat::{self, Accounts, App, CONSOLE, Login, Reason, Redirect, TokenFile, TokenPair};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// For a browser on another machine: read the address that it is redirected to from standard input
    #[arg(long)]
    paste: bool,
}

/// No address that LiveChat sends a browser to is longer.
const PASTED_BYTES_MAX: u64 = 16 << 10;

/// How often a person may paste something else.
const PASTES_MAX: usize = 5;

pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (livechat, app) = arguments.common.load(Need::LiveChat)?;
    let file = TokenFile::new(tokens(&app)?);
    // A file that cannot be written is found before a person is asked for anything.
    drop(file.lock().await?.reserve()?);
    tell_former(&file);
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
    report(&pending, &pair, arguments.common.source.config.as_deref(), arguments.common.json)
}

/// Whose tokens the login replaces. What cannot be read is replaced, too.
fn tell_former(file: &TokenFile) {
    let path = file.path().display();
    let told = match file.read() {
        Ok(None) => return,
        Ok(Some(TokenPair { account_id, organization_id, .. })) => format!(
            "{path} has tokens of the account {account_id} of the organization {organization_id}. This login replaces them, and ends them at \
             LiveChat; until then they stay good."
        ),
        Err(failure) => format!("{}. This login replaces it.", failure.what),
    };
    note(format_args!("{}\n", wrapped(&visible(&told), 0)));
}

/// On standard error: programs read the other one.
fn introduce(login: &Login, redirect_uri: &str, is_pasted: bool, timeout: Duration) {
    let next = if is_pasted {
        "then sends the browser to an address that it cannot open. Copy that address from the browser, and paste it here."
    } else {
        "then sends the browser back here."
    };
    let waits = SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX);
    let waits = format!("LiveChat {next} The command waits {waits:#} for it; Ctrl-C ends it.");
    let errors = format!(
        "After a refusal, and after most errors, LiveChat shows a page of its own and sends the browser nowhere: end the command with Ctrl-C, \
         correct what the page says, and log in again. Often {redirect_uri} is missing in the app's Redirect URI whitelist: App \
         Authorization of the app in {CONSOLE}"
    );
    anstream::eprintln!(
        "Open this address in a browser, and grant the app access:\n\n  {}\n\n{}\n\n{}\n",
        login.url,
        wrapped(&waits, 0),
        wrapped(&errors, 0)
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
        let (callback, connections) = arrived.map_err(|_| hint())??;
        let outcome = match callback.redirect {
            Redirect::Code(code) => self.finish(&code).await,
            Redirect::Error(reason) => Err(refused(reason)),
            other => Err(Failure::Failed(unusable(&other).to_owned())),
        };
        let _ = callback.page.send(if outcome.is_ok() { Page::Done } else { Page::Failed }); // the browser may have gone
        finish(connections).await;
        outcome
    }

    async fn by_paste(&self, timeout: Duration) -> Result<Kept, Failure> {
        let code = tokio::time::timeout(timeout, self.pasted_code()).await;
        let code =
            code.map_err(|_| Failure::Failed(format!("no address with a code was pasted within {timeout:?}")))??;
        self.finish(&code).await
    }

    /// Reads lines until one has a code.
    async fn pasted_code(&self) -> Result<SecretString, Failure> {
        let mut told = "nothing was pasted";
        for _ in 0..PASTES_MAX {
            let read = tokio::task::spawn_blocking(|| {
                let mut line = String::new();
                std::io::stdin().lock().take(PASTED_BYTES_MAX).read_line(&mut line).map(|_| line)
            });
            let line = read.await.map_err(Failure::failed)?;
            let line = line.map_err(|e| Failure::Failed(format!("standard input: {e}")))?;
            if line.is_empty() {
                break; // its end
            }
            match pasted(line.trim(), &self.redirect_uri, &self.login.state) {
                Redirect::Code(code) => return Ok(code),
                Redirect::Error(reason) => return Err(refused(reason)),
                other => told = unusable(&other),
            }
            let wanted = format!(
                "{told}. Paste the whole address that the browser was redirected to: it begins with {}?",
                self.redirect_uri
            );
            note(format_args!("{}", wrapped(&wanted, 0)));
        }
        Err(Failure::Failed(format!("{told}; log in again")))
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
                Err(Failure::Failed(format!("the new tokens are not saved, and {ended}: {failure}")))
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
            let told = format!("the tokens of the login before this one may still be valid: {}", failure.what);
            note(format_args!("{}", wrapped(&visible(&told), 0)));
        }
    }
}

/// What a person has pasted: the address, its query, or the code alone, for which PKCE has to do.
fn pasted(text: &str, redirect_uri: &str, state: &SecretString) -> Redirect {
    let query = match text.split_once('?') {
        Some((address, query)) if address.is_empty() || address == redirect_uri => Some(query),
        Some(_) => return Redirect::NoCode,
        None => text.starts_with("code=").then_some(text),
    };
    match query {
        Some(query) => Redirect::read(query.split('#').next(), Some(state)),
        None if text.contains(['/', '=']) => Redirect::NoCode,
        None => livechat::code(text).map_or(Redirect::NoCode, Redirect::Code),
    }
}

/// Why an address ends no login.
const fn unusable(redirect: &Redirect) -> &'static str {
    match redirect {
        Redirect::Foreign => "this address belongs to another login: its state is another one, or missing",
        _ => "this is not an address of this login, or there is no code in it",
    }
}

fn refused(reason: Reason) -> Failure {
    let why = match reason {
        Reason::Denied => {
            "access was refused, or the account may not grant it; log in again, and allow it in the browser"
        }
        Reason::Scope => {
            "the account may not grant the app's scopes; log in again, with an account that is an administrator"
        }
        Reason::Client => {
            "it does not know the Client ID, or the Redirect URI; compare both with App Authorization of the app in Developer Console"
        }
        Reason::TooManyRedirects => "the browser was redirected too often; wait a minute, and log in again",
        Reason::SignIn => "the account has to sign in; sign in at LiveChat, and log in again",
        Reason::Server => "LiveChat has a problem; log in again later",
        Reason::Unknown => "it does not say why; log in again",
    };
    Failure::Failed(format!("LiveChat did not grant the app access: {why}"))
}

fn report(pending: &Pending, pair: &TokenPair, config_path: Option<&Path>, is_json: bool) -> Result<(), Failure> {
    let (app, scopes) = (&pending.app.name, pair.scopes.iter().map(String::as_str).collect::<Vec<_>>());
    if is_json {
        return print_json(&json!({
            "app": app, "account_id": pair.account_id, "organization_id": pair.organization_id, "scopes": scopes,
            "expires_at": pair.expires_at,
        }));
    }
    let whose =
        format!("the app {app} acts for the account {} of the organization {}", pair.account_id, pair.organization_id);
    let more = format!("`livechat-relay auth status --app {app}` shows what they allow");
    out(format_args!(
        "{GOOD}logged in{GOOD:#}\n{}\nscopes: {}\n{}",
        wrapped(&visible(&whose), 0),
        wrapped(&visible(&scopes.join(", ")), 8),
        wrapped(&with_commands(config_path, &more), 0)
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
        let pasted = |text: &str| pasted(text, "http://localhost:7413/", &state);
        for text in [
            "http://localhost:7413/?code=dal%3Aabc&state=state-1",
            "http://localhost:7413/?state=state-1&code=dal%253Aabc#",
            "?code=dal:abc&state=state-1",
            "code=dal:abc&state=state-1",
            "dal:abc",
            "dal%3Aabc",
        ] {
            let Redirect::Code(code) = pasted(text) else { panic!("{text}") };
            assert_eq!(code.expose_secret(), "dal:abc", "{text}");
        }
        for text in ["http://localhost:7413/?code=abc&state=state-2", "?code=abc", "code=abc&state="] {
            assert!(matches!(pasted(text), Redirect::Foreign), "{text}");
        }
        for text in [
            "",
            "http://localhost:7413/",
            "two words",
            "?state=state-1",
            "https://accounts.livechat.com/?code=abc&state=state-1",
        ] {
            assert!(matches!(pasted(text), Redirect::NoCode), "{text}");
        }
        assert!(matches!(pasted("?error=access_denied&state=state-1"), Redirect::Error(Reason::Denied)));
    }
}
