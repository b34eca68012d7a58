//! Text → addresses, networks, ports and protocols, as forgiving as Kubernetes is and no more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use lb_common::family::Protocol;

/// Parses an address. Leading zeros of IPv4 octets are decimal, as they always were in Kubernetes and unlike in C
/// (spec 1.35); an IPv4-mapped IPv6 address is an IPv4 address (spec 1.37).
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let parsed = match text.contains(':') {
        true => text.parse::<Ipv6Addr>().ok().map(|ip| IpAddr::V6(ip).to_canonical()),
        false => parse_ipv4(text).map(IpAddr::V4),
    };
    parsed.ok_or_else(|| format!("{text:?} is not an IP address"))
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// Digits only: no sign, no space; leading zeros mean nothing.
fn parse_decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Parses a network in CIDR notation; its host bits are dropped (spec 1.36).
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let parsed = text.split_once('/').and_then(|(ip, len)| {
        let len: u8 = parse_decimal(len)?;
        match parse_ip(ip).ok()? {
            IpAddr::V4(v4) if ip.contains(':') => Ipv4Net::new(v4, len.checked_sub(96)?).ok().map(IpNet::V4),
            ip => IpNet::new(ip, len).ok(),
        }
    });
    parsed.map(|net| net.trunc()).ok_or_else(|| format!("{text:?} is not a network in CIDR notation"))
}

/// A port number from 1 to 65535.
pub(super) fn parse_port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is not a port: 1 to 65535 are")),
    }
}

/// A protocol this proxy translates; without one TCP, the API's default.
pub(super) fn parse_protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("TCP") => Ok(Protocol::TCP),
        Some("UDP") => Ok(Protocol::UDP),
        Some("SCTP") => Ok(Protocol::SCTP),
        Some(other) => Err(format!("{other:?} is not a protocol: TCP, UDP and SCTP are")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        for (text, ip) in [
            ("172.30.0.041", "172.30.0.41"),
            ("1.2.3.004", "1.2.3.4"),
            ("10.180.00.001", "10.180.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("fd00:0096::000a", "fd00:96::a"),
        ] {
            assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), Ok(ip), "spec 1.35: {text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "None",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.0.1",
            "+1.0.0.0",
            "1 .2.3.4",
            "0x1.2.3.4",
            "::g",
            "a:b",
        ] {
            assert!(parse_ip(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn networks_lose_their_host_bits_and_their_leading_zeros() {
        for (text, net) in [
            ("203.0.113.000/025", "203.0.113.0/25"),
            ("203.0.113.129/25", "203.0.113.128/25"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(
                parse_cidr(text).map(|net| net.to_string()).as_deref(),
                Ok(net),
                "spec 1.35, 1.36: {text}"
            );
        }
        for text in ["198.51.100.0/40", "198.51.100.0", "198.51.100.0/", "/24", "198.51.100.0/-1", "::/129"] {
            assert!(parse_cidr(text).is_err(), "{text:?}");
        }
    }
}
