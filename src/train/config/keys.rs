//! The names of all settings: ours, LAVIS's for the same thing, what they mean, and how they are read and shown.

use super::sources::{self, DataSource};
use super::values::{self, Read, choice, count, flag, path, rate, share, text, whole};
use super::yaml::Entry;
use super::{Config, OPERATION};
use crate::model::Profile;
use crate::nn::Gelu;
use crate::tensor::Storage;
use crate::train::trainer::Contrast;
use crate::vision::Resampling;
use crate::{Error, Result};
use serde_json::{Value, json};

struct Key {
    name: &'static str,
    /// LAVIS's name of it, empty if it has none.
    lavis: &'static str,
    about: &'static str,
    get: fn(&Config) -> Value,
    set: fn(&mut Config, &Value) -> Read<()>,
}

const fn key(
    name: &'static str,
    lavis: &'static str,
    about: &'static str,
    get: fn(&Config) -> Value,
    set: fn(&mut Config, &Value) -> Read<()>,
) -> Key {
    Key { name, lavis, about, get, set }
}

const PROFILES: [(&str, Profile); 2] =
    [("lavis-diagonal", Profile::LavisDiagonal), ("lavis-image-id", Profile::LavisImageId)];
const CONTRASTS: [(&str, Contrast); 2] =
    [("micro-batch", Contrast::MicroBatch), ("accumulated", Contrast::Accumulated)];
const DTYPES: [(&str, &str); 4] =
    [("f32", "f32"), ("f16", "f16"), ("bf16", "bf16"), ("bf16-vit", "bf16-vit")];
const STORED: [(&str, Storage); 2] = [("f16", Storage::F16), ("f32", Storage::F32)];
const GELUS: [(&str, Gelu); 2] = [("exact", Gelu::Exact), ("tanh", Gelu::Tanh)];
const RESIZES: [(&str, Resampling); 2] = [("fast", Resampling::Fast), ("exact", Resampling::Exact)];

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> Value {
    names.iter().find(|(_, v)| v == value).map(|(n, _)| *n).into()
}

