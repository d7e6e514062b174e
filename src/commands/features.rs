//! `qformer features`: what LAVIS's `extract_features` returns, to files.

use super::engine::{self, ModelArgs, Stream};
use super::inputs::{Inputs, Picture};
use crate::files::{self, Disk, RealDisk};
use crate::model::Images;
use crate::nn::Pass;
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{self, Seen};
use crate::results::{Array, Spool, write_npy, write_safetensors};
use crate::terminal::note;
use crate::weights::Weights;
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OPERATION: &str = "features";
/// The most bytes of a file of texts.
const MAX_TEXTS: u64 = 256 << 20;

/// Write the features of pictures, texts, or both together
///
/// --mode image
///     image_embeds [pictures, queries, hidden]
///     image_embeds_proj [pictures, queries, embed], normalised
/// --mode text
///     text_embeds [texts, tokens, hidden]; token 0 is [CLS], rows behind a text's end are 0
///     text_embeds_proj [texts, tokens, embed], normalised
///     text_mask [texts, tokens], 1 where there is a token
/// --mode multimodal, of every picture with every text
///     multimodal_embeds [pairs, queries, hidden]
///
/// All are f32. A .safetensors file holds them all, and in its metadata the names (of pairs:
/// picture and text) as a JSON list. With --out x.npy the first is in x.npy, the others in
/// x_proj.npy and x_mask.npy, the names in x_names.json.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
#[command(after_help = "Examples:
  qformer features --model runs/stair --mode image photos/ --out photos.safetensors
  qformer features --model runs/stair --mode text --text 二匹の犬 --text 赤い傘 --out texts.npy
  qformer features --model runs/stair --mode multimodal photos/ --texts t.txt --out p.safetensors")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Features of what
    #[arg(long, value_enum)]
    mode: Mode,
    #[command(flatten)]
    inputs: Inputs,
    /// A text; may be given several times
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// A file with a text on each line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// File to write: .safetensors or .npy
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Image,
    Text,
    Multimodal,
}

/// Arrays to write, by name, with the ending of the name of their own .npy file.
type Arrays = Vec<(&'static str, &'static str, Spool)>;

pub fn run(args: &Args) -> Result<()> {
    let npy = match args.out.extension().and_then(|e| e.to_str()) {
        Some("npy") => true,
        Some("safetensors") => false,
        _ => {
            let got = args.out.display();
            return Err(Error::argument(OPERATION, "out", "a name ending in .safetensors or .npy", got));
        }
    };
    let texts = texts(args)?;
    let wrong =
        |argument: &str, got: &str| Err(Error::argument(OPERATION, argument, "nothing in this mode", got));
    match args.mode {
        Mode::Image if !texts.is_empty() => return wrong("text", "texts"),
        Mode::Text if !args.inputs.is_empty() => return wrong("PICTURES", "pictures"),
        Mode::Text | Mode::Multimodal if texts.is_empty() => {
            return Err(Error::argument(OPERATION, "text", "at least one --text, or --texts FILE", "none"));
        }
        _ => {}
    }
    check_out(&args.out)?;
    files::make_folders(&RealDisk, files::folder_of(&args.out))?;
    if args.mode == Mode::Text {
        let model = engine::open(&args.model.model, &args.model.run)?;
        engine::note_texts(&model, &texts, args.model.run.quiet);
        let arrays = of_texts(&model, &texts, &files::scratch(&args.out))?;
        return write(&args.out, npy, arrays, &serde_json::json!(texts));
    }
    of_pictures(args, &texts, npy)
}

/// Features may replace features, and nothing else: a model has the same ending.
fn check_out(out: &Path) -> Result<()> {
    const ARRAYS: [&str; 6] = [
        "image_embeds",
        "image_embeds_proj",
        "text_embeds",
        "text_embeds_proj",
        "text_mask",
        "multimodal_embeds",
    ];
    if !out.is_file() || out.extension().is_none_or(|e| e != "safetensors") {
        return Ok(());
    }
    let features =
        Weights::open(out).is_ok_and(|file| file.tensors().iter().all(|t| ARRAYS.contains(&t.name.as_str())));
    if features {
        return Ok(());
    }
    Err(Error::argument(OPERATION, "--out", "a new file, or one of features", out.display())
        .fix("choose another name"))
}

