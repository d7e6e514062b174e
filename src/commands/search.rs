//! `qformer search`: an index of pictures, and searches in it by a text or by a picture.

use super::engine::{self, ModelArgs, Stream};
use super::inputs::{Inputs, Picture};
use super::output;
use super::shard::{ShardArgs, Taken};
use crate::data::Image;
use crate::files::RealDisk;
use crate::pretrained::Pretrained;
use crate::results::shard::{Maker, Record};
use crate::results::{Hit, page};
use crate::search::add::{self, Added, Known, Read};
use crate::search::index::{Identity, Index};
use crate::search::query::{self, Query};
use crate::terminal::note;
use crate::vision::{self, Photo, Turn};
use crate::{Error, Kind, Result, files};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OPERATION: &str = "search index";
const AGAIN: &str = "qformer search index --rebuild";

/// Find pictures by a Japanese text or by another picture
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer search index --model runs/stair --out photos.index photos/
  qformer search query --index photos.index 二匹の犬
  qformer search query --index photos.index --image dog.jpg --html found.html")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Index(IndexArgs),
    Query(QueryArgs),
}

/// Compute the features of pictures once, and keep them
///
/// An index is a folder. Run again with the same --out it takes only new and changed pictures; those that were moved or copied
/// keep their features; what is done stays done when it is interrupted. It belongs to the model it was made with.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer search index --model runs/stair --out photos.index photos/
  qformer search index --model runs/stair --out photos.index photos/ --prune
  qformer search index --model runs/new --out photos.index photos/ --rebuild
  qformer search index --model runs/stair --out photos-3.index photos/ --shard 3/16    (qformer merge makes one of all)")]
struct IndexArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: Inputs,
    /// The index: a folder, made if it is not there
    #[arg(long, short, value_name = "INDEX")]
    out: PathBuf,
    /// Forget pictures of the index whose files are gone
    #[arg(long)]
    prune: bool,
    /// Begin anew, with this model; until it is complete, searches find the old index
    #[arg(long)]
    rebuild: bool,
    #[command(flatten)]
    shard: ShardArgs,
}

/// Search in an index
///
/// All pictures are ranked by itc; the best --rerank of them are looked at again together with the text and ranked by itm + itc,
/// as LAVIS's retrieval does. The scores: itc, the largest cosine between the text and a picture's queries; itm, the logit of
/// the matching head that they belong together; mean_cosine, the mean of (cos + 1) / 2 between a picture's queries with and
/// without the text (BLIP2-Japanese). With --image, itc is the mean over that picture's queries of their largest cosine,
/// mean_cosine that between the queries of both pictures; there is no itm.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer search query --index photos.index 二匹の犬
  qformer search query --index photos.index 赤い傘 --top-k 50 --html found.html
  qformer search query --index photos.index --image dog.jpg --json
  qformer search query --index photos.index 海 --rerank 0")]
struct QueryArgs {
    #[command(flatten)]
    query: QuerySource,
    /// The index, as `search index` made it
    #[arg(long, value_name = "INDEX")]
    index: PathBuf,
    /// Folder of the model [default: where it was when the index was made]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    place: engine::PlaceArgs,
    #[command(flatten)]
    orientation: engine::OrientationArgs,
    /// How many pictures to show
    #[arg(long, short = 'k', default_value_t = 10, value_name = "K")]
    top_k: usize,
    /// How many of the best by itc to look at again; 0 is fast [default: 32; with --image 0]
    #[arg(long, value_name = "N")]
    rerank: Option<usize>,
    /// What the pictures looked at again are ranked by
    #[arg(long, value_enum, default_value_t = query::Rank::ItmPlusItc)]
    rank_by: query::Rank,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// A page with the pictures, too: one file, works offline
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Do not tell of pictures that are gone or changed
    #[arg(long, short)]
    quiet: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct QuerySource {
    /// What to look for
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Look for pictures like this one
    #[arg(long, value_name = "PICTURE")]
    image: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Index(args) => make(args),
        What::Query(args) => find(args),
    }
}

