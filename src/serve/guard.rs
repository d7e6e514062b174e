//! Who may ask, and what browsers are told about every answer.
//!
//! A page of another site can make a browser send requests here. It cannot hide where it comes from: `Origin` names it, and
//! `Host` names the server as the page knows it - with DNS rebinding, a name of its own. So a request must name this server by an
//! address, by `localhost` or by a name given with `--host`, and its origin, if it has one, must be this server.

use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Uri};
use std::net::IpAddr;

/// Nothing from elsewhere, no script or style inside of the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
    form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

pub struct Guard {
    hosts: Vec<String>,
    /// blake3 of the token: comparing hashes takes the same time whatever was sent.
    token: Option<blake3::Hash>,
}

/// Why a request is refused.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    Host(String),
    Origin(String),
    Token,
}

impl Guard {
    pub fn new(hosts: &[String], token: Option<&str>) -> Guard {
        let hosts = hosts.iter().map(|h| h.to_ascii_lowercase()).collect();
        Guard { hosts, token: token.map(|t| blake3::hash(t.as_bytes())) }
    }

    /// `open`: the path holds nothing that needs a token.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap, open: bool) -> Result<(), Refusal> {
        let mut named = headers.get_all(header::HOST).iter();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let host = named.next().map(text).unwrap_or_default();
        let absolute = uri.authority().is_some_and(|a| !a.as_str().eq_ignore_ascii_case(&host));
        if named.next().is_some() || absolute || !self.is_here(&host) {
            return Err(Refusal::Host(host));
        }
        if let Some(origin) = headers.get(header::ORIGIN).map(text) {
            let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
            if !authority.eq_ignore_ascii_case(&host) {
                return Err(Refusal::Origin(origin));
            }
        }
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if !open && matches!(site, Some(b"cross-site" | b"same-site")) {
            return Err(Refusal::Origin("another site".into()));
        }
        match &self.token {
            Some(token) if !open => {
                let sent = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
                let sent = sent.and_then(|s| s.strip_prefix(b"Bearer ")).unwrap_or_default();
                if blake3::hash(sent) == *token { Ok(()) } else { Err(Refusal::Token) }
            }
            _ => Ok(()),
        }
    }

    fn is_here(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((name, port)) if is_port(port) => name,
                _ => return false,
            },
            None => match host.split_once(':') {
                Some((name, port)) if is_port(&format!(":{port}")) => name,
                Some(_) => return false,
                None => host,
            },
        };
        let name = name.to_ascii_lowercase();
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.hosts.contains(&name)
    }
}

/// Nothing, or `:80`.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

/// The headers of every answer.
pub fn add_headers(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
