use super::*;

fn settings(configuration: Value) -> Result<Settings, Failure> {
    Settings::new(serde_json::from_value(configuration).unwrap())
}

fn allows(pattern: &str, url: &str) -> bool {
    let settings = settings(json!({"hosts": [pattern]})).unwrap();
    settings.check(&address(url).unwrap()).is_ok()
}

#[test]
fn a_host_is_called_where_a_pattern_allows_it() {
    for (pattern, url) in [
        ("api.example.com", "https://api.example.com/x"),
        ("API.example.com", "http://api.EXAMPLE.com"),
        ("api.example.com", "https://api.example.com./"),
        ("api.example.com.", "https://api.example.com/"),
        ("*.example.com", "https://a.b.example.com/"),
        ("*", "https://anything.example/"),
        ("*:*", "https://anything.example:8443/"),
        ("a.example:8443", "https://a.example:8443/"),
        ("127.0.0.1", "http://0x7f.1/"),
        ("[::1]:8080", "http://[0:0::1]:8080/"),
        ("bücher.example", "https://xn--bcher-kva.example/"),
    ] {
        assert!(allows(pattern, url), "{pattern} {url}");
    }
    for (pattern, url) in [
        ("api.example.com", "https://api.example.com.evil.example/"),
        ("api.example.com", "https://evil.example/api.example.com"),
        ("api.example.com", "https://api.example.com:8443/"),
        ("*.example.com", "https://example.com/"),
        ("*.example.com", "https://badexample.com/"),
        ("a.example:8443", "https://a.example/"),
        ("*", "https://anything.example:22/"),
        ("127.0.0.1", "http://127.0.0.2/"),
    ] {
        assert!(!allows(pattern, url), "{pattern} {url}");
    }
    for pattern in ["", "*.", "a.*.b", "**", "*x.y", "*.1.2.3.4", "a:b", "a:99999", "a b", "[::1"] {
        let failure = settings(json!({"hosts": [pattern]})).map(drop).unwrap_err();
        assert_eq!(failure.code, "bad_configuration", "{pattern}");
    }
}

#[test]
fn an_address_is_of_http_and_has_no_login() {
    for url in [
        "",
        "example.com",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://user@example.com/",
        "https://user:s3cr3t@example.com/",
        "https://:s3cr3t@example.com/",
        "https://",
        "https://exa mple.com/",
        "https://[::1/",
        "gopher://127.0.0.1/",
    ] {
        let failure = address(url).unwrap_err();
        assert_eq!(failure.code, "invalid_url", "{url}");
        assert!(!failure.message.contains("s3cr3t"), "{failure}");
    }
    assert!(address(&format!("https://a/{}", "x".repeat(URL_BYTES_MAX))).is_err());
    assert_eq!(address("https://a/b?c#d").unwrap().as_str(), "https://a/b?c");
}

#[test]
fn secrets_go_to_their_hosts_alone_and_over_tls() {
    let settings = settings(json!({
        "hosts": ["*"],
        "headers": {"X-Team": "flights", "Accept": "text/csv"},
        "secrets": [
            {"host": "api.example.com", "header": "Authorization", "value": "Bearer s3cr3t"},
            {"host": "old.example.com", "header": "X-Key", "value": "s3cr3t", "plain": true},
        ],
    }))
    .unwrap();
    let mut given = HeaderMap::new();
    headers::add(&mut given, header::ACCEPT, "text/plain");
    headers::add(&mut given, header::AUTHORIZATION, "mine");
    let sent = |url: &str| settings.headers_for(&address(url).unwrap(), &given);
    let own = sent("https://api.example.com/");
    assert_eq!(own["authorization"], "Bearer s3cr3t");
    assert_eq!(
        (own["accept"].as_bytes(), own["x-team"].as_bytes()),
        (&b"text/plain"[..], &b"flights"[..])
    );
    assert!(!format!("{own:?}").contains("s3cr3t"), "{own:?}");
    assert_eq!(sent("http://api.example.com/")["authorization"], "mine");
    assert_eq!(sent("https://evil.example/")["authorization"], "mine");
    assert_eq!(sent("http://old.example.com/")["x-key"], "s3cr3t");
    assert_eq!(sent("https://evil.example/").get("x-key"), None);
}

