//! `qformer explain`: where in a picture a number comes from.

use super::engine::{self, ModelArgs};
use super::generation::Generation;
use super::output::say;
use crate::data::Image;
use crate::files::{self, RealDisk};
use crate::model::{AnswerProfile, Attended, GenerateOptions, Number};
use crate::nn::Pass;
use crate::pretrained::llm::Second;
use crate::pretrained::pictures::Seen;
use crate::pretrained::{Caption, Pretrained, pictures};
use crate::results::{Array, MapPage, Small, heat, paint, write_npy};
use crate::terminal::note;
use crate::text::clean_caption;
use crate::vision::{Turn, encode_png};
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const OPERATION: &str = "explain";
/// The longer side of the picture that is painted over, in pixels.
const SIDE: usize = 768;

/// Show where in a picture a number comes from (Grad-CAM and attention maps)
///
/// Words never look at the picture, the query tokens do. So a map belongs to a number: the matching logit of a text (itm), its
/// similarity (itc), or the log-probability of a word in a caption (word:N; the one number of a language model). The map is attention times the positive part of
/// the number's gradient, as LAVIS's compute_gradcam has it, of one layer's cross-attention, averaged over heads and queries.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer explain --model runs/stair photo.jpg 赤い傘をさした人 --out map.png
  qformer explain --model runs/stair photo.jpg 二匹の犬 --of word:2 --out map.html
  qformer explain --model runs/stair photo.jpg --layer 8 --query 3 --out map.npy")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The picture
    #[arg(value_name = "PICTURE")]
    picture: PathBuf,
    /// The text; without it, the caption that the model writes
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// The number: itm, itc, or word:N, the N-th word of the text as a caption (the first is 1)
    #[arg(long, default_value = "itm", value_name = "NUMBER")]
    of: Of,
    /// Layer with cross-attention, counted from 0 as in the model's files [default: the last]
    #[arg(long, value_name = "K")]
    layer: Option<usize>,
    /// One query token instead of the mean of all, counted from 0
    #[arg(long, value_name = "Q")]
    query: Option<usize>,
    /// Where the language model of a model of stage 2 is, if not where its folder says
    #[arg(long, value_name = "DIR")]
    llm: Option<PathBuf>,
    /// File to write: .png (the map over the picture), .html (that, and the attention of each head and query) or .npy (the map's
    /// numbers, f32, one for each patch of the picture)
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Itm,
    Itc,
    Word(usize),
}

