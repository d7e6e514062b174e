//! `qformer serve` over real sockets: answers equal to the commands', hostile clients, limits, the end.
//!
//! With `QFORMER_LONG=1` also ten thousand requests, hundreds of slow clients and clients that vanish (`.ci/run --long`).
#![cfg(feature = "serve")]

#[path = "serve/client.rs"]
mod client;
mod commands;
#[path = "serve/load.rs"]
mod load;
#[path = "serve/page.rs"]
mod page;
#[path = "serve/second.rs"]
mod second;

use client::{Answer, Served, form, get, post};
use commands::{Place, broken, json};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::Duration;

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn message(answer: &Answer) -> String {
    json(&answer.text())["error"]["message"]
        .as_str()
        .unwrap_or_else(|| panic!("{}", answer.text()))
        .to_owned()
}

/// A place with pictures `p/`, an index `x` of them, and a server.
fn served(seed: u64, more: &[&str]) -> (Place, Served) {
    let place = Place::new(seed);
    place.pictures("p", 5);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    let server = Served::start(&place, &[&["--index", "x"], more].concat());
    (place, server)
}

#[test]
fn answers_are_the_commands_to_the_byte() {
    let (place, server) = served(41, &[]);
    let bytes = std::fs::read(place.path("p/p03.png")).unwrap();
    // Captions: as a form, in JSON, and with options.
    let line = place.ok(&["caption", "--model", "model", "p/p03.png", "--format", "jsonl", "-q"]);
    assert_eq!(server.post("/v1/caption", &form(&[], Some(("p/p03.png", &bytes)))).text(), line);
    let body = json!({"image": base64(&bytes), "name": "p/p03.png"});
    assert_eq!(server.post("/v1/caption", &post(&body)).text(), line);
    let flags = ["--sample", "--seed", "7", "--num-captions", "3", "--top-p", "0.8", "--spaces", "join"];
    let base = ["caption", "--model", "model", "p/p03.png", "--format", "jsonl", "-q"];
    let drawn = place.ok(&[&base[..], &flags].concat());
    let fields =
        [("sample", "true"), ("seed", "7"), ("num_captions", "3"), ("top_p", "0.8"), ("spaces", "join")];
    assert_eq!(server.post("/v1/caption", &form(&fields, Some(("p/p03.png", &bytes)))).text(), drawn);
    assert_ne!(drawn, line);
    // Searches by text, re-ranked and not, and by picture.
    let text = "二匹の犬";
    let query = ["search", "query", "--index", "x", "--json", "-q"];
    let found = place.ok(&[&query[..], &[text]].concat());
    assert_eq!(server.post("/v1/search", &post(&json!({"text": text}))).text(), found);
    let found =
        place.ok(&[&query[..], &[text, "--rerank", "2", "-k", "3", "--rank-by", "mean_cosine"]].concat());
    let body = json!({"text": text, "rerank": 2, "top_k": 3, "rank_by": "mean_cosine"});
    assert_eq!(server.post("/v1/search", &post(&body)).text(), found);
    let found = place.ok(&[&query[..], &["--image", "p/p03.png"]].concat());
    assert_eq!(server.post("/v1/search", &form(&[], Some(("p/p03.png", &bytes)))).text(), found);
    // Features of a picture, a text and both.
    let features = |mode: &str, more: &[&str]| {
        let args = ["features", "--model", "model", "--mode", mode, "--out", "f.safetensors", "-q"];
        place.ok(&[&args[..], more].concat());
        std::fs::read(place.path("f.safetensors")).unwrap()
    };
    let both = form(&[("text", text)], Some(("p/p03.png", &bytes)));
    let image = form(&[], Some(("p/p03.png", &bytes)));
    assert_eq!(server.post("/v1/features", &image).body, features("image", &["p/p03.png"]));
    assert_eq!(
        server.post("/v1/features", &post(&json!({"text": text}))).body,
        features("text", &["--text", text])
    );
    assert_eq!(
        server.post("/v1/features", &both).body,
        features("multimodal", &["p/p03.png", "--text", text])
    );
    // The chat's caption is the first of the line.
    let url = format!("data:image/png;base64,{}", base64(&bytes));
    let content = json!([{"type": "image_url", "image_url": {"url": url}}]);
    let chat = server
        .post("/v1/chat/completions", &post(&json!({"messages": [{"role": "user", "content": content}]})));
    let caption = json(&line)["caption"][0].clone();
    assert_eq!(json(&chat.text())["choices"][0]["message"]["content"], caption, "{}", chat.text());
}

