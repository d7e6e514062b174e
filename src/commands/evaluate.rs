//! `qformer evaluate`: how well a model captions and searches, or how good given captions are.

use super::answer::{self, Asked, How};
use super::caption::{Spaces, Wanted, caption};
use super::engine::{self, RunArgs, Stream};
use super::evaluation;
use super::generation::Generation;
use super::inputs::Picture;
use super::output;
use crate::console::progress::Progress;
use crate::data::{Dataset, Sample};
use crate::metrics::{self, Case, Recall};
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{self, Seen};
use crate::pretrained::scores::Texts;
use crate::results;
use crate::search::gallery::Gallery;
use crate::terminal::note;
use crate::text::{self, Tokenizer};
use crate::{Error, Kind, Result};
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OPERATION: &str = "evaluate";

/// Measure captions and retrieval on pictures that people have described
///
/// Retrieval as in LAVIS: of each picture the --k-test texts with the highest itc (and of each text the pictures) are ranked by
/// itm + itc, the rest come last; recall@1, 5 and 10 in percent. Captions: BLEU-1 to 4, ROUGE-L and CIDEr-D of the best caption
/// against all of a picture's, over the words MeCab finds. Broken pictures are reported and left out; the exit code is then 3.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer evaluate --model runs/stair --captions val.json --images images/
  qformer evaluate --model runs/stair --captions val.json --images images/ --k-test 256 --json
  qformer evaluate --results captions.json --captions val.json
  qformer evaluate ret_coco_eval.yaml --model runs/stair --captions val.json --images images/")]
pub struct Args {
    /// LAVIS's configuration of an evaluation: its settings hold where no flag says otherwise
    config: Option<PathBuf>,
    /// Folder of a trained model, as `train` writes it
    #[arg(long, value_name = "DIR", conflicts_with = "results")]
    model: Option<PathBuf>,
    /// Captions to judge instead of a model's: as `caption` writes them, or COCO results. Two of one picture are an error
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// What people wrote: LAVIS, COCO/STAIR or Karpathy .json (FILE#test), JSON lines, a table, tar shards, or a folder of
    /// pictures with .txt files
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// Folder (or tar shards) that the pictures' names are relative to
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// Only one of the two
    #[arg(long, value_enum)]
    only: Option<Task>,
    /// Candidates of each search that are ranked by itm, too
    #[arg(long, default_value_t = 128, value_name = "K")]
    k_test: usize,
    /// A caption that several pictures have is right for each of them; without it, only for the one it was written for
    #[arg(long)]
    shared: bool,
    /// Share of the pictures that may be missing
    #[arg(long, default_value_t = 0.01, value_name = "X")]
    missing: f64,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    generation: Generation,
    /// What a configuration's picture processor was told.
    #[arg(skip)]
    image_size: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    Retrieval,
    Captions,
}

/// All that was measured; keys as LAVIS and pycocoevalcap name them.
#[derive(Serialize)]
struct Report {
    pictures: usize,
    captions: usize,
    /// Pictures left out: broken, or without a caption to judge.
    skipped: usize,
    #[serde(flatten)]
    retrieval: Option<Retrieval>,
    #[serde(flatten)]
    captioning: Option<Captioning>,
}

#[derive(Serialize)]
struct Retrieval {
    k_test: usize,
    txt_r1: f64,
    txt_r5: f64,
    txt_r10: f64,
    img_r1: f64,
    img_r5: f64,
    img_r10: f64,
    r_mean: f64,
}

#[derive(Serialize)]
struct Captioning {
    bleu_1: f64,
    bleu_2: f64,
    bleu_3: f64,
    bleu_4: f64,
    rouge_l: f64,
    cider_d: f64,
}

pub fn run(args: &Args) -> Result<()> {
    if args.asked.questions() {
        let results = args.results.as_deref().ok_or_else(|| {
            Error::argument(OPERATION, "--results", "a file of answers", "none")
                .fix("answer with qformer caption --ask, and give --results FILE --questions FILE")
        })?;
        return answer::evaluate(&args.asked, results, args.json);
    }
    let with_config = args.config.as_deref().map(|file| configured(file, args.run.quiet)).transpose()?;
    let args = with_config.as_ref().unwrap_or(args);
    let missing = |what: &str, fix: &str| Error::argument(OPERATION, what, "a path", "none").fix(fix);
    let captions = args.captions.as_deref().ok_or_else(|| missing("--captions", "give --captions FILE"))?;
    match (&args.results, &args.model, &args.images) {
        (Some(results), _, _) => of_results(args, results, captions),
        (None, Some(model), Some(images)) => of_model(args, model, captions, images),
        (None, None, _) => Err(missing("--model", "give --model DIR, or --results FILE")),
        (None, Some(_), None) => Err(missing("--images", "give --images DIR")),
    }
}

