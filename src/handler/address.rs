//! Which addresses an `http` handler may connect to.
//!
//! The check is made on the addresses that the name resolved to, at the moment of connecting: a name
//! that turns into a private address later is refused then.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;

/// Reachable over the public internet: not private, loopback, link-local (cloud metadata), shared,
/// multicast, reserved, nor one of these inside an IPv6 transition address.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || address.is_documentation()
        || a >= 224)
}

/// Where clouds hand out a machine's credentials: link-local, and the two that are elsewhere (Amazon's over IPv6,
/// Alibaba's). No handler has business there.
#[must_use]
pub fn is_metadata(address: IpAddr) -> bool {
    let of_v4 = |v4: Ipv4Addr| v4.is_link_local() || v4.octets() == [100, 100, 100, 200];
    match address {
        IpAddr::V4(v4) => of_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
                || embedded(v6).is_some_and(of_v4)
        }
    }
}

/// The IPv4 address that counts in an IPv6 one: mapped, of the well-known NAT64 prefix, of 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = embedded(address) {
        return is_public_v4(v4);
    }
    match address.segments() {
        // Teredo, ORCHID, benchmarking and the other special blocks of 2001::/23; documentation.
        [0x2001, second, ..] => second >= 0x200 && second != 0xdb8,
        [0x3fff, second, ..] => second >= 0x1000,
        // Of all else only global unicast, 2000::/3.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[must_use]
pub fn is_allowed(address: IpAddr, private_too: bool) -> bool {
    is_public(address) || (private_too && !is_metadata(address))
}

/// Refused before connecting.
#[derive(Debug)]
pub struct Refused {
    pub host: String,
    pub address: IpAddr,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { host, address } = self;
        if is_metadata(*address) {
            return write!(
                f,
                "address not allowed: {host} is {address}, link-local, where clouds keep credentials; nothing allows it"
            );
        }
        if *host == address.to_string() {
            write!(f, "address not allowed: {address} is private or reserved")?;
        } else {
            write!(f, "address not allowed: {host} is {address}, private or reserved")?;
        }
        f.write_str("; set allow_private = true, or write the address itself in the url's host")
    }
}

impl std::error::Error for Refused {}

/// The system's resolver behind the policy.
#[derive(Clone, Debug)]
pub struct Resolver {
    pub allow_private: bool,
}

impl Resolver {
    async fn resolve(self, host: String) -> io::Result<std::vec::IntoIter<SocketAddr>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0))
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("dns: cannot resolve {host}: {e}")))?
            .collect();
        let Some(first) = found.first().copied() else {
            return Err(io::Error::other(format!("dns: {host} has no address")));
        };
        let allowed: Vec<SocketAddr> =
            found.into_iter().filter(|a| is_allowed(a.ip(), self.allow_private)).collect();
        if allowed.is_empty() {
            return Err(io::Error::other(Refused { host, address: first.ip() }));
        }
        Ok(allowed.into_iter())
    }
}

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name.as_str().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_and_special_addresses_are_not_public() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.5",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.1",
            "2606:4700::1111",
            "2a00:1450::1",
            "2001:4860:4860::8888",
            "::ffff:1.1.1.1",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn nothing_allows_the_addresses_of_metadata() {
        for text in [
            "169.254.169.254",
            "169.254.1.1",
            "100.100.100.200",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "fe80::1",
            "fd00:ec2::254",
        ] {
            assert!(!is_allowed(text.parse().unwrap(), true), "{text}");
        }
        for text in ["10.0.0.1", "127.0.0.1", "fd00::1", "::1", "100.64.0.1"] {
            let address = text.parse().unwrap();
            assert_eq!([true, false].map(|p| is_allowed(address, p)), [true, false], "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_that_is_a_private_address_is_refused_with_the_way_out() {
        let strict = Resolver { allow_private: false };
        let error = strict.resolve("localhost".into()).await.unwrap_err().to_string();
        assert!(error.contains("localhost is ") && error.contains("allow_private"), "{error}");
        // Not an address to Rust, but one to the system's resolver.
        let error = Resolver { allow_private: false }.resolve("127.1".into()).await.unwrap_err();
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
        let free = Resolver { allow_private: true };
        assert!(free.resolve("localhost".into()).await.unwrap().all(|a| a.ip().is_loopback()));
    }
}
