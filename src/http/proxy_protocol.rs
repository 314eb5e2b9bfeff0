//! The PROXY protocol, versions 1 and 2: a header before all else, in which a proxy says whose connection it passes on. Where it is
//! configured it is mandatory, else a client could leave it out, or write it itself.

use std::io;
use std::net::IpAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::client::{Config, Source};
use crate::telemetry::Throttles;

/// The longest header of version 1, as the protocol says.
const V1_BYTES_MAX: usize = 107;
const V1_STARTS: [&[u8]; 3] = [b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"];
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family, and the length of the rest.
const V2_START_BYTES: usize = 16;

/// A record of a handshake, of any version.
const TLS_START: &[u8] = &[22, 3];

/// Why a connection is closed before TLS or HTTP begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It has ended without a byte, as a probe does that only connects.
    Ended,
    /// There is no header, though there must be one, or one that is none, or from anyone but a trusted proxy.
    Closed,
    /// There is a header, though none is expected.
    Unexpected,
}

/// The address that a connection from `peer` comes from. Takes the header off the stream, and not a byte more.
///
/// # Errors
/// [`Refused`], which is logged.
pub async fn client(
    stream: &mut TcpStream,
    peer: IpAddr,
    config: &Config,
    complaints: &Throttles,
) -> Result<IpAddr, Refused> {
    if config.source != Source::ProxyProtocol {
        let mut ahead = [0; V2_START_BYTES];
        let bytes = stream.peek(&mut ahead).await.map_err(|_| Refused::Ended)?;
        if ahead[..bytes].starts_with(TLS_START)
            && let Some(suppressed) = complaints.pass("TLS without TLS")
        {
            let remedy = "use http:// there, or configure TLS";
            tracing::warn!(%peer, suppressed, remedy, "a client speaks TLS to a port without TLS");
        }
        if !is_header(&ahead[..bytes]) {
            return Ok(peer);
        }
        if let Some(suppressed) = complaints.pass("unexpected PROXY header") {
            let remedy =
                "set server.client_address to \"proxy-protocol\", or switch the PROXY protocol off in the proxy";
            tracing::warn!(%peer, suppressed, remedy, "connection refused: it begins with a PROXY protocol header");
        }
        return Err(Refused::Unexpected);
    }
    let reason = if config.trusted_proxies.contains(peer) {
        match read(stream, config.proxy_header_bytes_max).await {
            Ok(client) => return Ok(client.map_or(peer, |client| client.to_canonical())),
            Err(None) => return Err(Refused::Ended),
            Err(Some(reason)) => reason,
        }
    } else {
        "the peer is not in server.trusted_proxies"
    };
    if let Some(suppressed) = complaints.pass(reason) {
        tracing::warn!(%peer, reason, suppressed, "connection closed: no PROXY protocol header from a trusted proxy");
    }
    Err(Refused::Closed)
}

/// What a proxy is told that sends a header which is not expected.
pub fn unexpected() -> Vec<u8> {
    const TEXT: &str = "a PROXY protocol header is not expected here; see server.client_address of the relay\n";
    const TYPE: &str = "content-type: text/plain; charset=utf-8";
    format!("HTTP/1.1 400 Bad Request\r\n{TYPE}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{TEXT}", TEXT.len())
        .into_bytes()
}

/// Whether a connection begins with a header.
fn is_header(ahead: &[u8]) -> bool {
    ahead.starts_with(V2_SIGNATURE) || V1_STARTS.iter().any(|start| ahead.starts_with(start))
}

