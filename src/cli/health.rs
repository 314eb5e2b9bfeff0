//! `health`: asks a running relay on this machine whether it is ready, or alive. A probe for images and hosts without an HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Failure, Source, print, send};
use crate::config::{Listener, Need};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Ask whether the process is alive (/livez), not whether it can store events (/readyz)
    #[arg(long)]
    live: bool,
    /// Address of the probes, if systemd passes their socket [default: admin.probes_listen or admin.listen]
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// How long to wait for an answer
    #[arg(long, default_value = "5s", value_parser = send::duration, value_name = "TIME")]
    timeout: Duration,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let address = match arguments.address {
        Some(address) => address,
        None => probed(&arguments.source.read(Need::Settings)?.admin)?,
    };
    let (address, path) = (reachable(address), if arguments.live { "/livez" } else { "/readyz" });
    let answer = tokio::time::timeout(arguments.timeout, ask(address, path)).await;
    let failed = |why: &dyn std::fmt::Display| Failure::Failed(format!("http://{address}{path}: {why}"));
    let (status, text) = answer.map_err(|_| failed(&"no answer in time"))?.map_err(|error| failed(&error))?;
    match status {
        StatusCode::OK => print::out(format_args!("{}", text.trim_end())),
        StatusCode::SERVICE_UNAVAILABLE => Err(Failure::failed(text.trim_end())),
        status => Err(failed(&format!("{status}; is this the admin listener of a relay?"))),
    }
}

/// Where the probes are answered without TLS.
fn probed(admin: &Listener) -> Result<SocketAddr, Failure> {
    match (admin.plain, &admin.tls) {
        (Some(probes), _) => Ok(probes),
        (None, None) => Ok(admin.listen),
        (None, Some(_)) => {
            let why = "admin.listen has TLS: set admin.probes_listen, where the probes are answered without it";
            Err(Failure::Usage(why.to_owned()))
        }
    }
}

/// A listener on all addresses is on loopback, too.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// More than any answer has: another server may have taken the port.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

async fn ask(
    address: SocketAddr,
    path: &str,
) -> Result<(StatusCode, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection); // its errors come to the sender, too
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:8081", "127.0.0.1:8081"),
            ("[::]:8081", "[::1]:8081"),
            ("127.0.0.1:8081", "127.0.0.1:8081"),
            ("192.0.2.7:80", "192.0.2.7:80"),
        ] {
            assert_eq!(reachable(listen.parse().expect("an address")).to_string(), asked);
        }
    }
}