#[test]
fn a_map_says_what_explain_says() {
    use base64::Engine;
    let (place, server) = served(44, &[]);
    let bytes = std::fs::read(place.path("p/p02.png")).unwrap();
    let text = "赤い傘の人";
    for (of, layer) in [("itm", None), ("word:1", Some("0"))] {
        let mut args =
            vec!["explain", "--model", "model", "p/p02.png", text, "--out", "m.png", "--of", of, "-q"];
        args.extend(layer.into_iter().flat_map(|k| ["--layer", k]));
        let line = place.ok(&args);
        let mut fields = vec![("text", text), ("of", of)];
        fields.extend(layer.map(|k| ("layer", k)));
        let answer = server.post("/v1/look", &form(&fields, Some(("p02.png", &bytes))));
        let answer = json(&answer.text());
        assert_eq!(answer["maps"][0]["about"], line.trim(), "{answer}");
        let png = answer["maps"][0]["png"].as_str().unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(png).unwrap();
        let map = qformer::vision::decode(&png, "map.png", Default::default()).unwrap();
        assert_eq!(map.width.max(map.height), 512);
    }
    let answer = server.post("/v1/look", &form(&[("of", "word:0")], Some(("p02.png", &bytes))));
    assert!(answer.status == 400 && message(&answer).contains("word:N"), "{}", answer.text());
}

#[test]
fn errors_are_the_commands_messages() {
    let (place, server) = served(42, &[]);
    for (name, bytes) in broken() {
        place.write(name, &bytes);
        let said = place.fails(3, &["caption", "--model", "model", name, "-q"]);
        let answer = server.post("/v1/caption", &form(&[], Some((name, &bytes))));
        let same = said.ends_with(&format!("qformer: {}\n", message(&answer)));
        assert!(answer.status == 422 && same, "{name}: {said}{}", answer.text());
    }
    let said = place.fails(2, &["search", "query", "--index", "x", "  "]);
    let answer = server.post("/v1/search", &post(&json!({"text": "  "})));
    assert!(answer.status == 400 && said.ends_with(&format!("qformer: {}\n", message(&answer))), "{said}");
    for (path, body, part) in [
        ("/v1/caption", json!({}), "image"),
        ("/v1/caption", json!({"image": "?"}), "base64"),
        ("/v1/caption", json!({"image": "/etc/passwd"}), "never opened"),
        ("/v1/caption", json!({"image": "http://example.com/a.jpg"}), "never opened"),
        ("/v1/caption", json!({"place": 0, "beams": 3}), "unknown field `beams`"),
        ("/v1/caption", json!({"place": 0, "top_p": 0.5}), "sample"),
        ("/v1/caption", json!({"place": 0, "num_captions": 9}), "number of beams"),
        ("/v1/caption", json!({"place": 99}), "below 5"),
        ("/v1/caption", json!([]), "a JSON object"),
        ("/v1/search", json!({}), "neither"),
        ("/v1/search", json!({"text": "犬", "place": 0}), "both"),
        ("/v1/search", json!({"text": "犬", "rank_by": "x"}), "unknown variant"),
        ("/v1/search", json!({"text": "犬", "top_k": 0}), "at least 1"),
        ("/v1/features", json!({}), "neither"),
        ("/v1/ask", json!({"text": "何匹?"}), "language model"),
        ("/v1/caption", json!({"place": 0, "prompt": "x"}), "language model"),
        ("/v1/chat/completions", json!({"messages": []}), "none"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]}),
            "no language model",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}),
            "never opened",
        ),
    ] {
        let answer = server.post(path, &post(&body));
        assert!((400..500).contains(&answer.status), "{path} {body}: {}", answer.text());
        assert!(message(&answer).contains(part), "{path} {body}: {}", message(&answer));
    }
    assert_eq!(server.get("/nothing").status, 404);
    assert_eq!(server.get("/v1/caption").status, 405);
    assert_eq!(server.get("/v1/runs?path=/etc").text(), server.get("/v1/runs").text());
    assert_eq!(server.get("/v1/thumbnail?place=99").status, 400);
    // And the server still answers.
    assert_eq!(server.get("/health").status, 200);
}

