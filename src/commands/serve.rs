//! `qformer serve`: a page and an HTTP interface over a model that stays in memory. The answers are those of `caption`, `search` and
//! `features`, made by the same functions.

use super::answer::{How, answers};
use super::caption::{self, Spaces, Wanted};
use super::engine::{self, ModelArgs};
use super::explain::{Asked, explain};
use super::features;
use super::generation::Generation;
use super::search::in_json;
use crate::console::signals::Stop;
use crate::model::AnswerProfile;
use crate::pretrained::pictures::{self, Seen};
use crate::pretrained::{Caption, Pretrained};
use crate::results::{Captioned, Format, Rated, paint, render};
use crate::search::index::Identity;
use crate::search::query::{self, Rank};
use crate::search::{Index, Kept, Query};
use crate::serve::{self, About, Answer, Ask, Engine, Settings, Shown, Word};
use crate::tensor::Device;
use crate::terminal::{note, printable};
use crate::vision::{self, Photo, Turn, encode_png};
use crate::{Error, Kind, Result};
use base64::Engine as _;
use serde_json::{Map, Value};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const OPERATION: &str = "serve";
/// The longer side of a small picture, and of one with a map over it.
const SIDE: usize = 360;
const MAP: usize = 512;

/// Serve a page and an HTTP interface: caption, search, watch trainings
///
/// The model is loaded once; pictures that wait together are computed together. By default only this machine can ask. The page
/// needs no network; its four views: Caption, Search, Training, Look. The interface is described at /openapi.json; its answers are
/// those of the commands, to the byte. SIGTERM and Ctrl-C let running requests end.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer serve --model runs/stair/model
  qformer serve --model runs/stair/model --index photos.index --run runs/stair --run runs/other
  qformer serve --model model --listen 0.0.0.0 --token-file secret.txt --host photos.example
  curl -F image=@photo.jpg http://127.0.0.1:8080/v1/caption")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Where the language model of a model of stage 2 is, if not where its folder says
    #[arg(long, value_name = "DIR")]
    llm: Option<PathBuf>,
    /// An index to search in, as `search index` made it with this model
    #[arg(long, value_name = "INDEX")]
    index: Option<PathBuf>,
    /// Folder of a training to show, also while it runs; may be given several times
    #[arg(long = "run", value_name = "DIR")]
    runs: Vec<PathBuf>,
    /// 0 takes a free one
    #[arg(long, default_value_t = 8080, value_name = "N")]
    port: u16,
    /// Address to listen at; beyond this machine it needs --token-file
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDR")]
    listen: IpAddr,
    /// File with a secret that clients must send: Authorization: Bearer SECRET
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A name under which clients reach the server, beside localhost and addresses; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Memory for what the image encoder says of pictures that searches look at again, so that it sees none of them twice; on a GPU unused
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    keep: u64,
    /// Seconds that a request may wait for its answer
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let settings = Settings {
        address: SocketAddr::new(args.listen, args.port),
        hosts: args.hosts.clone(),
        token: args.token_file.as_deref().map(serve::read_token).transpose()?,
        runs: args.runs.clone(),
        batch: args.model.run.batch as usize,
        timeout: Duration::from_secs(args.timeout),
    };
    // Before the model is read, which may take long.
    settings.check()?;
    let model = engine::open_stage(&args.model.model, &args.model.run, args.llm.as_deref())?;
    if let (Some(index), true) = (&args.index, model.second.is_some()) {
        return Err(Error::argument(OPERATION, "--index", "a model of stage 1 with it", "one of stage 2")
            .about(index.display().to_string())
            .fix("leave --index out, or serve the model of stage 1 that made the index"));
    }
    let open = |folder: &PathBuf| Gallery::open(folder, &model, &args.model.model, args.keep);
    let gallery = args.index.as_ref().map(open).transpose()?;
    let name = args.model.model.canonicalize().ok();
    let name = name.as_deref().unwrap_or(&args.model.model).file_name();
    let name = name.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let device = match model.params.device() {
        Device::Cpu => "CPU".into(),
        Device::Gpu(_) => args.model.run.place.device.clone(),
    };
    let held = Held { model, name, device, gallery };
    let stop = Stop::listen()?;
    let signal = stop.clone();
    serve::run(
        settings,
        Arc::new(held),
        move || signal.signal(),
        |address| {
            note!("listening on http://{address}/");
        },
    )?;
    stop.error(OPERATION).map_or(Ok(()), Err)
}