/// The arguments with a configuration's in front of them.
fn configured(file: &Path, quiet: bool) -> Result<Args> {
    #[derive(clap::Parser)]
    #[command(args_override_self = true)]
    struct Evaluate {
        #[command(flatten)]
        args: Args,
    }
    let asked = evaluation::read(file)?;
    if !quiet {
        asked.notes.iter().for_each(|note| note!("note: {note}"));
    }
    let own = std::env::args_os().skip_while(|arg| arg != OPERATION).skip(1);
    let all = [OPERATION.into()].into_iter().chain(asked.flags.into_iter().map(OsString::from)).chain(own);
    let parsed = <Evaluate as clap::Parser>::try_parse_from(all);
    parsed.map(|e| Args { image_size: asked.image_size, ..e.args }).map_err(|e| {
        let first = e.to_string().lines().next().unwrap_or_default().to_owned();
        Error::file(OPERATION, file, "settings that go with the flags given", first)
    })
}

fn of_results(args: &Args, path: &Path, captions: &Path) -> Result<()> {
    if args.only == Some(Task::Retrieval) {
        return Err(
            Error::argument(OPERATION, "only", "captions with --results", "retrieval").fix("give --model")
        );
    }
    let data = match &args.images {
        Some(images) => Dataset::read(captions, images, args.missing)?,
        None => Dataset::read_captions(captions)?,
    };
    let given = Dataset::read_results(path)?;
    // Results name a picture, or give its id alone: then both are the id.
    let mut by_name: HashMap<&str, &str> = HashMap::new();
    let mut by_id: HashMap<&str, &str> = HashMap::new();
    for sample in &given.samples {
        let caption = sample.captions.first().map_or("", String::as_str);
        by_name.insert(&sample.name, caption);
        if sample.name == sample.image_id {
            by_id.insert(&sample.image_id, caption);
        }
    }
    let words = words_without_model()?;
    let mut cases = Vec::new();
    for sample in &data.samples {
        let found = by_name.get(sample.name.as_str()).or_else(|| by_id.get(sample.image_id.as_str()));
        cases.extend(found.map(|c| case(&words, c, sample)));
    }
    let skipped = data.samples.len() - cases.len();
    if cases.is_empty() {
        let example = data.samples.first().map(|s| s.name.as_str()).unwrap_or_default();
        return Err(Error::file(
            OPERATION,
            path,
            format!("captions of pictures such as {example:?}"),
            "none",
        )
        .fix("name pictures as the file of captions does (qformer caption --relative-to FOLDER)"));
    }
    let captions = cases.iter().map(|c| c.references.len()).sum();
    let captioning = Some(captioning(&cases)?);
    show(args, &Report { pictures: cases.len(), captions, skipped, retrieval: None, captioning })?;
    if skipped == 0 {
        return Ok(());
    }
    Err(Error::new(Kind::Data, OPERATION)
        .expected("a caption to judge of every picture")
        .got(format!("none of {skipped} of {}; they are left out", data.samples.len()))
        .fix("caption the others, too"))
}

