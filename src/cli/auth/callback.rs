//! Where LiveChat sends the browser after a login: a listener on loopback that takes one login's code, and shows a plain page.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::cli::Failure;
use crate::cli::print::{note, wrapped};
use crate::livechat::Redirect;

/// A browser opens two or three.
const CONNECTIONS_MAX: usize = 16;

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// LiveChat may leave out the state where it reports an error, and anyone may make such an address.
const FOREIGN: &str = "a browser came back without the state of this login: from another login, or because LiveChat has reported an error. \
                       If its page showed one, end this with Ctrl-C; it waits on.";

/// What LiveChat has sent is lost here: a code is good for once, and no other one comes by itself.
const MALFORMED: &str = "a browser came back with a code that cannot be read, or with two. The command waits on; end it with Ctrl-C, and log in \
                         again.";

/// How long the last page may take to reach the browser.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the browser is shown. Nothing of its request is in it.
#[derive(Clone, Copy, Debug)]
pub enum Page {
    Done,
    Failed,
    Foreign,
    Missing,
}

impl Page {
    const fn text(self) -> (StatusCode, &'static str) {
        match self {
            Self::Done => (StatusCode::OK, "The relay is logged in. You can close this page."),
            Self::Failed => (StatusCode::BAD_REQUEST, "The login did not succeed. The terminal says why."),
            Self::Foreign => (
                StatusCode::BAD_REQUEST,
                "This is not the login that the terminal waits for, or LiveChat has reported an error. Open the address that the terminal shows.",
            ),
            Self::Missing => (StatusCode::NOT_FOUND, "Open the address that the terminal shows."),
        }
    }

    fn response(self) -> Response<Full<Bytes>> {
        let (status, text) = self.text();
        let page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>livechat-relay</title>\n<p>{text}</p>\n</html>\n"
        );
        let mut response = Response::new(Full::from(page));
        *response.status_mut() = status;
        let headers = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CACHE_CONTROL, "no-store"),
            (REFERRER_POLICY, "no-referrer"),
            (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        for (name, value) in headers {
            response.headers_mut().insert(name, hyper::header::HeaderValue::from_static(value));
        }
        response
    }
}

/// A browser that LiveChat may have sent, which waits for its page.
pub struct Callback {
    pub redirect: Redirect,
    pub page: oneshot::Sender<Page>,
}

/// Both addresses that `localhost` may be.
pub struct Listener {
    v4: TcpListener,
    /// Not every machine has IPv6.
    v6: Option<TcpListener>,
}

impl Listener {
    /// # Errors
    /// Another process listens there.
    pub async fn bind(port: u16) -> Result<Self, Failure> {
        let at = |address| TcpListener::bind(address);
        let v4 = at(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.map_err(|e| {
            Failure::Failed(format!(
                "the browser cannot be awaited on localhost:{port}: {e}; end what listens there, such as another `auth login`, change \
                 livechat.login_port with the app's Redirect URI whitelist, or add --paste"
            ))
        })?;
        Ok(Self { v4, v6: at(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.ok() })
    }

    /// The first browser that comes from the awaited login. Those of other logins get a page, and are waited past.
    ///
    /// # Errors
    /// The listener has failed.
    pub async fn arrival(self, state: &SecretString) -> Result<(Callback, JoinSet<()>), Failure> {
        let (found, mut arrivals) = mpsc::channel::<Callback>(1);
        let (state, mut connections) = (Arc::new(state.clone()), JoinSet::new());
        let mut told = Vec::new();
        loop {
            let has_room = connections.len() < CONNECTIONS_MAX;
            tokio::select! {
                Some(callback) = arrivals.recv() => {
                    let why = match callback.redirect {
                        Redirect::Foreign => FOREIGN,
                        Redirect::Malformed => MALFORMED,
                        _ => return Ok((callback, connections)),
                    };
                    let _ = callback.page.send(Page::Foreign); // the browser may have gone
                    if !told.contains(&why) {
                        told.push(why);
                        note(format_args!("{}", wrapped(why, 0)));
                    }
                },
                Some(_) = connections.join_next() => {}
                accepted = self.accept(), if has_room => {
                    let stream = accepted.map_err(|e| Failure::Failed(format!("the browser cannot be awaited: {e}")))?;
                    connections.spawn(serve(stream, Arc::clone(&state), found.clone()));
                }
            }
        }
    }

    async fn accept(&self) -> std::io::Result<TcpStream> {
        let v6 = async {
            match &self.v6 {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            accepted = self.v4.accept() => accepted,
            accepted = v6 => accepted,
        };
        accepted.map(|(stream, _)| stream)
    }
}

/// Lets the last page reach the browser.
pub async fn finish(connections: JoinSet<()>) {
    let _ = tokio::time::timeout(PAGE_TIMEOUT, connections.join_all()).await; // connections without a request end with the process
}

async fn serve(stream: TcpStream, state: Arc<SecretString>, found: mpsc::Sender<Callback>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (state, found) = (Arc::clone(&state), found.clone());
        async move { Ok::<_, Infallible>(page(&request, &state, &found).await.response()) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
    let _ = http.serve_connection(TokioIo::new(stream), service).await; // a browser that goes away is no loss
}

async fn page<T>(request: &Request<T>, state: &SecretString, found: &mpsc::Sender<Callback>) -> Page {
    if request.method() != Method::GET || request.uri().path() != "/" {
        return Page::Missing;
    }
    match Redirect::read(request.uri().query(), Some(state)) {
        Redirect::NoCode => Page::Missing,
        redirect => {
            let (page, shown) = oneshot::channel();
            // Of two logins at once, the second has come too late: a code is good for once.
            if found.send(Callback { redirect, page }).await.is_err() {
                return Page::Foreign;
            }
            shown.await.unwrap_or(Page::Failed)
        }
    }
}