fn make(args: &IndexArgs) -> Result<()> {
    let mut found = args.inputs.find()?;
    if let Some(p) = found.pictures.iter().find(|p| !matches!(p.image, Image::File(_))) {
        let got = format!("{}, which lies in another file", p.path.display());
        return Err(Error::argument("search", "PICTURES", "picture files: the index names them", got)
            .fix("unpack the shards first"));
    }
    let run = &args.model.run;
    let taken = args.shard.take(&mut found, run.quiet)?;
    if !args.rebuild {
        let filled = Index::written(&args.out).is_some();
        Record::check(&args.out, taken.as_ref().map(Taken::shard), filled, AGAIN)?;
    }
    let model = Arc::new(engine::open(&args.model.model, &args.model.run)?);
    let identity = Identity::of(&model, &args.model.model);
    let mut index = Index::own(&RealDisk, &args.out, &identity, args.rebuild)?;
    if let Some(taken) = taken {
        let maker = Maker { model: identity.model.clone(), options: String::new() };
        taken.note(&args.out, Some(maker), args.rebuild, AGAIN)?;
    } else if args.rebuild {
        Record::forget(&args.out)?;
    }
    let forgotten = if args.prune { index.retain(|p| Path::new(&p.path).is_file()) } else { 0 };
    let all = found.pictures.len();
    let (todo, known): (Vec<Picture>, Vec<Picture>) =
        found.pictures.into_iter().partition(|p| !add::unchanged(&index, &p.path));
    for error in &found.unusable {
        note!("skipped {error}");
    }
    if !run.quiet && !known.is_empty() {
        note!("{} of {all} pictures are in the index and unchanged", known.len());
    }
    let known = Known::of(&index);
    let loading = model.clone();
    let load = move |p: &Picture| add::read(&loading, (&p.name, &p.path), &known);
    let nothing = todo.is_empty() && forgotten == 0;
    let mut stream = Stream::start((OPERATION, "indexing"), (todo, model.params.device()), run, load)?;
    let added = add_all(&model, &mut stream, &mut index);
    if !nothing {
        index.save(&RealDisk)?;
    }
    let added = added?;
    if !stream.stopped() {
        index.publish(&RealDisk)?;
        index.tidy(&RealDisk)?;
    }
    let (rate, end) =
        stream.end(found.single, found.unusable.len(), "run the same command again to continue");
    if !run.quiet {
        let part = |n: usize, what: &str| if n > 0 { format!(", {n} {what}") } else { String::new() };
        let gone = if args.prune { format!(", {forgotten} forgotten") } else { String::new() };
        note!(
            "{}: {} pictures, {} added or renewed{}{}{gone}, {rate:.2} images/s",
            args.out.display(),
            index.len(),
            added.new,
            part(added.copied, "of them with the features of the same bytes"),
            part(added.moved, "moved"),
        );
    }
    end
}

fn add_all(model: &Pretrained, stream: &mut Stream<Read>, index: &mut Index) -> Result<Added> {
    let mut added = Added::default();
    while let Some(batch) = stream.next()? {
        let mut features = add::look_at_new(model, batch.iter().map(|(_, read)| read))?;
        for (_, read) in batch {
            added.take(model, index, read, &mut features)?;
            stream.done(1);
        }
        if index.full() {
            index.save(&RealDisk)?;
        }
    }
    Ok(added)
}