/// The texts given, in order; blank lines are none.
fn texts(args: &Args) -> Result<Vec<String>> {
    let mut texts = args.text.clone();
    if let Some(path) = &args.texts {
        let failed = |e| Error::io("read texts", path, &e);
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MAX_TEXTS {
            let expected = format!("at most {} MiB", MAX_TEXTS >> 20);
            return Err(Error::file("read texts", path, expected, format!("{length} bytes")).fix("split it"));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|e| {
            Error::file("read texts", path, "UTF-8 text", e.utf8_error()).fix("save it as UTF-8")
        })?;
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        texts.extend(lines.filter(|l| !l.is_empty()).map(str::to_owned));
    }
    Ok(texts)
}

/// The features of one picture, of texts, or of both together, as a .safetensors file.
pub fn as_safetensors(
    model: &Pretrained,
    picture: Option<(&str, &pictures::Seen)>,
    texts: &[String],
) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::io(OPERATION, std::env::temp_dir(), &e);
    let folder = tempfile::Builder::new().prefix("qformer-features-").tempdir().map_err(failed)?;
    let (out, scratch) = (folder.path().join("features.safetensors"), folder.path());
    let (arrays, names) = match picture {
        None if texts.is_empty() => {
            return Err(Error::argument(OPERATION, "text", "a picture, a text or both", "neither"));
        }
        None => (of_texts(model, texts, scratch)?, serde_json::json!(texts)),
        Some((name, seen)) => {
            let mut all = OfPictures::new(model, texts, scratch)?;
            for image in pictures::look(model, &[seen])? {
                all.add(model, name, &image)?;
            }
            (all.arrays, serde_json::Value::Array(all.names))
        }
    };
    write(&out, false, arrays, &names)?;
    std::fs::read(&out).map_err(failed)
}

fn of_texts(model: &Pretrained, texts: &[String], folder: &Path) -> Result<Arrays> {
    let c = &model.model.config;
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| model.tokenizer.caption(t, c.max_txt_len)).collect();
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    let mut hidden = Spool::new(folder, &[longest, c.hidden])?;
    let mut proj = Spool::new(folder, &[longest, c.embed_dim])?;
    let mut mask = Spool::new(folder, &[longest])?;
    let pass = Pass::inference(&model.params).batch_invariant();
    for some in ids.chunks(64) {
        for (features, ids) in model.model.text_features(&pass, some)?.iter().zip(some) {
            let padded = |mut rows: Vec<f32>, width: usize| {
                rows.resize(longest * width, 0.0);
                rows
            };
            hidden.push(&padded(features.embeds.to_f32()?, c.hidden))?;
            proj.push(&padded(features.proj.to_f32()?, c.embed_dim))?;
            mask.push(&padded(vec![1.0; ids.len()], 1))?;
        }
    }
    Ok(vec![("text_embeds", "", hidden), ("text_embeds_proj", "_proj", proj), ("text_mask", "_mask", mask)])
}

fn of_pictures(args: &Args, texts: &[String], npy: bool) -> Result<()> {
    let found = args.inputs.find()?;
    for error in &found.unusable {
        note!("skipped {error}");
    }
    let folder = &files::scratch(&args.out);
    let model = Arc::new(engine::open(&args.model.model, &args.model.run)?);
    engine::note_texts(&model, texts, args.model.run.quiet);
    let mut all = OfPictures::new(&model, texts, folder)?;
    let loading = model.clone();
    let load = move |p: &Picture| pictures::see(&loading, &p.image);
    let mut stream = Stream::start(
        (OPERATION, "computing features"),
        (found.pictures, model.params.device()),
        &args.model.run,
        load,
    )?;
    while let Some(batch) = stream.next()? {
        let (places, seen): (Vec<usize>, Vec<Seen>) = batch.into_iter().unzip();
        let images = match &seen[..] {
            [one] if found.single => vec![pictures::look_alone(&model, one)?],
            _ => pictures::look(&model, &seen.iter().collect::<Vec<_>>())?,
        };
        for (place, image) in places.into_iter().zip(images) {
            all.add(&model, &stream.picture(place).name, &image)?;
            stream.done(1);
        }
    }
    let stopped = stream.stopped();
    let (rate, end) = stream.end(found.single, found.unusable.len(), "nothing was written");
    if stopped || all.names.is_empty() {
        return end;
    }
    write(&args.out, npy, all.arrays, &serde_json::Value::Array(all.names))?;
    if !args.model.run.quiet {
        note!("{} written, {rate:.2} images/s", args.out.display());
    }
    end
}

