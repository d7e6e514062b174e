//! Whose names a file uses, and what they are here. Parameters of this crate have their LAVIS names.
//!
//! | naming | example | here |
//! |---|---|---|
//! | LAVIS | `Qformer.cls.predictions.decoder.weight` | tied: must equal `…word_embeddings.weight` |
//! | Hugging Face BERT | `bert.embeddings.LayerNorm.gamma` | `Qformer.bert.embeddings.LayerNorm.weight` |
//! | EVA | `blocks.0.attn.qkv.weight` | `visual_encoder.blocks.0.attn.qkv.weight` |
//! | Hugging Face BLIP-2 | `qformer.encoder.layer.0.attention.attention.query.weight` | `Qformer.bert.….attention.self.query.weight` |
//!
//! What wrapped a model when it was saved (`module.`, `_orig_mod.`, ...) is no part of its names: `wrappers.rs`.

use super::Set;
use super::wrappers::unwrapped;
use crate::{Error, Result};

/// Whose names a file's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// LAVIS's, and this crate's.
    Lavis,
    /// A BERT's.
    Bert,
    /// EVA's image encoder's.
    Eva,
    /// The transformers library's.
    HuggingFace,
}

impl Naming {
    /// How it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Naming::Lavis => "LAVIS",
            Naming::Bert => "Hugging Face BERT",
            Naming::Eva => "EVA image encoder",
            Naming::HuggingFace => "Hugging Face BLIP-2",
        }
    }

    /// By names that only this naming has; None for others.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Naming> {
        let mut found = None;
        for name in names {
            let here = match &*unwrapped(name) {
                n if n.starts_with("Qformer.") || n.starts_with("visual_encoder.") => Naming::Lavis,
                "ln_vision.weight" | "temp" => Naming::Lavis,
                n if n.starts_with("qformer.") || n.starts_with("vision_model.") => Naming::HuggingFace,
                n if n.starts_with("bert.") || n.starts_with("cls.predictions.") => Naming::Bert,
                n if n.starts_with("embeddings.word_embeddings.") => Naming::Bert,
                "cls_token" | "patch_embed.proj.weight" => Naming::Eva,
                _ => continue,
            };
            // HF retrieval models have `embeddings.word_embeddings.weight` beside `qformer.*`.
            found = match (found, here) {
                (Some(Naming::HuggingFace), Naming::Bert) => found,
                (Some(Naming::Lavis), _) => found,
                _ => Some(here),
            };
        }
        found
    }

    /// The naming of open files; an error if they are no part of such a model.
    pub fn of_set(set: &Set) -> Result<Naming> {
        Naming::of(set.tensors().map(|t| t.name.as_str())).ok_or_else(|| {
            let path = set.files().first().map(|f| f.path().to_path_buf()).unwrap_or_default();
            let first = set.tensors().next().map(|t| t.name.clone()).unwrap_or_default();
            Error::file("read weights", path, "names of LAVIS, EVA, BERT or Hugging Face's BLIP-2", first)
                .fix("`qformer inspect` lists what is in the file")
        })
    }
}

/// What a tensor of a file is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// This parameter.
    Parameter(String),
    /// Tied to this parameter: the same numbers under a second name.
    Twin(String),
    /// The biases of queries, keys (zero) and values of a block in one: the parameters of queries and values.
    QkvBias(String, String),
    /// Known, and not part of this model: why.
    Unused(&'static str),
    /// Nobody's that is known.
    Unknown,
}

pub(super) const WORDS: &str = "Qformer.bert.embeddings.word_embeddings.weight";
pub(super) const HEAD_BIAS: &str = "Qformer.cls.predictions.bias";
/// Names of LAVIS that mean another parameter: the head is tied to the word embeddings.
pub const TWINS: [(&str, &str); 2] =
    [("Qformer.cls.predictions.decoder.weight", WORDS), ("Qformer.cls.predictions.decoder.bias", HEAD_BIAS)];
/// A buffer (0, 1, 2, ...) that LAVIS saves with the parameters.
pub const POSITION_IDS: &str = "Qformer.bert.embeddings.position_ids";

/// The key of a file's metadata under which a trained model names the image encoder it belongs to
/// ([`super::start::Plan::vit_hash`]).
pub const VIT_HASH: &str = "vit_blake3";

/// What a name of a file means here.
pub fn meaning(naming: Naming, name: &str) -> Meaning {
    let name = &*unwrapped(name);
    match naming {
        Naming::Lavis => lavis(name.to_string()),
        Naming::Bert => bert(name),
        Naming::Eva => lavis(format!("visual_encoder.{name}")),
        Naming::HuggingFace => hugging_face(name),
    }
}