/// Reads a header; the client's address, or none where the header has none: the proxy speaks for itself, as in its health checks
/// (LOCAL), does not know (UNKNOWN), or has it from a Unix socket. The error is why there is no header, or none where there is no byte.
async fn read(stream: &mut TcpStream, bytes_max: usize) -> Result<Option<IpAddr>, Option<&'static str>> {
    const BROKEN: &str = "the connection has ended within the header";
    let broken = |_: io::Error| Some(BROKEN);
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let (mut header, mut ahead) = (Vec::new(), [0; 256]);
    loop {
        let bytes = stream.peek(&mut ahead).await.map_err(broken)?;
        if bytes == 0 {
            return Err(Some(BROKEN).filter(|_| !header.is_empty()));
        }
        let part = part(&header, &ahead[..bytes], bytes_max)?;
        stream.read_exact(&mut ahead[..part]).await.map_err(broken)?;
        header.extend_from_slice(&ahead[..part]);
        match ProxyHeader::parse(&header, config) {
            Ok((parsed, _)) => return Ok(parsed.proxied_address().map(|addresses| addresses.source.ip())),
            // Where nothing more belongs to it, its addresses are longer than itself.
            Err(Error::BufferTooShort) if part > 0 && !(header[0] == b'P' && header.ends_with(b"\n")) => {}
            // Of LOCAL nothing but the length counts, whatever the family.
            Err(_) if header.get(V2_SIGNATURE.len()) == Some(&0x20) && header[0] == b'\r' => return Ok(None),
            Err(_) => return Err(Some("it is malformed")),
        }
    }
}