fn of_model(args: &Args, folder: &Path, captions: &Path, images: &Path) -> Result<()> {
    if args.k_test == 0 {
        return Err(Error::argument(OPERATION, "k-test", "at least 1", 0));
    }
    let data = Dataset::read(captions, images, args.missing)?;
    if data.report.has_warnings() && !args.run.quiet {
        note!("{}", data.report);
    }
    let model = Arc::new(engine::open_stage(folder, &args.run, args.asked.llm())?);
    if model.second.is_some() && args.only == Some(Task::Retrieval) {
        return Err(Error::argument(OPERATION, "only", "captions with a model of stage 2", "retrieval")
            .fix("give the stage-1 model that it began from"));
    }
    let config = &model.model.config;
    if let Some(size) = args.image_size.filter(|size| *size != config.image_size) {
        return Err(Error::argument(
            OPERATION,
            "image_size",
            format!("{}, as the model has it", config.image_size),
            size,
        )
        .fix("convert the model to that size (qformer convert --image-size), or change the configuration"));
    }
    let how = args.asked.how(&model, &args.generation, false)?;
    let picture = |s: &Sample| {
        let image = s.image();
        Picture { name: s.name.clone(), path: image.path(), image }
    };
    let pictures = data.samples.iter().map(picture).collect();
    let loading = model.clone();
    let load = move |p: &Picture| pictures::see(&loading, &p.image);
    let mut stream =
        Stream::start((OPERATION, "evaluating"), (pictures, model.params.device()), &args.run, load)?;
    let mut seen = look_at_all(args, &model, &mut stream, &how)?;
    let stopped = stream.stopped();
    let (_, end) = stream.end(false, 0, "nothing was measured");
    if stopped || seen.samples.is_empty() {
        return end;
    }
    let samples: Vec<&Sample> = seen.samples.iter().map(|i| &data.samples[*i]).collect();
    let captioning = if seen.captions.is_empty() {
        None
    } else {
        let words = |t: &str| words(&model.tokenizer, t);
        let cases: Vec<Case> = seen.captions.iter().zip(&samples).map(|(c, s)| case(&words, c, s)).collect();
        Some(captioning(&cases)?)
    };
    let retrieval = match &mut seen.gallery {
        Some(gallery) => Some(retrieval(args, &model, gallery, &data, &seen.samples)?),
        None => None,
    };
    let captions = samples.iter().map(|s| s.captions.len()).sum();
    let skipped = data.samples.len() - samples.len();
    show(args, &Report { pictures: samples.len(), captions, skipped, retrieval, captioning })?;
    end
}

/// What one walk over the pictures gives.
struct Walked {
    /// The places of the samples whose pictures are good.
    samples: Vec<usize>,
    captions: Vec<String>,
    gallery: Option<Gallery>,
}

fn look_at_all(args: &Args, model: &Pretrained, stream: &mut Stream<Seen>, how: &How) -> Result<Walked> {
    let gallery =
        if args.only == Some(Task::Captions) || how.second { None } else { Some(Gallery::new(model)?) };
    let mut walked = Walked { samples: Vec::new(), captions: Vec::new(), gallery };
    while let Some(batch) = stream.next()? {
        let (places, seen): (Vec<usize>, Vec<Seen>) = batch.into_iter().unzip();
        if let Some(gallery) = &mut walked.gallery {
            let images = gallery.add(model, &seen.iter().collect::<Vec<_>>())?;
            if args.only.is_none() {
                let identities: Vec<u32> = seen.iter().map(|s| s.identity).collect();
                let best = model.caption(&images, &how.options, &identities)?;
                walked
                    .captions
                    .extend(best.into_iter().map(|c| c.into_iter().next().map_or(String::new(), |c| c.text)));
            }
        } else {
            let wanted = Wanted { how, rated: false, spaces: Spaces::Keep, alone: false };
            let best = caption(model, &seen, &wanted)?;
            walked
                .captions
                .extend(best.into_iter().map(|c| c.into_iter().next().map_or(String::new(), |c| c.caption)));
        }
        stream.done(places.len());
        walked.samples.extend(places);
    }
    Ok(walked)
}

fn retrieval(
    args: &Args,
    model: &Pretrained,
    gallery: &mut Gallery,
    data: &Dataset,
    samples: &[usize],
) -> Result<Retrieval> {
    let numbers = data.image_numbers();
    let images: Vec<u32> = samples.iter().map(|i| numbers[*i]).collect();
    let of = |i: usize| data.samples[i].captions.iter().map(move |c| (i, c.as_str()));
    let (texts, captions): (Vec<usize>, Vec<&str>) = samples.iter().copied().flat_map(of).unzip();
    let texts: Vec<u32> = texts.into_iter().map(|i| numbers[i]).collect();
    let mut images: Vec<Owner> = images.into_iter().map(|n| Owner::picture(n, args.shared)).collect();
    for (place, sample) in samples.iter().enumerate() {
        images[place].captions.extend(data.samples[*sample].captions.iter().map(String::as_str));
    }
    let owners = texts
        .iter()
        .zip(&captions)
        .map(|(n, c)| Owner { captions: vec![c], ..Owner::picture(*n, args.shared) });
    let texts: Vec<Owner> = owners.collect();
    // LAVIS cuts texts to 35 tokens here.
    let longest = model.model.config.max_pos.min(35);
    let ready = Texts::new(model, &captions, longest)?;
    let mut progress = Progress::of_pictures("re-ranking", gallery.len(), args.run.quiet);
    let scores = gallery.scores(model, &ready, args.k_test, || progress.add(1, || 0.0))?;
    progress.finish();
    let flat = |rows: Vec<Vec<f64>>| rows.into_iter().flatten().map(|x| x as f32).collect::<Vec<f32>>();
    let Recall { image_to_text: [txt_r1, txt_r5, txt_r10], text_to_image: [img_r1, img_r5, img_r10], mean } =
        metrics::recall(&flat(scores.i2t), &flat(scores.t2i), &images, &texts)?;
    Ok(Retrieval { k_test: args.k_test, txt_r1, txt_r5, txt_r10, img_r1, img_r5, img_r10, r_mean: mean })
}

