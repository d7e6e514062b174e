//! The answers, path by path. Every request goes through [`answer`]: who asks, what is asked, how long it took, and if something
//! is wrong, the message that the command line gives, as JSON.

use super::body::{self, Sent};
use super::guard::{self, Guard, Refusal};
use super::jobs::Jobs;
use super::metrics::Metrics;
use super::routes::{JSON, Name, ROUTES, Route};
use super::runs::Runs;
use super::words::{self, Language};
use super::{Answer, Ask, Engine, Query, Settings, Shown, chat, limits, openapi, page};
use crate::report::Look;
use crate::{Error, Kind, Result};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

pub struct App {
    engine: Arc<dyn Engine>,
    jobs: Jobs,
    guard: Guard,
    runs: Runs,
    pub metrics: Arc<Metrics>,
    /// Of bodies.
    pub memory: Arc<Semaphore>,
    waiting: Semaphore,
    decoding: Arc<Semaphore>,
    timeout: Duration,
    answered: AtomicU64,
}

impl App {
    pub fn new(
        settings: &Settings,
        engine: Arc<dyn Engine>,
        jobs: Jobs,
        metrics: Arc<Metrics>,
        runs: Runs,
    ) -> App {
        App {
            engine,
            jobs,
            guard: Guard::new(&settings.hosts, settings.token.as_deref()),
            runs,
            metrics,
            memory: body::memory(),
            waiting: Semaphore::new(limits::WAITING),
            decoding: Arc::new(Semaphore::new(limits::DECODING)),
            timeout: settings.timeout,
            answered: AtomicU64::new(0),
        }
    }
}

/// What is wrong with a request.
#[derive(Debug)]
pub enum Fault {
    Error(Error),
    Status { status: StatusCode, message: String, kind: &'static str },
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Error(error)
    }
}

impl Fault {
    pub fn status(status: StatusCode, message: String) -> Fault {
        Fault::Status { status, message, kind: "request" }
    }

    /// Come again later.
    pub fn busy(message: &str) -> Fault {
        Fault::Status { status: StatusCode::SERVICE_UNAVAILABLE, message: message.into(), kind: "busy" }
    }