#[rustfmt::skip]
const KEYS: &[Key] = &[
    key("images", "", "folder of pictures, or tar shards ('shards/{00000..00099}.tar') or parquet files (one data set; several under datasets:)",
        |c| json!(single(c).and_then(|d| d.images.clone())), |c, v| { only(c).images = Some(path(v)?); Ok(()) }),
    key("captions", "", "their captions: LAVIS, COCO/STAIR or Karpathy JSON (FILE#train), JSON lines, a table, parquet; none: a .txt beside each picture, or inside the shards",
        |c| json!(single(c).and_then(|d| d.captions.clone())), |c, v| { only(c).captions = Some(path(v)?); Ok(()) }),
    key("out", "run.output_dir", "folder of the run: checkpoints, logs, the trained model",
        |c| json!(c.out), |c, v| { c.out = Some(path(v)?); Ok(()) }),
    key("start", "", "model directory to start from (qformer convert makes one); none: from nothing",
        |c| json!(c.start), |c, v| { c.start = Some(path(v)?); Ok(()) }),
    key("vocab", "", "folder with vocab.txt; none: trained from the captions",
        |c| json!(c.vocab), |c, v| { c.vocab = Some(path(v)?); Ok(()) }),
    key("vocab_size", "", "entries of a vocabulary trained from the captions, at most",
        |c| json!(c.vocab_size), |c, v| { c.vocab_size = count(v, 6)?; Ok(()) }),
    key("size", "", "sizes of a model from nothing: small, tiny, heads, base or full; single ones under model:",
        |c| json!(c.size), |c, v| { c.size = text(v)?; Ok(()) }),
    key("train_vit", "", "train the image encoder too (default: only from nothing)",
        |c| json!(c.train_vit), |c, v| { c.train_vit = Some(flag(v)?); Ok(()) }),
    key("epochs", "run.max_epoch", "times over the data (10)",
        |c| json!(c.epochs), |c, v| { c.epochs = Some(whole(v, 1)?); Ok(()) }),
    key("steps", "", "steps of the run, instead of epochs",
        |c| json!(c.steps), |c, v| { c.steps = Some(whole(v, 1)?); Ok(()) }),
    key("batch", "run.batch_size_train", "captions of a micro-batch",
        |c| json!(c.batch), |c, v| { c.batch = count(v, 2)?; Ok(()) }),
    key("accumulate", "run.accum_grad_iters", "micro-batches of a step",
        |c| json!(c.accumulate), |c, v| { c.accumulate = count(v, 1)?; Ok(()) }),
    key("contrast", "", "contrastive negatives from: micro-batch (as LAVIS) or accumulated (the whole step)",
        |c| name_of(&CONTRASTS, &c.contrast), |c, v| { c.contrast = choice(v, &CONTRASTS)?; Ok(()) }),
    key("profile", "", "captions of one picture: lavis-diagonal (each other's negatives) or lavis-image-id (positives)",
        |c| name_of(&PROFILES, &c.profile), |c, v| { c.profile = choice(v, &PROFILES)?; Ok(()) }),
    key("dropout", "", "of the Q-Former",
        |c| json!(c.dropout), |c, v| { c.dropout = values::number(v, 0.0, 0.99)?; Ok(()) }),
    key("seed", "run.seed", "of the weights, the order, the crops, dropout and negatives",
        |c| json!(c.seed), |c, v| { c.seed = whole(v, 0)?; Ok(()) }),
    key("init_lr", "run.init_lr", "learning rate after warm-up",
        |c| json!(c.init_lr), |c, v| { c.init_lr = rate(v)?; Ok(()) }),
    key("min_lr", "run.min_lr", "learning rate the cosine ends at",
        |c| json!(c.min_lr), |c, v| { c.min_lr = rate(v)?; Ok(()) }),
    key("warmup_lr", "run.warmup_lr", "learning rate of the first step",
        |c| json!(c.warmup_lr), |c, v| { c.warmup_lr = rate(v)?; Ok(()) }),
    key("warmup_steps", "", "steps of warm-up, within the first epoch (a tenth of the run, at most 5000 or an epoch)",
        |c| json!(c.warmup_steps), |c, v| { c.warmup_steps = Some(whole(v, 0)?); Ok(()) }),
    key("weight_decay", "run.weight_decay", "decoupled; none on biases, norms and scalars",
        |c| json!(c.hyper.weight_decay), |c, v| { c.hyper.weight_decay = rate(v)?; Ok(()) }),
    key("vit_layer_decay", "run.lr_layer_decay", "of a trained image encoder: each block's learning rate is this times that of the block after it",
        |c| json!(c.hyper.vit_layer_decay), |c, v| { c.hyper.vit_layer_decay = values::number(v, 0.01, 1.0)?; Ok(()) }),
    key("beta1", "", "of AdamW",
        |c| json!(c.hyper.betas[0]), |c, v| { c.hyper.betas[0] = values::number(v, 0.0, 0.999_999)?; Ok(()) }),
    key("beta2", "run.beta2", "of AdamW",
        |c| json!(c.hyper.betas[1]), |c, v| { c.hyper.betas[1] = values::number(v, 0.0, 0.999_999)?; Ok(()) }),
    key("eps", "", "of AdamW",
        |c| json!(c.hyper.eps), |c, v| { c.hyper.eps = rate(v)?; Ok(()) }),
    key("device", "", "where to compute: auto (a GPU if one answers, else the CPU), cpu, cuda (cuda:1, ..) or host (the GPU's kernels emulated on the CPU)",
        |c| json!(c.device), |c, v| { c.device = text(v)?; Ok(()) }),
    key("dtype", "", "how a GPU stores what dense layers work on: f32, f16 (with loss scaling), bf16 (its default) or bf16-vit (the image encoder, too)",
        |c| json!(c.dtype), |c, v| { c.dtype = Some(choice(v, &DTYPES)?.into()); Ok(()) }),
    key("cache", "", "folder for image tokens of a frozen encoder, computed once and trained on instead of pictures",
        |c| json!(c.cache), |c, v| { c.cache = Some(path(v)?); Ok(()) }),
    key("cache_views", "", "random crops of a picture that the cache keeps; training draws from these alone",
        |c| json!(c.cache_views), |c, v| { c.cache_views = count(v, 1)?; Ok(()) }),
    key("cache_dtype", "", "how the cache stores tokens: f16 or f32 (exactly as they were computed)",
        |c| name_of(&STORED, &c.cache_dtype), |c, v| { c.cache_dtype = choice(v, &STORED)?; Ok(()) }),
    key("vit_gelu", "", "GELU of a frozen image encoder on a GPU: exact (as LAVIS), or tanh (at the end of the product, off by up to 5e-4)",
        |c| name_of(&GELUS, &c.vit_gelu), |c, v| { c.vit_gelu = choice(v, &GELUS)?; Ok(()) }),
    key("crop_scale", "", "share of a picture's area that a random crop keeps: [smallest, largest]",
        |c| json!(c.augment.scale), |c, v| { c.augment.scale = values::pair(v)?; c.augment.check().map_err(|e| e.to_string()) }),
    key("crop_ratio", "", "width over height of a random crop: [smallest, largest]",
        |c| json!(c.augment.ratio), |c, v| { c.augment.ratio = values::pair(v)?; c.augment.check().map_err(|e| e.to_string()) }),
    key("flip", "", "probability that a picture is mirrored",
        |c| json!(c.augment.flip), |c, v| { c.augment.flip = share(v)?; Ok(()) }),
    key("rand_augment", "", "RandAugment of training pictures: [operations, level of 10], [0, 0] is none; LAVIS's blip_image_train is [2, 5]",
        |c| json!(c.rand_augment.map(|r| (r.count, r.level))), |c, v| { c.rand_augment = values::rand_augment(v)?; Ok(()) }),
    key("resize", "", "fast (within 2/255 of Pillow) or exact (Pillow's, to the byte)",
        |c| name_of(&RESIZES, &c.resize), |c, v| { c.resize = choice(v, &RESIZES)?; Ok(()) }),
    key("exif_orientation", "", "turn pictures upright as their EXIF orientation says, stored with the model (LAVIS takes them as stored)",
        |c| json!(c.exif_orientation), |c, v| { c.exif_orientation = Some(flag(v)?); Ok(()) }),
    key("missing_share", "", "share of the pictures that may be missing",
        |c| json!(c.missing_share), |c, v| { c.missing_share = share(v)?; Ok(()) }),
    key("bad_share", "", "share of the captions whose pictures may turn out unusable while training",
        |c| json!(c.bad_share), |c, v| { c.bad_share = share(v)?; Ok(()) }),
    key("workers", "run.num_workers", "threads that load pictures (as many as there are cores)",
        |c| json!(c.workers), |c, v| { c.workers = Some(count(v, 0)?.max(1)); Ok(()) }),
    key("prefetch", "", "micro-batches prefetched",
        |c| json!(c.prefetch), |c, v| { c.prefetch = count(v, 1)?; Ok(()) }),
    key("save_every", "", "steps between checkpoints; 0: by time only",
        |c| json!(c.save_every), |c, v| { c.save_every = whole(v, 0)?; Ok(()) }),
    key("save_minutes", "", "minutes between checkpoints; 0: by steps only",
        |c| json!(c.save_minutes), |c, v| { c.save_minutes = rate(v)?; Ok(()) }),
    key("keep_last", "", "newest checkpoints to keep",
        |c| json!(c.keep_last), |c, v| { c.keep_last = count(v, 1)?; Ok(()) }),
    key("keep_best", "", "best checkpoints to keep, by the loss on the validation data",
        |c| json!(c.keep_best), |c, v| { c.keep_best = count(v, 0)?; Ok(()) }),
    key("eval_every", "", "steps between evaluations on the validation data; 0: at the end of each epoch",
        |c| json!(c.eval_every), |c, v| { c.eval_every = whole(v, 0)?; Ok(()) }),
    key("eval_pictures", "", "pictures of the validation data to evaluate on, at most",
        |c| json!(c.eval_pictures), |c, v| { c.eval_pictures = count(v, 2)?; Ok(()) }),
];