/// The index, read again when it was written to.
struct Gallery {
    folder: PathBuf,
    identity: Identity,
    kept: Kept,
    now: Mutex<(Option<SystemTime>, Arc<Index>)>,
}

impl Gallery {
    fn open(folder: &Path, model: &Pretrained, from: &Path, keep: u64) -> Result<Gallery> {
        let identity = Identity::of(model, from);
        let written = Index::written(folder);
        let index = Index::read(folder)?;
        index.check(&identity)?;
        // Checked now, not when the first search waits for it.
        index.parts().into_iter().try_for_each(|part| index.halves(part).map(drop))?;
        let kept = Kept::new((keep as usize) << 20);
        Ok(Gallery { folder: folder.to_owned(), identity, kept, now: Mutex::new((written, Arc::new(index))) })
    }

    /// The index as it is; as it was, where the new one cannot be read or belongs to another model.
    fn index(&self) -> Arc<Index> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let written = Index::written(&self.folder);
        if written.is_some() && written != now.0 {
            match Index::read(&self.folder).and_then(|new| new.check(&self.identity).map(|()| new)) {
                Ok(new) => now.1 = Arc::new(new),
                Err(e) => note!("the index is searched as it was: {e}"),
            }
            now.0 = written;
        }
        now.1.clone()
    }
}

struct Held {
    model: Pretrained,
    name: String,
    device: String,
    gallery: Option<Gallery>,
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SearchOptions {
    top_k: usize,
    rerank: Option<usize>,
    rank_by: Rank,
}

impl Default for SearchOptions {
    fn default() -> SearchOptions {
        SearchOptions { top_k: 10, rerank: None, rank_by: Rank::ItmPlusItc }
    }
}

impl Held {
    /// A photo that was opened upright, as the model sees it.
    fn shown(&self, name: &str, photo: Photo) -> Result<Shown> {
        let (photo, upright) = pictures::as_seen(&self.model, photo);
        let picture = pictures::resized(&self.model, &photo)?;
        Ok(Shown { name: name.to_owned(), picture, size: photo.size(), upright })
    }

    fn gallery(&self) -> Result<&Gallery> {
        self.gallery.as_ref().ok_or_else(|| {
            Error::argument("search", "--index", "a server with an index", "one without")
                .fix("start it with --index FOLDER")
        })
    }

    fn index(&self) -> Result<Arc<Index>> {
        Ok(self.gallery()?.index())
    }

    /// How captions or answers of these options are made, and what stands around a question.
    fn how(&self, options: &Map<String, Value>, question: bool) -> Result<(How, Spaces, String)> {
        let mut options = options.clone();
        let mut text =
            |name: &str| options.remove(name).map(|value| parsed::<String>("caption", value)).transpose();
        let (prompt, template) = match question {
            true => (None, text("template")?.unwrap_or_else(|| "{}".into())),
            false => (text("prompt")?, String::new()),
        };
        if question && !template.contains("{}") {
            return Err(Error::argument("ask", "template", "{} where the question stands", template));
        }
        let spaces = match options.remove("spaces") {
            None => Spaces::Keep,
            Some(value) => parsed("caption", value)?,
        };
        let generation: Generation = parsed("caption", Value::Object(options))?;
        let profile = AnswerProfile::named("lavis-head")?;
        let how = match (&self.model.second, self.model.model.llm()) {
            (Some(second), Some(llm)) => How {
                options: generation.options_of_llm(llm, question)?,
                profile,
                prompt: prompt.unwrap_or_else(|| second.part.prompt.clone()),
                second: true,
            },
            _ if prompt.is_some() => {
                return Err(Error::argument(
                    "caption",
                    "prompt",
                    "a model with a language model",
                    "one without",
                )
                .fix("leave it out"));
            }
            _ => {
                let config = &self.model.model.config;
                let options = generation.options(config.vocab, config.max_pos)?;
                How { options, profile, prompt: String::new(), second: false }
            }
        };
        Ok((how, spaces, template))
    }

