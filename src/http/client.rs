//! Which IP address a request comes from: the connection's other end, or, where that is a trusted proxy, the client that it names.
//!
//! Anyone can write `X-Forwarded-For`, and proxies append to what they get. So only the right end of a list can be believed, and only
//! as far as trusted proxies have written it.

use std::net::IpAddr;

use hyper::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

/// `server.client_address`: the one place that says who the client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The connection's other end.
    #[default]
    Peer,
    /// The PROXY protocol header that begins each connection.
    ProxyProtocol,
    /// The header `Forwarded` (RFC 7239).
    Forwarded,
    /// The header `X-Forwarded-For`.
    XForwardedFor,
}

/// The part of `[server]` that says who the client is.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub source: Source,
    /// Who is believed; nothing that others send is looked at.
    pub trusted_proxies: Networks,
    /// The longest PROXY protocol header of version 2.
    pub proxy_header_bytes_max: usize,
}

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a connection comes from. All else about its clients is asked for each request, with the configuration of that moment.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Its other end, or what the PROXY protocol header says, in its [canonical](IpAddr::to_canonical) form.
    pub address: IpAddr,
    /// It had to begin with such a header.
    pub has_proxy_header: bool,
}

impl Config {
    /// Whether a connection from there would be accepted now, and [`Config::address`] is right. `client_address` may have changed to or
    /// from "proxy-protocol" since it began.
    pub fn fits(&self, origin: Origin) -> bool {
        origin.has_proxy_header == (self.source == Source::ProxyProtocol)
    }

    /// The client of a request on a connection from `connected`.
    pub fn address(&self, connected: IpAddr, headers: &HeaderMap) -> IpAddr {
        let lines = |name| headers.get_all(name).iter().rev().map(|line| line.as_bytes());
        match self.source {
            Source::Peer | Source::ProxyProtocol => connected,
            Source::Forwarded => self.client(connected, lines(FORWARDED).flat_map(elements).map(forwarded_for)),
            Source::XForwardedFor => self.client(connected, lines(X_FORWARDED_FOR).flat_map(elements).map(node)),
        }
    }

    /// The first from the right that is no trusted proxy. Where a trusted proxy does not say from whom it has the request, or all are
    /// trusted, it is the last one that is known: of the addresses that trusted proxies have vouched for, the nearest to the client.
    /// What others send is not even parsed.
    fn client(&self, connected: IpAddr, mut hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut client = connected;
        while self.trusted_proxies.contains(client) {
            let Some(hop) = hops.next().flatten() else { break };
            client = hop;
        }
        client
    }
}

/// Networks of IP addresses, IPv4 also where it is written as IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or a single address.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        texts.into_iter().map(network).collect::<Option<_>>().map(Self)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them is the whole of IPv4 or IPv6.
    pub fn has_everyone(&self) -> bool {
        self.0.iter().any(|network| network.prefix_len() == 0)
    }
}

fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    match network.addr().to_canonical() {
        IpAddr::V4(address) if network.addr().is_ipv6() => {
            IpNet::new(address.into(), network.prefix_len().checked_sub(96)?).ok()
        }
        _ => Some(network.trunc()),
    }
}

/// The elements of one line of a list, from the right. Empty ones do not count (RFC 9110, section 5.6.1).
fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    split(line, b',').filter(|element| !element.is_empty())
}

/// What stands between separators that are not in quotes, from the right. Read from the left, a quote that a stranger opens and does
/// not close would swallow what a proxy has appended.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        // `quote`: where one stands, until it is known whether the backslashes before it, which come one by one, escape it.
        let (mut is_quoted, mut quote) = (false, None);
        let before = (0..text.len()).rev().find(|&at| {
            if text[at] == b'\\' {
                return false;
            }
            is_quoted ^= quote.take().is_some_and(|quote: usize| (quote - at) % 2 == 1);
            if text[at] == b'"' {
                quote = Some(at);
            }
            text[at] == separator && !is_quoted
        });
        rest = before.map(|at| &text[..at]);
        Some(text[before.map_or(0, |at| at + 1)..].trim_ascii())
    })
}

/// The address in an element of `Forwarded`: of its one parameter `for`.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut nodes = split(element, b';').filter_map(|pair| {
        let (name, value) = pair.split_at_checked(b"for".len())?;
        let value = value.trim_ascii_start().strip_prefix(b"=")?;
        name.eq_ignore_ascii_case(b"for").then_some(value.trim_ascii_start())
    });
    let value = nodes.next().filter(|_| nodes.next().is_none())?;
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    node(quoted.unwrap_or(value))
}

