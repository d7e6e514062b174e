//! `qformer serve`: a page and an HTTP interface over one model that stays in memory.
//!
//! | file | what is in it |
//! |---|---|
//! | [`Engine`] here | what the server asks of the model; the commands implement it, so both give the same bytes |
//! | `jobs` | one thread owns the model and takes jobs from a bounded line; those that wait together are computed together |
//! | `connections` | the listener: limits of number and time, draining |
//! | `guard` | who may ask: Host, Origin, token; the headers of every answer |
//! | `body` | bodies of requests, bounded in size, time and memory: multipart or JSON |
//! | `routes` | every path, once: the router and the OpenAPI document are made of this table |
//! | `handlers`, `chat` | the answers |
//! | `runs` | logs of trainings, read while they grow |
//! | `metrics` | counts in the text form of Prometheus |
//! | `page`, `words`, `page.css`, `page.js` | the page, in Japanese and English |
//!
//! No path and no address that a client names is ever opened: pictures come as bytes, or as the place of a picture in the index.

mod body;
mod chat;
mod connections;
mod guard;
mod handlers;
mod jobs;
mod metrics;
mod openapi;
mod page;
mod routes;
mod runs;
#[cfg(test)]
mod tests;
mod words;

use crate::vision::{Orientation, Picture};
use crate::{Error, Kind, Result};
use serde_json::{Map, Value};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const OPERATION: &str = "serve";

/// Limits of the server.
pub mod limits {
    use std::time::Duration;

    /// Bytes of a request's body.
    pub const BODY: usize = 32 << 20;
    /// Bytes of all bodies that are held at a time.
    pub const BODIES: usize = 256 << 20;
    /// Open connections.
    pub const CONNECTIONS: usize = 1024;
    /// Requests that were read and wait for the model.
    pub const WAITING: usize = 64;
    /// Pictures decoded at a time: each may take 256 MiB.
    pub const DECODING: usize = 2;
    /// Until the head of a request is there, also of the next one on an idle connection.
    pub const HEAD: Duration = Duration::from_secs(15);
    /// Until a body is there.
    pub const READING: Duration = Duration::from_secs(60);
    /// For the answers under way when the server is asked to stop.
    pub const DRAINING: Duration = Duration::from_secs(60);
}

/// What is asked of the model. Options are the flags of the command by their names, with `_` for `-`.
#[derive(Debug)]
pub enum Ask {
    /// A caption, or with a question what a language model answers.
    Caption {
        picture: Shown,
        question: Option<String>,
        options: Map<String, Value>,
    },
    Search {
        query: Query,
        options: Map<String, Value>,
    },
    Features {
        picture: Option<Shown>,
        texts: Vec<String>,
    },
}

/// A picture at the model's size, under the name the client gave it.
#[derive(Debug)]
pub struct Shown {
    pub name: String,
    pub picture: Picture,
    /// Of the picture as the model took it, before it was resized.
    pub size: (usize, usize),
    /// What turns it as a person sees it.
    pub upright: Orientation,
}

#[derive(Debug)]
pub enum Query {
    Text(String),
    Picture(Shown),
}

#[derive(Debug)]
pub enum Answer {
    /// What the command prints.
    Json(String),
    /// A safetensors file.
    Arrays(Vec<u8>),
}

/// A word of a text, and whether the model knows it.
#[derive(Debug, serde::Serialize)]
pub struct Word {
    pub word: String,
    pub known: bool,
}

/// What is served.
#[derive(Clone, Debug, serde::Serialize)]
pub struct About {
    /// The name of the model's folder.
    pub model: String,
    pub image_size: usize,
    pub vocabulary: usize,
    /// Tokens of a text that the model reads.
    pub longest_text: usize,
    /// Pictures of the index; none if there is none.
    pub pictures: Option<usize>,
    /// The language model's folder, and the prompt before its captions; none of a model of stage 1.
    pub language_model: Option<String>,
    pub prompt: Option<String>,
    pub device: String,
}