    /// Captions of pictures, or answers where there are questions, all of the same options.
    fn captions(
        &self,
        asked: &[(&Shown, Option<&str>)],
        options: &Map<String, Value>,
    ) -> Result<Vec<Result<Answer>>> {
        let question = asked.iter().any(|(_, question)| question.is_some());
        let (how, spaces, template) = self.how(options, question)?;
        let seen =
            asked.iter().map(|(s, _)| Seen::of(&self.model, &s.picture)).collect::<Result<Vec<_>>>()?;
        let wanted = Wanted { how: &how, rated: !how.second, spaces, alone: false };
        let lines = |asked: &[(&Shown, Option<&str>)], seen: &[Seen]| -> Result<Vec<Result<Answer>>> {
            if question {
                let text = |q: &Option<&str>| template.replace("{}", q.unwrap_or_default());
                let prompts: Vec<String> = asked.iter().map(|(_, q)| text(q)).collect();
                let found = answers(&self.model, seen, &prompts, &how)?;
                return Ok(asked
                    .iter()
                    .zip(found)
                    .map(|(asked, found)| Ok(answered(asked, found)))
                    .collect());
            }
            let format = if how.second { Format::Json } else { Format::JsonLines };
            let line = |((shown, _), captions): (&(&Shown, _), Vec<Rated>)| {
                let captioned = Captioned { image: shown.name.clone(), captions };
                render(&captioned, format, false).map(|line| Answer::Json(line + "\n"))
            };
            Ok(asked.iter().zip(caption::caption(&self.model, seen, &wanted)?).map(line).collect())
        };
        match lines(asked, &seen) {
            Err(e) if asked.len() == 1 => Err(e),
            // One of them may be to blame: each for itself.
            Err(_) => {
                let one = |i: usize| lines(&asked[i..=i], &seen[i..=i])?.remove(0);
                Ok((0..asked.len()).map(one).collect())
            }
            all => all,
        }
    }

    fn search(&self, query: &serve::Query, options: &Map<String, Value>) -> Result<Answer> {
        let options: SearchOptions = parsed("search", Value::Object(options.clone()))?;
        if options.top_k == 0 {
            return Err(Error::argument("search", "top-k", "at least 1", 0));
        }
        let gallery = self.gallery()?;
        let index = gallery.index();
        let (query, rerank) = match query {
            serve::Query::Text(text) => (Query::of_text(&self.model, text)?, 32),
            serve::Query::Picture(shown) => {
                let seen = Seen::of(&self.model, &shown.picture)?;
                (Query::of_seen(&self.model, Path::new(&shown.name), &seen)?, 0)
            }
        };
        let rerank = options.rerank.unwrap_or(rerank);
        let how = (rerank, options.rank_by);
        let ranked = query::search_keeping(&self.model, &index, &query, how, options.top_k, &gallery.kept)?;
        let hits = ranked.found;
        Ok(Answer::Json(format!("{}\n", in_json(&query, &index, &hits))))
    }

    fn features(&self, picture: Option<&Shown>, texts: &[String]) -> Result<Answer> {
        let seen = picture.map(|s| Ok((s.name.as_str(), Seen::of(&self.model, &s.picture)?))).transpose()?;
        let seen = seen.as_ref().map(|(name, seen): &(&str, Seen)| (*name, seen));
        features::as_safetensors(&self.model, seen, texts).map(Answer::Arrays)
    }

    fn one(&self, ask: &Ask) -> Result<Answer> {
        match ask {
            Ask::Caption { picture, question, options } => {
                self.captions(&[(picture, question.as_deref())], options).and_then(|mut all| all.remove(0))
            }
            Ask::Search { query, options } => self.search(query, options),
            Ask::Features { picture, texts } => self.features(picture.as_ref(), texts),
        }
    }
}

/// Options of a command, from JSON.
fn parsed<T: serde::de::DeserializeOwned>(operation: &str, value: Value) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|e| Error::argument(operation, "options", "the fields of /openapi.json", e))
}

impl Engine for Held {
    fn about(&self) -> About {
        let c = &self.model.model.config;
        let second = self.model.second.as_ref().map(|s| &s.part);
        About {
            model: self.name.clone(),
            image_size: c.image_size,
            vocabulary: c.vocab,
            longest_text: c.max_txt_len,
            pictures: self.gallery.as_ref().map(|g| g.index().len()),
            language_model: second
                .map(|s| s.path.file_name().unwrap_or_default().to_string_lossy().into_owned()),
            prompt: second.map(|s| s.prompt.clone()),
            device: self.device.clone(),
        }
    }

    fn see(&self, name: &str, bytes: Vec<u8>) -> Result<Shown> {
        self.shown(name, Photo::owned(bytes, name, Turn::Upright)?)
    }

