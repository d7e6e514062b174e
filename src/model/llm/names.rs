//! What each family calls its tensors, as transformers saves them.

use super::config::Family;

pub struct Names {
    pub embed: &'static str,
    pub places: Option<&'static str>,
    pub project: [&'static str; 2],
    pub layers: &'static str,
    pub norms: [&'static str; 2],
    /// One name where q, k and v are one matrix, whose rows are a head's q, its k, its v, then the next head's.
    pub qkv: &'static [&'static str],
    pub head_norms: [&'static str; 2],
    pub out: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    /// What a file may lack at the front of every name.
    pub front: &'static str,
}

const OPT: Names = Names {
    embed: "model.decoder.embed_tokens",
    places: Some("model.decoder.embed_positions"),
    project: ["model.decoder.project_in", "model.decoder.project_out"],
    layers: "model.decoder.layers",
    norms: ["self_attn_layer_norm", "final_layer_norm"],
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    head_norms: ["", ""],
    out: "self_attn.out_proj",
    gate: "",
    up: "fc1",
    down: "fc2",
    norm: "model.decoder.final_layer_norm",
    head: "lm_head",
    front: "model.",
};

const GPT_NEOX: Names = Names {
    embed: "gpt_neox.embed_in",
    places: None,
    layers: "gpt_neox.layers",
    norms: ["input_layernorm", "post_attention_layernorm"],
    qkv: &["attention.query_key_value"],
    out: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    front: "gpt_neox.",
    ..OPT
};

const LLAMA: Names = Names {
    embed: "model.embed_tokens",
    places: None,
    layers: "model.layers",
    norms: ["input_layernorm", "post_attention_layernorm"],
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    out: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    norm: "model.norm",
    ..OPT
};

impl Family {
    pub fn names(self) -> &'static Names {
        match self {
            Family::Opt => &OPT,
            Family::GptNeox => &GPT_NEOX,
            Family::Llama | Family::Qwen2 | Family::Qwen3 => &LLAMA,
        }
    }
}
