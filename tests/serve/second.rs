//! `qformer serve` with a model of stage 2: a language model reads the pictures.

use super::client::{Served, form, post};
use super::commands::{Place, json};
use super::{base64, message};
use serde_json::{Value, json};

/// A second stage: captions behind a prompt, answers to questions, and chats, each as the command gives them.
#[test]
fn a_language_model_captions_and_answers() {
    let place = Place::new(57);
    place.pictures("p", 4);
    place.language_model("llm");
    let entry = |i: u8| json!({"image": format!("p{i:02}.png"), "caption": format!("犬が{i}匹いる")});
    place.write("captions.json", serde_json::to_string(&(0..4).map(entry).collect::<Vec<_>>()).unwrap());
    let train = ["train", "--images", "p", "--captions", "captions.json", "--out", "run", "--quiet"];
    let begin = ["--start", "model", "--llm", "llm", "--prompt", "画像の説明:", "--device", "cpu"];
    let sizes = ["--batch", "2", "--steps", "2", "--set", "model.max_txt_len=40"];
    place.ok(&[&train[..], &begin, &sizes].concat());
    let server = Served::of(&place, "run/model", &[]);
    let about = json(&server.get("/v1/about").text());
    assert_eq!((&about["language_model"], &about["prompt"]), (&json!("llm"), &json!("画像の説明:")));
    let bytes = std::fs::read(place.path("p/p02.png")).unwrap();
    let image = Some(("p/p02.png", &bytes[..]));
    let command = |more: &[&str]| {
        let args = ["caption", "--model", "run/model", "p/p02.png", "--quiet", "--out", "o.json"];
        let _ = std::fs::remove_file(place.path("o.json"));
        place.ok(&[&args[..], more].concat());
        json(&place.read("o.json"))[0].clone()
    };
    let caption = |fields: &[(&str, &str)]| {
        let answer = server.post("/v1/caption", &form(fields, image));
        assert_eq!(answer.status, 200, "{}", answer.text());
        json(&answer.text())
    };
    assert_eq!(caption(&[]), command(&[]));
    let prompt = [("prompt", "写真:"), ("num_beams", "2"), ("max_length", "6"), ("num_captions", "2")];
    let flags = ["--prompt", "写真:", "--num-beams", "2", "--max-length", "6", "--num-captions", "2"];
    assert_eq!(caption(&prompt), command(&flags));
    assert_ne!(caption(&prompt)["caption"], caption(&[])["caption"]);
    // Questions: as they are, and within a template.
    let ask = |fields: &[(&str, &str)]| {
        let answer = server.post("/v1/ask", &form(fields, image));
        assert_eq!(answer.status, 200, "{}", answer.text());
        json(&answer.text())
    };
    let plain = ask(&[("text", "何匹ですか")]);
    assert_eq!(plain, command(&["--ask", "何匹ですか"]));
    assert_eq!(plain["question"], "何匹ですか");
    place.write("q.json", json!([{"image": "p/p02.png", "question": "何色"}]).to_string());
    let template = "質問: {} 答え:";
    let questions =
        ["caption", "--model", "run/model", "--questions", "q.json", "--ask", template, "--quiet"];
    let asked = json(&place.ok(&questions))[0].clone();
    let answer = ask(&[("text", "何色"), ("template", template)]);
    assert_eq!(answer["answer"], asked["answer"]);
    // A chat with a text is a question; without one, a caption.
    let url = format!("data:image/png;base64,{}", base64(&bytes));
    let picture = json!({"type": "image_url", "image_url": {"url": url}});
    let chat = |content: Value| {
        let body = json!({"messages": [{"role": "user", "content": content}]});
        let answer = json(&server.post("/v1/chat/completions", &post(&body)).text());
        answer["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(chat(json!([picture, {"type": "text", "text": "何匹ですか"}])), plain["answer"]);
    assert_eq!(chat(json!([picture])), caption(&[])["caption"][0]);
    for (fields, part) in [
        (json!({"image": base64(&bytes)}), "a question"),
        (json!({"image": base64(&bytes), "text": "何", "template": "x"}), "{}"),
        (json!({"text": "何"}), "a picture"),
        (json!({"image": base64(&bytes), "text": "何", "num_beam": 3}), "num_beams"),
    ] {
        let answer = server.post("/v1/ask", &post(&fields));
        assert!(answer.status == 400 && message(&answer).contains(part), "{}", answer.text());
    }
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    let said = place.fails(2, &["serve", "--model", "run/model", "--index", "x", "--port", "0"]);
    assert!(said.contains("stage 1"), "{said}");
    // Where the model looks for a word: queries carry it into the language model.
    let text = "犬が いる";
    let args =
        ["explain", "--model", "run/model", "p/p02.png", text, "--of", "word:2", "--out", "m.png", "-q"];
    let line = place.ok(&args);
    let look = json(&server.post("/v1/look", &form(&[("text", text), ("of", "word:2")], image)).text());
    assert_eq!(look["maps"][0]["about"], line.trim(), "{look}");
    let answer = server.post("/v1/look", &form(&[("text", text)], image));
    assert!(answer.status == 400 && message(&answer).contains("word:N"), "{}", answer.text());
}
