//! LAVIS's settings that are none of ours: what they ask for, or that they mean nothing here.

use super::Config;
use super::values::{Read, choice, flag, text, whole};
use serde_json::Value;

/// How a key's value is taken into the configuration.
pub(super) type Take = fn(&mut Config, &Value) -> Read<()>;

/// LAVIS settings that ask for something (`Err` says what is possible here) or mean nothing here (a note).
#[rustfmt::skip]
pub(super) const LAVIS: &[(&str, Take)] = &[
    ("model.arch", |_, v| choice(v, &[("blip2", ()), ("blip2_qformer", ()), ("blip2_Japanese", ()), ("pretrain", ()), ("finetune", ()), ("coco", ()), ("blip2_opt", ()), ("blip2_vicuna_instruct", ())])
        .map_err(|names| format!("{names} (others train another network)"))),
    ("model.opt_model", |c, v| { c.llm_named = Some(text(v)?); Ok(()) }),
    ("model.llm_model", |c, v| { c.llm_named = Some(text(v)?); Ok(()) }),
    ("model.model_type", |c, v| { let published = [("pretrain_opt2.7b", "facebook/opt-2.7b"), ("pretrain_opt6.7b", "facebook/opt-6.7b"), ("caption_coco_opt2.7b", "facebook/opt-2.7b"), ("caption_coco_opt6.7b", "facebook/opt-6.7b")];
        match published.iter().find(|(name, _)| v.as_str() == Some(name)) {
            Some((_, model)) => { c.llm_named.get_or_insert_with(|| (*model).to_owned()); Ok(()) }
            None => choice(v, &[("pretrain", ()), ("finetune", ()), ("coco", ())]),
        } }),
    ("model.load_pretrained", |c, v| { c.weights.load_pretrained = Some(flag(v)?); Ok(()) }),
    ("model.load_finetuned", |c, v| { c.weights.load_finetuned = Some(flag(v)?); Ok(()) }),
    ("model.pretrained", |c, v| { c.weights.pretrained = weights(v)?; Ok(()) }),
    ("model.finetuned", |c, v| { c.weights.finetuned = weights(v)?; Ok(()) }),
    ("model.freeze_vit", |c, v| { c.train_vit = Some(!flag(v)?); Ok(()) }),
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

/// What LAVIS would begin with: a file it loads, unless its flags say otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LavisWeights {
    pub load_pretrained: Option<bool>,
    pub load_finetuned: Option<bool>,
    pub pretrained: Option<String>,
    pub finetuned: Option<String>,
}

impl LavisWeights {
    /// The file, or what stands for LAVIS's own, if weights are to be loaded. Without flags a file that is named is meant.
    pub fn wanted(&self) -> Option<&str> {
        let own = "the published weights of LAVIS";
        let finetuned = self.finetuned.as_deref();
        let pretrained = self.pretrained.as_deref();
        match (self.load_finetuned, self.load_pretrained) {
            (Some(true), _) => Some(finetuned.unwrap_or(own)),
            (_, Some(true)) => Some(pretrained.unwrap_or(own)),
            (Some(false), Some(false)) => None,
            (None, Some(false)) => finetuned,
            (Some(false), None) => pretrained,
            (None, None) => finetuned.or(pretrained),
        }
    }
}