/// Sizes of a model from nothing, in `model:`; LAVIS's names of some.
const SIZES: [(&str, &str); 15] = [
    ("image_size", "model.image_size"),
    ("patch_size", ""),
    ("vit_width", ""),
    ("vit_depth", ""),
    ("vit_heads", ""),
    ("vit_mlp", ""),
    ("hidden", ""),
    ("layers", ""),
    ("heads", ""),
    ("ffn", ""),
    ("num_query", "model.num_query_token"),
    ("cross_freq", "model.cross_attention_freq"),
    ("max_txt_len", "model.max_txt_len"),
    ("embed_dim", "model.embed_dim"),
    ("max_pos", ""),
];

/// How a key's value is taken into the configuration.
type Take = fn(&mut Config, &Value) -> Read<()>;

/// LAVIS settings that ask for something (`Err` says what is possible here) or mean nothing here (a note).
#[rustfmt::skip]
const LAVIS: &[(&str, Take)] = &[
    ("model.arch", |_, v| choice(v, &[("blip2", ()), ("blip2_qformer", ()), ("blip2_Japanese", ()), ("pretrain", ()), ("finetune", ()), ("coco", ())])
        .map_err(|names| format!("{names} (others train through a language model or another network)"))),
    ("model.model_type", |_, v| choice(v, &[("pretrain", ()), ("finetune", ()), ("coco", ())])),
    ("model.load_pretrained", |c, v| { c.weights.load_pretrained = Some(flag(v)?); Ok(()) }),
    ("model.load_finetuned", |c, v| { c.weights.load_finetuned = Some(flag(v)?); Ok(()) }),
    ("model.pretrained", |c, v| { c.weights.pretrained = weights(v)?; Ok(()) }),
    ("model.finetuned", |c, v| { c.weights.finetuned = weights(v)?; Ok(()) }),
    ("model.freeze_vit", |c, v| { c.train_vit = Some(!flag(v)?); Ok(()) }),
    ("model.drop_path_rate", |_, v| values::number(v, 0.0, 0.0).map(|_| ())),
    ("model.vit_model", |_, v| choice(v, &[("eva_clip_g", ())])),
    ("model.use_grad_checkpoint", |c, v| { if flag(v)? { note(c, "use_grad_checkpoint: activations are kept; the numbers are the same"); } Ok(()) }),
    ("model.vit_precision", |c, _| { note(c, "vit_precision: dtype says it here (f32 on a CPU; on a GPU f16, with bf16-vit bf16)"); Ok(()) }),
    ("run.task", |_, v| choice(v, &[("image_text_pretrain", ()), ("retrieval", ()), ("captioning", ())])),
    ("run.runner", |_, v| choice(v, &[("runner_base", ())])),
    ("run.lr_sched", |_, v| choice(v, &[("linear_warmup_cosine_lr", ())])),
    ("run.warmup_steps", |c, v| { c.warmup_iterations = Some(whole(v, 0)?); Ok(()) }),
    ("run.train_dataset_ratios", |c, v| ratios(c, v)),
    ("run.train_splits", |_, v| splits(v)),
    ("run.evaluate", |_, v| never(v, "False (qformer evaluate CONFIG does that)")),
    ("run.resume_ckpt_path", |_, _| Err("null (use --resume: the newest whole checkpoint of the run is found)".into())),
    ("run.amp", |c, v| { if flag(v)? { note(c, "amp: dtype says it here (bf16 on a GPU unless set; f32 on a CPU)"); } Ok(()) }),
    ("run.device", |c, v| { c.device = lavis_device(v)?; Ok(()) }),
    ("run.world_size", |_, v| whole(v, 0).and_then(|n| if n <= 1 { Ok(()) } else { Err("1".into()) })),
    ("run.distributed", |_, _| Ok(())),
    ("run.dist_url", |_, _| Ok(())),
    ("run.dist_backend", |_, _| Ok(())),
    ("run.gpu", |_, _| Ok(())),
    ("run.rank", |_, _| Ok(())),
    ("run.valid_splits", |c, v| { if !v.is_null() { note(c, "valid_splits: give validation: {images: DIR, captions: FILE}"); } Ok(()) }),
    ("run.test_splits", |_, _| Ok(())),
    ("run.batch_size_eval", |_, _| Ok(())),
    ("run.log_freq", |_, _| Ok(())),
    ("run.use_dist_eval_sampler", |_, _| Ok(())),
    ("run.lr_decay_rate", |_, _| Ok(())),
    ("run.k_test", |_, _| Ok(())),
    ("run.max_len", |_, _| Ok(())),
    ("run.min_len", |_, _| Ok(())),
    ("run.num_beams", |_, _| Ok(())),
];

