//! POSTs webhooks to one URL, and keeps what the server says.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{StatusCode, Url};

use crate::cli::{Failure, print, tls};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Of a server's text so much is read, and so much of that is shown.
const TEXT_BYTES_MAX: usize = 4096;
const TEXT_CHARS_MAX: usize = 200;

pub type Posted = Result<Answer, Unanswered>;

/// POSTs webhooks to one URL.
pub struct Client {
    client: reqwest::Client,
    url: Url,
}

pub struct Answer {
    pub status: StatusCode,
    /// The first line of what the server says.
    pub text: String,
}

/// There was no answer.
pub struct Unanswered {
    pub why: String,
    /// No connection came about, so that nothing was sent.
    pub is_unreachable: bool,
}

impl Client {
    /// With `ca`, a PEM file, its authorities are trusted instead of the public ones.
    ///
    /// # Errors
    /// [`Failure::Usage`]: the URL cannot be sent to, or the file is wrong.
    pub fn new(url: Url, ca: Option<&std::path::Path>, timeout: Duration) -> Result<Self, Failure> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Failure::Usage(format!("{url}: give an http:// or https:// URL")));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Failure::Usage("give the URL without a user and password".to_owned()));
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client(ca)?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .timeout(timeout);
        Ok(Self { client: client.build().map_err(Failure::failed)?, url })
    }

    pub async fn post(&self, body: Bytes) -> Posted {
        let answered = async {
            let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
            let mut answer = request.send().await?;
            let mut text = Vec::new();
            while let Some(chunk) = answer.chunk().await?
                && text.len() < TEXT_BYTES_MAX
            {
                text.extend_from_slice(&chunk);
            }
            let text = String::from_utf8_lossy(&text);
            let line = text.trim_start().lines().next().unwrap_or_default().trim_end();
            let text = print::visible(&line.chars().take(TEXT_CHARS_MAX).collect::<String>());
            Ok(Answer { status: answer.status(), text })
        };
        answered.await.map_err(|error: reqwest::Error| {
            let is_unreachable = error.is_connect();
            let what = if is_unreachable { "cannot connect to" } else { "no answer from" };
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            let why = match cause.to_string() {
                _ if error.is_timeout() => "it took too long".to_owned(),
                why if why.contains("InvalidContentType") => format!("{why}; that port speaks no TLS: use http://"),
                why => why,
            };
            Unanswered { why: format!("{what} {}: {why}", self.url), is_unreachable }
        })
    }
}
