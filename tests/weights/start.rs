//! Where training starts: LAVIS's rules, checked against PyTorch's tensors of the same files.

use super::shared::{self, Tensor};
use qformer::weights::names::{self, Meaning, Naming};
use qformer::weights::start::{Plan, Want};
use qformer::weights::{Set, interpolate};
use std::path::Path;

fn f32s(t: &Tensor) -> Vec<f32> {
    match t.dtype.as_str() {
        "F32" => t.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        "F16" => t
            .bytes
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32())
            .collect(),
        other => panic!("{other}"),
    }
}

fn find<'a>(tensors: &'a [Tensor], name: &str) -> &'a Tensor {
    tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name}"))
}

/// The tiny model's parameters: those of the LAVIS checkpoint and of the image encoder's first three blocks.
fn wants(dir: &Path, tokens: usize) -> Vec<Want> {
    let lavis = shared::expected(&dir.join("lavis_checkpoint.expected.safetensors"));
    let eva = shared::expected(&dir.join("eva_vit_tiny.expected.safetensors"));
    let unused = ["decoder.", "position_ids"];
    let trained = lavis.into_iter().filter(|t| !unused.iter().any(|u| t.name.contains(u)));
    let skipped = ["blocks.3.", "norm.", "head."];
    let vit = eva.into_iter().filter(|t| !skipped.iter().any(|s| t.name.starts_with(s)));
    let vit = vit.map(|t| Tensor { name: format!("visual_encoder.{}", t.name), ..t });
    let shape =
        |t: &Tensor| if t.name.ends_with("pos_embed") { vec![1, tokens, 48] } else { t.shape.clone() };
    trained.chain(vit).map(|t| Want { shape: shape(&t), name: t.name }).collect()
}

fn open(paths: &[&Path]) -> Vec<Set> {
    paths.iter().map(|p| Set::open(p).unwrap()).collect()
}

#[test]
fn eva_and_bert_start_as_lavis_starts() {
    let Some(dir) = shared::file("weights") else { return };
    let sets = open(&[&dir.join("bert-tiny"), &dir.join("eva_vit_tiny.pth")]);
    let plan = Plan::new(sets, wants(&dir, 65), false).unwrap();
    let (bert, eva) = ("bert-tiny.expected.safetensors", "eva_vit_tiny.expected.safetensors");
    let (bert, eva) = (shared::expected(&dir.join(bert)), shared::expected(&dir.join(eva)));
    let resized = shared::expected(&dir.join("eva_vit_tiny.pos_embed_56.expected.safetensors"));
    let fresh = |range: std::ops::Range<usize>| range.map(|i| i as f32 + 0.25).collect::<Vec<f32>>();
    for (i, want) in plan.wants().iter().enumerate() {
        let found = plan.f32(i, fresh).unwrap();
        let n: usize = want.shape.iter().product();
        assert_eq!(found.len(), n, "{}", want.name);
        let text = want.name.replace("intermediate_query", "intermediate").replace("output_query", "output");
        let from_bert = text.strip_prefix("Qformer.").and_then(|t| bert.iter().find(|b| b.name == t));
        let expected = match (from_bert, want.name.strip_prefix("visual_encoder.")) {
            (_, Some("pos_embed")) => {
                let expected = f32s(&resized[0]);
                let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-6, "interpolation differs by {worst}");
                continue;
            }
            (_, Some(name)) => f32s(find(&eva, name)),
            (Some(t), _) => {
                let mut values = f32s(t);
                values.extend(fresh(values.len()..n)); // [DEC]
                values
            }
            _ => fresh(0..n),
        };
        assert_eq!(found, expected, "{}", want.name);
    }
    let r = &plan.report;
    assert_eq!(r.adapted.len(), 3, "{:?}", r.adapted); // word embeddings, bias of the head, pos_embed
    assert_eq!(r.copied.len(), 4 * 8 - 8, "{:?}", r.copied); // a query feed-forward has six parameters, four layers
    assert_eq!(r.fresh.len(), 2 * 10 + 2 + 2 + 2 * 2 + 2, "{:?}", r.fresh);
    assert_eq!(r.extra.len(), 13, "the fourth block of the image encoder: {:?}", r.extra);
    assert!(r.missing.is_empty() && r.misshapen.is_empty());
    assert!(r.unused.contains(&"bert.pooler.dense.weight".to_string()));
}

#[test]
fn a_checkpoint_comes_before_a_bert() {
    let Some(dir) = shared::file("weights") else { return };
    let paths = [&*dir.join("lavis_checkpoint.pth"), &dir.join("bert-tiny"), &dir.join("eva_vit_tiny.pth")];
    let plan = Plan::new(open(&paths), wants(&dir, 17), false).unwrap();
    let lavis = shared::expected(&dir.join("lavis_checkpoint.expected.safetensors"));
    for (i, want) in plan.wants().iter().enumerate() {
        if !want.name.starts_with("visual_encoder.") {
            let found = plan.f32(i, |_| panic!("{} is in the checkpoint", want.name)).unwrap();
            assert_eq!(found, f32s(find(&lavis, &want.name)), "{}", want.name);
        }
    }
}

#[test]
fn gaps_are_errors_unless_partial() {
    let Some(dir) = shared::file("weights") else { return };
    let refused = |paths: &[&Path], tokens| {
        Plan::new(open(paths), wants(&dir, tokens), false).map(|_| ()).unwrap_err().to_string()
    };
    let message = refused(&[&dir.join("eva_vit_tiny.pth")], 17);
    assert!(message.contains("expected a tensor for Qformer.bert.embeddings"), "{message}");
    assert!(message.contains("--partial") && message.contains("--bert"), "{message}");
    let message = refused(&[&dir.join("bert-tiny"), &dir.join("eva_vit_tiny.pth")], 18);
    assert!(message.contains("visual_encoder.pos_embed of [1, 18, 48], got [1, 17, 48]"), "{message}");
    let plan = Plan::new(open(&[&dir.join("eva_vit_tiny.pth")]), wants(&dir, 17), true).unwrap();
    assert!(plan.report.missing.iter().any(|n| n == "temp"));
}

