//! `qformer convert`: checkpoints of others to a model's folder, and back.

mod hf;
mod hf_second;
mod lavis;
mod random;
mod second;
mod write;

use crate::files::{read_most, read_regular};
use crate::model::{Config, Model};
use crate::nn::Spec;
use crate::pretrained::load::wants;
use crate::terminal::note;
use crate::weights::names::{Meaning, Naming, meaning};
use crate::weights::start::Plan;
use crate::weights::{Set, sizes};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

const OP: &str = "convert";
/// The most bytes of a configuration or a vocabulary.
const MOST_TEXT: u64 = 64 << 20;
/// Random numbers are for trying things; the full model has a quarter of it.
const MOST_RANDOM: usize = 1 << 32;

/// Convert checkpoints: LAVIS, EVA + BERT or Hugging Face BLIP-2 to a model's folder, and back
///
/// A model's folder holds model.safetensors (trained tensors under their LAVIS names), vit.safetensors (the frozen image
/// encoder), config.json and the tokenizer's files. PyTorch files are read without running any code in them.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    qformer convert --vit eva_vit_g.pth --bert bert-base-japanese-whole-word-masking --out start   # ready for training\n  \
    qformer convert checkpoint_9.pth --vit eva_vit_g.pth --bert bert-base-japanese-whole-word-masking --out model\n  \
    qformer convert model --to lavis --out model.pth                 # prints how LAVIS loads it\n  \
    qformer convert blip2-itm-vit-g --partial --out model            # Hugging Face names\n  \
    qformer convert model --to hf --out hf                           # a folder for transformers\n  \
    qformer convert blip2-opt-2.7b --llm opt-2.7b --out model        # a second stage of transformers\n  \
    qformer convert --random full --out random                       # full size, random numbers")]
