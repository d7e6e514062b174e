//! `POST /v1/chat/completions`: a caption in the form that chat clients know. The picture is a `data:` URL in the user's last message;
//! a text beside it is a question, which a model with a language model answers.

use super::body::decoded;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

const OPERATION: &str = "chat";

/// What a request asks for.
pub struct Asked {
    /// The picture's bytes.
    pub image: Vec<u8>,
    pub question: Option<String>,
    /// Of a caption or an answer.
    pub options: Map<String, Value>,
}

/// Reads a request; `answers` is whether the model has a language model.
pub fn parse(mut fields: Map<String, Value>, answers: bool) -> Result<Asked> {
    let wrong =
        |argument: &str, expected: &str, got: &str| Error::argument(OPERATION, argument, expected, got);
    if fields.remove("stream").is_some_and(|s| s == Value::Bool(true)) {
        return Err(wrong("stream", "false: a caption comes whole", "true"));
    }
    fields.remove("model");
    let messages = fields.remove("messages");
    let messages = messages.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let user = |m: &&Value| m.get("role").and_then(Value::as_str) == Some("user");
    let last = messages.iter().rev().find(user);
    let Some(content) = last.and_then(|m| m.get("content")) else {
        return Err(wrong("messages", "a message of the user with a picture", "none"));
    };
    let parts = match content {
        Value::Array(parts) => parts.as_slice(),
        Value::String(_) => return Err(wrong("messages", "a picture in the last message", "a text alone")),
        _ => return Err(wrong("content", "a list of parts", "another JSON value")),
    };
    let (mut image, mut question) = (None, String::new());
    for part in parts {
        match part.get("type").and_then(Value::as_str) {
            Some("image_url") => {
                let url = part.pointer("/image_url/url").and_then(Value::as_str).unwrap_or_default();
                if image.replace(of_data_url(url)?).is_some() {
                    return Err(wrong("content", "one picture", "several"));
                }
            }
            Some("text") => {
                let text = part.get("text").and_then(Value::as_str).unwrap_or_default();
                if answers {
                    question += text;
                } else if !text.trim().is_empty() {
                    let expected = "a picture without a text: this model captions and has no language model that answers";
                    return Err(wrong("content", expected, "a text")
                        .fix("leave the text out; to look for pictures by a text, ask /v1/search"));
                }
            }
            _ => return Err(wrong("content", "parts of type image_url or text", "another")),
        }
    }
    let image = image.ok_or_else(|| wrong("content", "a picture", "none"))?;
    let mut options = Map::new();
    for (theirs, ours) in [
        ("n", "num_captions"),
        ("max_tokens", "max_length"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("seed", "seed"),
    ] {
        if let Some(value) = fields.remove(theirs).filter(|v| !v.is_null()) {
            options.insert(ours.into(), value);
        }
    }
    if let Some(other) = fields.keys().next() {
        return Err(wrong(other, "a field that /openapi.json lists", "another"));
    }
    let question = Some(question).filter(|q| !q.trim().is_empty());
    complete(&mut options, answers, question.is_some())?;
    Ok(Asked { image, question, options })
}

/// What the options of a chat leave open.
fn complete(options: &mut Map<String, Value>, answers: bool, question: bool) -> Result<()> {
    let greedy = options.get("temperature").and_then(Value::as_f64) == Some(0.0);
    match options.contains_key("temperature") || options.contains_key("top_p") {
        true if greedy => ["temperature", "top_p"].iter().for_each(|o| drop(options.remove(*o))),
        true => drop(options.insert("sample".into(), Value::Bool(true))),
        false => {}
    }
    let captions = options.get("num_captions").and_then(Value::as_u64).unwrap_or(1);
    if question {
        if captions > 1 {
            return Err(Error::argument(OPERATION, "n", "1 with a question", captions));
        }
        options.remove("num_captions");
    }
    // As many beams as captions, or more: the search finds no others.
    if captions > 3 && !options.contains_key("sample") {
        options.insert("num_beams".into(), captions.into());
    }
    // The fewest tokens of a caption of stage 1 are 10 by default: fewer may be asked for.
    if let Some(most) = options.get("max_length").and_then(Value::as_u64).filter(|n| *n < 10 && !answers) {
        options.insert("min_length".into(), most.into());
    }
    Ok(())
}

/// `data:image/jpeg;base64,...`
fn of_data_url(url: &str) -> Result<Vec<u8>> {
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(','));
    match data {
        Some((kind, data)) if kind.ends_with(";base64") => decoded(data),
        _ => {
            let start: String = url.chars().take(40).collect();
            Err(Error::argument(OPERATION, "image_url", "a data: URL in base64", format!("{start:?}"))
                .fix("send the bytes of the file: an address is never opened"))
        }
    }
}

/// The answer, from the JSON line of captions or of an answer.
pub fn answer(line: &str, model: &str, id: u64, at: u64) -> Result<String> {
    let line: Value = serde_json::from_str(line)
        .map_err(|e| Error::argument(OPERATION, "answer", "a line of captions", e))?;
    let answered = line.get("answer").map(std::slice::from_ref);
    let captions = line.get("caption").and_then(Value::as_array).map(Vec::as_slice);
    let captions = answered.or(captions).unwrap_or_default();
    let choice = |(i, caption): (usize, &Value)| json!({"index": i, "message": {"role": "assistant", "content": caption}, "finish_reason": "stop"});
    let choices: Vec<Value> = captions.iter().enumerate().map(choice).collect();
    let answer = json!({"id": format!("caption-{id}"), "object": "chat.completion", "created": at, "model": model,
        "choices": choices});
    Ok(answer.to_string())
}