/// The document names what the server answers: every path with its method, and every field.
#[test]
fn the_openapi_document_is_the_server() {
    let (place, server) = served(43, &[]);
    let document = json(&server.get("/openapi.json").text());
    let image = base64(&std::fs::read(place.path("p/p00.png")).unwrap());
    let mut paths = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            paths += 1;
            let answer = match method.as_str() {
                "get" => server.get(path),
                _ => server.post(path, &post(&json!({"no such field": 1, "image": image}))),
            };
            assert!(![404, 405].contains(&answer.status), "{method} {path}: {}", answer.status);
            if method == "get" {
                continue;
            }
            // What is not listed is refused, and the refusal lists what the code knows.
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let listed: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
            assert_eq!(answer.status, 400, "{path}: {}", answer.text());
            let said = message(&answer);
            for name in said.split("expected one of").nth(1).unwrap_or_default().split('`').skip(1).step_by(2)
            {
                assert!(listed.iter().any(|l| *l == name), "{path}: {name} is not in the document");
            }
            let own: Vec<&str> = said.split('`').skip(3).step_by(2).collect();
            let apart = ["image", "name", "place", "text", "spaces", "prompt"];
            if ["/v1/caption", "/v1/search"].contains(&path.as_str()) {
                for name in listed.iter().filter(|l| !apart.contains(&l.as_str())) {
                    assert!(own.contains(&name.as_str()), "{path}: the code does not know {name}: {said}");
                }
            }
        }
    }
    assert!(paths >= 17, "{paths}");
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn strangers_are_refused() {
    let (_place, server) = served(44, &[]);
    let caption = post(&json!({"place": 0}));
    let with =
        |host: &str, more: &str| server.raw(&caption.head("POST", "/v1/caption", host, more), &caption.body);
    assert_eq!(with("localhost", "").status, 200);
    // DNS rebinding: the page's own name. Another site's script; a sandboxed page; a form.
    assert_eq!(with("evil.example", "").status, 403);
    assert_eq!(with("localhost", "Origin: http://evil.example\r\n").status, 403);
    assert_eq!(with("localhost", "Origin: null\r\n").status, 403);
    assert_eq!(with("localhost", "Sec-Fetch-Site: cross-site\r\n").status, 403);
    let get = get();
    assert_eq!(server.raw(&get.head("GET", "/", "evil.example", ""), b"").status, 403);
    let page = server.get("/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for (name, value) in
        [("x-content-type-options", "nosniff"), ("cross-origin-resource-policy", "same-origin")]
    {
        assert_eq!(page.header(name).as_deref(), Some(value));
    }
    // Requests that a proxy could read otherwise.
    for head in [
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        "POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /v1/thumbnail?place=../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "NONSENSE\r\n\r\n",
    ] {
        let answer = server.raw(head, b"");
        assert!((400..500).contains(&answer.status), "{head:?}: {}", answer.status);
    }
}

#[test]
fn beyond_this_machine_a_token_is_needed() {
    let place = Place::new(45);
    let said = place.fails(2, &["serve", "--model", "model", "--listen", "0.0.0.0", "--port", "0"]);
    assert!(said.contains("--token-file"), "{said}");
    place.write("short", "secret\n");
    let said = place.fails(3, &["serve", "--model", "model", "--token-file", "short", "--port", "0"]);
    assert!(said.contains("16"), "{said}");
    place.write("token", "0123456789abcdef\n");
    let server = Served::start(&place, &["--listen", "0.0.0.0", "--token-file", "token"]);
    let get = get();
    let with = |path: &str, more: &str| server.raw(&get.head("GET", path, "localhost", more), b"");
    for (path, without) in
        [("/", 200), ("/page.js", 200), ("/health", 200), ("/metrics", 401), ("/v1/about", 401)]
    {
        assert_eq!(with(path, "").status, without, "{path}");
        assert_eq!(with(path, "Authorization: Bearer 0123456789abcdef\r\n").status, 200, "{path}");
    }
    assert_eq!(with("/v1/about", "Authorization: Bearer 0123456789abcdeF\r\n").status, 401);
    assert_eq!(with("/nothing", "").status, 401);
}

#[test]
fn bodies_are_bounded() {
    let (_place, server) = served(46, &[]);
    let large = 33 << 20;
    // Told before it is sent, and found out while it is sent.
    let head = |more: &str| get().head("POST", "/v1/caption", "localhost", more);
    let answer = server.raw(
        &head(&format!("Content-Type: application/json\r\nContent-Length: {large}\r\n")),
        &vec![b' '; large],
    );
    assert_eq!(answer.status, 413, "{}", answer.text());
    let mut chunks = Vec::new();
    for _ in 0..33 {
        write!(chunks, "{:x}\r\n", 1 << 20).unwrap();
        chunks.extend(vec![b' '; 1 << 20]);
        chunks.extend(b"\r\n");
    }
    chunks.extend(b"0\r\n\r\n");
    let answer =
        server.raw(&head("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"), &chunks);
    assert_eq!(answer.status, 413, "{}", answer.text());
    // A picture that would take gigabytes once decoded.
    let mut bomb = qformer::vision::encode_png(8, 8, &[90; 192]).unwrap();
    bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let answer = server.post("/v1/caption", &form(&[], Some(("bomb.png", &bomb))));
    assert_eq!(answer.status, 422, "{}", answer.text());
    let answer = server.raw(&head("Content-Type: text/plain\r\nContent-Length: 2\r\n"), b"{}");
    assert_eq!(answer.status, 415);
    assert_eq!(server.get("/health").status, 200);
}

/// Names of files with markup, quotes and control characters come back as JSON that means the same.
#[test]
fn hostile_names_stay_names() {
    let (place, server) = served(47, &[]);
    let bytes = std::fs::read(place.path("p/p01.png")).unwrap();
    for name in ["<script>alert(1)</script>.png", "a\u{1b}[31m\u{202e}.png", "\\\"'`.png", "../../etc/passwd"]
    {
        let answer = server.post("/v1/caption", &post(&json!({"image": base64(&bytes), "name": name})));
        assert_eq!(json(&answer.text())["image"], *name);
        assert!(answer.header("content-type").unwrap().starts_with("application/json"));
    }
    let answer = server.post("/v1/caption", &post(&json!({"image": base64(b"<html>"), "name": "<b>"})));
    assert!(answer.status == 422 && message(&answer).contains("<b>"));
}

#[test]
fn a_run_is_watched_while_it_trains() {
    let place = Place::new(48);
    let step = |n: u32| {
        format!(
            "{{\"kind\":\"step\",\"step\":{n},\"loss\":{},\"itc\":2.0,\"itm\":0.6,\"lm\":3.0,\"time\":{{\"at\":{n}}}}}\n",
            9 - n
        )
    };
    place.write("<run>/log.jsonl", step(1));
    place.write("<run>/config.yaml", "batch: 8\n");
    place.write("<run>/vocabulary/vocab.txt", "字\n".repeat(15));
    place.write("other/log.jsonl", step(1) + &step(2));
    let server = Served::start(&place, &["--run", "<run>", "--run", "other"]);
    assert_eq!(json(&server.get("/v1/runs").text())["runs"], json!(["<run>", "other"]));
    let one = server.get("/v1/training?runs=0&lang=en").text();
    assert!(one.contains("ln B = 2.079") && one.contains("chance, matching: 0.637"), "{one}");
    // 15 words and [DEC]: ln 16.
    assert!(one.contains("ln V = 2.773"), "{one}");
    place.write("<run>/log.jsonl", step(1) + &step(2) + &step(3));
    let grown = server.get("/v1/training?runs=0&lang=en&smoothing=0.5").text();
    assert_ne!(one, grown);
    let both = server.get("/v1/training?lang=ja").text();
    assert!(both.contains("&lt;run&gt;") && !both.contains("<run>") && both.contains("損失"), "{both}");
    assert_eq!(server.get("/v1/training?runs=7").status, 400);
    assert_eq!(server.get("/v1/training?smoothing=2").status, 400);
}

#[test]
fn the_index_is_read_again_when_it_grew() {
    let (place, server) = served(49, &[]);
    let count = || json(&server.get("/v1/about").text())["pictures"].clone();
    assert_eq!(count(), 5);
    place.picture("p/new.png", 77);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    assert_eq!(count(), 6);
    let found = json(&server.post("/v1/search", &post(&json!({"text": "犬"}))).text());
    assert_eq!(found["results"].as_array().unwrap().len(), 6);
    // One of another model does not take its place.
    place.model("other", 999);
    place.ok(&["search", "index", "--model", "other", "--out", "x", "p", "-q", "--rebuild"]);
    assert_eq!(server.post("/v1/search", &post(&json!({"text": "犬"}))).status, 200);
    assert_eq!(count(), 6);
}

/// What the image encoder said of a picture is kept: the second search gives the same bytes, and so does the command. A file that is
/// gone or changed since is not looked at again, there as here.
#[test]
fn searches_again_are_the_first_ones() {
    for keep in ["0", "1", "256"] {
        let (place, server) = served(58, &["--keep", keep]);
        let search =
            |text: &str| server.post("/v1/search", &post(&json!({"text": text, "rerank": 3}))).text();
        let command = |text: &str| {
            place.ok(&["search", "query", "--index", "x", "--json", "-q", "--rerank", "3", text])
        };
        let first = search("二匹の犬");
        assert_eq!(first, command("二匹の犬"));
        assert_eq!(search("赤い傘"), command("赤い傘"));
        assert_eq!(search("二匹の犬"), first);
        let best = json(&first)["results"][0]["path"].as_str().unwrap().to_owned();
        std::fs::remove_file(&best).unwrap();
        let without = search("二匹の犬");
        assert_ne!(without, first);
        assert_eq!(without, command("二匹の犬"));
    }
}

/// A request that was begun is read to its end and answered, nobody else is let in, and the exit code is the signal's.
#[test]
fn a_signal_lets_requests_end() {
    let (place, mut server) = served(50, &[]);
    let body = post(&json!({"place": 1}));
    let mut stream = server.connect();
    stream.write_all(body.head("POST", "/v1/caption", "localhost", "").as_bytes()).unwrap();
    stream.write_all(&body.body[..4]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(500));
    assert!(std::net::TcpStream::connect(("127.0.0.1", server.port)).is_err(), "the door is closed");
    stream.write_all(&body.body[4..]).unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.wait(), 143);
    drop(place);
}

