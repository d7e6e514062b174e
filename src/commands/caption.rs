//! `qformer caption`: captions of pictures, in a form that can be interrupted and gone on with.

use super::engine::{self, ModelArgs, Seen, Stream, Texts};
use super::generation::Generation;
use super::inputs::{Inputs, Picture};
use super::output;
use crate::files::{self, RealDisk};
use crate::model::{GenerateOptions, Images};
use crate::pretrained::Pretrained;
use crate::results::{self, CaptionFile, Captioned, Format, Rated, SideCars};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const OPERATION: &str = "caption";

/// Describe pictures in Japanese
///
/// Without --out or --txt, captions go to standard output: of one picture the captions alone, of several the name, a tab and
/// the caption. A file of captions is always whole and can be gone on with: pictures that are in it are skipped, new ones
/// added; Ctrl-C saves first. A broken picture is told of, skipped and tried again the next time; the exit code is then 3.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer caption --model runs/stair photo.jpg
  qformer caption --model runs/stair photos/ --out captions.json
  qformer caption --model runs/stair photos/ --out captions.jsonl --num-captions 3
  qformer caption --model runs/stair 'photos/**/*.png' --txt --spaces join
  qformer caption --model runs/stair photos/ --sample --top-p 0.9 --seed 7 --num-captions 5
  find /data -name '*.jpg' -print0 | qformer caption --model runs/stair - --out captions.csv")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: Inputs,
    /// File to write, added to if it is there: .json (as BLIP2-Japanese writes it), .jsonl or .csv (both with the
    /// log-probability, ITC and ITM score of each caption)
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Form of the output [default: by the ending of --out; on standard output, text]
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<Form>,
    /// A .txt beside each picture, each line a caption; pictures that have one are skipped
    #[arg(long, help_heading = "Output")]
    txt: bool,
    /// The same, in another folder, under the pictures' names
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    txt_dir: Option<PathBuf>,
    /// Begin anew: replace captions that are already there
    #[arg(long, help_heading = "Output")]
    overwrite: bool,
    /// Between Japanese words, as the tokenizer leaves them, or none, as Japanese is written
    #[arg(long, value_enum, default_value_t = Spaces::Keep, help_heading = "Output")]
    spaces: Spaces,
    /// JSON with \uXXXX for all that is not ASCII: to the byte what Python's json.dump writes
    #[arg(long, help_heading = "Output")]
    ascii: bool,
    #[command(flatten)]
    generation: Generation,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Text,
    Json,
    Jsonl,
    Csv,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Spaces {
    Keep,
    Join,
}

impl Spaces {
    fn apply(self, text: String) -> String {
        if self == Spaces::Join { results::join_japanese(&text) } else { text }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let found = args.inputs.find()?;
    let mut outputs = Outputs::open(args, &found.pictures, found.single)?;
    let all = found.pictures.len();
    let todo: Vec<Picture> = found.pictures.into_iter().filter(|p| outputs.lacks(p)).collect();
    let quiet = args.model.run.quiet;
    for error in &found.unusable {
        eprintln!("skipped {error}");
    }
    if todo.len() < all && !quiet {
        eprintln!("{} of {all} pictures have captions already", all - todo.len());
    }
    if todo.is_empty() {
        return match found.unusable.len() {
            0 => outputs.end(),
            n => Err(engine::left_out(OPERATION, n, all + n)),
        };
    }
    let model = Arc::new(engine::open(&args.model.model, &args.model.run)?);
    let config = &model.model.config;
    let options = args.generation.options(config.vocab, config.max_pos)?;
    let loading = model.clone();
    let load = move |p: &Picture| engine::see(&loading, &p.path);
    let mut stream = Stream::start((OPERATION, "captioning"), todo, &args.model.run, load)?;
    let done = caption_all(&model, &mut stream, &mut outputs, &options, args.spaces);
    // What is captioned is kept, whatever went wrong.
    outputs.end().and(done)?;
    let (rate, end) = stream.end(found.single, found.unusable.len(), "run the same command again to go on");
    if !quiet && !found.single {
        eprintln!("{} pictures captioned, {rate:.2} images/s", outputs.written);
    }
    end
}

fn caption_all(
    model: &Pretrained,
    stream: &mut Stream<Seen>,
    outputs: &mut Outputs,
    options: &GenerateOptions,
    spaces: Spaces,
) -> Result<()> {
    while let Some(batch) = stream.next()? {
        let (places, seen): (Vec<usize>, Vec<Seen>) = batch.into_iter().unzip();
        let captions = caption(model, &seen, options, outputs.rated(), spaces)?;
        for (place, captions) in places.into_iter().zip(captions) {
            outputs.put(stream.picture(place), captions)?;
            stream.done(1);
            if outputs.closed {
                return Ok(());
            }
        }
        outputs.save_if_due()?;
    }
    Ok(())
}

/// The captions of pictures; scored only if asked, as it takes two more passes.
pub fn caption(
    model: &Pretrained,
    seen: &[Seen],
    options: &GenerateOptions,
    rated: bool,
    spaces: Spaces,
) -> Result<Vec<Vec<Rated>>> {
    let images = engine::look(model, &seen.iter().collect::<Vec<_>>())?;
    let identities: Vec<u32> = seen.iter().map(|s| s.identity).collect();
    let captions = model.caption(&Images::stack(&images)?, options, &identities)?;
    let longest = model.model.config.max_txt_len;
    let mut all = Vec::with_capacity(seen.len());
    for (image, captions) in images.iter().zip(captions) {
        let scores = if rated {
            let texts: Vec<&str> = captions.iter().map(|c| c.text.as_str()).collect();
            engine::scores(model, image, &Texts::new(model, &texts, longest)?)?
        } else {
            Vec::new()
        };
        let mut scores = scores.into_iter();
        let rate = |c: crate::pretrained::Caption| {
            let (itc, itm) = scores.next().map_or((0.0, 0.0), |s| (s.itc, s.itm));
            Rated { caption: spaces.apply(c.text), log_prob: c.log_prob as f32, itc, itm }
        };
        all.push(captions.into_iter().map(rate).collect());
    }
    Ok(all)
}

/// Everywhere captions go.
struct Outputs {
    disk: RealDisk,
    file: Option<CaptionFile>,
    side: Option<SideCars>,
    /// The form on standard output; text of a single picture has no name.
    stdout: Option<Form>,
    single: bool,
    /// Nobody reads standard output any more.
    closed: bool,
    ascii: bool,
    written: usize,
    saved: Instant,
    cost: Duration,
}

/// A file of captions is saved this often, and rarer if saving takes long.
const SAVE_EVERY: Duration = Duration::from_secs(10);

impl Outputs {
    fn open(args: &Args, pictures: &[Picture], single: bool) -> Result<Outputs> {
        let disk = RealDisk;
        let side =
            (args.txt || args.txt_dir.is_some()).then(|| SideCars::new(args.txt_dir.clone(), args.overwrite));
        if let Some(side) = &side {
            side.check(pictures.iter().map(|p| (p.name.as_str(), p.path.as_path())))?;
        }
        let mut file = None;
        if let Some(out) = &args.out {
            files::make_folders(&disk, files::folder_of(out))?;
            file = Some(CaptionFile::open(out, file_format(out, args.format)?, args.ascii, args.overwrite)?);
        }
        let to_stdout = file.is_none() && side.is_none();
        if !to_stdout && file.is_none() && args.format.is_some() {
            return Err(Error::argument(OPERATION, "format", "an --out file to write in it", "none"));
        }
        Ok(Outputs {
            disk,
            file,
            side,
            stdout: to_stdout.then(|| args.format.unwrap_or(Form::Text)),
            single,
            closed: false,
            ascii: args.ascii,
            written: 0,
            saved: Instant::now(),
            cost: Duration::ZERO,
        })
    }