    fn indexed(&self, place: usize) -> Result<Shown> {
        let index = self.index()?;
        let path = &known(&index, place)?.path;
        self.shown(path, Photo::open(path, Turn::Upright)?)
    }

    fn thumbnail(&self, place: usize) -> Result<Vec<u8>> {
        let index = self.index()?;
        let photo = Photo::open(&known(&index, place)?.path, Turn::Upright)?;
        vision::thumbnail(&photo, SIDE)
    }

    fn words(&self, text: &str) -> Vec<Word> {
        let tokenizer = &self.model.tokenizer;
        let words = tokenizer.words(&crate::text::clean_caption(text));
        let known = |word: &str| !tokenizer.encode(word).contains(&tokenizer.special().unk);
        words.into_iter().map(|word| Word { known: known(&word), word }).collect()
    }

    /// Captions of the same options are computed together; what nobody waits for is left out.
    fn answer(&self, asks: &[Ask], gone: &dyn Fn(usize) -> bool) -> Vec<Result<Answer>> {
        let nobody = || Err(Error::new(Kind::Device, OPERATION).got("nobody waits for the answer"));
        let mut answers: Vec<Option<Result<Answer>>> = asks.iter().map(|_| None).collect();
        for i in 0..asks.len() {
            if answers[i].is_some() {
                continue;
            }
            if gone(i) {
                answers[i] = Some(nobody());
                continue;
            }
            let Ask::Caption { question, options, .. } = &asks[i] else {
                answers[i] = Some(self.one(&asks[i]));
                continue;
            };
            let (places, pictures): (Vec<usize>, Vec<_>) = (asks.iter().enumerate().skip(i))
                .filter(|(j, _)| answers[*j].is_none() && !gone(*j))
                .filter_map(|(j, ask)| Some((j, alike(ask, question.is_some(), options)?)))
                .unzip();
            match self.captions(&pictures, options) {
                Ok(all) => places.into_iter().zip(all).for_each(|(j, answer)| answers[j] = Some(answer)),
                Err(e) => places.into_iter().for_each(|j| answers[j] = Some(Err(e.clone()))),
            }
            answers[i].get_or_insert_with(nobody);
        }
        let shown = |answer: Answer| match answer {
            // As the commands print it.
            Answer::Json(text) => Answer::Json(printable(&text).into_owned()),
            other => other,
        };
        answers.into_iter().map(|a| a.unwrap_or_else(nobody).map(shown)).collect()
    }

    fn look(&self, shown: &Shown, options: &Map<String, Value>) -> Result<Answer> {
        let asked: Asked = parsed("look", Value::Object(options.clone()))?;
        let found = explain(&self.model, &Seen::of(&self.model, &shown.picture)?, &asked)?;
        let longest = shown.size.0.max(shown.size.1).max(1);
        let scaled = |n: usize| (n * MAP).div_ceil(longest).clamp(1, MAP);
        let (width, height) = (scaled(shown.size.0), scaled(shown.size.1));
        let mut picture = vision::resize(&shown.picture, width, height)?;
        paint(&mut picture.rgb, width, found.side, &found.map);
        let picture = shown.upright.apply(picture);
        let png = encode_png(picture.width, picture.height, &picture.rgb)?;
        let png = base64::engine::general_purpose::STANDARD.encode(png);
        let maps = serde_json::json!({ "maps": [{ "png": png, "about": found.line }] });
        Ok(Answer::Json(format!("{maps}\n")))
    }
}

/// The picture and the question of a caption or an answer of these options.
fn alike<'a>(ask: &'a Ask, asks: bool, options: &Map<String, Value>) -> Option<(&'a Shown, Option<&'a str>)> {
    match ask {
        Ask::Caption { picture, question, options: other }
            if other == options && question.is_some() == asks =>
        {
            Some((picture, question.as_deref()))
        }
        _ => None,
    }
}

/// As `caption --ask` writes it.
fn answered((shown, question): &(&Shown, Option<&str>), found: Vec<Caption>) -> Answer {
    let answer = found.into_iter().next().map(|c| c.text);
    let line = serde_json::json!({"image": shown.name, "question": question, "answer": answer});
    Answer::Json(format!("{line}\n"))
}

fn known(index: &Index, place: usize) -> Result<&crate::search::index::Picture> {
    if place < index.len() {
        return Ok(index.picture(place));
    }
    Err(Error::argument("search", "place", format!("below {}", index.len()), place))
}