fn lavis(name: String) -> Meaning {
    let stage2 = ["t5_model.", "t5_proj.", "opt_model.", "llm_model."];
    let unused_heads = ["visual_encoder.norm.", "visual_encoder.fc_norm.", "visual_encoder.head."];
    if let Some((_, twin)) = TWINS.iter().find(|(twin, _)| *twin == name) {
        return Meaning::Twin((*twin).to_string());
    }
    match name.as_str() {
        n if n.ends_with("position_ids") => Meaning::Unused("a table of positions, made anew"),
        n if n.starts_with("Qformer.bert.pooler.") => Meaning::Unused("BERT's pooler"),
        n if n.contains("token_type_embeddings.") => Meaning::Unused("BERT's token types"),
        n if n.starts_with("Qformer.cls.seq_relationship.") => Meaning::Unused("BERT's next-sentence head"),
        n if stage2.iter().any(|p| n.starts_with(p)) => Meaning::Unused("the language model of stage 2"),
        n if unused_heads.iter().any(|p| n.starts_with(p)) => {
            Meaning::Unused("the image encoder's norm and head, behind the layer that is used")
        }
        _ => Meaning::Parameter(name),
    }
}

/// A name without its wrappers, and with the norms' parameters called as they are today.
pub fn plain(name: &str) -> String {
    let name = unwrapped(name);
    match name.rsplit_once('.') {
        Some((norm, "gamma")) if norm.ends_with("LayerNorm") => format!("{norm}.weight"),
        Some((norm, "beta")) if norm.ends_with("LayerNorm") => format!("{norm}.bias"),
        _ => name.into_owned(),
    }
}

fn bert(name: &str) -> Meaning {
    let name = plain(name);
    match name.as_str() {
        n if n.starts_with("bert.") || n.starts_with("cls.") => lavis(format!("Qformer.{n}")),
        n if ["embeddings.", "encoder.", "pooler."].iter().any(|p| n.starts_with(p)) => {
            lavis(format!("Qformer.bert.{n}"))
        }
        _ => Meaning::Unknown,
    }
}

/// Hugging Face's projection of a second stage, LAVIS's `opt_proj` or `llm_proj`.
pub const PROJECTION: &str = "language_projection";

/// Beginnings of names: Hugging Face's and LAVIS's.
const PREFIXES: [(&str, &str); 12] = [
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision_model.encoder.layers.", "visual_encoder.blocks."),
    ("vision_model.post_layernorm.", "ln_vision."),
    ("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
    ("qformer.encoder.layer.", "Qformer.bert.encoder.layer."),
    ("embeddings.", "Qformer.bert.embeddings."),
    ("vision_projection.", "vision_proj."),
    ("text_projection.", "text_proj."),
    ("itm_head.", "itm_head."),
    ("query_tokens", "query_tokens"),
];
/// What differs inside them.
const PARTS: [(&str, &str); 5] = [
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.", ".attn."),
    ("attention.attention.", "attention.self."),
];

fn hugging_face(name: &str) -> Meaning {
    if name.starts_with("language_model.") {
        return Meaning::Unused("the language model of stage 2");
    }
    // Which of LAVIS's names it has depends on the language model.
    if name.starts_with(PROJECTION) {
        return Meaning::Parameter(name.to_string());
    }
    let Some((from, to)) = PREFIXES.iter().find(|(from, _)| name.starts_with(from)) else {
        return Meaning::Unknown;
    };
    let mut out = name.replacen(from, to, 1);
    for (from, to) in PARTS {
        out = out.replacen(from, to, 1);
    }
    match out.strip_suffix(".attn.qkv.bias") {
        Some(block) => Meaning::QkvBias(format!("{block}.attn.q_bias"), format!("{block}.attn.v_bias")),
        None => lavis(out),
    }
}

/// Hugging Face's name of a parameter; None where its BLIP-2 has no such thing (the language-model head, the
/// temperature) or has it in another form (`q_bias` and `v_bias`, see [`hugging_face_qkv_bias`]).
pub fn to_hugging_face(name: &str) -> Option<String> {
    let (to, from) = PREFIXES.iter().find(|(_, from)| name.starts_with(from))?;
    if name.ends_with(".attn.q_bias") || name.ends_with(".attn.v_bias") {
        return None;
    }
    let mut out = name.replacen(from, to, 1);
    for (to, from) in PARTS {
        out = out.replacen(from, to, 1);
    }
    Some(out)
}

/// For the bias of a block's queries: (the values' bias, Hugging Face's name of their union).
pub fn hugging_face_qkv_bias(q_bias: &str) -> Option<(String, String)> {
    let block = q_bias.strip_suffix(".attn.q_bias")?;
    let joined = to_hugging_face(&format!("{block}.attn.qkv.bias"))?;
    Some((format!("{block}.attn.v_bias"), joined))
}