impl FromStr for Of {
    type Err = String;
    fn from_str(text: &str) -> Result<Of, String> {
        match (text, text.strip_prefix("word:").map(str::parse)) {
            ("itm", _) => Ok(Of::Itm),
            ("itc", _) => Ok(Of::Itc),
            (_, Some(Ok(n))) if n > 0 => Ok(Of::Word(n)),
            _ => Err("expected itm, itc or word:N with N from 1".into()),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Of {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Of, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is asked of a picture; as JSON, the fields of `POST /v1/look`.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asked {
    text: Option<String>,
    of: Of,
    layer: Option<usize>,
    query: Option<usize>,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked { text: None, of: Of::Itm, layer: None, query: None }
    }
}

/// A map, and what it is of.
pub struct Found {
    /// The number, its text, its value and the layer.
    pub line: String,
    pub what: String,
    pub text: String,
    pub layer: Attended,
    /// `[side, side]`
    pub map: Vec<f32>,
    pub side: usize,
}

/// The map of a number of a picture.
pub fn explain(model: &Pretrained, seen: &Seen, asked: &Asked) -> Result<Found> {
    let pass = Pass::inference(&model.params);
    let tokens = model.model.vit_tokens(&pass, &pictures::planes(model, &[seen])?, |_, _| {})?;
    let (text, ids, number, what) = match &model.second {
        Some(second) => word_of_llm(model, second, seen, asked)?,
        None => {
            let text = match &asked.text {
                Some(text) => text.clone(),
                None => {
                    let images = model.model.image_features_of(&pass, &tokens)?;
                    let captions = model.caption(&images, &GenerateOptions::default(), &[seen.identity])?;
                    first_of(captions)
                }
            };
            let ids = model.tokenizer.caption(&text, model.model.config.max_txt_len);
            let (number, what) = number(model, asked.of, &text, ids.len())?;
            (text, ids, number, what)
        }
    };
    let found = model.model.explain(&model.params, &tokens, &ids, &number)?;
    let layer = layer(found.layers, asked.layer)?;
    let map = layer.grad_cam(asked.query).ok_or_else(|| {
        let want = format!("a query token from 0 to {}", layer.queries - 1);
        Error::argument(OPERATION, "--query", want, asked.query.unwrap_or_default())
    })?;
    if !found.value.is_finite() || map.iter().any(|v| !v.is_finite()) {
        return Err(Error::new(crate::Kind::NonFinite, OPERATION)
            .expected("finite numbers")
            .got("one that is not")
            .fix("take an earlier checkpoint"));
    }
    let line = format!("{what} of {text:?}: {:.4}, layer {}", found.value, layer.layer);
    let config = &model.model.config;
    Ok(Found { line, what, text, layer, map, side: config.image_size / config.patch_size })
}

fn first_of(captions: Vec<Vec<Caption>>) -> String {
    captions.into_iter().flatten().next().map(|caption| caption.text).unwrap_or_default()
}

/// A word that a language model may say: the text, its ids behind the model's prompt, which of them are meant, and its name. Words
/// stand between spaces; where there is none, every token is one.
fn word_of_llm(
    model: &Pretrained,
    second: &Second,
    seen: &Seen,
    asked: &Asked,
) -> Result<(String, Vec<u32>, Number, String)> {
    let prompt = &second.part.prompt;
    let Of::Word(n) = asked.of else {
        let got = if asked.of == Of::Itm { "itm" } else { "itc" };
        return Err(Error::argument(OPERATION, "--of", "word:N of a model with a language model", got)
            .fix("give --of word:1 for the first word, or a model of stage 1"));
    };
    let text = match (&asked.text, model.model.llm()) {
        (Some(text), _) => text.clone(),
        (None, Some(llm)) => {
            let options = Generation::default().options_of_llm(llm, false)?;
            let how = (&options, AnswerProfile::named("lavis-head")?);
            let planes = pictures::planes(model, &[seen])?;
            first_of(model.answer(&planes, std::slice::from_ref(prompt), how, &[seen.identity])?)
        }
        (None, None) => String::new(),
    };
    let tokenizer = &second.tokenizer;
    let ids = tokenizer.prompt(&format!("{prompt}{text}"))?;
    let before = tokenizer.prompt(prompt)?.len();
    // How much of the text there is behind each token: a token belongs to the word that its first new character is in.
    let mut words: Vec<(String, Range<usize>)> = Vec::new();
    let spaced = text.trim().contains(' ');
    let (mut known, mut begun) = (tokenizer.decode(&ids[..before.min(ids.len())])?, false);
    for at in before..ids.len() {
        let now = tokenizer.decode(&ids[..=at])?;
        let new = now.strip_prefix(known.as_str()).unwrap_or(&now).to_owned();
        let joins = begun && (!spaced || !new.starts_with(' '));
        match words.last_mut() {
            Some((word, range)) if spaced && joins => {
                word.push_str(&new);
                range.end = at + 1;
            }
            _ => words.push((new, at..at + 1)),
        }
        (known, begun) = (now, true);
    }
    match words.get(n - 1) {
        Some((word, range)) => {
            let what = format!("log-probability of {:?}", word.trim());
            Ok((text, ids, Number::Tokens(range.clone()), what))
        }
        None => {
            let list: Vec<String> =
                words.iter().enumerate().map(|(i, (w, _))| format!("{} {}", i + 1, w.trim())).collect();
            let want = format!("a word that the model says: {}", list.join(", "));
            Err(Error::argument(OPERATION, "--of", want, format!("word:{n}")))
        }
    }
}

/// The forms of what is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Png,
    Html,
    Npy,
}

pub fn run(args: &Args) -> Result<()> {
    let form = match args.out.extension().and_then(|e| e.to_str()) {
        Some("png") => Form::Png,
        Some("html") => Form::Html,
        Some("npy") => Form::Npy,
        _ => {
            let got = args.out.display();
            return Err(Error::argument(OPERATION, "--out", "a name ending in .png, .html or .npy", got));
        }
    };
    if same_file(&args.out, &args.picture) {
        let got = args.out.display();
        return Err(Error::argument(OPERATION, "--out", "another file than the picture", got));
    }
    let model = engine::open_stage(&args.model.model, &args.model.run, args.llm.as_deref())?;
    let image = Image::File(args.picture.clone());
    let seen = pictures::see(&model, &image)?;
    if let (Some(text), None, quiet) = (&args.text, &model.second, args.model.run.quiet) {
        engine::note_texts(&model, &[text], quiet);
    }
    let asked = Asked { text: args.text.clone(), of: args.of, layer: args.layer, query: args.query };
    let Found { line, what, text, layer, map, side } = explain(&model, &seen, &asked)?;
    if map.iter().all(|v| *v == 0.0) && !args.model.run.quiet {
        note!("note: nothing of this number comes through layer {}: the map is 0 everywhere", layer.layer);
    }
    files::make_folders(&RealDisk, files::folder_of(&args.out))?;
    match form {
        Form::Npy => write_npy(&RealDisk, &args.out, Array::new(&[side, side], &map))?,
        Form::Png => save(&args.out, &over(&model, &image, side, Some(&map))?)?,
        Form::Html => {
            let queries = args.query.map_or("mean of all queries".into(), |q| format!("query {q}"));
            let about = vec![line.clone(), format!("Grad-CAM: attention times positive gradient, {queries}")];
            let page = MapPage {
                title: text,
                about,
                pictures: vec![
                    Small { name: what, png: over(&model, &image, side, Some(&map))? },
                    Small { name: "picture".into(), png: over(&model, &image, side, None)? },
                ],
                heads: small(layer.heads, side, |i| layer.map(Some(i), args.query))?,
                queries: small(layer.queries, side, |i| layer.map(None, Some(i)))?,
            };
            save(&args.out, page.html().as_bytes())?;
        }
    }
    say!("{line}")
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The number that is meant, and its name.
fn number(model: &Pretrained, of: Of, text: &str, tokens: usize) -> Result<(Number, String)> {
    let n = match of {
        Of::Itm => return Ok((Number::Match, "itm".into())),
        Of::Itc => return Ok((Number::Similarity, "itc".into())),
        Of::Word(n) => n,
    };
    let words = model.tokenizer.words(&clean_caption(text));
    let mut ids = Vec::new();
    // Token 0 is [CLS], the last one [SEP]: what is cut off has no log-probability.
    for (at, word) in words.iter().enumerate() {
        let first = 1 + ids.len();
        model.tokenizer.push_word(word, &mut ids);
        let last = 1 + ids.len();
        if at + 1 == n && last < tokens && last > first {
            return Ok((Number::Tokens(first..last), format!("log-probability of {word:?}")));
        }
    }
    let list: Vec<String> = words.iter().enumerate().map(|(i, w)| format!("{} {w}", i + 1)).collect();
    let want = format!("a word that the model reads: {}", list.join(", "));
    Err(Error::argument(OPERATION, "--of", want, format!("word:{n}")))
}

fn layer(layers: Vec<Attended>, asked: Option<usize>) -> Result<Attended> {
    let all: Vec<String> = layers.iter().map(|l| l.layer.to_string()).collect();
    let found = match asked {
        None => layers.into_iter().next_back(),
        Some(k) => layers.into_iter().find(|l| l.layer == k),
    };
    found.ok_or_else(|| {
        let want = format!("a layer with cross-attention: {}", all.join(", "));
        Error::argument(OPERATION, "--layer", want, asked.map_or("none".into(), |k| k.to_string()))
    })
}

/// A PNG of the picture as a person sees it, with a map painted over what the model saw.
fn over(model: &Pretrained, image: &Image, side: usize, map: Option<&[f32]>) -> Result<Vec<u8>> {
    let (photo, upright) = pictures::as_seen(model, image.photo(Turn::Upright)?);
    let mut picture = photo.small(SIDE)?;
    if let Some(map) = map {
        paint(&mut picture.rgb, picture.width, side, map);
    }
    let picture = upright.apply(picture);
    encode_png(picture.width, picture.height, &picture.rgb)
}

fn small(count: usize, side: usize, map: impl Fn(usize) -> Option<Vec<f32>>) -> Result<Vec<Small>> {
    let one = |i: usize| {
        let png = encode_png(side, side, &heat(&map(i).unwrap_or_default()))?;
        Ok(Small { name: i.to_string(), png })
    };
    (0..count).map(one).collect()
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_atomic(&RealDisk, path, bytes.len() as u64, |to| to.write_all(bytes)).map(drop)
}
