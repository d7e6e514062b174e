//! Every setting of a training, declared once: its name, LAVIS's name of it, what it means, its flag, whether a resumed run may
//! change it, and how it is read and shown. Defaults stand in [`Config::default`]. What follows from this table: the YAML files,
//! `--set`, the flags of `qformer train` and their help, `--keys`, the settings in a run's folder, and what a checkpoint says
//! of its run.

use super::Config;
use super::sources::DataSource;
use super::values::{self, Read, choice, count, flag, path, rate, share, text, whole};
use crate::model::Profile;
use crate::nn::Gelu;
use crate::tensor::Storage;
use crate::train::trainer::Contrast;
use crate::vision::Resampling;
use serde_json::{Value, json};

pub(super) struct Setting {
    pub name: &'static str,
    /// LAVIS's name of it, empty if it has none.
    pub lavis: &'static str,
    pub about: &'static str,
    pub get: fn(&Config) -> Value,
    pub set: fn(&mut Config, &Value) -> Read<()>,
    pub flag: Option<Flag>,
    pub resumed: Resumed,
}

/// A flag of `qformer train` that sets a setting.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The setting.
    pub name: &'static str,
    /// Behind `--`.
    pub long: &'static str,
    /// What its value is.
    pub kind: FlagKind,
    /// What help calls its value.
    pub value: &'static str,
    /// What help says.
    pub help: &'static str,
}

/// What the value of a flag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagKind {
    /// A path.
    Path,
    /// A name.
    Text,
    /// A whole number.
    Number,
    /// Takes no value.
    Switch,
}

/// What a run that is resumed may do with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumed {
    /// Change it; or something else that a checkpoint says follows from it.
    MayChange,
    /// A checkpoint says what it was, and it must be that.
    Same,
    /// As [`Resumed::Same`]; a checkpoint is silent about the default.
    SameUnlessDefault,
}

/// One that has no flag, and that a resumed run may change.
const fn setting(
    name: &'static str,
    lavis: &'static str,
    about: &'static str,
    get: fn(&Config) -> Value,
    set: fn(&mut Config, &Value) -> Read<()>,
) -> Setting {
    Setting { name, lavis, about, get, set, flag: None, resumed: Resumed::MayChange }
}

impl Setting {
    const fn flag(
        self,
        long: &'static str,
        kind: FlagKind,
        value: &'static str,
        help: &'static str,
    ) -> Setting {
        Setting { flag: Some(Flag { name: self.name, long, kind, value, help }), ..self }
    }

    const fn same(self) -> Setting {
        Setting { resumed: Resumed::Same, ..self }
    }

    const fn same_unless_default(self) -> Setting {
        Setting { resumed: Resumed::SameUnlessDefault, ..self }
    }
}

/// The flags, in the order of help.
pub fn flags() -> impl Iterator<Item = Flag> {
    SETTINGS.iter().filter_map(|s| s.flag)
}

/// The settings that a resumed run must have as they were, with their values.
pub fn of_run(c: &Config) -> impl Iterator<Item = (&'static str, Value)> {
    let default = Config::default();
    SETTINGS.iter().filter_map(move |s| {
        let value = (s.get)(c);
        let said = match s.resumed {
            Resumed::MayChange => false,
            Resumed::Same => true,
            Resumed::SameUnlessDefault => value != (s.get)(&default),
        };
        said.then_some((s.name, value))
    })
}

const PROFILES: [(&str, Profile); 2] =
    [("lavis-diagonal", Profile::LavisDiagonal), ("lavis-image-id", Profile::LavisImageId)];
const CONTRASTS: [(&str, Contrast); 3] = {
    const fn named(contrast: Contrast) -> (&'static str, Contrast) {
        (contrast.name(), contrast)
    }
    [named(Contrast::MicroBatch), named(Contrast::Accumulated), named(Contrast::World)]
};
const RECOMPUTE: [(&str, Option<bool>); 3] = [("auto", None), ("on", Some(true)), ("off", Some(false))];
const DTYPES: [(&str, &str); 4] =
    [("f32", "f32"), ("f16", "f16"), ("bf16", "bf16"), ("bf16-vit", "bf16-vit")];