/// LAVIS's `cuda` is its default, not a demand.
pub fn lavis_device(v: &Value) -> Read<String> {
    let name = text(v)?;
    Ok(if name == "cuda" { "auto".into() } else { name })
}

fn never(v: &Value, want: &str) -> Read<()> {
    if flag(v)? { Err(want.to_string()) } else { Ok(()) }
}

fn note(c: &mut Config, text: &str) {
    c.notes.push(text.to_string());
}

/// LAVIS's path of weights.
fn weights(v: &Value) -> Read<Option<String>> {
    match v {
        Value::String(given) => Ok(Some(given.clone()).filter(|g| !g.is_empty())),
        _ => Err("a path".into()),
    }
}

fn splits(v: &Value) -> Read<()> {
    let train = v.as_array().is_some_and(|a| a.len() == 1 && a[0].as_str() == Some("train"));
    if train { Ok(()) } else { Err("[\"train\"]".to_string()) }
}

fn ratios(c: &mut Config, v: &Value) -> Read<()> {
    let wrong = || "a number above 0 for each data set (after datasets:)".to_string();
    let list = v.as_array().filter(|l| l.len() == c.data.len()).ok_or_else(wrong)?;
    for (source, ratio) in c.data.iter_mut().zip(list) {
        source.ratio = Some(ratio.as_f64().filter(|r| *r > 0.0 && r.is_finite()).ok_or_else(wrong)?);
    }
    Ok(())
}