/// A server that is killed while it searches leaves the index to the byte, and others can write to it.
#[test]
fn a_killed_server_harms_no_index() {
    let (place, mut server) = served(59, &[]);
    let files = || -> Vec<(String, Vec<u8>)> {
        let read = |n: String| (n.clone(), std::fs::read(place.path("x").join(n)).unwrap());
        commands::names(&place.path("x")).into_iter().map(read).collect()
    };
    let before = files();
    let body = post(&json!({"text": "二匹の犬"}));
    let mut stream = server.connect();
    stream.write_all(body.head("POST", "/v1/search", "localhost", "").as_bytes()).unwrap();
    stream.write_all(&body.body).unwrap();
    server.signal("KILL");
    assert_eq!(server.wait(), 137);
    assert_eq!(files(), before);
    place.picture("p/new.png", 77);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    assert!(place.ok(&["search", "query", "--index", "x", "二匹の犬", "-q"]).contains("new.png"));
}

/// A client that goes away does not keep the model busy.
#[test]
fn clients_that_vanish_are_left_out() {
    let (_place, server) = served(51, &["--batch", "1"]);
    let body = post(&json!({"place": 1, "num_beams": 16, "max_length": 16, "min_length": 15}));
    let first = server.post("/v1/caption", &body);
    assert_eq!(first.status, 200, "{}", first.text());
    let mut all = Vec::new();
    for _ in 0..30 {
        let mut stream = server.connect();
        stream.write_all(body.head("POST", "/v1/caption", "localhost", "").as_bytes()).unwrap();
        stream.write_all(&body.body).unwrap();
        all.push(stream);
    }
    drop(all);
    // The one that stays is answered, and some of the others were never computed.
    assert_eq!(server.post("/v1/caption", &post(&json!({"place": 0}))).status, 200);
    let metrics = server.get("/metrics").text();
    let of = |name: &str| -> f64 {
        let line = metrics.lines().find(|l| l.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(of("qformer_computed_total") < 32.0, "{metrics}");
    assert_eq!(of("qformer_waiting"), 0.0);
}

/// A head that does not come is not waited for; others are answered meanwhile.
#[test]
fn slow_clients_are_closed_and_hold_nobody_up() {
    let (_place, server) = served(52, &[]);
    let mut slow = server.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHos").unwrap();
    assert_eq!(server.get("/health").status, 200);
    slow.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_port_that_is_taken_and_a_wrong_run_are_errors() {
    let (place, server) = served(53, &[]);
    let port = server.port.to_string();
    let said = place.fails(2, &["serve", "--model", "model", "--port", &port]);
    assert!(said.contains("--port"), "{said}");
    let said = place.fails(3, &["serve", "--model", "model", "--port", "0", "--run", "nowhere"]);
    assert!(said.contains("nowhere") && said.contains("qformer train"), "{said}");
    let value: Value = json(&server.get("/v1/about").text());
    assert_eq!((&value["model"], &value["pictures"]), (&json!("model"), &json!(5)));
}