const STORED: [(&str, Storage); 2] = [("f16", Storage::F16), ("f32", Storage::F32)];
const GELUS: [(&str, Gelu); 2] = [("exact", Gelu::Exact), ("tanh", Gelu::Tanh)];
const RESIZES: [(&str, Resampling); 2] = [("fast", Resampling::Fast), ("exact", Resampling::Exact)];

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> Value {
    names.iter().find(|(_, v)| v == value).map(|(n, _)| *n).into()
}

#[rustfmt::skip]
pub(super) const SETTINGS: &[Setting] = &[
    setting("images", "", "folder of pictures, or tar shards ('shards/{00000..00099}.tar') or parquet files (one data set; several under datasets:)",
        |c| json!(single(c).and_then(|d| d.images.clone())), |c, v| { only(c).images = Some(path(v)?); Ok(()) })
        .flag("images", FlagKind::Path, "DIR", "Folder of pictures, or files that hold them: tar shards ('shards/{00000..00099}.tar'), parquet"),
    setting("captions", "", "their captions: LAVIS, COCO/STAIR or Karpathy JSON (FILE#train), JSON lines, a table, parquet; none: a .txt beside each picture, or inside the shards",
        |c| json!(single(c).and_then(|d| d.captions.clone())), |c, v| { only(c).captions = Some(path(v)?); Ok(()) })
        .flag("captions", FlagKind::Path, "FILE", "Captions: LAVIS, COCO/STAIR or Karpathy JSON (FILE#train), JSON lines, a table with a heading, parquet; none: a .txt or .caption beside each picture, or those in the shards"),
    setting("out", "run.output_dir", "folder of the run: checkpoints, logs, the trained model",
        |c| json!(c.out), |c, v| { c.out = Some(path(v)?); Ok(()) })
        .flag("out", FlagKind::Path, "DIR", "Folder of the run"),
    setting("start", "", "model directory to start from (qformer convert makes one); none: from nothing",
        |c| json!(c.start), |c, v| { c.start = Some(path(v)?); Ok(()) })
        .flag("start", FlagKind::Path, "DIR", "Model directory to start from"),
    setting("llm", "", "folder of a language model (Hugging Face's form) that reads the Q-Former: BLIP-2's second stage; needs start",
        |c| json!(c.llm), |c, v| { c.llm = Some(path(v)?); Ok(()) })
        .flag("llm", FlagKind::Path, "DIR", "Folder of a language model, as Hugging Face has it, that reads the Q-Former of --start: BLIP-2's second stage"),
    setting("prompt", "model.prompt", "text before every caption, which is no target; with llm",
        |c| json!(c.prompt), |c, v| { c.prompt = values::written(v)?; Ok(()) })
        .flag("prompt", FlagKind::Text, "TEXT", "Text before every caption, which is no target; with --llm").same_unless_default(),
    setting("llm_dropout", "", "of the language model (default: its config.json's)",
        |c| json!(c.llm_dropout), |c, v| { c.llm_dropout = Some(values::number(v, 0.0, 0.99)?); Ok(()) }).same_unless_default(),
    setting("recompute", "", "compute inside the language model's layers twice instead of keeping it, the same numbers in less memory: auto (on where a GPU would not hold it), on or off",
        |c| name_of(&RECOMPUTE, &c.recompute), |c, v| { c.recompute = choice(v, &RECOMPUTE)?; Ok(()) }),
    setting("vocab", "", "folder with vocab.txt; none: trained from the captions",
        |c| json!(c.vocab), |c, v| { c.vocab = Some(path(v)?); Ok(()) }),
    setting("vocab_size", "", "entries of a vocabulary trained from the captions, at most",
        |c| json!(c.vocab_size), |c, v| { c.vocab_size = count(v, 6)?; Ok(()) }),
    setting("size", "", "sizes of a model from nothing: small, tiny, heads, base or full; single ones under model:",
        |c| json!(c.size), |c, v| { c.size = text(v)?; Ok(()) })
        .flag("size", FlagKind::Text, "SIZE", "Sizes of a model from nothing: small, tiny, heads, base or full"),
    setting("train_vit", "", "train the image encoder too (default: only from nothing)",
        |c| json!(c.train_vit), |c, v| { c.train_vit = Some(flag(v)?); Ok(()) }),
    setting("epochs", "run.max_epoch", "times over the data (10)",
        |c| json!(c.epochs), |c, v| { c.epochs = Some(whole(v, 1)?); Ok(()) })
        .flag("epochs", FlagKind::Number, "EPOCHS", "Times over the data"),
    setting("steps", "", "steps of the run, instead of epochs",
        |c| json!(c.steps), |c, v| { c.steps = Some(whole(v, 1)?); Ok(()) }),
    setting("batch", "run.batch_size_train", "captions of a micro-batch",
        |c| json!(c.batch), |c, v| { c.batch = count(v, 2)?; Ok(()) })
        .flag("batch", FlagKind::Number, "BATCH", "Captions of a micro-batch")
        .same(),
    setting("accumulate", "run.accum_grad_iters", "micro-batches of a step",
        |c| json!(c.accumulate), |c, v| { c.accumulate = count(v, 1)?; Ok(()) })
        .same(),
    setting("contrast", "", "contrastive negatives from: micro-batch (as LAVIS), accumulated (the whole step), or world (each micro-batch stands for one of LAVIS's processes: matching negatives, too, from the whole step)",
        |c| name_of(&CONTRASTS, &c.contrast), |c, v| { c.contrast = choice(v, &CONTRASTS)?; Ok(()) })
        .same(),
    setting("profile", "", "captions of one picture: lavis-diagonal (each other's negatives) or lavis-image-id (positives)",
        |c| name_of(&PROFILES, &c.profile), |c, v| { c.profile = choice(v, &PROFILES)?; Ok(()) })
        .same(),
    setting("dropout", "", "of the Q-Former",
        |c| json!(c.dropout), |c, v| { c.dropout = values::number(v, 0.0, 0.99)?; Ok(()) })
        .same(),
    setting("seed", "run.seed", "of the weights, the order, the crops, dropout and negatives",
        |c| json!(c.seed), |c, v| { c.seed = whole(v, 0)?; Ok(()) }),
    setting("init_lr", "run.init_lr", "learning rate after warm-up",
        |c| json!(c.init_lr), |c, v| { c.init_lr = rate(v)?; Ok(()) })
        .same(),
    setting("min_lr", "run.min_lr", "learning rate the cosine ends at",
        |c| json!(c.min_lr), |c, v| { c.min_lr = rate(v)?; Ok(()) })
        .same(),
    setting("warmup_lr", "run.warmup_lr", "learning rate of the first step",
        |c| json!(c.warmup_lr), |c, v| { c.warmup_lr = rate(v)?; Ok(()) })
        .same(),
    setting("warmup_steps", "", "steps of warm-up, within the first epoch (a tenth of the run, at most 5000 or an epoch)",
        |c| json!(c.warmup_steps), |c, v| { c.warmup_steps = Some(whole(v, 0)?); Ok(()) }),
    setting("weight_decay", "run.weight_decay", "decoupled; none on biases, norms and scalars",
        |c| json!(c.hyper.weight_decay), |c, v| { c.hyper.weight_decay = rate(v)?; Ok(()) })
        .same(),
    setting("vit_layer_decay", "run.lr_layer_decay", "of a trained image encoder: each block's learning rate is this times that of the block after it",
        |c| json!(c.hyper.vit_layer_decay), |c, v| { c.hyper.vit_layer_decay = values::number(v, 0.01, 1.0)?; Ok(()) })
        .same_unless_default(),
    setting("vit_drop_path", "model.drop_path_rate", "of a trained image encoder: how often a picture goes past a branch of the last block; of blocks before it less often, in equal steps",
        |c| json!(c.vit_drop_path), |c, v| { c.vit_drop_path = values::number(v, 0.0, 0.99)?; Ok(()) })
        .same_unless_default(),
    setting("beta1", "", "of AdamW",
        |c| json!(c.hyper.betas[0]), |c, v| { c.hyper.betas[0] = values::number(v, 0.0, 0.999_999)?; Ok(()) }),
    setting("beta2", "run.beta2", "of AdamW",
        |c| json!(c.hyper.betas[1]), |c, v| { c.hyper.betas[1] = values::number(v, 0.0, 0.999_999)?; Ok(()) }),
    setting("eps", "", "of AdamW",
        |c| json!(c.hyper.eps), |c, v| { c.hyper.eps = rate(v)?; Ok(()) })
        .same(),
    setting("device", "", "where to compute: auto (a GPU if one answers, else the CPU), cpu, cuda (cuda:1, ..), host (the GPU's kernels emulated on the CPU), or for a dry run plan, plan:24 (GB), plan:CARD",
        |c| json!(c.device), |c, v| { c.device = text(v)?; Ok(()) })
        .flag("device", FlagKind::Text, "DEVICE", "Where to compute: auto (default: a GPU if one answers, else the CPU), cpu, cuda (cuda:1, ..), host (the GPU's kernels emulated on the CPU, slowly); with --dry-run also plan, plan:24 (GB) or plan:CARD (rtx-4080-laptop, rtx-3090, rtx-4090, rtx-5090, a100, h100, h200)"),
    setting("dtype", "", "how a GPU stores what dense layers work on: f32, f16 (with loss scaling), bf16 (its default) or bf16-vit (the image encoder, too)",
        |c| json!(c.dtype), |c, v| { c.dtype = Some(choice(v, &DTYPES)?.into()); Ok(()) })
        .flag("dtype", FlagKind::Text, "DTYPE", "On a GPU, how dense layers and attention store what they work on: f32, f16 (with loss scaling), bf16 (default; the image encoder in f16, as its weights were published) or bf16-vit (the image encoder, too)"),
    setting("cache", "", "folder for image tokens of a frozen encoder, computed once and trained on instead of pictures",
        |c| json!(c.cache), |c, v| { c.cache = Some(path(v)?); Ok(()) })
        .flag("cache", FlagKind::Path, "DIR", "Keep image tokens of a frozen image encoder in this folder, computed once, and train on them instead of on pictures: several times as fast. Of each picture training then sees `cache_views` random crops (--set cache_views=4), not a new one each time as in LAVIS"),
    setting("cache_views", "", "random crops of a picture that the cache keeps; training draws from these alone",
        |c| json!(c.cache_views), |c, v| { c.cache_views = count(v, 1)?; Ok(()) }),
    setting("cache_dtype", "", "how the cache stores tokens: f16 or f32 (exactly as they were computed)",
        |c| name_of(&STORED, &c.cache_dtype), |c, v| { c.cache_dtype = choice(v, &STORED)?; Ok(()) }),
    setting("cache_on_gpu", "", "read the whole cache once and keep it in the GPU's memory",
        |c| json!(c.cache_on_gpu), |c, v| { c.cache_on_gpu = flag(v)?; Ok(()) }),
    setting("vit_gelu", "", "GELU of a frozen image encoder on a GPU: exact (as LAVIS), or tanh (at the end of the matmul, off by up to 5e-4)",
        |c| name_of(&GELUS, &c.vit_gelu), |c, v| { c.vit_gelu = choice(v, &GELUS)?; Ok(()) })
        .flag("vit-gelu", FlagKind::Text, "VIT_GELU", "GELU of a frozen image encoder on a GPU: exact (LAVIS's; default), or tanh: at the end of the matmul, with no kernel of its own, off by up to 5e-4 per activation"),
    setting("crop_scale", "", "share of a picture's area that a random crop keeps: [smallest, largest]",
        |c| json!(c.augment.scale), |c, v| { c.augment.scale = values::pair(v)?; c.augment.check().map_err(|e| e.to_string()) })
        .same(),
    setting("crop_ratio", "", "width over height of a random crop: [smallest, largest]",
        |c| json!(c.augment.ratio), |c, v| { c.augment.ratio = values::pair(v)?; c.augment.check().map_err(|e| e.to_string()) })
        .same(),
    setting("flip", "", "probability that a picture is mirrored",
        |c| json!(c.augment.flip), |c, v| { c.augment.flip = share(v)?; Ok(()) })
        .same(),
    setting("rand_augment", "", "RandAugment of training pictures: [operations, level of 10], [0, 0] is none; LAVIS's blip_image_train is [2, 5]",
        |c| json!(c.rand_augment.map(|r| (r.count, r.level))), |c, v| { c.rand_augment = values::rand_augment(v)?; Ok(()) })
        .same_unless_default(),
    setting("resize", "", "fast (within 2/255 of Pillow) or exact (Pillow's, to the byte)",
        |c| name_of(&RESIZES, &c.resize), |c, v| { c.resize = choice(v, &RESIZES)?; Ok(()) })
        .same(),
    setting("exif_orientation", "", "turn pictures upright as their EXIF orientation says, stored with the model (LAVIS takes them as stored)",
        |c| json!(c.exif_orientation), |c, v| { c.exif_orientation = Some(flag(v)?); Ok(()) })
        .flag("exif-orientation", FlagKind::Switch, "", "Turn pictures upright as their EXIF orientation says; kept in the model, so that every command does so with it. LAVIS takes pictures as they are stored"),
    setting("missing_share", "", "share of the pictures that may be missing",
        |c| json!(c.missing_share), |c, v| { c.missing_share = share(v)?; Ok(()) }),
    setting("bad_share", "", "share of the captions whose pictures may turn out unusable while training",
        |c| json!(c.bad_share), |c, v| { c.bad_share = share(v)?; Ok(()) }),
    setting("workers", "run.num_workers", "threads that load pictures (as many as there are cores)",
        |c| json!(c.workers), |c, v| { c.workers = Some(count(v, 0)?.max(1)); Ok(()) }),
    setting("prefetch", "", "micro-batches prefetched",
        |c| json!(c.prefetch), |c, v| { c.prefetch = count(v, 1)?; Ok(()) }),
    setting("save_every", "", "steps between checkpoints; 0: by time only",
        |c| json!(c.save_every), |c, v| { c.save_every = whole(v, 0)?; Ok(()) }),
    setting("save_minutes", "", "minutes between checkpoints; 0: by steps only",
        |c| json!(c.save_minutes), |c, v| { c.save_minutes = rate(v)?; Ok(()) }),
    setting("keep_last", "", "newest checkpoints to keep",
        |c| json!(c.keep_last), |c, v| { c.keep_last = count(v, 1)?; Ok(()) }),
    setting("keep_best", "", "best checkpoints to keep, by the loss on the validation data",
        |c| json!(c.keep_best), |c, v| { c.keep_best = count(v, 0)?; Ok(()) }),
    setting("eval_every", "", "steps between evaluations on the validation data; 0: at the end of each epoch",
        |c| json!(c.eval_every), |c, v| { c.eval_every = whole(v, 0)?; Ok(()) }),
    setting("eval_pictures", "", "pictures of the validation data to evaluate on, at most",
        |c| json!(c.eval_pictures), |c, v| { c.eval_pictures = count(v, 2)?; Ok(()) }),
];

/// The data set that `images` and `captions` speak of; it takes the place of all others.
fn only(c: &mut Config) -> &mut DataSource {
    if single(c).is_none() {
        c.data = vec![DataSource::new(SINGLE, "images and captions")];
    }
    &mut c.data[0]
}

pub(super) fn single(c: &Config) -> Option<&DataSource> {
    c.data.first().filter(|d| c.data.len() == 1 && d.name == SINGLE)
}

const SINGLE: &str = "data";