/// An IP address as proxies write it: alone, with a port, in brackets, with a zone. `None` for `unknown`, names like `_hidden`, and
/// what is none of these.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(host, _)| host.contains(':'))?,
        None if text.matches(':').count() == 1 => text.split_at(text.find(':')?),
        None => (text, ""),
    };
    let is_port =
        |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return None;
    }
    let (address, zone) = host.split_once('%').unwrap_or((host, "-"));
    let address: IpAddr = address.parse().ok()?;
    (!zone.is_empty() && (address.is_ipv6() || zone == "-")).then(|| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const PEER: &str = "10.0.0.1";

    fn client(source: Source, connected: &str, lines: &[&str]) -> String {
        let trusted_proxies = Networks::parse(["10.0.0.0/8", "2001:db8::/32", "fe80::/10"]).expect("networks");
        let config = Config { source, trusted_proxies, proxy_header_bytes_max: 0 };
        let name = if source == Source::Forwarded { FORWARDED } else { X_FORWARDED_FOR };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&name, HeaderValue::from_bytes(line.as_bytes()).expect("a header"));
        }
        config.address(connected.parse::<IpAddr>().expect("an address").to_canonical(), &headers).to_string()
    }

    #[test]
    fn of_x_forwarded_for_the_first_from_the_right_that_is_no_trusted_proxy_counts() {
        let hundred = format!("198.51.100.1, 203.0.113.9{}", ", 10.1.2.3".repeat(100));
        let many = "203.0.113.8, ".repeat(100) + "203.0.113.9";
        for (lines, expected) in [
            (&["203.0.113.9"][..], "203.0.113.9"),
            (&["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
            (&["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
            (&["198.51.100.1, 203.0.113.9", " 10.0.0.2 ,10.0.0.3"], "203.0.113.9"),
            (&[hundred.as_str()], "203.0.113.9"),
            (&[many.as_str()], "203.0.113.9"),
            (&["203.0.113.9, , ,"], "203.0.113.9"),
            (&["203.0.113.9:1234"], "203.0.113.9"),
            (&["::ffff:203.0.113.9"], "203.0.113.9"),
            (&["[::ffff:203.0.113.9]:443"], "203.0.113.9"),
            (&["2001:db9::7"], "2001:db9::7"),
            (&["[2001:db9::7]"], "2001:db9::7"),
            (&["[2001:db9::7]:1234"], "2001:db9::7"),
            (&["2001:db9::7, fe80::1%eth0"], "2001:db9::7"),
            (&["2001:db9::7, 2001:db8::9, ::ffff:10.0.0.7"], "2001:db9::7"),
            (&["\"203.0.113.9"], PEER), // no quotes in this header
            // All are trusted: the leftmost.
            (&["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
            // What decides is no address: the last one that a trusted proxy has vouched for.
            (&[], PEER),
            (&["203.0.113.9, unknown"], PEER),
            (&["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["203.0.113.9, example.com"], PEER),
            (&["203.0.113.9, 10.0.0.256"], PEER),
            (&["203.0.113.9, 10.0.0.2%eth0"], PEER),
            (&["203.0.113.9, fe80::1%"], PEER),
            (&["203.0.113.9, [10.0.0.2]"], PEER),
            (&["203.0.113.9, 10.0.0.2:"], PEER),
            (&["203.0.113.9, [2001:db8::7"], PEER),
            (&["203.0.113.9, [2001:db8::7]x"], PEER),
            (&["203.0.113.9, 10.0.0.2 10.0.0.3"], PEER),
            (&["203.0.113.9, \u{e9}"], PEER),
        ] {
            assert_eq!(client(Source::XForwardedFor, PEER, lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_with_its_quotes_from_the_right() {
        for (lines, expected) in [
            (&["for=203.0.113.9"][..], "203.0.113.9"),
            (&["For=\"203.0.113.9:4711\";proto=https;by=10.0.0.1"], "203.0.113.9"),
            (&["proto=https ; FOR = \"[2001:db9::7]:4711\" "], "2001:db9::7"),
            (&["for=\"[2001:db9::7%25eth0]\""], "2001:db9::7"),
            (&["for=198.51.100.1, for=203.0.113.9;host=\"a,b\", for=10.0.0.2"], "203.0.113.9"),
            (&["for=198.51.100.1", "for=203.0.113.9, for=10.0.0.2"], "203.0.113.9"),
            (&["for=203.0.113.9;host=\"a\\\",b\\\\\""], "203.0.113.9"),
            (&["for=203.0.113.9:_port"], "203.0.113.9"),
            (&["for=203.0.113.9;host=\"a;for=198.51.100.1\""], "203.0.113.9"),
            // A quote that a stranger has opened does not hide what the proxy appends.
            (&["for=\"198.51.100.1, for=203.0.113.9"], "203.0.113.9"),
            (&["host=\"\\, for=203.0.113.9"], "203.0.113.9"),
            (&["for=198.51.100.1, for=_hidden"], PEER),
            (&["for=198.51.100.1, for=\"_hidden:_port\""], PEER),
            (&["for=198.51.100.1, for=unknown"], PEER),
            (&["for=198.51.100.1, for=_hidden, for=10.0.0.2"], "10.0.0.2"),
            (&["for=198.51.100.1, proto=https"], PEER),
            (&["for=198.51.100.1, for=203.0.113.9;for=203.0.113.8"], PEER),
            (&["for=198.51.100.1, 203.0.113.9"], PEER),
            (&["for=198.51.100.1, for=\"203.0.113.9"], PEER),
        ] {
            assert_eq!(client(Source::Forwarded, PEER, lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn backslashes_before_a_quote_are_counted_however_many_there_are() {
        const MIB: usize = 1 << 20; // with a look back at each of them this would take hours
        for (backslashes, end) in [(MIB, "\""), (MIB + 1, "\"\"")] {
            let line =
                format!("for=198.51.100.1, for=203.0.113.9;host=\"a,{}{end}, for=10.0.0.2", "\\".repeat(backslashes));
            assert_eq!(client(Source::Forwarded, PEER, &[&line]), "203.0.113.9", "{backslashes}");
        }
        assert_eq!(client(Source::Forwarded, PEER, &[&"\\".repeat(MIB)]), PEER);
    }

    #[test]
    fn a_peer_that_is_not_trusted_is_the_client_whatever_it_sends() {
        let config = Config { trusted_proxies: Networks::parse([PEER]).expect("networks"), ..Config::default() };
        let [stranger, proxy] = ["192.0.2.1", PEER].map(|text| text.parse().expect("an address"));
        let never = std::iter::from_fn(|| panic!("a header of a stranger is parsed"));
        assert_eq!(config.client(stranger, never), stranger);
        let last = std::iter::once(Some(stranger)).chain(std::iter::from_fn(|| panic!("more is parsed than counts")));
        assert_eq!(config.client(proxy, last), stranger);
        for connected in ["192.0.2.1", "::ffff:192.0.2.1"] {
            assert_eq!(client(Source::XForwardedFor, connected, &["203.0.113.9"]), "192.0.2.1");
            assert_eq!(client(Source::Forwarded, connected, &["for=203.0.113.9"]), "192.0.2.1");
        }
        assert_eq!(client(Source::XForwardedFor, "::ffff:10.0.0.1", &["203.0.113.9"]), "203.0.113.9", "IPv4 is IPv4");
        for source in [Source::Peer, Source::ProxyProtocol] {
            assert_eq!(client(source, PEER, &["203.0.113.9"]), PEER);
        }
    }

    #[test]
    fn networks_are_written_in_the_ways_that_people_write_them() {
        let contains = |network: &str, address: &str| {
            Networks::parse([network]).map(|networks| networks.contains(address.parse().expect("an address")))
        };
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.255.255", Some(true)),
            ("10.0.0.0/8", "::ffff:10.1.2.3", Some(true)),
            ("10.0.0.0/8", "11.0.0.0", Some(false)),
            ("10.1.2.3/8", "10.0.0.1", Some(true)),
            ("192.0.2.7", "192.0.2.7", Some(true)),
            ("192.0.2.7", "192.0.2.8", Some(false)),
            ("::ffff:192.0.2.0/120", "192.0.2.255", Some(true)),
            ("2001:db8::/32", "2001:db8:1::1", Some(true)),
            ("::/0", "2001:db8::1", Some(true)),
            ("::/0", "192.0.2.7", Some(false)),
            ("10.0.0.0/33", "10.0.0.0", None),
            ("::ffff:0.0.0.0/95", "10.0.0.0", None),
            ("10.0.0", "10.0.0.0", None),
            ("example.com", "10.0.0.0", None),
            ("", "10.0.0.0", None),
        ] {
            assert_eq!(contains(network, address), expected, "{network} {address}");
        }
    }
}
