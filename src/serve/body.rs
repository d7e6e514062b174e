//! Bodies of requests: read whole, bounded in size, in time, and in what all of them hold together; then multipart or JSON.
//!
//! multipart/form-data: the field `image` is a picture file, every other field a text. application/json: an object, `image` is a
//! picture file in base64. A field's number or truth value may be written as text, as forms have it.

use super::handlers::{App, Fault};
use super::limits;
use crate::{Error, Result};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use base64::Engine as _;
use serde_json::{Map, Value};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory of bodies is counted in these.
const UNIT: usize = 4096;
/// Fields that are texts whatever stands in them.
const TEXTS: [&str; 8] = ["text", "name", "spaces", "rank_by", "image", "of", "prompt", "template"];
/// How much of a body that is refused is read and forgotten, so that the client hears of the refusal.
const FORGOTTEN: usize = 4 * limits::BODY;

/// What a request brought.
pub struct Sent {
    /// The picture file and the name the client gave it.
    pub image: Option<(String, Vec<u8>)>,
    pub fields: Map<String, Value>,
    /// Given back when the bytes are gone.
    pub memory: OwnedSemaphorePermit,
}

pub fn memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limits::BODIES / UNIT))
}

/// Reads a body and what is in it.
pub async fn read(app: &App, request: Request) -> Result<Sent, Fault> {
    let (parts, body) = request.into_parts();
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|n| n > limits::BODY as u64) {
        tokio::spawn(forget(body));
        return Err(too_large());
    }
    let (bytes, memory) = match tokio::time::timeout(limits::READING, gather(app, body)).await {
        Ok(read) => read?,
        Err(_) => {
            let message = format!("the body did not come within {} s", limits::READING.as_secs());
            return Err(Fault::status(StatusCode::REQUEST_TIMEOUT, message));
        }
    };
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (image, fields) = match kind.as_str() {
        "multipart/form-data" => multipart(Request::from_parts(parts, Body::from(bytes))).await?,
        "application/json" => json(&bytes)?,
        other => {
            let message = format!("expected multipart/form-data or application/json, got {other:?}");
            return Err(Fault::status(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    };
    Ok(Sent { image, fields, memory })
}

async fn gather(app: &App, mut body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Fault> {
    let busy = || Fault::busy("the bodies of other requests fill the memory set apart for them");
    let mut memory = app.memory.clone().try_acquire_many_owned(1).map_err(|_| busy())?;
    let mut bytes = Vec::new();
    while let Some(data) = next(&mut body).await.transpose()? {
        if bytes.len() + data.len() > limits::BODY {
            tokio::spawn(forget(body));
            return Err(too_large());
        }
        let units = (bytes.len() + data.len()).div_ceil(UNIT).saturating_sub(memory.num_permits());
        let more = app.memory.clone().try_acquire_many_owned(units as u32).map_err(|_| busy())?;
        memory.merge(more);
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.into(), memory))
}

/// The next piece of a body.
async fn next(body: &mut Body) -> Option<Result<Bytes, Fault>> {
    use axum::body::HttpBody;
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame.map(|f| f.into_data()) {
            Ok(Ok(data)) => return Some(Ok(data)),
            // Trailers.
            Ok(Err(_)) => {}
            Err(e) => {
                return Some(Err(Fault::status(StatusCode::BAD_REQUEST, format!("the body broke off: {e}"))));
            }
        }
    }
}

/// Reads what a client still sends, as it would not read the answer before.
async fn forget(mut body: Body) {
    let all = async {
        let mut read = 0;
        while let Some(Ok(data)) = next(&mut body).await {
            read += data.len();
            if read > FORGOTTEN {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(limits::HEAD, all).await;
}

fn too_large() -> Fault {
    let message = format!("expected a body of at most {} MiB", limits::BODY >> 20);
    Fault::status(StatusCode::PAYLOAD_TOO_LARGE, message)
}

type Parsed = (Option<(String, Vec<u8>)>, Map<String, Value>);

async fn multipart(request: Request) -> Result<Parsed, Fault> {
    let wrong = |e: &dyn std::fmt::Display| {
        Fault::Error(Error::argument("request", "body", "multipart/form-data", e))
    };
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| wrong(&e))?;
    let (mut image, mut fields) = (None, Map::new());
    while let Some(field) = form.next_field().await.map_err(|e| wrong(&e))? {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "image" {
            let file = field.file_name().filter(|f| !f.is_empty()).unwrap_or("image").to_owned();
            let bytes = field.bytes().await.map_err(|e| wrong(&e))?.to_vec();
            if image.replace((file, bytes)).is_some() {
                return Err(twice("image"));
            }
            continue;
        }
        let text = field.text().await.map_err(|e| wrong(&e))?;
        if fields.insert(name.clone(), typed(&name, text)).is_some() {
            return Err(twice(&name));
        }
    }
    Ok((image, fields))
}

fn twice(name: &str) -> Fault {
    Fault::Error(Error::argument("request", name, "one", "two"))
}

/// The value of a form's text.
pub fn typed(name: &str, text: String) -> Value {
    if TEXTS.contains(&name) {
        return Value::String(text);
    }
    match serde_json::from_str(text.trim()) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(text),
    }
}

fn json(bytes: &[u8]) -> Result<Parsed, Fault> {
    let wrong = |got: String| Fault::Error(Error::argument("request", "body", "a JSON object", got));
    let value: Value = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    let Value::Object(mut fields) = value else { return Err(wrong("another JSON value".into())) };
    let name = match fields.remove("name") {
        Some(Value::String(name)) => name,
        None => "image".to_owned(),
        Some(other) => return Err(Fault::Error(Error::argument("request", "name", "a text", other))),
    };
    let image = match fields.remove("image") {
        Some(Value::String(text)) => Some((name, decoded(&text)?)),
        None => None,
        Some(_) => {
            let expected = "a picture file in base64";
            return Err(Fault::Error(Error::argument("request", "image", expected, "another JSON value")));
        }
    };
    Ok((image, fields))
}

/// A picture file in base64.
pub fn decoded(text: &str) -> Result<Vec<u8>> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(&text).map_err(|e| {
        Error::argument("request", "image", "a picture file in base64", e)
            .fix("send the bytes of the file: an address or a path is never opened")
    })
}