/// How many of the bytes ahead belong to the header that has begun with these.
fn part(header: &[u8], ahead: &[u8], bytes_max: usize) -> Result<usize, &'static str> {
    let begun = header.iter().chain(ahead);
    let begins = |start: &[u8]| begun.clone().zip(start).all(|(found, expected)| found == expected);
    if begins(V2_SIGNATURE) {
        let start: Vec<u8> = begun.copied().take(V2_START_BYTES).collect();
        let length = match start[..] {
            [.., high, low] if start.len() == V2_START_BYTES => {
                V2_START_BYTES + usize::from(u16::from_be_bytes([high, low]))
            }
            _ => V2_START_BYTES,
        };
        if length > bytes_max {
            return Err("it is longer than server.proxy_header_bytes_max");
        }
        return Ok(ahead.len().min(length - header.len()));
    }
    if !begins(b"PROXY ") {
        return Err("the connection does not begin with a PROXY protocol header");
    }
    let part = ahead.iter().position(|byte| *byte == b'\n').map_or(ahead.len(), |end| end + 1);
    if header.len() + part > V1_BYTES_MAX {
        return Err("it is longer than a header of version 1 can be");
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::client::Networks;

    const BYTES_MAX: usize = 300;

    /// Version 2: command, family, addresses and what follows them.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("a length").to_be_bytes();
        [V2_SIGNATURE, &[0x20 | command, family], &length, rest].concat()
    }

    fn ipv4(more: usize) -> Vec<u8> {
        [&[203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x34, 0, 80][..], &vec![0xee; more]].concat()
    }

    fn ipv6() -> Vec<u8> {
        let [from, to] = ["2001:db9::7", "2001:db8::1"].map(|text| text.parse::<std::net::Ipv6Addr>().expect("IPv6"));
        [&from.octets()[..], &to.octets(), &[0x12, 0x34, 0, 80]].concat()
    }

    fn config(source: Source) -> Config {
        let trusted_proxies = Networks::parse(["10.0.0.0/8"]).expect("networks");
        Config { source, trusted_proxies, proxy_header_bytes_max: BYTES_MAX }
    }

    /// What is found in `sent`, which comes in pieces of so many bytes, and what is left on the stream.
    async fn client_of(config: &Config, peer: &str, sent: &[u8], piece: usize) -> (Result<String, Refused>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut sender = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a listener");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        sender.set_nodelay(true).expect("a socket");
        let sending = async {
            for piece in sent.chunks(piece) {
                if sender.write_all(piece).await.is_err() {
                    break; // it is refused already
                }
                tokio::task::yield_now().await;
            }
            drop(sender);
        };
        let complaints = Throttles::new(Duration::ZERO);
        let receiving = async {
            let found = client(&mut stream, peer.parse().expect("an address"), config, &complaints).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await; // a reset is an end, too
            (found.map(|client| client.to_string()), rest)
        };
        tokio::join!(sending, receiving).1
    }

    #[tokio::test]
    async fn a_header_is_taken_off_the_stream_to_its_last_byte_however_it_comes() {
        let config = config(Source::ProxyProtocol);
        for (header, expected) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec(), "203.0.113.9"),
            (b"PROXY TCP6 2001:db9::7 2001:db8::1 4660 80\r\n".to_vec(), "2001:db9::7"),
            (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 4660 80\r\n".to_vec(), "203.0.113.9"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "10.0.0.1"),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), "10.0.0.1"),
            (v2(1, 0x11, &ipv4(0)), "203.0.113.9"),
            (v2(1, 0x11, &ipv4(BYTES_MAX - 28)), "203.0.113.9"), // with TLVs, up to the limit
            (v2(1, 0x21, &ipv6()), "2001:db9::7"),
            (v2(1, 0x31, &[b'/'; 216]), "10.0.0.1"),
            (v2(1, 0x00, b"\n\r\n"), "10.0.0.1"),
            (v2(0, 0x00, &[]), "10.0.0.1"),
            (v2(0, 0x11, &ipv4(7)), "10.0.0.1"),
            (v2(0, 0x11, &[]), "10.0.0.1"),
        ] {
            for piece in [1, 13, 1000] {
                let sent = [&header, &b"PROXY, and what follows\r\n"[..]].concat();
                let (found, rest) = client_of(&config, "10.0.0.1", &sent, piece).await;
                assert_eq!(found.as_deref(), Ok(expected), "{header:?} in pieces of {piece}");
                assert_eq!(rest, b"PROXY, and what follows\r\n", "{header:?} in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn without_a_good_header_from_a_trusted_proxy_a_connection_is_closed() {
        let config = config(Source::ProxyProtocol);
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX));
        for sent in [
            b"POST /webhooks HTTP/1.1\r\n".to_vec(),
            b"PROXY\r\n".to_vec(),
            b"PROXY TCP4\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\n".to_vec(),
            b"PROXY TCP4 203.0.113.256 10.0.0.1 4660 80\r\n".to_vec(),
            b"PROXY TCP4 2001:db9::7 10.0.0.1 4660 80\r\n".to_vec(),
            b"PROXY TCP5 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 466".to_vec(),
            b"\x16\x03\x01\x02\x00\x01".to_vec(),
            long.into_bytes(),
            v2(1, 0x11, &ipv4(0))[..20].to_vec(),
            v2(1, 0x11, &ipv4(0)[..11]),
            [v2(1, 0x11, &ipv4(0)[..11]), b"POST /webhooks HTTP/1.1\r\n".to_vec()].concat(),
            v2(1, 0x11, &ipv4(BYTES_MAX - 27)),
            v2(1, 0x11, &ipv4(65_535 - 12)),
            v2(2, 0x11, &ipv4(0)),
            v2(1, 0x41, &ipv4(0)),
            V2_SIGNATURE.to_vec(),
            [&b"\r\n\r\n\0\r\nQUIX\n"[..], &v2(1, 0x11, &ipv4(0))[12..]].concat(),
        ] {
            for piece in [1, 1000] {
                let (found, _) = client_of(&config, "10.0.0.1", &sent, piece).await;
                assert_eq!(found, Err(Refused::Closed), "{:?}", String::from_utf8_lossy(&sent));
            }
        }
        assert_eq!(client_of(&config, "10.0.0.1", b"", 1).await.0, Err(Refused::Ended), "a probe");
        let good = v2(1, 0x11, &ipv4(0));
        assert_eq!(client_of(&config, "192.0.2.1", &good, 1000).await.0, Err(Refused::Closed), "a stranger");
    }

    #[tokio::test]
    async fn where_no_header_is_expected_one_is_recognized_and_all_else_is_left_on_the_stream() {
        for source in [Source::Peer, Source::Forwarded, Source::XForwardedFor] {
            for header in [v2(1, 0x11, &ipv4(0)), b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec()] {
                let (found, _) = client_of(&config(source), "10.0.0.1", &header, 1000).await;
                assert_eq!(found, Err(Refused::Unexpected));
            }
            for other in ["POST / HTTP/1.1\r\n\r\n", "PROXY / HTTP/1.1\r\n\r\n", "\r\n\r\nGET / HTTP/1.1\r\n\r\n", "P"]
            {
                let (found, rest) = client_of(&config(source), "10.0.0.1", other.as_bytes(), 1000).await;
                assert_eq!((found.as_deref(), &*rest), (Ok("10.0.0.1"), other.as_bytes()));
            }
        }
    }
}
