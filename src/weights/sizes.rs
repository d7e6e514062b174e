//! The sizes of a model as they can be seen in the shapes of its tensors, under their configuration keys. Numbers of heads
//! cannot be seen, and the depth of the image encoder only in files that hold just the blocks that are used.

use super::Set;
use super::names::{self, Meaning, Naming};
use crate::Result;
use std::collections::BTreeMap;

/// (key of the configuration, size), from the first of these sets that shows it.
pub fn visible(sets: &[Set]) -> Result<BTreeMap<&'static str, usize>> {
    let mut sizes = BTreeMap::new();
    for set in sets {
        let naming = Naming::of_set(set)?;
        let mut shapes = BTreeMap::new();
        for t in set.tensors() {
            if let Meaning::Parameter(name) = names::meaning(naming, &t.name) {
                shapes.insert(name, t.shape.as_slice());
            }
        }
        for (key, size) in of_shapes(&shapes, naming) {
            sizes.entry(key).or_insert(size);
        }
    }
    Ok(sizes)
}

fn of_shapes(shapes: &BTreeMap<String, &[usize]>, naming: Naming) -> Vec<(&'static str, usize)> {
    let axis = |name: &str, axis: usize| shapes.get(name)?.get(axis).copied();
    let layer = |rest: &str| format!("Qformer.bert.encoder.layer.0.{rest}");
    let block = |rest: &str| format!("visual_encoder.blocks.0.{rest}");
    let patch = axis("visual_encoder.patch_embed.proj.weight", 2);
    let tokens = axis("visual_encoder.pos_embed", 1);
    let side = tokens.and_then(|n| Some(n.checked_sub(1)?.isqrt()));
    let grown = usize::from(naming == Naming::Bert); // by [DEC]
    let layers = count(shapes, "Qformer.bert.encoder.layer.", "");
    let crossed = count(shapes, "Qformer.bert.encoder.layer.", "crossattention.self.key.weight");
    let depth = if naming == Naming::Eva { None } else { count(shapes, "visual_encoder.blocks.", "") };
    let word = "Qformer.bert.embeddings.word_embeddings.weight";
    let found = [
        ("image_size", side.zip(patch).map(|(s, p)| s.saturating_mul(p))),
        ("patch_size", patch),
        ("vit_width", axis("ln_vision.weight", 0).or(axis("visual_encoder.cls_token", 2))),
        ("vit_depth", depth),
        ("vit_mlp", axis(&block("mlp.fc1.weight"), 0)),
        ("hidden", axis(word, 1).or(axis("query_tokens", 2))),
        ("layers", layers),
        ("ffn", axis(&layer("intermediate.dense.weight"), 0)),
        ("num_query", axis("query_tokens", 1)),
        // layers 0, f, 2f, ... are crossed: ceil(layers / f) of them
        ("cross_freq", layers.zip(crossed).and_then(|(n, c)| (1..=n).find(|f| n.div_ceil(*f) == c))),
        ("vocab", axis(word, 0).map(|n| n + grown)),
        ("embed_dim", axis("vision_proj.weight", 0)),
        ("max_pos", axis("Qformer.bert.embeddings.position_embeddings.weight", 0)),
    ];
    found.into_iter().filter_map(|(key, size)| Some((key, size?))).collect()
}

/// How many numbers N there are in names `prefix` N `.` suffix; None without any.
fn count(shapes: &BTreeMap<String, &[usize]>, prefix: &str, suffix: &str) -> Option<usize> {
    let number = |name: &String| {
        let (n, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        if suffix.is_empty() || rest == suffix { n.parse::<u32>().ok() } else { None }
    };
    let numbers: std::collections::BTreeSet<u32> = shapes.keys().filter_map(number).collect();
    (!numbers.is_empty()).then_some(numbers.len())
}
