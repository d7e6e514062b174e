//! `qformer caption`: captions of pictures, in a form that can be interrupted and continued.

use super::answer::{self, Asked, How};
use super::engine::{self, ModelArgs, Stream};
use super::generation::Generation;
use super::inputs::{Inputs, Picture};
use super::outputs::{Form, Outputs, Where};
use super::shard::{ShardArgs, Taken};
use crate::model::Images;
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{self, Seen};
use crate::pretrained::scores::{self, Texts};
use crate::results::shard::{Maker, Record};
use crate::results::{self, Rated};
use crate::search::index::Identity;
use crate::terminal::note;
use crate::{Error, Kind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OPERATION: &str = "caption";
const AGAIN: &str = "--overwrite";

/// Describe pictures in Japanese
///
/// Without --out or --txt, captions go to standard output: of one picture the captions alone, of several the name, a tab and
/// the caption. A file of captions is always whole and can be added to, by several commands at once, too: pictures that are
/// in it are skipped, new ones added; Ctrl-C saves first. A broken picture is reported, skipped and tried again the next time;
/// the exit code is then 3. So is a text that cannot be written; the exit code is then 4.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer caption --model runs/stair photo.jpg
  qformer caption --model runs/stair photos/ --out captions.json
  qformer caption --model runs/stair photos/ --out captions.jsonl --num-captions 3
  qformer caption --model runs/stair 'photos/**/*.png' --txt --spaces join
  qformer caption --model runs/stair photos/ --sample --top-p 0.9 --seed 7 --num-captions 5
  qformer caption --model runs/llm photos/ --out captions.json --prompt '画像の説明:'
  qformer caption --model runs/llm --ask '質問: {} 答え:' --questions questions.json --out answers.json
  qformer caption --model runs/stair photos/ --shard 3/16 --out captions-3.json    (qformer merge makes one of all)
  find /data -name '*.jpg' -print0 | qformer caption --model runs/stair - --out captions.csv")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: Inputs,
    /// File to write, added to if it is there: .json (as BLIP2-Japanese writes it), .jsonl or .csv (both with the
    /// log-probability, ITC and ITM score of each caption). A link is followed; a pipe gets each picture at once
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Form of the output [default: by the ending of --out; on standard output, text]
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<Form>,
    /// A .txt beside each picture, each line a caption; pictures that have one are skipped. Never written through a link
    #[arg(long, help_heading = "Output")]
    txt: bool,
    /// A .txt for each picture, in another folder, under the pictures' names
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
    asked: Asked,
    #[command(flatten)]
    shard: ShardArgs,
    #[command(flatten)]
    generation: Generation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
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
    if args.asked.questions() {
        return answer::run(&args.asked, &args.model, &args.inputs, &args.generation, args.out.as_deref());
    }
    let quiet = args.model.run.quiet;
    let mut found = args.inputs.find()?;
    let taken = args.shard.take(&mut found, quiet)?;
    let kept = kept(args, taken.as_ref())?;
    let to = Where {
        out: args.out.as_deref(),
        form: args.format,
        txt: args.txt || args.txt_dir.is_some(),
        txt_dir: args.txt_dir.as_deref(),
        overwrite: args.overwrite,
        ascii: args.ascii,
    };
    let mut outputs = Outputs::open(&to, &found.pictures, found.single)?;
    if taken.is_some() {
        outputs.begin();
    }
    let all = found.pictures.len();
    let todo: Vec<Picture> = found.pictures.into_iter().filter(|p| outputs.lacks(p)).collect();
    outputs.notes().for_each(|note| note!("{note}"));
    for error in &found.unusable {
        note!("skipped {error}");
    }
    if todo.len() < all && !quiet {
        note!("{} of {all} pictures have captions already", all - todo.len());
    }
    if todo.is_empty() {
        outputs.end()?;
        note_share(args, taken, kept, None)?;
        outputs.all_written()?;
        return match found.unusable.len() {
            0 => Ok(()),
            n => Err(engine::left_out(OPERATION, n, all + n)),
        };
    }
    let model = Arc::new(engine::open_stage(&args.model.model, &args.model.run, args.asked.llm())?);
    let how = args.asked.how(&model, &args.generation, false)?;
    if how.second && outputs.rated() {
        let fix = "write .json or text: a model of stage 2 has no ITC and ITM scores";
        return Err(Error::argument(OPERATION, "--out", "captions alone", "a form with scores").fix(fix));
    }
    let maker = taken.as_ref().map(|_| Maker {
        model: Identity::of(&model, &args.model.model).model,
        options: format!(
            "{:?}, {:?}, prompt {:?}, spaces {:?}",
            how.options, how.profile, how.prompt, args.spaces
        ),
    });
    note_share(args, taken, kept, maker)?;
    let loading = model.clone();
    let load = move |p: &Picture| pictures::see(&loading, &p.image);
    let mut stream =
        Stream::start((OPERATION, "captioning"), (todo, model.params.device()), &args.model.run, load)?;
    let wanted = Wanted { how: &how, rated: outputs.rated(), spaces: args.spaces, alone: found.single };
    let done = caption_all(&model, &mut stream, &mut outputs, &wanted);
    // Nothing is begun by a model that computes nothing.
    if outputs.written() == 0 && matches!(&done, Err(e) if e.kind() == Kind::NonFinite) {
        return done;
    }
    // What is captioned is kept, whatever went wrong.
    outputs.end().and(done)?;
    let (rate, end) =
        stream.end(found.single, found.unusable.len(), "run the same command again to continue");
    if !quiet && !found.single {
        note!("{} pictures captioned, {rate:.2} images/s", outputs.written());
    }
    match end {
        Err(e) if matches!(e.kind(), Kind::Signal(_)) => Err(e),
        end => outputs.all_written().and(end),
    }
}