#[test]
fn a_configuration_that_cannot_be_used_quotes_no_secret() {
    for (secret, code) in [
        (json!({"host": "*", "header": "host", "value": "s3cr3t"}), "invalid_header"),
        (json!({"host": "*", "header": "x", "value": "s3cr3t\n"}), "invalid_header"),
        (json!({"host": "a:b", "header": "x", "value": "s3cr3t"}), "bad_configuration"),
        (json!({"host": "u:s3cr3t@a", "header": "x", "value": "x"}), "bad_configuration"),
        (json!({"host": "*", "header": "s3cr3t:", "value": "x"}), "invalid_header"),
    ] {
        let failure = settings(json!({"hosts": [], "secrets": [secret]})).map(drop).unwrap_err();
        assert_eq!(failure.code, code);
        assert!(!failure.message.contains("s3cr3t"), "{failure}");
    }
    for (member, code) in [
        (json!({"hosts": ["*", "u:s3cr3t@a"]}), "bad_configuration"),
        (json!({"hosts": [], "headers": {"s3cr3t:": "x"}}), "invalid_header"),
    ] {
        let failure = settings(member).map(drop).unwrap_err();
        assert_eq!(failure.code, code);
        assert!(!failure.message.contains("s3cr3t"), "{failure}");
    }
    let failure = settings(json!({"hosts": [], "networks": ["127.0.0.0/8"]})).map(drop);
    assert_eq!(failure.unwrap_err().code, "not_permitted");
    let failure = settings(json!({"hosts": [], "authorities": "x"})).map(drop);
    assert_eq!(failure.unwrap_err().code, "bad_authorities");
}

fn redirected(from: &str, status: u16, location: &str) -> Result<Option<String>, Failure> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert(header::LOCATION, location.parse().unwrap());
    Ok(next(&address(from).unwrap(), &response)?.map(Into::into))
}

#[test]
fn redirects_lead_to_addresses_that_are_checked_anew() {
    let next = redirected("https://a.example/x/y?z", 302, "../w").unwrap();
    assert_eq!(next.as_deref(), Some("https://a.example/w"));
    let next = redirected("http://a.example/", 308, "//b.example/").unwrap();
    assert_eq!(next.as_deref(), Some("http://b.example/"));
    assert_eq!(redirected("https://a.example/", 200, "/x").unwrap(), None);
    assert_eq!(redirected("https://a.example/", 304, "/x").unwrap(), None);
    for location in
        ["http://a.example/", "ftp://a.example/", "https://u:p@a.example/", "https://", "data:,x"]
    {
        let failure = redirected("https://a.example/", 301, location).unwrap_err();
        assert_eq!(failure.code, "bad_redirect", "{location}");
    }
}

#[test]
fn a_look_stays_a_look_behind_a_redirect() {
    let becomes = |method, status| becomes_get(&method, StatusCode::from_u16(status).unwrap());
    assert!(becomes(Method::POST, 301) && becomes(Method::POST, 302));
    assert!(becomes(Method::POST, 303) && becomes(Method::PUT, 303));
    assert!(!becomes(Method::POST, 307) && !becomes(Method::POST, 308));
    assert!(!becomes(Method::PUT, 302) && !becomes(Method::HEAD, 303));
}

#[test]
fn what_may_have_been_done_is_not_to_be_done_again() {
    let late = || Failure::passing("late", "no answer");
    assert!(told(late(), true).temporary);
    let failure = told(late(), false);
    assert_eq!((failure.code.as_str(), failure.temporary), ("unknown_outcome", false));
    assert!(failure.message.contains("late: no answer"), "{failure}");
    for code in ["not_allowed", "bad_redirect", "too_large", "broken_answer"] {
        assert_eq!(told(Failure::new(code, "no"), true).code, code, "nothing was sent");
        let failure = told(Failure::new(code, "no"), false);
        assert_eq!((failure.code.as_str(), failure.temporary), ("unknown_outcome", false));
        assert!(failure.message.contains(code), "{failure}");
    }
}