    fn response(self) -> Response {
        let (status, message, kind) = match self {
            Fault::Status { status, message, kind } => (status, message, kind),
            Fault::Error(error) => {
                let (status, kind) = match error.kind() {
                    Kind::Argument => (StatusCode::BAD_REQUEST, "argument"),
                    Kind::File | Kind::Data => (StatusCode::UNPROCESSABLE_ENTITY, "file"),
                    Kind::NonFinite => (StatusCode::INTERNAL_SERVER_ERROR, "not finite"),
                    Kind::Device | Kind::Memory => (StatusCode::INTERNAL_SERVER_ERROR, "device"),
                    Kind::Write | Kind::Parity | Kind::Group | Kind::Signal(_) => {
                        (StatusCode::INTERNAL_SERVER_ERROR, "server")
                    }
                };
                (status, error.to_string(), kind)
            }
        };
        let body = json!({"error": {"message": message, "type": kind, "code": status.as_u16()}});
        let mut response = respond(JSON, body.to_string());
        *response.status_mut() = status;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn respond(kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let kind = match kind {
        "text/html" => "text/html; charset=utf-8",
        "text/css" => "text/css; charset=utf-8",
        "text/javascript" => "text/javascript; charset=utf-8",
        "text/plain" => "text/plain; version=0.0.4; charset=utf-8",
        other => other,
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The router, made of the table.
pub fn router(app: Arc<App>) -> axum::Router {
    let mut router = axum::Router::new();
    for route in ROUTES {
        let app = app.clone();
        let method = if route.method == "POST" { MethodFilter::POST } else { MethodFilter::GET };
        router = router.route(
            route.path,
            on(method, move |request: Request| async move { answer(&app, route, request).await }),
        );
    }
    let refused = |status: StatusCode, app: Arc<App>| {
        move |request: Request| async move {
            let message = format!("{} {}: see /openapi.json", request.method(), request.uri().path());
            let allowed = check(&app, &request, false);
            let fault = allowed.err().unwrap_or_else(|| Fault::status(status, message));
            finished(&app, "other", Instant::now(), fault.response())
        }
    };
    router
        .fallback(refused(StatusCode::NOT_FOUND, app.clone()))
        .method_not_allowed_fallback(refused(StatusCode::METHOD_NOT_ALLOWED, app))
        // Bodies are bounded by `body`.
        .layer(DefaultBodyLimit::disable())
}

async fn answer(app: &App, route: &'static Route, request: Request) -> Response {
    let begun = Instant::now();
    let answered = match check(app, &request, route.open) {
        Ok(()) => dispatch(app, route, request).await,
        Err(fault) => Err(fault),
    };
    let response = answered.unwrap_or_else(Fault::response);
    finished(app, route.path, begun, response)
}

fn check(app: &App, request: &Request, open: bool) -> Result<(), Fault> {
    app.guard.check(request.uri(), request.headers(), open).map_err(|refusal| {
        let (status, message) = match refusal {
            Refusal::Host(host) => {
                let message = format!(
                    "serve: Host: expected localhost, an address or a name given with --host, got {host:?}"
                );
                (StatusCode::FORBIDDEN, message)
            }
            Refusal::Origin(origin) => {
                let message = format!("serve: Origin: expected this server, got {origin:?}");
                (StatusCode::FORBIDDEN, message)
            }
            Refusal::Token => {
                let message = "serve: Authorization: expected Bearer and the token of --token-file";
                (StatusCode::UNAUTHORIZED, message.to_owned())
            }
        };
        Fault::Status { status, message, kind: "refused" }
    })
}

fn finished(app: &App, path: &'static str, begun: Instant, mut response: Response) -> Response {
    guard::add_headers(response.headers_mut());
    app.metrics.answered(path, response.status().as_u16(), begun.elapsed());
    response
}

async fn dispatch(app: &App, route: &Route, request: Request) -> Result<Response, Fault> {
    let (uri, headers) = (request.uri().clone(), request.headers().clone());
    let asked = || query(uri.query().unwrap_or_default(), route);
    let text = |value: Value| Ok(respond(route.answer, value.to_string()));
    match route.name {
        Name::Page => {
            let language = language(&asked()?, &headers)?;
            Ok(respond(route.answer, page::page(language)))
        }
        Name::Style => Ok(respond(route.answer, page::style())),
        Name::Script => Ok(respond(route.answer, page::SCRIPT)),
        Name::Health => text(json!({"status": "ok"})),
        Name::Metrics => Ok(respond(route.answer, app.metrics.text())),
        Name::OpenApi => text(openapi::document()),
        Name::About => text(serde_json::to_value(app.engine.about()).unwrap_or_default()),
        Name::Words => {
            let words = app.engine.words(asked()?.get("text").map_or("", String::as_str));
            text(json!({"words": words}))
        }
        Name::Thumbnail => {
            let place = number(&asked()?, "place")?.unwrap_or_default();
            let engine = app.engine.clone();
            let jpeg = on_a_thread(app, move || engine.thumbnail(place)).await?;
            Ok(respond(route.answer, jpeg))
        }
        Name::Runs => text(json!({"runs": app.runs.names()})),
        Name::Training => training(app, &asked()?, &headers),
        Name::Caption | Name::Search | Name::Features | Name::Look | Name::Ask | Name::Chat => {
            let sent = body::read(app, request).await?;
            tokio::time::timeout(app.timeout, compute(app, route, sent)).await.unwrap_or_else(|_| {
                let seconds = app.timeout.as_secs();
                Err(Fault::busy(&format!("no answer within {seconds} s (--timeout)")))
            })
        }
    }
}

/// What needs the model.
async fn compute(app: &App, route: &Route, sent: Sent) -> Result<Response, Fault> {
    let full = || Fault::busy("too many requests wait for the model");
    let place = app.waiting.try_acquire().map_err(|_| full())?;
    let counted = app.metrics.wait();
    let Sent { image, mut fields, memory } = sent;
    let answers = || app.engine.about().language_model.is_some();
    let answer = match route.name {
        Name::Chat => {
            let chat::Asked { image, question, options } = chat::parse(fields, answers())?;
            let picture = see(app, ("image".into(), image)).await?;
            drop(memory);
            let Answer::Json(line) = ask(app, Ask::Caption { picture, question, options }).await? else {
                return Err(full());
            };
            let id = app.answered.fetch_add(1, Ordering::Relaxed);
            let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let at = at.map_or(0, |d| d.as_secs());
            Answer::Json(chat::answer(&line, &app.engine.about().model, id, at)?)
        }
        Name::Ask if !answers() => {
            return Err(Fault::Error(
                Error::argument("ask", "--model", "a model with a language model", "one without")
                    .fix("ask /v1/caption for a caption"),
            ));
        }
        _ => {
            let picture = picture(app, image, &mut fields).await?;
            drop(memory);
            let asked = match route.name {
                Name::Caption => Ask::Caption { picture: needed(picture)?, question: None, options: fields },
                Name::Ask => {
                    let none = || Error::argument("ask", "text", "a question", "none");
                    let question = text_of(&mut fields)?.filter(|t| !t.trim().is_empty()).ok_or_else(none)?;
                    Ask::Caption { picture: needed(picture)?, question: Some(question), options: fields }
                }
                Name::Look => {
                    let (engine, picture) = (app.engine.clone(), needed(picture)?);
                    let map = on_a_thread(app, move || engine.look(&picture, &fields)).await?;
                    drop((place, counted));
                    return Ok(shown(route, map));
                }
                Name::Features => {
                    let text = text_of(&mut fields)?;
                    only(&fields)?;
                    Ask::Features { picture, texts: text.into_iter().collect() }
                }
                _ => search(picture, fields)?,
            };
            ask(app, asked).await?
        }
    };
    drop((place, counted));
    Ok(shown(route, answer))
}

fn shown(route: &Route, answer: Answer) -> Response {
    match answer {
        Answer::Json(text) => respond(JSON, text),
        Answer::Arrays(bytes) => respond(route.answer, bytes),
    }
}

fn search(picture: Option<Shown>, mut fields: Map<String, Value>) -> Result<Ask> {
    let query = match (text_of(&mut fields)?, picture) {
        (Some(text), None) => Query::Text(text),
        (None, Some(picture)) => Query::Picture(picture),
        (Some(_), Some(_)) => return Err(Error::argument("search", "text", "a text or a picture", "both")),
        (None, None) => return Err(Error::argument("search", "text", "a text or a picture", "neither")),
    };
    Ok(Ask::Search { query, options: fields })
}

fn text_of(fields: &mut Map<String, Value>) -> Result<Option<String>> {
    match fields.remove("text") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Error::argument("request", "text", "a text", other)),
    }
}

fn only(fields: &Map<String, Value>) -> Result<()> {
    match fields.keys().next() {
        None => Ok(()),
        Some(name) => Err(Error::argument("request", name, "a field that /openapi.json lists", "another")),
    }
}

fn needed(picture: Option<Shown>) -> Result<Shown> {
    picture.ok_or_else(|| Error::argument("request", "image", "a picture", "none"))
}

/// The picture that was sent, or that of the index.
async fn picture(
    app: &App,
    image: Option<(String, Vec<u8>)>,
    fields: &mut Map<String, Value>,
) -> Result<Option<Shown>, Fault> {
    match (image, fields.remove("place")) {
        (Some(_), Some(_)) => {
            Err(Fault::Error(Error::argument("request", "place", "image or place", "both")))
        }
        (Some(image), None) => see(app, image).await.map(Some),
        (None, None) => Ok(None),
        (None, Some(place)) => {
            let wrong = || Error::argument("request", "place", "a place of the index", &place);
            let place = place.as_u64().and_then(|p| usize::try_from(p).ok()).ok_or_else(wrong)?;
            let engine = app.engine.clone();
            on_a_thread(app, move || engine.indexed(place)).await.map(Some)
        }
    }
}

async fn see(app: &App, (name, bytes): (String, Vec<u8>)) -> Result<Shown, Fault> {
    let engine = app.engine.clone();
    on_a_thread(app, move || engine.see(&name, bytes)).await
}

/// Work that takes a processor, a few at a time.
async fn on_a_thread<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, Fault> {
    let ended = || Fault::busy("the server is ending");
    let one = app.decoding.clone().acquire_owned().await.map_err(|_| ended())?;
    let work = move || {
        // Held until the work ends, also where nobody waits for it any more.
        let _one = one;
        work()
    };
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| ended())??)
}

