//! The page: four views over the HTTP interface. It holds nothing of the user's, so it needs no token; the script asks for what it
//! shows. Texts that the script writes come with the page, in its language.

use super::words::{self, Language};
use crate::results::STYLE;
use maud::{DOCTYPE, Markup, html};

pub const SCRIPT: &str = include_str!("page.js");

pub fn style() -> String {
    [include_str!("page.css"), STYLE].concat()
}

/// What the script says, by its name there.
const SAID: &[(&str, &str)] = &[
    ("copy", "Copy"),
    ("copied", "Copied"),
    ("remove", "Remove"),
    ("working", "Working..."),
    ("logProb", "log-probability"),
    ("nothing", "Nothing found"),
    ("searched", "pictures searched"),
    ("words", "Words"),
    ("unknown", "not in the vocabulary"),
    ("noIndex", "There is no index: start the server with --index FOLDER"),
    ("noRun", "There is no run: start the server with --run DIR"),
    ("page", "Page"),
    ("gone", "no longer there"),
    ("silent", "The server does not answer"),
    ("model", "model"),
];

const VIEWS: [(&str, &str); 4] =
    [("caption", "Caption"), ("search", "Search"), ("training", "Training"), ("look", "Look")];

pub fn page(language: Language) -> String {
    let say = words::of(language);
    let said: serde_json::Map<_, _> =
        SAID.iter().map(|(name, text)| (name.to_string(), say(text).into())).collect();
    let lang = if language == Language::Japanese { "ja" } else { "en" };
    html! {
        (DOCTYPE)
        html lang=(lang) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "qformer" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/page.css";
                script src="/page.js" defer {}
            }
            body data-said=(serde_json::Value::Object(said)) {
                a.skip href="#main" { (say("Skip to the content")) }
                header {
                    h1 { "qformer" }
                    p #about {}
                    nav aria-label=(say("Views")) {
                        @for (view, name) in VIEWS { a href={ "#" (view) } { (say(name)) } }
                    }
                    (choices(language))
                }
                main #main tabindex="-1" {
                    p #fault role="alert" hidden {}
                    section #caption aria-labelledby="h-caption" { (caption(say)) }
                    section #search aria-labelledby="h-search" hidden { (search(say)) }
                    section #training aria-labelledby="h-training" hidden { (training(say)) }
                    section #look aria-labelledby="h-look" hidden { (look(say)) }
                }
                dialog #picture aria-labelledby="h-picture" {
                    form method="dialog" { button { (say("Close")) } }
                    h2 #h-picture {}
                    img #shown alt="";
                    h3 { (say("Captions")) }
                    ol #own lang="ja" {}
                    h3 { (say("Similar pictures")) }
                    ol.pictures #similar {}
                }
                dialog #secret aria-labelledby="h-secret" {
                    form #token method="dialog" {
                        h2 #h-secret { (say("This server asks for a token")) }
                        label { (say("Token")) " " input name="token" type="password" required autocomplete="off"; }
                        button { (say("Send")) }
                    }
                }
            }
        }
    }
    .into_string()
}

fn choices(language: Language) -> Markup {
    let say = words::of(language);
    html! {
        div.choices {
            span.languages role="group" aria-label=(say("Language")) {
                a href="/?lang=ja" lang="ja" hreflang="ja" aria-current=[(language == Language::Japanese).then_some("true")] { "日本語" }
                a href="/?lang=en" lang="en" hreflang="en" aria-current=[(language == Language::English).then_some("true")] { "English" }
            }
            label { (say("Theme")) " "
                select #theme {
                    option value="" { (say("as the system")) }
                    option value="light" { (say("light")) }
                    option value="dark" { (say("dark")) }
                }
            }
        }
    }
}

/// A place for files.
fn drop(text: &str, id: &str, several: bool) -> Markup {
    html! {
        label.drop for=(id) {
            (text)
            input id=(id) type="file" accept="image/*" multiple[several];
        }
    }
}

fn number(label: &str, name: &str, value: &str, low: i64, high: i64) -> Markup {
    html! { label { (label) " " input type="number" name=(name) value=(value) min=(low) max=(high); } }
}

