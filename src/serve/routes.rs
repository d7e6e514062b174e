//! Every path the server answers, once. The router, the OpenAPI document and the metrics are made of this table.

/// Which answer a path gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Page,
    Style,
    Script,
    Health,
    Metrics,
    OpenApi,
    About,
    Words,
    Thumbnail,
    Runs,
    Training,
    Caption,
    Search,
    Features,
    Look,
    Ask,
    Chat,
}

/// A field of a request: in the query of a GET, in the body of a POST.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    /// Of JSON.
    pub kind: &'static str,
    pub about: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub name: Name,
    pub method: &'static str,
    pub path: &'static str,
    /// Answered without a token: nothing of the user's is in it.
    pub open: bool,
    pub about: &'static str,
    pub fields: &'static [Field],
    pub answer: &'static str,
}

const fn field(name: &'static str, kind: &'static str, about: &'static str) -> Field {
    Field { name, kind, about }
}

const IMAGE: Field = field("image", "string", "A picture file: its bytes, or base64 in JSON");
const NAME: Field =
    field("name", "string", "What the picture is called in the answer, in JSON; default image");
const PLACE: Field = field("place", "integer", "Instead of image: a picture of the index, by its place");
const LANG: Field = field("lang", "string", "en or ja");

/// Lists of fields as one, of N in all.
const fn joined<const N: usize>(lists: &[&[Field]]) -> [Field; N] {
    let mut all = [IMAGE; N];
    let (mut list, mut next) = (0, 0);
    while list < lists.len() {
        let mut i = 0;
        while i < lists[list].len() {
            all[next] = lists[list][i];
            next += 1;
            i += 1;
        }
        list += 1;
    }
    assert!(next == N);
    all
}

const OF_A_PICTURE: [Field; 3] = [IMAGE, NAME, PLACE];
/// How a text is searched for or drawn.
const GENERATION: [Field; 10] = [
    field("num_beams", "integer", "Beams of the search; 1 is greedy; default 3, with sample 1"),
    field("sample", "boolean", "Draw captions at random; default false"),
    field(
        "top_p",
        "number",
        "With sample: draw from the most probable tokens that reach this probability; default 0.9",
    ),
    field("top_k", "integer", "With sample: draw from the K most probable tokens, 0 for all; default 50"),
    field("temperature", "number", "With sample: below 1 draws the probable more often; default 1"),
    field("max_length", "integer", "Most tokens of a caption, [DEC] counted; default 30"),
    field("min_length", "integer", "Fewest tokens of a caption, [DEC] counted; default 10"),
    field(
        "repetition_penalty",
        "number",
        "Above 1 makes tokens that are already there less probable; default 1",
    ),
    field("length_penalty", "number", "Above 0 prefers long captions; default 1"),
    field("seed", "integer", "Of the random draws; default 0"),
];
const CAPTIONS: [Field; 3] = [
    field("num_captions", "integer", "Captions, best first; default 1"),
    field("spaces", "string", "keep, or join: Japanese words without spaces; default keep"),
    field(
        "prompt",
        "string",
        "With a language model: the text it continues; default the one of its training",
    ),
];

const CAPTION: &[Field] = &joined::<16>(&[&OF_A_PICTURE, &CAPTIONS, &GENERATION]);

const QUESTION: [Field; 2] = [
    field("text", "string", "The question"),
    field("template", "string", "What stands around the question, {}; default {} alone"),
];
const ASK: &[Field] = &joined::<15>(&[&OF_A_PICTURE, &QUESTION, &GENERATION]);

const SEARCH: &[Field] = &[
    field("text", "string", "What to look for"),
    IMAGE,
    NAME,
    PLACE,
    field("top_k", "integer", "How many pictures to show; default 10"),
    field("rerank", "integer", "How many of the best by itc to look at again; default 32, for a picture 0"),
    field("rank_by", "string", "itm+itc, itm, itc or mean_cosine; default itm+itc"),
];