/// The model and the index, as the server needs them.
pub trait Engine: Send + Sync {
    fn about(&self) -> About;
    /// Decodes a picture; called on several threads.
    fn see(&self, name: &str, bytes: Vec<u8>) -> Result<Shown>;
    /// A picture of the index by its place.
    fn indexed(&self, place: usize) -> Result<Shown>;
    /// A small JPEG of a picture of the index, upright.
    fn thumbnail(&self, place: usize) -> Result<Vec<u8>>;
    /// How the model reads a text.
    fn words(&self, text: &str) -> Vec<Word>;
    /// Answers questions that wait together, in order; `gone` tells for which nobody waits any more.
    fn answer(&self, asks: &[Ask], gone: &dyn Fn(usize) -> bool) -> Vec<Result<Answer>>;
    /// The map of what a picture's score or caption rests on, as a PNG, and what it shows; an error where the model has none.
    fn look(&self, picture: &Shown, options: &Map<String, Value>) -> Result<Answer>;
}

/// Where to listen and what to show.
#[derive(Clone, Debug)]
pub struct Settings {
    pub address: SocketAddr,
    /// Names under which the server may be asked, beside `localhost` and addresses.
    pub hosts: Vec<String>,
    pub token: Option<String>,
    pub runs: Vec<PathBuf>,
    /// Questions computed together.
    pub batch: usize,
    /// How long a question may wait for its answer.
    pub timeout: Duration,
}

/// The token of a file: its only line.
pub fn read_token(path: &Path) -> Result<String> {
    let wrong = |got: String| {
        Error::file(OPERATION, path, "a token of 16 to 512 letters, digits and -._~+/=", got)
            .fix("make one: head -c 32 /dev/urandom | base64 > FILE")
    };
    let bytes = crate::files::read_regular(path, 4096, OPERATION)?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("other bytes".into()))?;
    let token = text.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
    match token.len() {
        16..=512 if token.chars().all(fits) => Ok(token.to_owned()),
        16..=512 => Err(wrong("other characters".into())),
        n => Err(wrong(format!("{n} characters"))),
    }
}

impl Settings {
    /// Whoever listens beyond this machine needs a token.
    pub fn check(&self) -> Result<()> {
        let open = match self.address.ip() {
            IpAddr::V4(ip) => !ip.is_loopback(),
            IpAddr::V6(ip) => !ip.is_loopback(),
        };
        if open && self.token.is_none() {
            return Err(Error::argument(OPERATION, "--listen", "--token-file with it", self.address.ip())
                .fix("give --token-file FILE, a file with a secret that clients must send"));
        }
        Ok(())
    }
}

/// Serves until `stop` tells the number of a signal; then answers what was asked and ends. `ready` is told the address.
pub fn run(
    settings: Settings,
    engine: Arc<dyn Engine>,
    stop: impl Fn() -> Option<i32> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    settings.check()?;
    let failed = |e: std::io::Error| {
        let error = Error::new(Kind::Argument, OPERATION).about(settings.address.to_string()).got(&e);
        match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                error.fix("another program listens there: choose another --port")
            }
            _ => error.fix("choose another --port or --listen"),
        }
    };
    let listener = TcpListener::bind(settings.address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let runs = runs::Runs::open(&settings.runs)?;
    let metrics = Arc::new(metrics::Metrics::default());
    let (jobs, worker) = jobs::Jobs::start(engine.clone(), settings.batch, metrics.clone())?;
    let app = Arc::new(handlers::App::new(&settings, engine, jobs, metrics, runs));
    let done = connections::serve(listener, app, stop, || ready(address));
    // The last clone of the jobs is gone: the worker ends after the question it is at.
    let ended = worker.join();
    done?;
    ended.map_err(|_| Error::new(Kind::Device, OPERATION).got("the thread of the model ended unasked"))
}
