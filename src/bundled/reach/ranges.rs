//! Ranges of addresses, and what they are for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses with the same first bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    first: IpAddr,
    bits: u8,
}

/// Ranges of IPv4 that are not the internet: IANA's registry of special addresses.
const SPECIAL_V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "an address of this machine"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private address"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "an address of a carrier's own network"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "a loopback address"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local address"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private address"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "a reserved address"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "an address for documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a reserved address"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private address"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "an address for benchmarks"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "an address for documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "an address for documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast address"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved address"),
];

/// What of IPv6 is the internet.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Ranges of IPv6 that are not the internet; some are within it, and the others have a better name.
const SPECIAL_V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, "an address of this machine"),
    (Ipv6Addr::LOCALHOST, 128, "a loopback address"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a reserved address"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "an address for documentation"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "an address for documentation"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "a private address"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "a link-local address"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "a multicast address"),
];

impl Network {
    /// Reads `10.1.0.0/16`, `fd00::/8`, or a single address. Bits behind the first ones are zero.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (first, bits) = match text.split_once('/') {
            Some((first, bits)) => (first, Some(bits)),
            None => (text, None),
        };
        let first: IpAddr = first.parse().ok()?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits.map_or(Some(most), |bits| bits.parse().ok())?;
        (bits <= most && begin(first, bits) == first).then_some(Self { first, bits })
    }

    /// True if the address is in it.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && begin(address, self.bits) == self.first
    }

    /// True if all of the other network is in it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.bits <= other.bits && self.has(other.first)
    }
}

/// The address with all but its first bits zero.
fn begin(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let behind = 32_u32.saturating_sub(u32::from(bits));
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let behind = 128_u32.saturating_sub(u32::from(bits));
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

/// What kind of address it is, where that is none of the internet and nobody allows it.
pub(super) fn refused(address: IpAddr, allowed: impl Fn(IpAddr) -> bool) -> Option<&'static str> {
    if allowed(address) {
        return None;
    }
    match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => match inner(v6) {
            // What is sent there may arrive at the address within.
            Some(v4) if allowed(IpAddr::V4(v4)) => None,
            Some(v4) => special_v4(v4),
            None => special_v6(v6),
        },
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let has = |(first, bits, _): &&(Ipv4Addr, u8, _)| begin(address.into(), *bits) == *first;
    SPECIAL_V4.iter().find(has).map(|(.., what)| *what)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let has = |(first, bits, _): &&(Ipv6Addr, u8, _)| begin(address.into(), *bits) == *first;
    if let Some((.., what)) = SPECIAL_V6.iter().find(has) {
        return Some(*what);
    }
    let (first, bits) = GLOBAL_V6;
    (begin(address.into(), bits) != first).then_some("a reserved address")
}

/// The address of IPv4 that stands in one of IPv6: mapped (`::ffff:0:0/96`), translated
/// (`::ffff:0:0:0/96`), of NAT64 (`64:ff9b::/96`) and of 6to4 (`2002::/16`). The old
/// `::a.b.c.d` has none: nothing is there any more, and it is reserved.
fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let joined = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(joined(high, low)),
        _ => None,
    }
}