const LOOK: &[Field] = &[
    IMAGE,
    NAME,
    PLACE,
    field("text", "string", "The text whose score is explained; default the caption"),
    field("of", "string", "itm, itc or word:N; default itm"),
    field("layer", "integer", "The layer with cross-attention; default the last"),
    field("query", "integer", "One query; default the mean of all"),
];

const CHAT: &[Field] = &[
    field(
        "messages",
        "array",
        "As in chat clients: the last message of the user holds one image_url, a data: URL",
    ),
    field("model", "string", "Any; there is one model"),
    field("n", "integer", "Captions; default 1"),
    field("max_tokens", "integer", "Most tokens of a caption; default 30"),
    field("temperature", "number", "Given: the caption is drawn at random with it"),
    field("top_p", "number", "With temperature: see /v1/caption"),
    field("seed", "integer", "Of the random draws; default 0"),
    field("stream", "boolean", "false"),
];

const fn get(name: Name, path: &'static str, open: bool, about: &'static str, answer: &'static str) -> Route {
    Route { name, method: "GET", path, open, about, fields: &[], answer }
}

const fn post(name: Name, path: &'static str, about: &'static str, fields: &'static [Field]) -> Route {
    Route { name, method: "POST", path, open: false, about, fields, answer: JSON }
}

pub const JSON: &str = "application/json";

pub const ROUTES: &[Route] = &[
    Route { fields: &[LANG], ..get(Name::Page, "/", true, "The page", "text/html") },
    get(Name::Style, "/page.css", true, "Its style", "text/css"),
    get(Name::Script, "/page.js", true, "Its script", "text/javascript"),
    get(Name::Health, "/health", true, "Whether the server answers", JSON),
    get(Name::Metrics, "/metrics", false, "Counts, as Prometheus reads them", "text/plain"),
    get(Name::OpenApi, "/openapi.json", true, "This document", JSON),
    get(Name::About, "/v1/about", false, "The model and the index", JSON),
    Route {
        fields: &[field("text", "string", "A text")],
        ..get(
            Name::Words,
            "/v1/words",
            false,
            "How the model reads a text: its words, and which it knows",
            JSON,
        )
    },
    Route {
        fields: &[field("place", "integer", "The picture's place in the index")],
        ..get(Name::Thumbnail, "/v1/thumbnail", false, "A small picture of the index, upright", "image/jpeg")
    },
    get(Name::Runs, "/v1/runs", false, "The trainings that are shown", JSON),
    Route {
        fields: &[
            field("runs", "string", "Their places in /v1/runs, with commas between them; default all"),
            field("smoothing", "number", "0 to 0.99: the share of the mean so far in each point; default 0"),
            LANG,
        ],
        ..get(Name::Training, "/v1/training", false, "Curves of trainings, as they are now", "text/html")
    },
    post(
        Name::Caption,
        "/v1/caption",
        "Captions of a picture, as `qformer caption --format jsonl` writes them",
        CAPTION,
    ),
    post(
        Name::Search,
        "/v1/search",
        "Pictures of the index, as `qformer search query --json` prints them",
        SEARCH,
    ),
    Route {
        answer: "application/octet-stream",
        ..post(
            Name::Features,
            "/v1/features",
            "Features of a picture, of a text, or of both together: the .safetensors that `qformer features` writes",
            &[IMAGE, NAME, PLACE, field("text", "string", "A text")],
        )
    },
    post(
        Name::Look,
        "/v1/look",
        "Where the model looks: a map over the picture, as `qformer explain` draws it",
        LOOK,
    ),
    post(
        Name::Ask,
        "/v1/ask",
        "The answer to a question about a picture, as `qformer caption --ask` gives it; needs a language model",
        ASK,
    ),
    post(
        Name::Chat,
        "/v1/chat/completions",
        "A caption, or the answer to a question, in the form of chat clients",
        CHAT,
    ),
];
