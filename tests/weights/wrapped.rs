//! Names of tensors that were saved from a wrapped model, or from one of which a part was wrapped, give the same numbers.

use super::craft;
use qformer::weights::start::{Plan, Want};
use qformer::weights::{Set, Weights};

/// Parameters of one number each.
const NAMES: [&str; 4] = [
    "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.bert.encoder.layer.0.attention.self.query.weight",
    "vision_proj.weight",
    "temp",
];

/// A file of these names, whose numbers are 1, 2, 3, ...
fn set(names: &[String]) -> Set {
    let entry = |(i, name): (usize, &String)| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
    };
    let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
    let mut bytes = craft::safetensors(&format!("{{{}}}", entries.join(",")), 0);
    bytes.extend((1..=names.len()).flat_map(|i| (i as f32).to_le_bytes()));
    Set::of(vec![Weights::from_bytes("x.safetensors", bytes).unwrap()]).unwrap()
}

fn plan(sets: Vec<Set>, partial: bool) -> qformer::Result<Plan> {
    let want = |name: &&str| Want { name: name.to_string(), shape: vec![1] };
    Plan::new(sets, NAMES.iter().map(want).collect(), partial)
}

fn numbers(plan: &Plan) -> Vec<f32> {
    (0..NAMES.len()).map(|i| plan.f32(i, |_| vec![-1.0]).unwrap()[0]).collect()
}

fn named(change: impl Fn(&str) -> String) -> Vec<String> {
    NAMES.iter().map(|name| change(name)).collect()
}

#[test]
fn wrapped_models_give_their_numbers() {
    let inside = |wrapper: &str, name: &str| name.replace("Qformer.", &format!("Qformer.{wrapper}."));
    let deep = |name: &str| name.replace("layer.0.", "layer.0._checkpoint_wrapped_module.");
    let forms: [(&str, Vec<String>); 10] = [
        ("plain", named(str::to_string)),
        ("module", named(|n| format!("module.{n}"))),
        ("_orig_mod", named(|n| format!("_orig_mod.{n}"))),
        ("model", named(|n| format!("model.{n}"))),
        ("module._orig_mod", named(|n| format!("module._orig_mod.{n}"))),
        ("model.model.module", named(|n| format!("model.model.module.{n}"))),
        ("inside, _orig_mod", named(|n| inside("_orig_mod", n))),
        ("inside, module.module", named(|n| inside("module.module", n))),
        ("both", named(|n| format!("module.{}", inside("_orig_mod", n)))),
        ("a layer", named(deep)),
    ];
    for (what, names) in forms {
        let plan = plan(vec![set(&names)], false).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(numbers(&plan), [1.0, 2.0, 3.0, 4.0], "{what}");
        assert!(plan.report.extra.is_empty() && plan.report.missing.is_empty(), "{what}");
        let noted = plan.report.notes.iter().any(|n| n.contains("taken off"));
        assert_eq!(noted, what != "plain", "{what}: {:?}", plan.report.notes);
    }
}

#[test]
fn a_name_that_is_there_twice_is_not_chosen_between() {
    let mut names = named(str::to_string);
    names.push("module.temp".into());
    let message = plan(vec![set(&names)], true).map(|_| ()).unwrap_err();
    assert_eq!(message.exit_code(), 3);
    assert!(message.to_string().contains("temp and module.temp"), "{message}");
}

/// What a checkpoint lacks is not filled from a BERT in silence, nor started anew because a BERT is there.
#[test]
fn a_checkpoint_with_gaps_is_refused_beside_a_bert() {
    let bert = || {
        set(&["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"]
            .map(String::from))
    };
    let odd = |n: &str| if n == "temp" { n.to_string() } else { format!("strange_wrapper.{n}") };
    // without its Qformer's names; without its heads' names
    for (names, missing) in
        [(named(odd), NAMES[2]), (NAMES[1..].iter().map(|n| n.to_string()).collect(), NAMES[0])]
    {
        let refused = plan(vec![set(&names), bert()], false).map(|_| ()).unwrap_err();
        let message = refused.to_string();
        assert!(message.contains(missing) && message.contains("--partial"), "{message}");
    }
    let partial = plan(vec![set(&named(str::to_string)[1..]), bert()], true).unwrap();
    assert_eq!(partial.report.lacking, [NAMES[0]]);
    assert_eq!(numbers(&partial), [1.0, 1.0, 2.0, 3.0], "the first is BERT's");
    // A BERT alone starts a training: heads are fresh by design.
    let start = plan(vec![bert()], false).unwrap();
    assert_eq!(start.report.fresh, [NAMES[2], NAMES[3]]);
    // and an image encoder beside it is no checkpoint
    let vit = || set(&["visual_encoder.cls_token".to_string()]);
    assert_eq!(plan(vec![vit(), bert()], false).unwrap().report.fresh.len(), 2);
}
