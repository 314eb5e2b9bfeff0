//! What LiveChat sends a browser back with, to a page of the relay or to `auth login`: the few parameters of a redirect that count, and what
//! an error in it means. None of it is ever shown or logged.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;

use super::code;

/// What a redirect brings.
#[derive(Debug)]
pub enum Redirect {
    Code(SecretString),
    /// LiveChat has refused, for this reason.
    Error(Reason),
    /// Its state is of another login, or missing: someone else may have made it.
    Foreign,
    /// There is no code, and no error either.
    NoCode,
    /// Its code is none of LiveChat's, or the code or the state occurs twice.
    Malformed,
}

/// Why LiveChat has sent the browser back without a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The user, or LiveChat, has said no.
    Denied,
    /// The account may not grant what the app asks for.
    Scope,
    /// The Client ID, or the redirect whitelist, is wrong.
    Client,
    /// The browser was sent to and fro too often.
    TooManyRedirects,
    /// The user has to sign in once more.
    SignIn,
    /// LiveChat itself.
    Server,
    /// The relay does not know it.
    Unknown,
}

impl Reason {
    /// By LiveChat's names for errors of authorization (`oauth_exception`, `exception_details`, `error`) and of the login
    /// (`identity_exception`).
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "access_denied" | "missing_grant" => Self::Denied,
            "invalid_scope" => Self::Scope,
            "client_id_not_found"
            | "redirect_uri_not_set"
            | "invalid_redirect_uri"
            | "unauthorized_client"
            | "invalid_client"
            | "unsupported_response_type"
            | "invalid_request" => Self::Client,
            "too_many_redirects" => Self::TooManyRedirects,
            "identity_lost" | "unauthorized" | "credentials_login_disabled" => Self::SignIn,
            "server_error" | "temporarily_unavailable" => Self::Server,
            _ => return None,
        })
    }
}

impl Redirect {
    /// `state` is that of the login that is awaited; an installation has none, because LiveChat begins it.
    pub fn read(query: Option<&str>, state: Option<&SecretString>) -> Self {
        let values = |name| values(query.unwrap_or_default(), name);
        // The most exact one comes first.
        let names = ["exception_details", "oauth_exception", "identity_exception", "error"];
        let mut errors = names.into_iter().flat_map(values).peekable();
        let [(code, codes), (given, states)] =
            ["code", "state"].map(|name| (values(name).next(), values(name).count()));
        if codes > 1 || states > 1 {
            return Self::Malformed;
        }
        let code = code.map(|text| self::code(&text));
        let given = given.unwrap_or_default();
        let is_foreign =
            state.is_some_and(|state| !bool::from(given.as_bytes().ct_eq(state.expose_secret().as_bytes())));
        if is_foreign && (errors.peek().is_some() || matches!(code, Some(Some(_)))) {
            return Self::Foreign;
        }
        if errors.peek().is_some() {
            return Self::Error(errors.find_map(|name| Reason::of(&name)).unwrap_or(Reason::Unknown));
        }
        match code {
            Some(Some(code)) => Self::Code(code),
            Some(None) => Self::Malformed,
            None => Self::NoCode,
        }
    }
}

/// What a parameter has, each time that it occurs. The others are not looked at: texts for people may be long, and encoded in any way. A
/// `+` is one: no value that counts has blanks. What is not encoded as it should be is like none that is expected.
fn values<'a>(query: &'a str, name: &'static str) -> impl Iterator<Item = Cow<'a, str>> {
    let parameters = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
    let of_name = parameters.filter(move |(known, _)| *known == name);
    of_name.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_however_often_it_was_encoded() {
        for (query, expected) in [
            ("code=dal:x_-~.1", "dal:x_-~.1"),
            ("code=dal%3Ax&state=", "dal:x"),
            ("state=&code=dal%253Ax", "dal:x"),
            ("utm_source=a+b&code=plain", "plain"),
            ("&&code=a+b/c=&x", "a+b/c="),
        ] {
            match Redirect::read(Some(query), None) {
                Redirect::Code(code) => assert_eq!(code.expose_secret(), expected, "{query}"),
                other => panic!("{query}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_code_and_an_error_count_only_with_the_state_of_the_login() {
        let state = SecretString::from("state-1");
        let read = |query| Redirect::read(Some(query), Some(&state));
        assert!(matches!(read("code=x&state=state-1"), Redirect::Code(_)));
        assert!(matches!(read("error=access_denied&state=state%2D1"), Redirect::Error(Reason::Denied)));
        for query in ["code=x", "code=x&state=", "code=x&state=state-2", "error=access_denied", "error=x&state=s"] {
            assert!(matches!(read(query), Redirect::Foreign), "{query}");
        }
        assert!(matches!(read("state=state-2"), Redirect::NoCode));
        assert!(matches!(read("code=%&state=state-1"), Redirect::Malformed));
    }

    #[test]
    fn what_is_no_code_of_livechat_is_refused() {
        let long = format!("code={}", "x".repeat(1025));
        for query in [
            "code=a&code=b",
            "code=",
            "code=%",
            "code=%4",
            "code=%zz",
            "code=%ff",
            "code=%25%20",
            "code=a%20b",
            "code=a%0d%0ab",
            "code=%25252525",
            "code=%C3%A9",
            &long,
            "code=a&state=&state=",
        ] {
            assert!(matches!(Redirect::read(Some(query), None), Redirect::Malformed), "{query}");
        }
        for query in [None, Some(""), Some("state=x"), Some("CODE=x"), Some("token=x")] {
            assert!(matches!(Redirect::read(query, None), Redirect::NoCode), "{query:?}");
        }
    }

    #[test]
    fn errors_come_from_a_closed_table_and_the_most_exact_one_counts() {
        for (query, expected) in [
            ("error=access_denied&error_description=%3Cscript%3E", Reason::Denied),
            ("oauth_exception=invalid_request&exception_details=invalid_redirect_uri", Reason::Client),
            ("oauth_exception=temporarily_unavailable&exception_details=too_many_redirects", Reason::TooManyRedirects),
            ("oauth_exception=invalid_scope&exception_details=made_up", Reason::Scope),
            ("identity_exception=identity_lost", Reason::SignIn),
            ("oauth_exception=server_error&code=x", Reason::Server),
            ("error=%3Cimg%20src=x%3E", Reason::Unknown),
            ("error=", Reason::Unknown),
            ("error=%ff%", Reason::Unknown),
            ("error=access_denied&error_description=100%&x=%ff&x=1", Reason::Denied),
            (&format!("error=access_denied&error_description={}", "x".repeat(5000)), Reason::Denied),
            ("error=made_up&error=access_denied", Reason::Denied),
        ] {
            match Redirect::read(Some(query), None) {
                Redirect::Error(reason) => assert_eq!(reason, expected, "{query}"),
                other => panic!("{query}: {other:?}"),
            }
        }
    }
}
