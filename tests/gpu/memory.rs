//! A GPU's memory: asked for once, and one error where there is too little.

use super::options;
use qformer::model::{CLS, Config, Image, Model, SEP};
use qformer::nn::{Params, Precision};
use qformer::tensor::{DType, Device, Gpu, Stream, Tensor};
use qformer::train::config::{self, Length, yaml};
use qformer::train::rehearsal::Run;
use qformer::train::trainer::{Contrast, Micro, Trainer};

const LONGEST: usize = 32;

fn plan(name: &str) -> (Device, Gpu) {
    let device = Device::open(name).unwrap();
    let Device::Gpu(gpu) = &device else { panic!("a CPU") };
    let gpu = gpu.clone();
    (device, gpu)
}

/// A micro-batch whose captions have these lengths.
fn micro(config: &Config, lengths: &[usize]) -> Micro {
    let s = config.image_size;
    let caption = |n: &usize| {
        std::iter::once(CLS).chain((2..*n).map(|i| 5 + i as u32)).chain([SEP]).collect::<Vec<u32>>()
    };
    Micro {
        image: Image::Pixels(Tensor::zeros(DType::F32, &[lengths.len(), 3, s, s])),
        text: lengths.iter().map(caption).collect(),
        image_id: None,
        names: (0..lengths.len()).map(|i| i.to_string()).collect(),
    }
}

fn trainer(config: &Config, device: &Device) -> Trainer {
    let (model, specs) = Model::new(config.clone(), false).unwrap();
    let params = Params::zeros(specs, device, Precision::BF16).unwrap();
    Trainer::new(model, params, options(Contrast::MicroBatch)).unwrap()
}

/// Lengths of the captions of a step: the first step's are the shortest, later ones' anything up to the longest.
fn lengths(step: u64, batch: usize) -> Vec<usize> {
    let draw = |i: usize| {
        let u = Stream { seed: 5, step: step as u32, site: 0 }.uniform(i as u64);
        if step == 0 { 3 } else { 3 + (u * (LONGEST - 2) as f64) as usize }
    };
    (0..batch).map(draw).collect()
}

/// With the memory of a rehearsed step of the longest captions, no step asks for more; without, the first steps do.
#[test]
fn no_step_asks_for_memory() {
    let sizes = Config::named("full").unwrap();
    for batch in [8, 24] {
        let text = [format!("batch={batch}"), "start=x".into()];
        let entries: Vec<_> = text.iter().map(|e| yaml::assignment(e).unwrap()).collect();
        let settings = config::Config::from_entries(&entries).unwrap();
        let length = Length { steps: 100, whole: 100, steps_per_epoch: 100, max_epoch: 1, warmup_steps: 10 };
        let run = Run {
            llm: None,
            config: &settings,
            sizes: &sizes,
            length,
            precision: Precision::BF16,
            text: LONGEST,
        };
        let held = run.rehearse(None, false).unwrap().held;
        assert!(held[0][1] > 2 << 30 && held[1][1] > 100 << 20, "{held:?}");
        for reserved in [true, false] {
            let (device, gpu) = plan("plan");
            assert!(!reserved || gpu.reserve(held[0]).unwrap());
            let mut t = trainer(&sizes, &device);
            assert!(!reserved || t.open_ahead(held[1]).unwrap());
            gpu.take_counts();
            let mut asked = Vec::new();
            for step in 0..12 {
                let [now, next] = [step, step + 1].map(|step| [micro(&sizes, &lengths(step, batch))]);
                t.step_ahead(&now, &next).unwrap();
                asked.push(gpu.take_counts().allocations);
            }
            if reserved {
                assert_eq!(asked, [0; 12], "batch {batch}");
                assert_eq!([gpu.held(), t.held_ahead()], held);
            } else {
                assert!(asked[1..].iter().sum::<u64>() > 0, "batch {batch}: nothing to show");
            }
        }
    }
    let (_, small) = plan("plan:1");
    assert!(!small.reserve([0, 2 << 30]).unwrap(), "more than there is");
}

/// A GPU that is too small: who holds what, and how much of the batch fitted.
#[test]
fn too_little_memory_is_one_error() {
    let (device, _) = plan("plan:5");
    let config = Config::named("full").unwrap();
    let error = trainer(&config, &device).step(&[micro(&config, &[5; 16])]).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    let text = error.to_string();
    assert!(text.contains("memory of a plan") && text.contains("the largest holders: weights"), "{text}");
    assert!(text.contains("batch"), "{text}");
}
