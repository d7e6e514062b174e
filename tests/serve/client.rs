//! A small HTTP client that can misbehave, and a server under test.

use super::commands::Place;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A request's body and its type.
pub struct Body {
    pub kind: String,
    pub body: Vec<u8>,
}

impl Body {
    pub fn head(&self, method: &str, path: &str, host: &str, more: &str) -> String {
        let body = match self.kind.as_str() {
            "" => String::new(),
            kind => format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", self.body.len()),
        };
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{body}{more}\r\n")
    }
}

pub fn get() -> Body {
    Body { kind: String::new(), body: Vec::new() }
}

/// JSON.
pub fn post(value: &serde_json::Value) -> Body {
    Body { kind: "application/json".into(), body: value.to_string().into_bytes() }
}

/// multipart/form-data.
pub fn form(fields: &[(&str, &str)], image: Option<(&str, &[u8])>) -> Body {
    const LINE: &str = "----a-line-between-parts";
    let mut body = Vec::new();
    for (name, value) in fields {
        write!(body, "--{LINE}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
            .unwrap();
    }
    if let Some((name, bytes)) = image {
        let head = format!("Content-Disposition: form-data; name=\"image\"; filename=\"{name}\"");
        write!(body, "--{LINE}\r\n{head}\r\nContent-Type: image/png\r\n\r\n").unwrap();
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    write!(body, "--{LINE}--\r\n").unwrap();
    Body { kind: format!("multipart/form-data; boundary={LINE}"), body }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads an answer; status 0 where the server closed without one.
    pub fn read(stream: &mut TcpStream) -> Answer {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                break;
            }
            let (name, value) = line.trim_end().split_once(": ").unwrap();
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |n| n.parse().unwrap());
        answer.body = vec![0; length];
        if reader.read_exact(&mut answer.body).is_err() {
            answer.status = 0;
        }
        answer
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub struct Served {
    child: Child,
    pub port: u16,
}

impl Served {
    /// The server of `model` on a free port, once it listens.
    pub fn start(place: &Place, more: &[&str]) -> Served {
        Served::of(place, "model", more)
    }

    /// The same of another model.
    pub fn of(place: &Place, model: &str, more: &[&str]) -> Served {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
        command.current_dir(place.dir.path()).env("RAYON_NUM_THREADS", "2");
        command.args(["serve", "--model", model, "--port", "0", "--device", "cpu"]).args(more);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the server did not start: {said}");
            said += &line;
            if let Some(address) = line.trim().strip_prefix("listening on http://") {
                break address.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
            }
        };
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Served { child, port }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Sends bytes as they are. An answer may come before all is sent.
    pub fn raw(&self, head: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let mut writing = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = writing.write_all(head.as_bytes()).and_then(|()| writing.write_all(body));
            });
            Answer::read(&mut stream)
        })
    }

    pub fn get(&self, path: &str) -> Answer {
        self.raw(&get().head("GET", path, "localhost", ""), b"")
    }

    pub fn post(&self, path: &str, body: &Body) -> Answer {
        self.raw(&body.head("POST", path, "localhost", ""), &body.body)
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// The exit code, 128 + the signal's number if one ended it.
    pub fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