async fn ask(app: &App, ask: Ask) -> Result<Answer, Fault> {
    let full = || Fault::busy("too many requests wait for the model");
    let answer = app.jobs.put(ask).ok_or_else(full)?;
    Ok(answer.await.map_err(|_| Fault::busy("the server is ending"))??)
}

fn training(app: &App, asked: &HashMap<String, String>, headers: &HeaderMap) -> Result<Response, Fault> {
    let wrong = |got: &str| Error::argument("training", "runs", "places with commas between them", got);
    let which = match asked.get("runs") {
        None => (0..app.runs.names().len()).collect(),
        Some(text) if text.is_empty() => Vec::new(),
        Some(text) => {
            text.split(',').map(|n| n.parse().map_err(|_| wrong(text))).collect::<Result<Vec<usize>>>()?
        }
    };
    let smoothing = number::<f64>(asked, "smoothing")?.unwrap_or(0.0);
    if !(0.0..=0.99).contains(&smoothing) {
        return Err(Error::argument("training", "smoothing", "0 to 0.99", smoothing).into());
    }
    let look = Look { smoothing, words: words::of(language(asked, headers)?) };
    Ok(respond("text/html", app.runs.charts(&which, look)?))
}

/// The query of a GET; only what the route knows.
fn query(text: &str, route: &Route) -> Result<HashMap<String, String>> {
    let wrong = |e: &dyn std::fmt::Display| Error::argument("request", "query", "names and values", e);
    let uri = format!("/?{text}").parse().map_err(|e| wrong(&e))?;
    let query = axum::extract::Query::<HashMap<String, String>>::try_from_uri(&uri).map_err(|e| wrong(&e))?;
    match query.keys().find(|name| route.fields.iter().all(|f| f.name != name.as_str())) {
        None => Ok(query.0),
        Some(name) => Err(Error::argument("request", name, "a field that /openapi.json lists", "another")),
    }
}

fn number<T: std::str::FromStr>(asked: &HashMap<String, String>, name: &str) -> Result<Option<T>> {
    let parse = |text: &String| text.parse().map_err(|_| Error::argument("request", name, "a number", text));
    asked.get(name).map(parse).transpose()
}

/// The language asked for, or the browser's.
fn language(asked: &HashMap<String, String>, headers: &HeaderMap) -> Result<Language> {
    match asked.get("lang").map(String::as_str) {
        Some("ja") => Ok(Language::Japanese),
        Some("en") => Ok(Language::English),
        Some(other) => Err(Error::argument("request", "lang", "en or ja", other)),
        None => {
            let accepted = headers.get("accept-language").and_then(|v| v.to_str().ok()).unwrap_or_default();
            Ok(words::accepted(accepted))
        }
    }
}