fn find(args: &QueryArgs) -> Result<()> {
    if args.top_k == 0 {
        return Err(Error::argument("search", "top-k", "at least 1", 0));
    }
    let index = Index::read(&args.index)?;
    let folder = args.model.clone().unwrap_or_else(|| PathBuf::from(&index.identity().folder));
    let (device, precision) = args.place.open(|line| note!("{line}"))?;
    device.check_computes("search")?;
    let mut model = Pretrained::open(&folder).map_err(|e| match args.model {
        Some(_) => e,
        None => e.fix("say with --model where the index's model is now"),
    })?;
    args.orientation.apply(&mut model);
    let model = model.to(&device, precision)?;
    index.check(&Identity::of(&model, &folder))?;
    if index.is_empty() {
        return Err(Error::new(Kind::File, "search")
            .about(args.index.display().to_string())
            .expected("pictures in the index")
            .got("none")
            .fix("add some with `search index`"));
    }
    let query = match (&args.query.text, &args.query.image) {
        (_, Some(path)) => Query::of_picture(&model, path)?,
        (Some(text), None) => {
            engine::note_texts(&model, &[text], args.quiet);
            Query::of_text(&model, text)?
        }
        (None, None) => return Err(Error::argument("search", "TEXT", "a text or --image", "neither")),
    };
    let rerank = args.rerank.unwrap_or(if args.query.image.is_some() { 0 } else { 32 });
    let ranked = query::search(&model, &index, &query, (rerank, args.rank_by), args.top_k)?;
    for gone in ranked.unread.iter().filter(|_| !args.quiet) {
        note!("not looked at again: {gone}");
    }
    let hits = ranked.found;
    // A page that cannot be written does not keep the result from being shown.
    let shown = show(args, &query, &index, &hits);
    if let Some(path) = &args.html {
        write_page(path, &query, &index, &hits)?;
    }
    shown
}

fn show(args: &QueryArgs, query: &Query, index: &Index, hits: &[query::Found]) -> Result<()> {
    if args.json {
        output::print(&format!("{}\n", in_json(query, index, hits)))?;
        return Ok(());
    }
    let number = |x: Option<f32>| x.map_or("-".into(), |v| format!("{v:.4}"));
    let mut table = format!("{:>4} {:>8} {:>9} {:>12}  image\n", "rank", "itc", "itm", "mean_cosine");
    for (i, h) in hits.iter().enumerate() {
        let name = &index.picture(h.picture).name;
        let name = if name.contains(char::is_control) { format!("{name:?}") } else { name.clone() };
        let (itc, itm, cosine) = (number(Some(h.itc)), number(h.itm), number(h.mean_cosine));
        table += &format!("{:>4} {itc:>8} {itm:>9} {cosine:>12}  {name}\n", i + 1);
    }
    output::print(&table)?;
    Ok(())
}

/// What was found as one JSON object; `place` is where a picture stands in the index.
pub fn in_json(query: &Query, index: &Index, hits: &[query::Found]) -> serde_json::Value {
    let hit = |(i, h): (usize, &query::Found)| {
        let p = index.picture(h.picture);
        serde_json::json!({"rank": i + 1, "image": p.name, "path": p.path, "place": h.picture,
            "itc": h.itc, "itm": h.itm, "mean_cosine": h.mean_cosine})
    };
    let hits: Vec<_> = hits.iter().enumerate().map(hit).collect();
    let key = if query.path().is_some() { "image" } else { "text" };
    serde_json::json!({"query": {key: query.shown()}, "pictures": index.len(), "results": hits})
}

fn write_page(path: &Path, query: &Query, index: &Index, hits: &[query::Found]) -> Result<()> {
    const SIDE: usize = 360;
    let small = |path: &Path| Photo::open(path, Turn::Upright).and_then(|p| vision::thumbnail(&p, SIDE)).ok();
    let hit = |h: &query::Found| {
        let p = index.picture(h.picture);
        Hit {
            name: p.name.clone(),
            path: p.path.clone(),
            thumbnail: small(Path::new(&p.path)),
            scores: vec![("itc", Some(h.itc)), ("itm", h.itm), ("mean_cosine", h.mean_cosine)],
        }
    };
    let hits: Vec<Hit> = hits.iter().map(hit).collect();
    let shown = query.path().and_then(small);
    let about = format!("the best {} of {} pictures", hits.len(), index.len());
    let html = page(query.shown(), shown.as_deref(), &about, &hits);
    files::write_atomic(&RealDisk, path, html.len() as u64, |to| to.write_all(html.as_bytes()))
}