/// What a picture or a caption belongs to: the picture's number, or with `shared` any picture that has the caption.
struct Owner<'a> {
    number: u32,
    shared: bool,
    captions: Vec<&'a str>,
}

impl Owner<'_> {
    fn picture(number: u32, shared: bool) -> Self {
        Owner { number, shared, captions: Vec::new() }
    }
}

impl PartialEq for Owner<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number || self.shared && self.captions.iter().any(|c| other.captions.contains(c))
    }
}

/// Words as MeCab cuts them, of a whole caption cleaned as for training and written without spaces: the same on both
/// sides, whether a model or a person wrote it.
fn words(tokenizer: &Tokenizer, caption: &str) -> Vec<String> {
    tokenizer.words(&results::join_japanese(&text::clean_text(caption)))
}

fn words_without_model() -> Result<impl Fn(&str) -> Vec<String>> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let tokenizer = Tokenizer::new(special.map(str::to_owned).to_vec(), text::Settings::default())?;
    Ok(move |caption: &str| words(&tokenizer, caption))
}

fn case(words: &impl Fn(&str) -> Vec<String>, caption: &str, sample: &Sample) -> Case {
    Case { hypothesis: words(caption), references: sample.captions.iter().map(|c| words(c)).collect() }
}

fn captioning(cases: &[Case]) -> Result<Captioning> {
    let [bleu_1, bleu_2, bleu_3, bleu_4] = metrics::bleu(cases)?.corpus;
    let (rouge_l, cider_d) = (metrics::rouge_l(cases)?.mean, metrics::cider_d(cases)?.mean);
    Ok(Captioning { bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider_d })
}

fn show(args: &Args, report: &Report) -> Result<()> {
    if args.json {
        let text = serde_json::to_string(report).map_err(|e| Error::new(Kind::Write, OPERATION).got(e))?;
        output::print(&(text + "\n"))?;
    } else {
        output::print(&report.to_string())?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} pictures, {} captions, {} pictures left out",
            self.pictures, self.captions, self.skipped
        )?;
        if let Some(r) = &self.retrieval {
            writeln!(
                f,
                "\n{:<18}{:>8} {:>8} {:>8}    (%, {} re-ranked)",
                "retrieval", "R@1", "R@5", "R@10", r.k_test
            )?;
            writeln!(f, "{:<18}{:>8.2} {:>8.2} {:>8.2}", "image to text", r.txt_r1, r.txt_r5, r.txt_r10)?;
            writeln!(f, "{:<18}{:>8.2} {:>8.2} {:>8.2}", "text to image", r.img_r1, r.img_r5, r.img_r10)?;
            writeln!(f, "{:<18}{:>8.2}", "mean", r.r_mean)?;
        }
        if let Some(c) = &self.captioning {
            let columns = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"];
            let [b1, b2, b3, b4, rouge, cider] = columns;
            writeln!(f, "\n{:<18}{b1:>8} {b2:>8} {b3:>8} {b4:>8} {rouge:>8} {cider:>8}", "captions")?;
            write!(f, "{:<18}", "")?;
            for x in [c.bleu_1, c.bleu_2, c.bleu_3, c.bleu_4, c.rouge_l] {
                write!(f, "{x:>8.4} ")?;
            }
            writeln!(f, "{:>8.4}", c.cider_d)?;
        }
        Ok(())
    }
}