/// The data set that `images` and `captions` speak of; it takes the place of all others.
fn only(c: &mut Config) -> &mut DataSource {
    if single(c).is_none() {
        c.data = vec![DataSource::new(SINGLE, "images and captions")];
    }
    &mut c.data[0]
}

fn single(c: &Config) -> Option<&DataSource> {
    c.data.first().filter(|d| c.data.len() == 1 && d.name == SINGLE)
}

const SINGLE: &str = "data";

/// Applies one setting.
pub fn apply(c: &mut Config, entry: &Entry) -> Result<()> {
    let Entry { path, value, place } = entry;
    let done = find(c, path, value, place).ok_or_else(|| unknown(path, place))?;
    done.map_err(|want| {
        let got = crate::data::quoted(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        Error::argument(OPERATION, format!("{path} ({place})"), want, got)
    })
}

/// `None` if the name is not known.
fn find(c: &mut Config, path: &str, v: &Value, place: &str) -> Option<Read<()>> {
    if let Some(rest) = path.strip_prefix("datasets.") {
        let (name, inner) = rest.split_once('.').unwrap_or((rest, ""));
        return sources::set(c, name, inner, v, place);
    }
    if let Some(inner) = path.strip_prefix("validation.").filter(|_| !v.is_null()) {
        return sources::set_validation(c, inner, v, place);
    }
    if path.starts_with("preprocess.") || path.starts_with("model.preprocess.") {
        return Some(Ok(()));
    }
    let set = set_of(path)?;
    // null means "not given": the default stays
    Some(if v.is_null() { Ok(()) } else { set(c, v) })
}

type Set<'a> = Box<dyn Fn(&mut Config, &Value) -> Read<()> + 'a>;

fn set_of(path: &str) -> Option<Set<'_>> {
    if ["datasets", "validation", "run", "model"].contains(&path) {
        return Some(Box::new(|_, _| Err("settings below it".to_string())));
    }
    if let Some(key) = KEYS.iter().find(|k| k.name == path || (!k.lavis.is_empty() && k.lavis == path)) {
        return Some(Box::new(key.set));
    }
    if let Some((_, set)) = LAVIS.iter().find(|(name, _)| *name == path) {
        return Some(Box::new(set));
    }
    let bare = path.strip_prefix("model.").unwrap_or(path);
    let (name, _) =
        SIZES.iter().find(|(name, lavis)| *name == bare || (!lavis.is_empty() && *lavis == path))?;
    Some(Box::new(move |c, v| {
        c.sizes.insert((*name).to_string(), count(v, 1)?);
        Ok(())
    }))
}

