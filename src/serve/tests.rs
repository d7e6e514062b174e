//! The guard, without a server.

use super::guard::{Guard, Refusal};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};

fn headers(of: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in of {
        headers
            .append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn check(guard: &Guard, of: &[(&str, &str)]) -> Result<(), Refusal> {
    guard.check(&Uri::from_static("/v1/caption"), &headers(of), false)
}

#[test]
fn only_this_servers_own_names_are_answered() {
    let guard = Guard::new(&["Photos.example".into()], None);
    for host in
        ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:80", "[::1]", "10.0.0.7", "photos.example:443"]
    {
        assert_eq!(check(&guard, &[("host", host)]), Ok(()), "{host}");
    }
    // Among them names that a rebound DNS entry would have, and what is no name.
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "photos.example.evil",
        "localhost:x",
        "localhost:80:80",
        "[::1",
        "[::1]x",
        "",
        "localhost@evil.example",
        "127.0.0.1/",
    ] {
        assert_eq!(check(&guard, &[("host", host)]), Err(Refusal::Host(host.into())), "{host}");
    }
    assert!(check(&guard, &[]).is_err());
    assert!(check(&guard, &[("host", "localhost"), ("host", "evil.example")]).is_err());
    let uri = Uri::from_static("http://evil.example/v1/caption");
    assert!(guard.check(&uri, &headers(&[("host", "localhost")]), false).is_err());
}

#[test]
fn pages_of_other_sites_are_refused() {
    let guard = Guard::new(&[], None);
    let of = |origin: &str| check(&guard, &[("host", "127.0.0.1:8080"), ("origin", origin)]);
    assert_eq!(of("http://127.0.0.1:8080"), Ok(()));
    for origin in [
        "http://evil.example",
        "null",
        "http://127.0.0.1:9000",
        "http://localhost:8080",
        "127.0.0.1:8080",
        "",
    ] {
        assert_eq!(of(origin), Err(Refusal::Origin(origin.into())), "{origin}");
    }
    for site in ["cross-site", "same-site"] {
        assert!(check(&guard, &[("host", "localhost"), ("sec-fetch-site", site)]).is_err(), "{site}");
    }
    for site in ["same-origin", "none"] {
        assert!(check(&guard, &[("host", "localhost"), ("sec-fetch-site", site)]).is_ok(), "{site}");
    }
}

#[test]
fn the_token_is_needed_where_there_is_one() {
    let guard = Guard::new(&[], Some("0123456789abcdef"));
    let with = |value: &str| check(&guard, &[("host", "localhost"), ("authorization", value)]);
    assert_eq!(with("Bearer 0123456789abcdef"), Ok(()));
    for wrong in [
        "Bearer 0123456789abcdeF",
        "Bearer ",
        "Bearer 0123456789abcdef ",
        "0123456789abcdef",
        "Basic 0123456789abcdef",
    ] {
        assert_eq!(with(wrong), Err(Refusal::Token), "{wrong}");
    }
    assert_eq!(check(&guard, &[("host", "localhost")]), Err(Refusal::Token));
    assert_eq!(guard.check(&Uri::from_static("/health"), &headers(&[("host", "localhost")]), true), Ok(()));
}