fn scores(say: fn(&'static str) -> &'static str, first: bool) -> Markup {
    html! {
        details {
            summary { (say("What the numbers say")) }
            ul {
                @if first {
                    li { (say("log-probability: the sum over the caption's tokens of the logarithm of their probability; closer to 0 is surer")) }
                }
                li { (say("itc: the largest cosine between the text and the picture's queries, from -1 to 1; fast, the first rank of a search")) }
                li { (say("itm: the logit that text and picture belong together, after looking at both; above 0 the model leans to yes")) }
                @if !first { li { (say("mean_cosine: how little the text changes what the queries see, from 0 to 1")) } }
            }
        }
    }
}

fn caption(say: fn(&'static str) -> &'static str) -> Markup {
    html! {
        h2 #h-caption { (say("Caption")) }
        (drop(say("Drop pictures here, paste them, or choose files"), "caption-files", true))
        details {
            summary { (say("How captions are made")) }
            form #caption-options .options {
                (number(say("Captions of each picture"), "num_captions", "3", 1, 16))
                (number(say("Beams"), "num_beams", "3", 1, 16))
                label { input type="checkbox" name="sample"; " " (say("Draw at random instead of searching")) }
                (number(say("Most tokens"), "max_length", "30", 2, 512))
                (number(say("Fewest tokens"), "min_length", "10", 0, 512))
                (number(say("Seed"), "seed", "0", 0, 9_007_199_254_740_991))
                label { input type="checkbox" name="spaces" value="join"; " " (say("Without spaces between words")) }
                label.wide.second hidden { (say("Prompt: the text that the language model continues")) " " input name="prompt" autocomplete="off"; }
            }
        }
        form #ask-form.options.second hidden {
            label.wide { (say("A question about the pictures (empty: captions)")) " " input name="text" autocomplete="off"; }
            label.wide { (say("What stands around the question, {}")) " " input name="template" value=(say("Question: {} Answer:")) autocomplete="off"; }
        }
        (scores(say, true))
        ol.pictures #captioned aria-live="polite" {}
    }
}

fn search(say: fn(&'static str) -> &'static str) -> Markup {
    html! {
        h2 #h-search { (say("Search")) }
        form #search-form .options {
            label.wide { (say("The text to look for")) " " input type="search" name="text" lang="ja" autocomplete="off"; }
            label { (say("Ranked by")) " "
                select name="rank_by" {
                    @for rank in ["itm+itc", "itm", "itc", "mean_cosine"] { option { (rank) } }
                }
            }
            (number(say("Looked at again with the text"), "rerank", "32", 0, 1000))
            button { (say("Find")) }
        }
        (drop(say("Or a picture"), "search-file", false))
        (scores(say, false))
        p #words lang="ja" {}
        p #searched role="status" {}
        ol.pictures #found {}
        div.pages hidden {
            button #previous type="button" { (say("Previous")) }
            span #at role="status" {}
            button #next type="button" { (say("Next")) }
        }
    }
}

fn training(say: fn(&'static str) -> &'static str) -> Markup {
    html! {
        h2 #h-training { (say("Training")) }
        form #training-form .options {
            fieldset { legend { (say("Runs")) } div #runs {} }
            label { (say("Smoothing")) " " input type="range" name="smoothing" min="0" max="0.99" step="0.01" value="0"; }
            label { input type="checkbox" name="live" checked; " " (say("Read again every few seconds")) }
        }
        div #curves {}
    }
}

fn look(say: fn(&'static str) -> &'static str) -> Markup {
    html! {
        h2 #h-look { (say("Look")) }
        p { (say("A map shows which parts of the picture a number rests on: the attention of the queries, weighed by how much the number gains by it")) }
        (drop(say("Drop a picture here, paste it, or choose a file"), "look-file", false))
        form #look-form .options {
            label.wide { (say("The text (empty: the caption)")) " " input name="text" lang="ja" autocomplete="off"; }
            label { (say("The map explains")) " "
                select name="of" {
                    option.first value="itm" { (say("the matching logit (itm)")) }
                    option.first value="itc" { (say("the contrastive similarity (itc)")) }
                    option value="word" { (say("a word of the text, by its place from 1")) }
                }
            }
            (number(say("Place of the word"), "word", "1", 1, 512))
            (number(say("Layer (empty: the last that looks at the picture)"), "layer", "", 0, 200))
            (number(say("Query (empty: the mean of all)"), "query", "", 0, 4096))
            button { (say("Show")) }
        }
        div #map role="status" {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page's text: what stands between tags, what labels say, and what the script says.
    fn text(html: &str) -> String {
        let mut text = String::new();
        for part in html.split('<').skip(1) {
            let (tag, rest) = part.split_once('>').unwrap_or_default();
            for name in ["aria-label=\"", "data-said=\""] {
                text += tag.split_once(name).map_or("", |(_, v)| v.split('"').next().unwrap_or_default());
            }
            text += rest;
            text.push(' ');
        }
        SAID.iter().fold(text, |text, (name, _)| text.replace(&format!("&quot;{name}&quot;:"), " "))
    }

    #[test]
    fn every_word_is_there_in_japanese() {
        let known = [
            "qformer", "English", "itm", "itc", "mean", "cosine", "index", "FOLDER", "quot", "run", "DIR",
            "JSON",
        ];
        let page = text(&page(Language::Japanese));
        let words = page.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| w.len() > 2);
        let left: Vec<&str> = words.filter(|w| !known.contains(w)).collect();
        assert!(left.is_empty(), "not translated: {left:?}");
        assert!(page.contains("説明文") && !text(&super::page(Language::English)).contains("説明"));
    }

    #[test]
    fn the_page_holds_no_script_and_no_style_of_its_own() {
        for language in [Language::English, Language::Japanese] {
            let page = page(language);
            assert!(
                !page.contains("style=") && !page.contains("<style") && !page.contains(" onclick"),
                "{page}"
            );
            assert_eq!(page.matches("<script").count(), 1);
            assert!(!page.contains("http://") && !page.contains("https://"));
        }
    }
}