fn unknown(path: &str, place: &str) -> Error {
    let error = Error::argument(OPERATION, format!("{path} ({place})"), "a known setting", "an unknown one");
    match nearest(path) {
        Some(name) => error.fix(format!("did you mean {name}? (qformer train --keys lists all settings)")),
        None => error.fix("qformer train --keys lists all settings"),
    }
}

/// The known name most like this one, by the whole path or its last word; ours first, then LAVIS's.
fn nearest(path: &str) -> Option<String> {
    const LONGEST: usize = 200;
    if path.len() > LONGEST {
        return None; // longer than any name, and comparing takes time
    }
    let last = |p: &str| p.rsplit('.').next().unwrap_or(p).to_string();
    let dataset = path.strip_prefix("datasets.").and_then(|rest| rest.split_once('.'));
    let names: Vec<String> = if let Some((name, _)) = dataset {
        sources::NAMES.iter().map(|n| format!("datasets.{name}.{n}")).collect()
    } else {
        let ours = KEYS.iter().map(|k| k.name).chain(SIZES.iter().map(|s| s.0));
        let theirs =
            KEYS.iter().map(|k| k.lavis).chain(LAVIS.iter().map(|l| l.0)).chain(SIZES.iter().map(|s| s.1));
        let sections = ["datasets.NAME.images", "validation.images", "validation.captions"];
        ours.chain(theirs).chain(sections).filter(|n| !n.is_empty()).map(str::to_string).collect()
    };
    let score = |name: &String| {
        let whole = strsim::normalized_damerau_levenshtein(path, name);
        let words = strsim::normalized_damerau_levenshtein(&last(path), &last(name));
        let start = strsim::jaro_winkler(&last(path), &last(name)) * 0.95;
        whole.max(
            (words * 0.99).max(start) * if path.contains('.') == name.contains('.') { 1.0 } else { 0.98 },
        )
    };
    let best = names.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) > 0.7).then(|| best.clone())
}

/// All settings with what they mean, their defaults and LAVIS's names.
pub fn describe() -> String {
    let defaults = Config::default();
    let mut lines = Vec::new();
    for k in KEYS {
        let default = (k.get)(&defaults);
        let default = if default.is_null() { String::new() } else { format!(" [{default}]") };
        let lavis = if k.lavis.is_empty() { String::new() } else { format!(" (LAVIS: {})", k.lavis) };
        lines.push(format!("{:<14} {}{default}{lavis}", k.name, k.about));
    }
    lines.push("model:         of a model from nothing, in place of the size's own:".into());
    for row in SIZES.chunks(8) {
        lines.push(format!("                 {}", row.iter().map(|s| s.0).collect::<Vec<_>>().join(" ")));
    }
    lines.push("datasets:      NAME: {images: DIR, captions: FILE, ratio: NUMBER}, several of them".into());
    lines.push("validation:    {images: DIR, captions: FILE}".into());
    lines.join("\n")
}

/// The resolved settings as YAML that gives the same settings again.
pub fn resolved(c: &Config) -> String {
    let line = |indent: &str, name: &str, v: Value| format!("{indent}{name}: {v}\n");
    let mut text = String::new();
    for k in KEYS.iter().filter(|k| !(k.get)(c).is_null()) {
        text += &line("", k.name, (k.get)(c));
    }
    if let Some(n) = c.warmup_iterations.filter(|_| c.warmup_steps.is_none()) {
        text += &line("", "warmup_steps", json!(n.div_ceil(c.accumulate as u64)));
    }
    if !c.sizes.is_empty() {
        text += "model:\n";
        c.sizes.iter().for_each(|(name, n)| text += &line("  ", name, json!(n)));
    }
    let paths = |d: &DataSource, indent: &str| {
        line(indent, "images", json!(d.images)) + &line(indent, "captions", json!(d.captions))
    };
    if single(c).is_none() && !c.data.is_empty() {
        text += "datasets:\n";
        for d in &c.data {
            text += &format!("  {}:\n{}", json!(d.name), paths(d, "    "));
            text += &d.ratio.map_or(String::new(), |r| line("    ", "ratio", json!(r)));
        }
    }
    if let Some(v) = &c.validation {
        text += &format!("validation:\n{}", paths(v, "  "));
    }
    text
}
