//! `simulate`: a LiveChat on this machine, for trials and tests: accounts, Configuration API, archives, and webhooks that it sends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use reqwest::Url;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Failure;
use super::health::reachable;
use super::print::out;
use super::send::duration;
use crate::livechat::is_loopback;
use crate::simulate::{Setup, Simulator};

/// Of `server.listen` in `config/default.toml`.
const LISTEN_PORT: u16 = 8080;

#[derive(clap::Args)]
pub struct Arguments {
    /// Address to listen on; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:7414", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Allow an address other than loopback; others can then make it send webhooks
    #[arg(long)]
    allow_remote: bool,
    /// Organizations, accounts, clients, tokens and switches (TOML or JSON) [default: one of each]
    #[arg(long, value_name = "FILE")]
    setup: Option<PathBuf>,
    /// URL of the relay, for the app's webhooks, installation and page
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL", value_parser = public_url)]
    public_url: String,
    /// Send what is for the first URL to the second: https://relay.example=http://127.0.0.1:8080
    #[arg(long, value_name = "URL=URL", value_parser = route)]
    route: Vec<(String, String)>,
    /// How long a change takes to have effect; at LiveChat up to two minutes
    #[arg(long, value_name = "TIME", value_parser = duration)]
    propagation: Option<Duration>,
    /// Factor for the pauses between attempts of a delivery: 0.1 turns 5 s into 0.5 s
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    time_scale: Option<f64>,
    /// A certificate chain (PEM): https instead of http
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Certificate authorities (PEM) of the receiver's certificate [default: public ones]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print the addresses and the setup as one line of JSON
    #[arg(long)]
    json: bool,
}

fn route(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("write URL=URL")?;
    Ok((place(from)?, place(to)?))
}

/// As the relay's configuration takes it.
fn public_url(text: &str) -> Result<String, String> {
    let place = place(text)?;
    let is_local = Url::parse(&place).is_ok_and(|url| is_loopback(&url));
    if place.starts_with("https://") || is_local {
        return Ok(place);
    }
    Err("it must begin with https://, or with http:// on this machine; --route sends what is for it elsewhere"
        .to_owned())
}

/// What other URLs begin with; without a slash at its end.
fn place(text: &str) -> Result<String, String> {
    let url = Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    let is_bare = |url: &Url| url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let url = url.filter(is_bare).ok_or("write a URL such as https://relay.example or http://127.0.0.1:8080")?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| (0.0..=1000.0).contains(factor));
    factor.ok_or_else(|| "write a number from 0 to 1000".to_owned())
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { listen, allow_remote, .. } = arguments;
    if !listen.ip().is_loopback() && !allow_remote {
        return Err(Failure::Usage(format!(
            "--listen {listen} is not loopback: others could make the simulator send webhooks; --allow-remote permits it"
        )));
    }
    let public_url = &arguments.public_url;
    let mut setup = match &arguments.setup {
        Some(path) => Setup::read(path).map_err(Failure::Usage)?,
        None => Setup::with_relay_at(public_url),
    };
    setup.routes.extend(arguments.route);
    let lag = arguments.propagation.map(|lag| lag.as_secs_f64());
    for (name, value) in [("listing_lag", lag), ("delivery_lag", lag), ("time_scale", arguments.time_scale)] {
        if let Some(value) = value {
            setup.switches.set(&json!({ name: value })).map_err(Failure::Usage)?;
        }
    }
    let tls = arguments.certificate.as_deref().zip(arguments.key.as_deref());
    let tls = tls.map(|(certificate, key)| acceptor(certificate, key)).transpose()?;
    let listener = TcpListener::bind(listen).await.map_err(|error| Failure::Failed(format!("{listen}: {error}")))?;
    let address = listener.local_addr().map_err(Failure::failed)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", reachable(address));
    let tls_client = super::tls::client(arguments.ca.as_deref())?;
    let simulator = Simulator::new(setup.clone(), &url, &tls_client).map_err(Failure::Failed)?;
    let signal = crate::shutdown::on_signal().map_err(Failure::failed)?; // before others know that it runs
    if arguments.json {
        let line = json!({"address": address, "url": url, "setup": setup});
        out(format_args!("{line}"))?;
    } else {
        introduce(&url, public_url, &setup)?;
    }
    tokio::select! {
        never = simulator.serve(listener, tls) => match never {},
        _ = signal => Ok(()),
    }
}

