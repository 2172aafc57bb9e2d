//! Who is at the other end, and whose word is taken for it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Where the connection itself comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Tcp(SocketAddr),
    /// Whoever may open the socket file is trusted as a proxy.
    Unix,
}

impl Origin {
    /// The address that the connection itself is counted for; proxies speak for many, and are not counted.
    pub(super) fn counted(self, trusted: &[IpNet]) -> Option<IpAddr> {
        let Origin::Tcp(address) = self else { return None };
        let ip = address.ip().to_canonical();
        (!trusted.iter().any(|net| net.contains(&ip))).then_some(ip)
    }
}

/// For logs and the ring.
pub(super) fn show(peer: Option<IpAddr>) -> String {
    peer.map_or_else(|| "unix".to_owned(), |ip| ip.to_string())
}

/// What one customer of an IPv6 provider has at least is one network of 64 bits.
pub(super) fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

/// The peer's address: the rightmost address in `X-Forwarded-For` that is no
/// trusted proxy, where the connection comes from a trusted one. `forwarded` is every value of the
/// header in the order of arrival.
pub(super) fn peer_of<'a>(
    origin: Origin,
    forwarded: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &[IpNet],
) -> Option<IpAddr> {
    let trusts = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    let mut nearest = match origin {
        Origin::Unix => None,
        Origin::Tcp(address) => {
            let ip = address.ip().to_canonical();
            if !trusts(ip) {
                return Some(ip);
            }
            Some(ip)
        }
    };
    for part in forwarded.rev().flat_map(|value| value.rsplit(|&b| b == b',')) {
        // Whatever stands left of an entry that is no address was not written by a proxy of ours.
        let Some(ip) = address_in(part) else { break };
        nearest = Some(ip);
        if !trusts(ip) {
            break;
        }
    }
    nearest
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address_in(part: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(part).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse().ok().map(|a: SocketAddr| a.ip()))?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(origin: &str, forwarded: &[&str]) -> String {
        let origin = origin.parse().map_or(Origin::Unix, Origin::Tcp);
        let trusted = ["127.0.0.0/8", "10.0.0.0/8"].map(|n| n.parse().unwrap());
        show(peer_of(origin, forwarded.iter().map(|v| v.as_bytes()), &trusted))
    }

    #[test]
    fn a_stranger_cannot_choose_its_address() {
        assert_eq!(peer("203.0.113.9:5", &["1.2.3.4"]), "203.0.113.9");
    }

    #[test]
    fn behind_proxies_the_rightmost_untrusted_address_counts() {
        for (forwarded, expected) in [
            (&["1.2.3.4"][..], "1.2.3.4"),
            (&["6.6.6.6, 1.2.3.4, 10.0.0.7"], "1.2.3.4"),
            (&["6.6.6.6", "1.2.3.4:99", "10.0.0.7"], "1.2.3.4"),
            (&["6.6.6.6, nonsense, 10.0.0.7"], "10.0.0.7"),
            (&["10.0.0.8, 10.0.0.7"], "10.0.0.8"),
            (&["[2001:db8::1]:4"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["::ffff:1.2.3.4"], "1.2.3.4"),
            (&[""], "127.0.0.1"),
            (&[], "127.0.0.1"),
        ] {
            assert_eq!(peer("127.0.0.1:5", forwarded), expected, "{forwarded:?}");
        }
        assert_eq!(peer("[::ffff:127.0.0.1]:5", &["1.2.3.4"]), "1.2.3.4");
    }

    #[test]
    fn a_unix_socket_is_trusted_as_a_proxy() {
        assert_eq!(peer("unix", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(peer("unix", &[]), "unix");
    }
}
