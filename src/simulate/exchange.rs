//! A request and its answer, as every part of the simulator sees them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};

/// RFC 3986's unreserved characters stay as they are.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub struct Request {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The members of a query, a form or a JSON object of texts.
pub type Members = BTreeMap<String, String>;

impl Request {
    pub fn new(parts: Parts, body: Bytes) -> Self {
        let query = parts.uri.query().unwrap_or_default().to_owned();
        Self { method: parts.method, path: parts.uri.path().to_owned(), query, headers: parts.headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn bearer(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    pub fn query(&self) -> Members {
        form(&self.query)
    }

    /// A form, JSON or, with an empty body, the query.
    pub fn members(&self) -> Members {
        if self.body.is_empty() {
            return self.query();
        }
        if self.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            let object: BTreeMap<String, Value> = serde_json::from_slice(&self.body).unwrap_or_default();
            return object.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect();
        }
        form(&String::from_utf8_lossy(&self.body))
    }
}

fn form(text: &str) -> Members {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Text within HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// LiveChat's name of an error, for the log of requests.
    pub error: Option<String>,
}

impl Answer {
    pub fn new(status: u16, kind: &str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![("content-type".to_owned(), kind.to_owned())], body: body.into(), error: None }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    pub fn done() -> Self {
        Self::json(200, &json!({}))
    }

    pub fn html(status: u16, page: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, "text/html; charset=utf-8", page.into().into_owned())
    }

    pub fn redirect(to: String) -> Self {
        Self { status: 302, headers: vec![("location".to_owned(), to)], body: Bytes::new(), error: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: &str, query: &str, body: &str) -> Request {
        let headers = HeaderMap::from_iter(
            [("content-type".parse().unwrap(), kind.parse().unwrap())]
                .map(|(n, v): (hyper::header::HeaderName, _)| (n, v)),
        );
        Request { method: Method::POST, path: "/".into(), query: query.into(), headers, body: body.to_owned().into() }
    }

    #[test]
    fn members_come_as_a_form_as_json_or_in_the_query() {
        let wanted = Members::from([("code".to_owned(), "dal:a b&c".to_owned())]);
        assert_eq!(request("application/x-www-form-urlencoded", "", "code=dal%3Aa+b%26c").members(), wanted);
        assert_eq!(request("application/json", "", r#"{"code":"dal:a b&c"}"#).members(), wanted);
        assert_eq!(request("text/plain", "code=dal%3Aa%20b%26c", "").members(), wanted);
    }

    #[test]
    fn what_is_encoded_is_decoded_as_it_was() {
        let text = "dal:ä +&=%3A";
        assert_eq!(decoded(&encoded(text)), text);
    }
}