/// Columns 0, 1, 2, 3 to eight: the first two by hand from the kernel with a = -3/4 (at distances 1/4, 3/4, 5/4, 7/4 it is
/// 0.87890625, 0.26171875, -0.10546875, -0.03515625), the last two by symmetry.
#[test]
fn interpolation_is_the_cubic_kernels() {
    let mut grid = vec![9.0];
    grid.extend((0..16).map(|i| (i % 4) as f32));
    let out = interpolate::pos_embed(&grid, 1, 8).unwrap();
    assert_eq!(out[0], 9.0, "the class token stays");
    for row in out[1..].chunks(8) {
        for (at, expected) in
            [(0, -0.10546875), (1, 0.19140625), (6, 3.0 - 0.19140625), (7, 3.0 + 0.10546875)]
        {
            assert!((row[at] - expected).abs() < 1e-6, "{row:?}");
        }
    }
    assert!(interpolate::pos_embed(&[1.0; 1 + 16], 1, 7).unwrap().iter().all(|x| (x - 1.0).abs() < 1e-6));
    assert_eq!(interpolate::pos_embed(&grid, 1, 4).unwrap(), grid, "the same size is the same numbers");
    assert!(
        interpolate::pos_embed(&[0.0; 4], 1, 2).is_none()
            && interpolate::pos_embed(&[0.0; 5], 2, 2).is_none()
    );
}

/// Names of transformers' Blip2ForConditionalGeneration and Blip2ForImageTextRetrieval.
#[test]
fn hugging_face_names_go_both_ways() {
    for (lavis, hf) in [
        ("query_tokens", "query_tokens"),
        ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
        ("visual_encoder.patch_embed.proj.bias", "vision_model.embeddings.patch_embedding.bias"),
        ("visual_encoder.blocks.38.norm1.weight", "vision_model.encoder.layers.38.layer_norm1.weight"),
        ("visual_encoder.blocks.3.norm2.bias", "vision_model.encoder.layers.3.layer_norm2.bias"),
        ("visual_encoder.blocks.0.attn.qkv.weight", "vision_model.encoder.layers.0.self_attn.qkv.weight"),
        (
            "visual_encoder.blocks.0.attn.proj.weight",
            "vision_model.encoder.layers.0.self_attn.projection.weight",
        ),
        ("visual_encoder.blocks.0.mlp.fc2.bias", "vision_model.encoder.layers.0.mlp.fc2.bias"),
        ("ln_vision.weight", "vision_model.post_layernorm.weight"),
        ("Qformer.bert.embeddings.LayerNorm.weight", "qformer.layernorm.weight"),
        ("Qformer.bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
        ("Qformer.bert.embeddings.position_embeddings.weight", "embeddings.position_embeddings.weight"),
        (
            "Qformer.bert.encoder.layer.0.attention.self.query.weight",
            "qformer.encoder.layer.0.attention.attention.query.weight",
        ),
        (
            "Qformer.bert.encoder.layer.2.crossattention.self.key.bias",
            "qformer.encoder.layer.2.crossattention.attention.key.bias",
        ),
        (
            "Qformer.bert.encoder.layer.0.attention.output.dense.weight",
            "qformer.encoder.layer.0.attention.output.dense.weight",
        ),
        (
            "Qformer.bert.encoder.layer.0.crossattention.output.LayerNorm.bias",
            "qformer.encoder.layer.0.crossattention.output.LayerNorm.bias",
        ),
        (
            "Qformer.bert.encoder.layer.11.intermediate_query.dense.weight",
            "qformer.encoder.layer.11.intermediate_query.dense.weight",
        ),
        (
            "Qformer.bert.encoder.layer.11.output_query.LayerNorm.weight",
            "qformer.encoder.layer.11.output_query.LayerNorm.weight",
        ),
        ("vision_proj.weight", "vision_projection.weight"),
        ("text_proj.bias", "text_projection.bias"),
        ("itm_head.weight", "itm_head.weight"),
    ] {
        assert_eq!(names::to_hugging_face(lavis).as_deref(), Some(hf));
        assert_eq!(names::meaning(Naming::HuggingFace, hf), Meaning::Parameter(lavis.into()), "{hf}");
    }
    let block = "visual_encoder.blocks.5.attn";
    let joined = "vision_model.encoder.layers.5.self_attn.qkv.bias";
    let (q, v) = (format!("{block}.q_bias"), format!("{block}.v_bias"));
    assert_eq!(names::hugging_face_qkv_bias(&q), Some((v.clone(), joined.into())));
    assert_eq!(names::meaning(Naming::HuggingFace, joined), Meaning::QkvBias(q, v));
    for name in ["temp", "Qformer.cls.predictions.bias", "Qformer.cls.predictions.transform.dense.weight"] {
        assert_eq!(names::to_hugging_face(name), None);
    }
    let name = "language_model.model.decoder.embed_tokens.weight";
    assert!(matches!(names::meaning(Naming::HuggingFace, name), Meaning::Unused(_)), "{name}");
    let name = "language_projection.weight";
    assert_eq!(names::meaning(Naming::HuggingFace, name), Meaning::Parameter(name.into()));
}