/// Features of pictures, or of pictures with texts, as they are computed.
struct OfPictures {
    arrays: Arrays,
    names: Vec<serde_json::Value>,
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
}

impl OfPictures {
    fn new(model: &Pretrained, texts: &[String], folder: &Path) -> Result<OfPictures> {
        let c = &model.model.config;
        let ids = texts.iter().map(|t| model.tokenizer.caption(t, c.max_txt_len)).collect();
        let arrays: Arrays = if texts.is_empty() {
            vec![
                ("image_embeds", "", Spool::new(folder, &[c.num_query, c.hidden])?),
                ("image_embeds_proj", "_proj", Spool::new(folder, &[c.num_query, c.embed_dim])?),
            ]
        } else {
            vec![("multimodal_embeds", "", Spool::new(folder, &[c.num_query, c.hidden])?)]
        };
        Ok(OfPictures { arrays, names: Vec::new(), texts: texts.to_vec(), ids })
    }

    fn add(&mut self, model: &Pretrained, name: &str, image: &Images) -> Result<()> {
        if self.texts.is_empty() {
            self.arrays[0].2.push(&image.embeds.to_f32()?)?;
            self.arrays[1].2.push(&image.proj.to_f32()?)?;
            self.names.push(serde_json::json!(name));
        }
        let pass = Pass::inference(&model.params).batch_invariant();
        for (some, said) in self.ids.chunks(64).zip(self.texts.chunks(64)) {
            let pairs: Vec<(usize, usize)> = (0..some.len()).map(|t| (0, t)).collect();
            self.arrays[0].2.push(&model.model.match_pairs(&pass, image, some, &pairs)?.hidden.to_f32()?)?;
            self.names.extend(said.iter().map(|text| serde_json::json!([name, text])));
        }
        Ok(())
    }
}

fn write(out: &Path, npy: bool, arrays: Arrays, names: &serde_json::Value) -> Result<()> {
    let names = names.to_string();
    if !npy {
        let finished = |(name, _, spool): (&'static str, &str, Spool)| Ok((name, spool.finish()?));
        let arrays: Vec<(&str, Array)> = arrays.into_iter().map(finished).collect::<Result<_>>()?;
        return write_safetensors(&RealDisk, out, arrays, &BTreeMap::from([("names".to_owned(), names)]));
    }
    let stem = out.file_stem().and_then(|s| s.to_str()).ok_or_else(|| {
        Error::new(Kind::Argument, OPERATION).about("out").expected("a name in UTF-8").got("other bytes")
    })?;
    write_set(out, stem, arrays, &names)
}

/// Several files that belong together: all of them are on the disk before the first takes its place, and the names, without
/// which a set is none, go before and come after all others.
fn write_set(out: &Path, stem: &str, arrays: Arrays, names: &str) -> Result<()> {
    let folder = files::folder_of(out);
    let staged = tempfile::Builder::new().prefix(".features-").tempdir_in(folder);
    let staged = staged.map_err(|e| files::write_error("write features", folder, &e))?;
    let mut written = Vec::new();
    for (_, ending, spool) in arrays {
        let name = format!("{stem}{ending}.npy");
        write_npy(&RealDisk, &staged.path().join(&name), spool.finish()?)?;
        written.push(name);
    }
    let list = format!("{stem}_names.json");
    let path = staged.path().join(&list);
    files::write_atomic(&RealDisk, &path, names.len() as u64, |to| to.write_all(names.as_bytes()))?;
    let failed = |e: std::io::Error| {
        let fix = "some files are new and some old: without their names they are no set; run the same command again";
        files::write_error("write features", &folder.join(&list), &e).also(fix)
    };
    match std::fs::remove_file(folder.join(&list)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    for name in written.iter().chain([&list]) {
        let to = folder.join(name);
        // A link is followed: what it leads to is replaced.
        let to = to.canonicalize().unwrap_or(to);
        std::fs::rename(staged.path().join(name), to).map_err(failed)?;
    }
    RealDisk.sync_folder(folder).map_err(failed)
}
