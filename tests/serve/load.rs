//! Load: slow clients, many at once, clients that vanish, and ten thousand requests with flat memory.

use super::client::{Answer, Served, form};
use super::commands::Place;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Resident memory in kB.
fn memory(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `count` requests, `at_once` at a time; returns how many were answered by 200 and by 503. Everything else is a failure.
fn ask(server: &Served, place: &Place, count: usize, at_once: usize) -> (usize, usize) {
    let bytes = std::fs::read(place.path("p/p01.png")).unwrap();
    let body = form(&[("num_beams", "1"), ("max_length", "12")], Some(("a.png", &bytes)));
    let (next, good, busy) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let answer = server.post("/v1/caption", &body);
                    match answer.status {
                        200 => good.fetch_add(1, Ordering::Relaxed),
                        503 => {
                            assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
                            // In a hurry, but not as fast as it can.
                            std::thread::sleep(Duration::from_millis(200));
                            busy.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{other}: {}", answer.text()),
                    };
                }
            });
        }
    });
    (good.into_inner(), busy.into_inner())
}

#[test]
fn two_hundred_at_once_are_answered_or_told_to_come_again() {
    let place = Place::new(61);
    place.pictures("p", 2);
    let server = Served::start(&place, &[]);
    let (good, busy) = ask(&server, &place, 200, 200);
    assert!(good >= 64 && good + busy == 200, "{good} answered, {busy} told to come again");
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("qformer_requests_total{path=\"/v1/caption\",status=\"200\"}"), "{metrics}");
}

#[test]
fn connections_are_bounded() {
    // Each connection is a file of this process, too.
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum.or(Some(4096)), ..now });
    let place = Place::new(62);
    let server = Served::start(&place, &[]);
    let held: Vec<_> = (0..1024).map(|_| server.connect()).collect();
    // One of them asks last, so that all were taken in before.
    std::thread::sleep(Duration::from_millis(500));
    let answer = server.get("/health");
    assert_eq!((answer.status, answer.header("retry-after").as_deref()), (503, Some("1")));
    drop(held);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn ten_thousand_requests_leave_memory_as_it_was() {
    if std::env::var_os("QFORMER_LONG").is_none() {
        eprintln!("SKIPPED: the load test takes minutes (QFORMER_LONG=1)");
        return;
    }
    let place = Place::new(63);
    place.pictures("p", 2);
    let mut server = Served::start(&place, &[]);
    let ended = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // 500 clients that send a byte a second.
        scope.spawn(|| {
            let head = format!("POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nX: {}", "a".repeat(4000));
            let mut slow: Vec<_> = (0..500).map(|_| (server.connect(), 0)).collect();
            while !ended.load(Ordering::Relaxed) {
                for (stream, sent) in &mut slow {
                    if stream.write_all(&head.as_bytes()[*sent..=*sent]).is_err() {
                        // Closed, as it should be: another comes.
                        (*stream, *sent) = (server.connect(), 0);
                    }
                    *sent = (*sent + 1) % head.len();
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        // Clients that vanish in the middle.
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let mut stream = server.connect();
                let _ = stream.write_all(
                    b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\nxx",
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let mut seen = Vec::new();
        let (mut good, mut busy) = (0, 0);
        for _ in 0..10 {
            let some = ask(&server, &place, 1000, 200);
            (good, busy) = (good + some.0, busy + some.1);
            seen.push(memory(server.id()));
        }
        let (first, last) = (seen[0], seen[9]);
        ended.store(true, Ordering::Relaxed);
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{good} answered, {busy} told to come again in {seconds:.0} s; kB after each 1,000: {seen:?}"
        );
        assert_eq!(good + busy, 10_000);
        assert!(last <= 1.02 * first, "{first} kB, then {last} kB");
    });
    server.signal("TERM");
    assert_eq!(server.wait(), 143);
    let _ = Answer::read;
}