pub struct Args {
    /// A checkpoint: LAVIS .pth or safetensors, a Hugging Face BLIP-2 folder, or a model's folder
    input: Option<PathBuf>,
    /// The image encoder: eva_vit_g.pth, or a vit.safetensors
    #[arg(long, value_name = "FILE")]
    vit: Option<PathBuf>,
    /// A Japanese BERT's folder: where the text side starts, and the vocabulary. One with a vocabulary only gives that
    #[arg(long, value_name = "DIR")]
    bert: Option<PathBuf>,
    /// What to write: a model's folder, a checkpoint of LAVIS, or a folder for Hugging Face's transformers
    #[arg(long, default_value = "qformer", value_parser = ["qformer", "lavis", "hf"])]
    to: String,
    /// The folder to write; with --to lavis a file, .pth or .safetensors; --to hf takes .safetensors for the weights alone
    #[arg(long, short, value_name = "PATH")]
    out: PathBuf,
    /// The model's sizes: tiny, heads, base, full or a config.json. Without it: the folder's own, or full with what the
    /// shapes show
    #[arg(long, value_name = "SIZES")]
    config: Option<String>,
    /// Pixels on a side, if not those of the image encoder: its position embedding is interpolated
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Start what no file has, or has in another shape, from random numbers
    #[arg(long)]
    partial: bool,
    /// Random numbers for everything, of these sizes: tiny, heads, base, full or a config.json
    #[arg(long, value_name = "SIZES", conflicts_with_all = ["input", "vit", "bert", "config", "to"])]
    random: Option<String>,
    /// Seed of what starts random
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Of a checkpoint of stage 2: the language model's folder, which the model's folder will name
    #[arg(long, value_name = "DIR")]
    llm: Option<PathBuf>,
    /// Of a checkpoint of stage 2: the text that stood before every caption
    #[arg(long, value_name = "TEXT", requires = "llm")]
    prompt: Option<String>,
    /// Replace the model or the file that is there
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> Result<()> {
    write::check_out(args)?;
    if let Some(sizes) = &args.random {
        let config = sized(named(sizes)?, args.image_size)?;
        let (_, specs) = Model::new(config.clone(), false)?;
        let numbers: usize = specs.iter().map(|s| s.shape.iter().product::<usize>()).sum();
        if numbers > MOST_RANDOM {
            let most = format!("sizes of at most {MOST_RANDOM} parameters");
            return Err(Error::argument(OP, "--random", most, format!("{numbers}")).fix("give smaller sizes"));
        }
        let plan = Plan::new(Vec::new(), wants(&specs), true)?;
        let job = write::Job { plan, specs, config, seed: args.seed, random: true, llm: None };
        return job.folder(&args.out, |staged| random::tokenizer(staged, job.config.vocab));
    }
    if args.to == "lavis" {
        lavis::form(&args.out)?; // before anything is read
    }
    let bert = args.bert.as_ref().filter(|bert| !is_vocabulary(bert));
    let paths = [args.input.as_ref(), bert, args.vit.as_ref()].into_iter().flatten();
    let sets = paths.map(|p| Set::open(p)).collect::<Result<Vec<Set>>>()?;
    if sets.is_empty() {
        return Err(Error::argument(OP, "INPUT", "a checkpoint, or --bert and --vit", "no weights"));
    }
    let config = sized(config(args, &sets)?, args.image_size)?;
    if let Some(projection) = second::projection(&sets, args.llm.is_some()) {
        return second::run(args, sets, config, projection);
    }
    if args.llm.is_some() {
        let got = "a checkpoint without opt_proj, llm_proj or language_projection";
        return Err(Error::argument(OP, "--llm", "a checkpoint of stage 2", got)
            .fix("train a second stage: qformer train --start MODEL --llm DIR"));
    }
    let (_, mut specs) = Model::new(config.clone(), false)?;
    if !has_vit(&sets)? {
        specs.retain(|s| s.trained);
    }
    let plan = Plan::new(sets, wants(&specs), args.partial)?;
    note!("{}", plan.report.to_string().trim_end());
    let job = write::Job { plan, specs, config, seed: args.seed, random: false, llm: None };
    match args.to.as_str() {
        "lavis" => job.lavis(&args.out),
        "hf" => job.hugging_face(&args.out, tokenizer(args)),
        _ => job.folder(&args.out, |staged| copy_tokenizer(args, staged)),
    }
}

/// A configuration by name or from a file.
fn named(sizes: &str) -> Result<Config> {
    if let Some(config) = Config::named(sizes) {
        return Ok(config);
    }
    let path = Path::new(sizes);
    let bytes = read_most(path, MOST_TEXT, OP)
        .map_err(|e| e.fix("give tiny, heads, base, full or the path of a config.json"))?;
    Config::from_json(&String::from_utf8_lossy(&bytes))
}

fn sized(mut config: Config, image_size: Option<usize>) -> Result<Config> {
    config.image_size = image_size.unwrap_or(config.image_size);
    config.check()?;
    Ok(config)
}

/// That of --config; else the input folder's own; else the full model with the sizes that the shapes show.
fn config(args: &Args, sets: &[Set]) -> Result<Config> {
    if let Some(sizes) = &args.config {
        return named(sizes);
    }
    if let Some(config) = args.input.as_deref().map(own_config).transpose()?.flatten() {
        return Ok(config);
    }
    let broken = |e: serde_json::Error| Error::argument(OP, "sizes", "those of a model", e);
    let mut config = serde_json::to_value(Config::full()).map_err(broken)?;
    for (key, size) in sizes::visible(sets)? {
        config[key] = size.into();
    }
    // Heads do not show: Hugging Face's config.json says them; those of BERT and of EVA's ViT-g have 64 and 88 columns.
    let said = args.input.as_deref().map_or(Ok([None; 2]), hf::heads)?;
    for (i, (heads, width, columns)) in
        [("heads", "hidden", 64), ("vit_heads", "vit_width", 88)].into_iter().enumerate()
    {
        let width = config[width].as_u64().unwrap_or(0);
        if let Some(said) = said[i] {
            config[heads] = said.into();
        } else if width % columns == 0 {
            config[heads] = (width / columns).into();
        }
    }
    let config: Config = serde_json::from_value(config).map_err(broken)?;
    config.check().map_err(|e| e.fix("give the model's sizes with --config"))?;
    Ok(config)
}

/// The sizes in a folder's config.json; None without one, or if it is Hugging Face's, which names a `model_type`.
fn own_config(folder: &Path) -> Result<Option<Config>> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_regular(&path, MOST_TEXT, OP)?;
    let text = String::from_utf8_lossy(&text);
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
        Error::file(OP, &path, "JSON", e).fix("correct it, or give the model's sizes with --config")
    })?;
    if json.get("model_type").is_some_and(serde_json::Value::is_string) {
        return Ok(None);
    }
    let mut json = json;
    if let Some(keys) = json.as_object_mut() {
        keys.remove("llm");
    }
    let config = Config::from_json(&json.to_string());
    config.map(Some).map_err(|e| {
        Error::file(OP, &path, "the sizes of a model", e)
            .fix("correct it, or give the model's sizes with --config")
    })
}

/// Whether any of these files has an image encoder.
fn has_vit(sets: &[Set]) -> Result<bool> {
    for set in sets {
        let naming = Naming::of_set(set)?;
        let is = |name: &str| matches!(meaning(naming, name), Meaning::Parameter(p) if p.starts_with("visual_encoder."));
        if set.tensors().any(|t| is(&t.name)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a folder holds a vocabulary and no weights.
fn is_vocabulary(folder: &Path) -> bool {
    folder.join("vocab.txt").is_file() && !crate::weights::is_checkpoint(folder)
}

/// The folder of a vocabulary: the BERT's or the input's.
fn tokenizer(args: &Args) -> Option<&Path> {
    let mut folders = [&args.bert, &args.input].into_iter().flatten();
    folders.find(|p| p.join("vocab.txt").is_file()).map(PathBuf::as_path)
}

/// The tokenizer's files of the BERT or of the input's folder.
fn copy_tokenizer(args: &Args, to: &Path) -> Result<()> {
    let Some(from) = tokenizer(args) else {
        note!("note: no vocab.txt beside the weights; add it, or convert again with --bert DIR");
        return Ok(());
    };
    for name in ["vocab.txt", "tokenizer_config.json"] {
        let path = from.join(name);
        if path.exists() {
            write::file(&to.join(name), &read_regular(&path, MOST_TEXT, OP)?)?;
        }
    }
    Ok(())
}

/// Whether a parameter belongs to the image encoder's own file.
fn is_vit(spec: &Spec) -> bool {
    spec.name.starts_with("visual_encoder.")
}
