//! `simulate`: a LiveChat on this machine, for trials and tests: accounts, Configuration API, archives, and webhooks that it sends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Failure;
use super::print::{DIM, out};
use super::send::duration;
use crate::simulate::{Setup, Simulator};

#[derive(clap::Args)]
pub struct Arguments {
    /// Where to listen; port 0 is a free one
    #[arg(long, default_value = "127.0.0.1:7414", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Listen elsewhere than on loopback, where others can make it send webhooks
    #[arg(long)]
    allow_remote: bool,
    /// Organizations, accounts, clients, tokens, switches (TOML or JSON), instead of one of each
    #[arg(long, value_name = "FILE")]
    setup: Option<PathBuf>,
    /// Where the relay is: the app's webhooks, installation and page
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL", conflicts_with = "setup")]
    public_url: String,
    /// Send what is for this URL there instead: https://relay.example=http://127.0.0.1:8080
    #[arg(long, value_name = "URL=URL", value_parser = route)]
    route: Vec<(String, String)>,
    /// How long a change needs to take effect; LiveChat's takes up to two minutes
    #[arg(long, value_name = "TIME", value_parser = duration)]
    propagation: Option<Duration>,
    /// Pauses between attempts of a delivery, as a factor: 0.1 makes 5 s half a second
    #[arg(long, value_name = "FACTOR")]
    time_scale: Option<f64>,
    /// A certificate chain (PEM): https instead of http
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Certificates (PEM) that the receiver's is signed by, instead of the roots that browsers have
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print one line of JSON: the addresses, and what was set up
    #[arg(long)]
    json: bool,
}

fn route(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("write URL=URL")?;
    let is_url = |url: &str| url.starts_with("http://") || url.starts_with("https://");
    if !is_url(from) || !is_url(to) {
        return Err("both are URLs that begin with http:// or https://".to_owned());
    }
    Ok((from.trim_end_matches('/').to_owned(), to.trim_end_matches('/').to_owned()))
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { listen, allow_remote, .. } = arguments;
    if !listen.ip().is_loopback() && !allow_remote {
        return Err(Failure::Usage(format!(
            "--listen {listen} is not loopback: others could make the simulator send webhooks; --allow-remote permits it"
        )));
    }
    let public_url = arguments.public_url.trim_end_matches('/');
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
    let simulator =
        Simulator::new(setup.clone(), &super::tls::client(arguments.ca.as_deref())?).map_err(Failure::Failed)?;
    let url = format!("{scheme}://{address}");
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
    let Some((client, token)) = setup.clients.first().zip(setup.personal_access_tokens.first()) else { return Ok(()) };
    let secret = client
        .secret
        .as_ref()
        .map_or_else(String::new, |secret| format!("client_secret = {{ value = \"{secret}\" }}\n"));
    out(format_args!(
        "\n{DIM}# for the relay's configuration file{DIM:#}\n\
         [livechat]\n\
         api = \"{url}\"\n\
         accounts = \"{url}\"\n\n\
         [[apps]]\n\
         name = \"default\"\n\
         secret_keys = [{{ name = \"simulated\", value = \"simulated-secret-key\" }}]\n\n\
         [apps.livechat]\n\
         client_id = \"{}\"\n\
         {secret}\
         public_url = \"{public_url}\"\n\
         account_id = \"{}\"\n\
         personal_access_token = {{ value = \"{}\" }}\n\
         webhooks = [{{ actions = \"all\" }}]",
        client.id, token.account_id, token.token
    ))?;
    for (from, to) in &setup.routes {
        out(format_args!("\nWhat is for {from} is sent to {to}."))?;
    }
    out(format_args!(
        "\nLet something happen: curl -d '{{}}' {url}/_simulate/chats\n\
         See what was sent:    curl {url}/_simulate/deliveries"
    ))
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