/// The file of captions, if it is one that stays and that a share belongs to. An error if it is another's.
fn kept<'a>(args: &'a Args, taken: Option<&Taken>) -> Result<Option<&'a Path>> {
    let Some(out) = args.out.as_deref().filter(|out| out.is_file() || !out.exists()) else { return Ok(None) };
    if !args.overwrite {
        let filled = out.metadata().is_ok_and(|about| about.len() > 0);
        Record::check(out, taken.map(Taken::shard), filled, AGAIN)?;
    }
    Ok(Some(out))
}

/// Notes beside a file of captions what share of the pictures it holds.
fn note_share(args: &Args, taken: Option<Taken>, out: Option<&Path>, maker: Option<Maker>) -> Result<()> {
    match (taken, out) {
        (Some(taken), Some(out)) => taken.note(out, maker, args.overwrite, AGAIN),
        (None, Some(out)) if args.overwrite => Record::forget(out),
        _ => Ok(()),
    }
}

fn caption_all(
    model: &Pretrained,
    stream: &mut Stream<Seen>,
    outputs: &mut Outputs,
    wanted: &Wanted,
) -> Result<()> {
    while let Some(batch) = stream.next()? {
        let (places, seen): (Vec<usize>, Vec<Seen>) = batch.into_iter().unzip();
        let captions = caption(model, &seen, wanted)?;
        for (place, captions) in places.into_iter().zip(captions) {
            let put = outputs.put(stream.picture(place), captions);
            outputs.notes().for_each(|note| stream.warn(note));
            put?;
            stream.done(1);
            if outputs.closed() {
                return Ok(());
            }
        }
        outputs.save_if_due()?;
    }
    Ok(())
}

/// Which captions are wanted.
pub struct Wanted<'a> {
    pub how: &'a How,
    /// Scored, which takes two more passes.
    pub rated: bool,
    pub spaces: Spaces,
    /// The picture is all there is.
    pub alone: bool,
}

/// The captions of pictures.
pub fn caption(model: &Pretrained, seen: &[Seen], wanted: &Wanted) -> Result<Vec<Vec<Rated>>> {
    let Wanted { how, rated, spaces, alone } = *wanted;
    if how.second {
        let prompts = vec![how.prompt.clone(); seen.len()];
        let plain = |c: crate::pretrained::Caption| Rated {
            caption: spaces.apply(c.text),
            log_prob: c.log_prob as f32,
            itc: 0.0,
            itm: 0.0,
        };
        let all = answer::answers(model, seen, &prompts, how)?;
        return Ok(all.into_iter().map(|captions| captions.into_iter().map(plain).collect()).collect());
    }
    let images = match seen {
        [one] if alone => vec![pictures::look_alone(model, one)?],
        _ => pictures::look(model, &seen.iter().collect::<Vec<_>>())?,
    };
    let identities: Vec<u32> = seen.iter().map(|s| s.identity).collect();
    let captions = model.caption(&Images::stack(&images)?, &how.options, &identities)?;
    let longest = model.model.config.max_txt_len;
    let mut all = Vec::with_capacity(seen.len());
    for (image, captions) in images.iter().zip(captions) {
        let scores = if rated {
            let texts: Vec<&str> = captions.iter().map(|c| c.text.as_str()).collect();
            scores::scores(model, image, &Texts::new(model, &texts, longest)?)?
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