/// What to put into the relay's configuration, and how to go on.
fn introduce(url: &str, public_url: &str, setup: &Setup) -> Result<(), Failure> {
    out(format_args!("A simulated LiveChat listens at {url} (Ctrl-C ends it)."))?;
    if let Some(configuration) = configuration(url, public_url, setup) {
        out(format_args!("\n# for the relay's configuration file\n{configuration}"))?;
    }
    for (from, to) in &setup.routes {
        out(format_args!("What is for {from} is sent to {to}.\n"))?;
    }
    out(format_args!(
        "Let something happen: curl -d '{{}}' {url}/_simulate/chats\n\
         See what was sent:    curl {url}/_simulate/deliveries\n\
         What else there is:   curl {url}/_simulate/"
    ))
}

/// The part of a relay's configuration that goes with this LiveChat; none where no app or token was set up.
fn configuration(url: &str, public_url: &str, setup: &Setup) -> Option<String> {
    let (client, token) = setup.clients.first().zip(setup.personal_access_tokens.first())?;
    let secret = client.secret.as_ref();
    let secret = secret.map_or_else(String::new, |secret| format!("client_secret = {{ value = \"{secret}\" }}\n"));
    let server = listen(&setup.routed(public_url));
    let server = server.map_or_else(String::new, |listen| format!("[server]\nlisten = \"{listen}\"\n\n"));
    let ca = if url.starts_with("https:") { "# ca = \"…\"    # who has signed its certificate (PEM)\n" } else { "" };
    let lag = SignedDuration::from_millis((setup.switches.lag_max() * 1000.0).ceil() as i64);
    Some(format!(
        "{server}\
         [livechat]\n\
         api = \"{url}\"\n\
         accounts = \"{url}\"\n\
         {ca}\
         propagation = \"{lag:#}\"\n\n\
         [[apps]]\n\
         name = \"default\"\n\
         secret_keys = [{{ name = \"simulated\", value = \"simulated-secret-key\" }}]\n\n\
         [apps.livechat]\n\
         client_id = \"{}\"\n\
         {secret}\
         public_url = \"{public_url}\"\n\
         account_id = \"{}\"\n\
         personal_access_token = {{ value = \"{}\" }}\n\
         webhooks = [{{ actions = \"all\" }}]\n",
        client.id, token.account_id, token.token
    ))
}

/// Where a relay on this machine has to listen to be reached at this URL, unless its default does.
fn listen(url: &str) -> Option<String> {
    let url = Url::parse(url).ok().filter(is_loopback)?;
    let port = url.port_or_known_default().filter(|port| *port != LISTEN_PORT)?;
    let host = url.host_str().filter(|host| *host != "localhost").unwrap_or("127.0.0.1");
    Some(format!("{host}:{port}"))
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, Failure> {
    let chain = super::tls::certificates(certificate)?;
    let wrong = |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", key.display()));
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(&error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(Failure::failed)?;
    let config = config.with_no_client_auth().with_single_cert(chain, private).map_err(|error| wrong(&error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_url_without_anything_at_its_end() {
        let right =
            ["https://relay.example", "https://relay.example/", "http://127.0.0.1:9000", "https://a.example/relay/"];
        let expected =
            ["https://relay.example", "https://relay.example", "http://127.0.0.1:9000", "https://a.example/relay"];
        assert_eq!(right.map(public_url), expected.map(|url| Ok(url.to_owned())));
        for wrong in ["foo", "", "relay.example", "ftp://127.0.0.1", "https://a.example/?x", "http://relay.example"] {
            assert!(public_url(wrong).is_err(), "{wrong}");
        }
        assert!(route("https://relay.example=http://relay:8080").is_ok() && route("https://relay.example=x").is_err());
        assert!(["-1", "nan", "1001", "x"].iter().all(|text| factor(text).is_err()) && factor("0.1").is_ok());
    }

    #[test]
    fn the_configuration_goes_with_the_switches() {
        let mut setup = Setup::with_relay_at("https://relay.example");
        let of = |setup: &Setup, public_url| configuration("http://[::1]:1", public_url, setup).unwrap();
        assert!(
            !of(&setup, "http://127.0.0.1:8080").contains("[server]")
                && !of(&setup, "https://a.example").contains("[server]")
        );
        assert!(of(&setup, "http://localhost:9000").starts_with("[server]\nlisten = \"127.0.0.1:9000\"\n"));
        assert!(of(&setup, "http://localhost:9000").contains("\npropagation = \"0s\"\n"));
        setup.routes.insert("https://a.example".into(), "http://[::1]:9000".into());
        setup.switches.set(&json!({ "delivery_lag": 1.5 })).unwrap();
        let routed = of(&setup, "https://a.example");
        assert!(
            routed.starts_with("[server]\nlisten = \"[::1]:9000\"\n") && routed.contains("propagation = \"1s 500ms\""),
            "{routed}"
        );
    }
}
