//! Names of tensors as the model has them, whatever wrapped it, or a part of it, when it was saved.
//!
//! | wrapper | leaves in names |
//! |---|---|
//! | `DistributedDataParallel`, `DataParallel`, DeepSpeed | `module.` |
//! | `torch.compile` | `_orig_mod.` |
//! | FSDP; activation checkpoints; Lightning's strategies | `_fsdp_wrapped_module.`; `_checkpoint_wrapped_module.`; `_forward_module.` |
//! | a Lightning module, a trainer's class | the attribute's name in front: `model.`, `net.`, ... |
//!
//! They occur alone, repeated and mixed, in front of every name or inside those of a part that was wrapped alone.

use std::borrow::Cow;

/// Wrapping modules; no name of a model has such a part.
const ANYWHERE: [&str; 5] =
    ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];
/// Attributes that hold a whole model, only in front.
const IN_FRONT: [&str; 8] =
    ["model", "net", "network", "blip2", "blip", "base_model", "student", "state_dict"];

/// The name without its wrappers.
pub fn unwrapped(name: &str) -> Cow<'_, str> {
    let (taken, kept) = split(name);
    if taken.is_empty() { Cow::Borrowed(name) } else { Cow::Owned(kept.join(".")) }
}

/// The wrappers of a name, from the outermost; empty if there are none.
pub fn wrappers(name: &str) -> String {
    split(name).0.join(".")
}

/// The parts of a name that are wrappers, and the others.
fn split(name: &str) -> (Vec<&str>, Vec<&str>) {
    let parts: Vec<&str> = name.split('.').collect();
    let Some((last, before)) = parts.split_last().filter(|(last, _)| !last.is_empty()) else {
        return (Vec::new(), parts);
    };
    let front = before.iter().take_while(|p| IN_FRONT.contains(p) || ANYWHERE.contains(p)).count();
    let (front, inside) = before.split_at(front);
    let (mut taken, mut kept) = (front.to_vec(), Vec::new());
    for part in inside {
        if ANYWHERE.contains(part) { taken.push(*part) } else { kept.push(*part) }
    }
    kept.push(last);
    (taken, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_off_wherever_they_are() {
        for (name, expected, taken) in [
            (
                "Qformer.bert.encoder.layer.0.output.dense.weight",
                "Qformer.bert.encoder.layer.0.output.dense.weight",
                "",
            ),
            ("module.query_tokens", "query_tokens", "module"),
            ("_orig_mod.module.model.temp", "temp", "_orig_mod.module.model"),
            ("model._orig_mod.model.temp", "temp", "model._orig_mod.model"),
            (
                "Qformer._orig_mod.bert.embeddings.LayerNorm.weight",
                "Qformer.bert.embeddings.LayerNorm.weight",
                "_orig_mod",
            ),
            (
                "Qformer.module.bert._orig_mod.encoder.layer.1._checkpoint_wrapped_module.x",
                "Qformer.bert.encoder.layer.1.x",
                "module._orig_mod._checkpoint_wrapped_module",
            ),
            (
                "module.visual_encoder._fsdp_wrapped_module.cls_token",
                "visual_encoder.cls_token",
                "module._fsdp_wrapped_module",
            ),
            // a language model's own parts stay
            (
                "language_model.model.decoder.layers.0.fc1.weight",
                "language_model.model.decoder.layers.0.fc1.weight",
                "",
            ),
            ("opt_model.model.decoder.x", "opt_model.model.decoder.x", ""),
            ("model", "model", ""),
            ("module.", "module.", ""),
            ("", "", ""),
        ] {
            assert_eq!(unwrapped(name), expected, "{name}");
            assert_eq!(wrappers(name), taken, "{name}");
        }
    }
}