    /// Whether a picture's captions are missing anywhere.
    fn lacks(&self, picture: &Picture) -> bool {
        let file = self.file.as_ref().is_some_and(|f| !f.has(&picture.name));
        let side = self.side.as_ref().is_some_and(|s| !s.has(&picture.name, &picture.path));
        file || side || self.stdout.is_some()
    }

    /// Whether captions are to be scored.
    fn rated(&self) -> bool {
        let file = self.file.as_ref().is_some_and(|f| f.format() != Format::Json);
        file || matches!(self.stdout, Some(Form::Jsonl | Form::Csv))
    }

    fn put(&mut self, picture: &Picture, captions: Vec<Rated>) -> Result<()> {
        if let Some(side) = self.side.as_ref().filter(|s| !s.has(&picture.name, &picture.path)) {
            let texts = captions.iter().map(|c| c.caption.as_str());
            side.write(&self.disk, &picture.name, &picture.path, texts)?;
        }
        let captioned = Captioned { image: picture.name.clone(), captions };
        if let Some(form) = self.stdout {
            self.print(form, &captioned)?;
        }
        if let Some(file) = self.file.as_mut().filter(|f| !f.has(&picture.name)) {
            file.push(&captioned)?;
        }
        self.written += 1;
        Ok(())
    }

    fn print(&mut self, form: Form, c: &Captioned) -> Result<()> {
        let first = self.written == 0;
        let text = match form {
            Form::Text => {
                let name = if c.image.contains(char::is_control) {
                    format!("{:?}", c.image)
                } else {
                    c.image.clone()
                };
                let line = |r: &Rated| {
                    if self.single { format!("{}\n", r.caption) } else { format!("{name}\t{}\n", r.caption) }
                };
                c.captions.iter().map(line).collect()
            }
            Form::Json => {
                (if first { "[" } else { ", " }).to_owned() + &results::render(c, Format::Json, self.ascii)?
            }
            Form::Jsonl => results::render(c, Format::JsonLines, self.ascii)? + "\n",
            Form::Csv => {
                let header = if first { results::csv_header() + "\n" } else { String::new() };
                header + &results::render(c, Format::Csv, false)?
            }
        };
        self.closed |= !output::print(&text)?;
        Ok(())
    }

    fn save_if_due(&mut self) -> Result<()> {
        if self.saved.elapsed() >= SAVE_EVERY.max(20 * self.cost) { self.save() } else { Ok(()) }
    }

    fn save(&mut self) -> Result<()> {
        if let Some(file) = &mut self.file {
            let start = Instant::now();
            file.save(&self.disk)?;
            (self.saved, self.cost) = (Instant::now(), start.elapsed());
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.stdout == Some(Form::Json) {
            output::print(if self.written == 0 { "[]\n" } else { "]\n" })?;
        }
        self.save()
    }
}

fn file_format(out: &std::path::Path, form: Option<Form>) -> Result<Format> {
    match form {
        Some(Form::Json) => Ok(Format::Json),
        Some(Form::Jsonl) => Ok(Format::JsonLines),
        Some(Form::Csv) => Ok(Format::Csv),
        Some(Form::Text) => {
            Err(Error::argument(OPERATION, "format", "json, jsonl or csv for a file", "text")
                .fix("use --txt for a text file beside each picture"))
        }
        None => Format::of(out).ok_or_else(|| {
            Error::argument(OPERATION, "out", "a name ending in .json, .jsonl or .csv", out.display())
                .fix("rename it, or say which with --format")
        }),
    }
}
