//! Training: its options, and a step whose numbers are not finite

use crate::tiny::{self, error};
use qformer::Kind;
use qformer::model::{Image, Profile};
use qformer::tensor::{DType, Gradients};
use qformer::train::optimizer::{AdamW, Hyper};
use qformer::train::schedule::Schedule;
use qformer::train::trainer::{Contrast, LossScale, Micro, Options, Trainer};

fn options() -> Options {
    let schedule = Schedule { init_lr: 1e-3, min_lr: 0.0, warmup_lr: 0.0, warmup_steps: 0, max_epoch: 1 };
    Options {
        seed: 1,
        dropout: 0.0,
        profile: Profile::LavisDiagonal,
        contrast: Contrast::MicroBatch,
        steps_per_epoch: 10,
        schedule,
        hyper: Hyper::default(),
    }
}

#[test]
fn training_options() {
    let said = |change: fn(&mut Options)| {
        let (model, params) = tiny::model(tiny::config(), false, DType::F32);
        let mut options = options();
        change(&mut options);
        error(Trainer::new(model, params, options))
    };
    let at_least_0 = "expected a finite number, at least 0";
    assert_eq!(said(|_| {}), "no error");
    assert_eq!(said(|o| o.schedule.init_lr = f64::NAN), format!("train: init_lr: {at_least_0}, got NaN"));
    assert_eq!(said(|o| o.schedule.min_lr = -1.0), format!("train: min_lr: {at_least_0}, got -1"));
    assert_eq!(
        said(|o| o.schedule.warmup_lr = f64::INFINITY),
        format!("train: warmup_lr: {at_least_0}, got inf")
    );
    assert_eq!(said(|o| o.dropout = 1.0), "train: dropout: expected 0 <= p < 1, got 1");
    assert_eq!(said(|o| o.dropout = f32::NAN), "train: dropout: expected 0 <= p < 1, got NaN");
    assert_eq!(said(|o| o.hyper.betas[1] = 1.0), "AdamW: betas: expected 0 <= beta < 1, got 1");
    assert_eq!(said(|o| o.hyper.betas[0] = f64::NAN), "AdamW: betas: expected 0 <= beta < 1, got NaN");
    assert_eq!(said(|o| o.hyper.eps = -1e-8), format!("AdamW: eps: {at_least_0}, got -0.00000001"));
    assert_eq!(
        said(|o| o.hyper.weight_decay = f64::NAN),
        format!("AdamW: weight_decay: {at_least_0}, got NaN")
    );
    let (model, params) = tiny::model(tiny::config(), false, DType::F32);
    let mut trainer = Trainer::new(model, params, options()).unwrap();
    assert_eq!(error(trainer.step(&[])), "train: micro-batches: expected at least one, got none");
    let mut adam = AdamW::new(&trainer.params, Hyper::default()).unwrap();
    let lr = error(adam.step(&mut trainer.params, &mut Gradients::new(), f64::NAN, 1.0));
    assert_eq!(lr, format!("AdamW: learning rate: {at_least_0}, got NaN"));
    // Accumulated contrastive negatives need the features twice, which a trained image encoder would double.
    let (model, params) = tiny::model(tiny::config(), true, DType::F32);
    let contrast = Options { contrast: Contrast::Accumulated, ..options() };
    let mut trainer = Trainer::new(model, params, contrast).unwrap();
    let said = error(trainer.step(&[micro(1), micro(2)]));
    assert_eq!(said, "train: contrastive_over: expected a frozen image encoder, got a trained one");
}

fn micro(seed: u64) -> Micro {
    let config = tiny::config();
    Micro {
        image: Image::Pixels(tiny::pictures(&config, 2, seed, DType::F32)),
        text: tiny::captions(&config, 2, seed),
        image_id: None,
        names: vec![format!("{seed}a.jpg"), format!("{seed}b.jpg")],
    }
}

/// A step that fails says where the first number is that is not finite, and which samples were in the batch; nothing of
/// the trainer's state changes.
fn fails(change: impl Fn(&mut Trainer, &mut [Micro])) -> String {
    let (model, params) = tiny::model(tiny::config(), false, DType::F32);
    let mut trainer = Trainer::new(model, params, options()).unwrap();
    trainer.step(&[micro(1), micro(2)]).unwrap();
    let mut batches = [micro(3), micro(4)];
    change(&mut trainer, &mut batches);
    let weights = |t: &Trainer| -> Vec<u32> {
        t.params
            .iter()
            .flat_map(|(_, _, v)| v.data::<f32>().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            .collect()
    };
    let before = weights(&trainer);
    let error = trainer.step(&batches).unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (Kind::NonFinite, 7));
    assert_eq!((trainer.step, trainer.optimizer.steps), (1, 1));
    assert!(weights(&trainer) == before);
    error.to_string()
}

fn set(trainer: &mut Trainer, name: &str, to: f32) {
    let id = trainer.params.find(name).unwrap();
    trainer.params.get_mut(id).data_mut::<f32>().unwrap().fill(to);
}

#[test]
fn a_number_that_is_not_finite_stops_the_step() {
    let says = |place: &str, what: &str| {
        format!(
            "train: step 2: first number that is not finite: {place}: expected a finite {what}, got one that is not; the \
             batch was 3a.jpg, 3b.jpg, 4a.jpg, 4b.jpg; look at these samples, lower init_lr, or resume from the last \
             checkpoint"
        )
    };
    let name = "Qformer.bert.encoder.layer.1.output.dense.bias";
    assert_eq!(fails(|t, _| set(t, name, f32::NAN)), says(&format!("parameter {name}"), "loss"));
    let nan =
        |_: &mut Trainer, b: &mut [Micro]| b[1].image.tensor_mut().data_mut::<f32>().unwrap()[5] = f32::NAN;
    assert_eq!(fails(nan), says("pictures of micro-batch 1", "loss"));
    // 3e38 is finite; twice is not: the loss is, the place is the first operation that went beyond.
    let large = |t: &mut Trainer, _: &mut [Micro]| set(t, "visual_encoder.cls_token", 3e38);
    assert!(
        fails(large).starts_with("train: step 2: first number that is not finite: result of "),
        "{}",
        fails(large)
    );
    let temp = fails(|t, _| set(t, "temp", 0.0));
    assert!(temp.contains("first number that is not finite: result of divide [2, 2] at element 0"), "{temp}");
    // A finite loss whose gradient overflows.
    let scaled = |t: &mut Trainer, _: &mut [Micro]| t.scale = LossScale { scale: 1e300, ..LossScale::OFF };
    let said = fails(scaled);
    assert_eq!(said, says("gradient of itm_head.bias", "gradient"));
}
