//! The listener: connections bounded in number and time, and an end that answers what was asked.
//!
//! A connection beyond the limit gets a 503 at once. A head that does not come in time, and a connection on which nothing is asked,
//! are closed. A client that goes away ends the handler of its request: what waits for the model is taken out of the line.

use super::handlers::{self, App};
use super::metrics::Metrics;
use super::{OPERATION, limits};
use crate::{Error, Kind, Result};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

const BUSY: &str = r#"{"error":{"message":"too many connections","type":"busy","code":503}}"#;
/// How often the signal is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Refused connections that are told so at a time; more are closed.
const TOLD: usize = 128;

pub fn serve(
    listener: std::net::TcpListener,
    app: Arc<App>,
    stop: impl Fn() -> Option<i32> + Send + 'static,
    ready: impl FnOnce(),
) -> Result<()> {
    let failed = |e: std::io::Error| Error::new(Kind::Device, OPERATION).got(e);
    allow_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2 * limits::DECODING)
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let done = runtime.block_on(async {
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        ready();
        accept(listener, app, stop).await;
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn accept(listener: TcpListener, app: Arc<App>, stop: impl Fn() -> Option<i32>) {
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let told = Arc::new(Semaphore::new(TOLD));
    let (draining, drained) = watch::channel(false);
    let mut looks = tokio::time::interval(LOOK);
    let metrics = app.metrics.clone();
    let router = handlers::router(app);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // No files left, or a client that is gone already.
                Err(_) => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            },
            _ = looks.tick() => {
                if stop().is_some() {
                    break;
                }
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            metrics.refused();
            if let Ok(one) = told.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    refuse(stream).await;
                    drop(one);
                });
            }
            continue;
        };
        let (router, drained, metrics) = (router.clone(), drained.clone(), metrics.clone());
        tokio::spawn(async move {
            connection(stream, router, drained, &metrics).await;
            drop(place);
        });
    }
    drop((listener, router));
    let _ = draining.send(true);
    // All places free: no connection is left.
    let _ = tokio::time::timeout(limits::DRAINING, places.acquire_many(limits::CONNECTIONS as u32)).await;
}

async fn connection(
    stream: TcpStream,
    router: axum::Router,
    mut drained: watch::Receiver<bool>,
    metrics: &Metrics,
) {
    let _held = metrics.connection();
    let _ = stream.set_nodelay(true);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits::HEAD).max_buf_size(64 << 10);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let asked = tokio::select! {
        // A client that broke off is no trouble of the server.
        _ = connection.as_mut() => return,
        asked = drained.wait_for(|d| *d) => asked.is_ok(),
    };
    if asked {
        connection.as_mut().graceful_shutdown();
    }
    let _ = connection.await;
}

/// Tells a client that there is no place. It may still be sending: closing before that is read would lose the answer.
async fn refuse(mut stream: TcpStream) {
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{BUSY}",
        BUSY.len()
    );
    let talk = async {
        stream.write_all(head.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), talk).await;
}

/// Each connection is a file; best effort.
fn allow_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = 2 * (limits::CONNECTIONS as u64) + 256;
    if now.current.is_some_and(|n| n < wanted) {
        let current = Some(now.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..now });
    }
}
