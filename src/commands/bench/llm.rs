//! Language models by name, for measurements without their weights; or by the folder that holds one.

use crate::files;
use crate::model::llm::LlmConfig;
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

/// The sizes of published models, as their config.json have them.
pub fn named(name: &str) -> Result<LlmConfig> {
    let llama = |hidden: u32, layers: u32, heads: u32, keys: u32, ffn: u32, vocab: u32| {
        json!({ "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_key_value_heads": keys, "intermediate_size": ffn, "vocab_size": vocab, "max_position_embeddings": 4096 })
    };
    let config = match name {
        "opt-2.7b" => {
            json!({ "model_type": "opt", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
                              "ffn_dim": 10240, "vocab_size": 50272, "max_position_embeddings": 2048 })
        }
        "rinna-3.6b" => json!({ "model_type": "gpt_neox", "hidden_size": 2816, "num_hidden_layers": 36,
                                "num_attention_heads": 22, "intermediate_size": 11264, "vocab_size": 32000,
                                "rotary_pct": 1.0, "use_parallel_residual": false, "max_position_embeddings": 2048 }),
        "llm-jp-3-1.8b" => llama(2048, 24, 16, 16, 7168, 99584),
        "tinyswallow-1.5b" => {
            let mut config = llama(1536, 28, 12, 2, 8960, 151_936);
            config["model_type"] = "qwen2".into();
            config["tie_word_embeddings"] = true.into();
            config
        }
        "sarashina2.2-1b" => llama(1792, 24, 16, 8, 6272, 102_400),
        // 150 million numbers, which two cores can train beside.
        "llama-150m" => llama(768, 12, 12, 4, 2048, 32000),
        folder if Path::new(folder).is_dir() => {
            let path = Path::new(folder).join("config.json");
            let text = files::read_regular(&path, 1 << 20, "bench")?;
            return LlmConfig::from_json(&String::from_utf8_lossy(&text)).map_err(|e| e.in_file(&path));
        }
        other => {
            let want = "opt-2.7b, rinna-3.6b, llm-jp-3-1.8b, tinyswallow-1.5b, sarashina2.2-1b, llama-150m or a folder";
            return Err(Error::argument("bench", "--llm", want, other));
        }
    };
    LlmConfig::from_json(&config.to_string())
}
