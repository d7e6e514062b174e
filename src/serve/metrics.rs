//! Counts of the server, in the text form that Prometheus reads (version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper ends of the classes of time, in seconds.
const CLASSES: [f64; 10] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    times: Mutex<BTreeMap<&'static str, Times>>,
    connections: AtomicU64,
    refused: AtomicU64,
    waiting: AtomicU64,
    cancelled: AtomicU64,
    batches: AtomicU64,
    computed: AtomicU64,
}

#[derive(Default)]
struct Times {
    classes: [u64; CLASSES.len()],
    sum: f64,
    count: u64,
}

/// Counts one while it lives.
pub struct Held<'a>(&'a AtomicU64);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Metrics {
    pub fn connection(&self) -> Held<'_> {
        self.connections.fetch_add(1, Relaxed);
        Held(&self.connections)
    }

    pub fn wait(&self) -> Held<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Held(&self.waiting)
    }

    /// A connection beyond the limit.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub fn cancelled(&self, n: usize) {
        self.cancelled.fetch_add(n as u64, Relaxed);
    }

    pub fn computed_together(&self, n: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.computed.fetch_add(n as u64, Relaxed);
    }

    /// `path` is a path of the table of routes, never a client's.
    pub fn answered(&self, path: &'static str, status: u16, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Ok(mut requests) = self.requests.lock() {
            *requests.entry((path, status)).or_default() += 1;
        }
        if let Ok(mut times) = self.times.lock() {
            let of = times.entry(path).or_default();
            of.classes.iter_mut().zip(CLASSES).filter(|(_, end)| seconds <= *end).for_each(|(n, _)| *n += 1);
            of.sum += seconds;
            of.count += 1;
        }
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut single = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing to a string does not fail.
            let _ = write!(
                out,
                "# HELP qformer_{name} {help}\n# TYPE qformer_{name} {kind}\nqformer_{name} {value}\n"
            );
        };
        single("connections", "gauge", "Open connections.", self.connections.load(Relaxed));
        single(
            "connections_refused_total",
            "counter",
            "Connections beyond the limit.",
            self.refused.load(Relaxed),
        );
        single("waiting", "gauge", "Requests that wait for the model.", self.waiting.load(Relaxed));
        single(
            "cancelled_total",
            "counter",
            "Requests whose client was gone before the answer.",
            self.cancelled.load(Relaxed),
        );
        single("batches_total", "counter", "Times the model computed.", self.batches.load(Relaxed));
        single("computed_total", "counter", "Requests it computed in them.", self.computed.load(Relaxed));
        out += "# HELP qformer_requests_total Requests by path and status.\n# TYPE qformer_requests_total counter\n";
        for ((path, status), n) in self.requests.lock().iter().flat_map(|r| r.iter()) {
            let _ = writeln!(out, "qformer_requests_total{{path=\"{path}\",status=\"{status}\"}} {n}");
        }
        out += "# HELP qformer_request_seconds Time from a request's head to its answer.\n# TYPE qformer_request_seconds histogram\n";
        for (path, of) in self.times.lock().iter().flat_map(|t| t.iter()) {
            for (end, n) in CLASSES.iter().zip(of.classes) {
                let _ = writeln!(out, "qformer_request_seconds_bucket{{path=\"{path}\",le=\"{end}\"}} {n}");
            }
            let _ = writeln!(
                out,
                "qformer_request_seconds_bucket{{path=\"{path}\",le=\"+Inf\"}} {}\n\
                 qformer_request_seconds_sum{{path=\"{path}\"}} {}\n\
                 qformer_request_seconds_count{{path=\"{path}\"}} {}",
                of.count, of.sum, of.count
            );
        }
        out
    }
}
