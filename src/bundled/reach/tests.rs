use super::*;

fn networks(texts: &[&str], permitted: &[&str]) -> Result<Networks, Failure> {
    let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
    let permitted: Vec<_> = permitted.iter().map(|text| Network::parse(text).unwrap()).collect();
    Networks::within(&texts, &permitted)
}

/// Addresses that are not the internet, be it only for what stands in them.
const INNER: &[&str] = &[
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2002:c0a8:101::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
];

/// Their neighbours, and others.
const OUTER: &[&str] = &[
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "198.17.255.255",
    "223.255.255.255",
    "::ffff:1.1.1.1",
    "64:ff9b::1.1.1.1",
    "2002:101:101::1",
    "2606:4700::1111",
    "2a00:1450::1",
];

#[test]
fn only_addresses_of_the_internet_are_reached() {
    let none = Networks::default();
    for address in INNER {
        assert!(none.refuse(address.parse().unwrap()).is_some(), "{address}");
    }
    for address in OUTER {
        assert_eq!(none.refuse(address.parse().unwrap()), None, "{address}");
    }
}

#[test]
fn a_network_is_reached_where_both_allow_it() {
    let allowed = networks(&["10.1.0.0/16", "fd00::/8"], &["10.0.0.0/8", "fd00::/8"]).unwrap();
    for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
        assert_eq!(allowed.refuse(address.parse().unwrap()), None, "{address}");
    }
    for address in ["10.2.0.1", "127.0.0.1", "::ffff:10.2.0.1", "fc00::1"] {
        assert!(allowed.refuse(address.parse().unwrap()).is_some(), "{address}");
    }
    let wider = networks(&["10.0.0.0/7"], &["10.0.0.0/8"]).unwrap_err();
    assert_eq!(wider.code, "not_permitted");
    assert_eq!(networks(&["127.0.0.1"], &[]).unwrap_err().code, "not_permitted");
    assert_eq!(networks(&["::/0"], &["0.0.0.0/0"]).unwrap_err().code, "not_permitted");
    let many = vec!["10.0.0.0/8"; NETWORKS_MAX + 1];
    assert_eq!(networks(&many, &["10.0.0.0/8"]).unwrap_err().code, "bad_configuration");
}

#[test]
fn what_is_no_network_is_refused() {
    for text in ["", "10.0.0.0/33", "10.0.0.1/8", "::/129", "10.0.0/8", "x", "10.0.0.0/-1", "/8"] {
        assert_eq!(Network::parse(text), None, "{text}");
        let error = networks(&[text], &["0.0.0.0/0"]).unwrap_err();
        assert_eq!(error.code, "bad_configuration", "{text}");
    }
    assert!(Network::parse("0.0.0.0/0").unwrap().has("255.1.2.3".parse().unwrap()));
    assert!(Network::parse("::/0").unwrap().has("ff::".parse().unwrap()));
    assert!(!Network::parse("::/0").unwrap().has("1.1.1.1".parse().unwrap()));
}

#[tokio::test]
async fn however_an_address_is_spelt_it_is_the_checked_one() {
    let none = Networks::default();
    for host in ["127.0.0.1", "::1", "localhost", "0x7f.1", "2130706433", "017700000001", "127.1"] {
        let refused = connect("test", host, 80, &none).await.map(drop).unwrap_err();
        assert_eq!(refused.code, "not_allowed", "{host}: {refused}");
        assert!(!refused.temporary, "{host}");
    }
    let loopback = networks(&["127.0.0.0/8"], &["127.0.0.0/8"]).unwrap();
    let reached = addresses("test", "127.0.0.1", 80, &loopback).await.unwrap();
    assert_eq!(reached, vec![SocketAddr::from(([127, 0, 0, 1], 80))]);
}

#[tokio::test]
async fn nobody_there_is_an_outage() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let loopback = networks(&["127.0.0.0/8"], &["127.0.0.0/8"]).unwrap();
    connect("test", "127.0.0.1", port, &loopback).await.unwrap();
    drop(listener);
    let refused = connect("test", "127.0.0.1", port, &loopback).await.unwrap_err();
    assert_eq!((refused.code.as_str(), refused.temporary), ("no_connection", true));
}

/// Its look-ups went on in threads that nobody waited for, and took the places of all tenants.
#[tokio::test]
async fn a_tenant_whose_names_have_no_answer_stops_nobody_else() {
    let mut stuck = Vec::new();
    for _ in 0..LOOK_UPS_OF_TENANT {
        stuck.push(OF_TENANTS.take("stuck").await.unwrap());
    }
    let own = timeout(Duration::from_millis(200), look_up("stuck", "localhost", 80)).await;
    assert!(own.is_err(), "it waits for its own");
    look_up("other", "localhost", 80).await.unwrap();
    drop(stuck);
    look_up("stuck", "localhost", 80).await.unwrap();
}

#[test]
fn a_wrong_entry_is_told_by_its_number() {
    let failure = networks(&["10.0.0.0/8", "s3cr3t"], &["10.0.0.0/8"]).unwrap_err();
    assert!(failure.message.contains("entry 2"), "{failure}");
    assert!(!failure.message.contains("s3cr3t"), "{failure}");
}
