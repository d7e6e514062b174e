//! The same seed gives the same bytes: twice, on any number of threads, and resumed from any step.

mod tiny;

use qformer::model::{Config, Model};
use qformer::nn::Params;
use qformer::tensor::{Buffer, DType, Tensor};
use qformer::train::schedule::Schedule;
use qformer::train::trainer::{Contrast, LossScale, Micro, Options, StepReport, Trainer};
use std::collections::BTreeMap;

/// Large enough that loops and products are cut into pieces for several threads (2^14 elements; 48 * 48 * 256
/// multiplications), small enough for hundreds of steps.
fn wide() -> Config {
    Config {
        hidden: 64,
        ffn: 160,
        vocab: 901,
        num_query: 9,
        heads: 4,
        max_txt_len: 13,
        max_pos: 16,
        ..tiny::config()
    }
}

fn options(contrast: Contrast) -> Options {
    let schedule = Schedule { init_lr: 3e-3, min_lr: 1e-4, warmup_lr: 1e-5, warmup_steps: 20, max_epoch: 10 };
    tiny::options(contrast, schedule)
}

fn trainer(config: &Config, contrast: Contrast) -> Trainer {
    let (model, specs) = Model::new(config.clone(), false).unwrap();
    let params = Params::random(specs, DType::F32, 42).unwrap();
    Trainer::new(model, params, options(contrast)).unwrap()
}

/// The two micro-batches of a step, as a loader would give them.
fn batches(config: &Config, step: u64) -> Vec<Micro> {
    [0, 1].map(|k| tiny::micro(config, 4, 2 * (step % 7) + k)).into()
}

/// Weights and moments as a checkpoint holds them.
type State = BTreeMap<String, Vec<u8>>;

fn state(t: &Trainer) -> State {
    let mut state: State = t
        .params
        .iter()
        .map(|(_, s, v)| (s.name.clone(), bytemuck::cast_slice(v.data::<f32>()).to_vec()))
        .collect();
    for m in &t.optimizer.moments {
        let name = &t.params.specs()[m.id.0].name;
        for (kind, buffer) in [("exp_avg", &m.exp_avg), ("exp_avg_sq", &m.exp_avg_sq)] {
            state.insert(format!("{kind}.{name}"), bytemuck::cast_slice(buffer.slice::<f32>()).to_vec());
        }
    }
    state
}

/// A new trainer from a state and the number of steps done.
fn resume(config: &Config, contrast: Contrast, saved: &State, steps: u64) -> Trainer {
    let (model, specs) = Model::new(config.clone(), false).unwrap();
    let floats = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(&saved[name]) };
    let params = Params::new(specs, |spec| Tensor::new(floats(&spec.name), &spec.shape)).unwrap();
    let mut t = Trainer::new(model, params, options(contrast)).unwrap();
    for m in &mut t.optimizer.moments {
        let name = &t.params.specs()[m.id.0].name;
        m.exp_avg = Buffer::F32(floats(&format!("exp_avg.{name}")));
        m.exp_avg_sq = Buffer::F32(floats(&format!("exp_avg_sq.{name}")));
    }
    (t.optimizer.steps, t.step) = (steps, steps);
    t
}

/// Every number of a report in a form that tells all floats apart.
fn line(r: &StepReport) -> String {
    format!("{r:?}")
}

fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

fn run(config: &Config, contrast: Contrast, threads: usize, steps: u64) -> (State, Vec<String>) {
    on_threads(threads, || {
        let mut t = trainer(config, contrast);
        let lines = (0..steps).map(|step| line(&t.step(&batches(config, step)).unwrap())).collect();
        (state(&t), lines)
    })
}

fn same_on_all_threads(contrast: Contrast, steps: u64, threads: &[usize]) {
    let (weights, log) = run(&wide(), contrast, 1, steps);
    assert_ne!(log.first(), log.last(), "nothing was learned");
    for threads in threads.iter().copied() {
        let (again, lines) = run(&wide(), contrast, threads, steps);
        for (i, (a, b)) in log.iter().zip(&lines).enumerate() {
            assert_eq!(a, b, "the report of step {} on {threads} threads", i + 1);
        }
        for (name, bytes) in &weights {
            assert!(*bytes == again[name], "{name} on {threads} threads");
        }
    }
}

#[test]
fn a_hundred_steps_on_1_2_and_4_threads() {
    same_on_all_threads(Contrast::Accumulated, 100, &[1, 2, 4]);
}

#[test]
fn separate_micro_batches_on_2_threads() {
    same_on_all_threads(Contrast::MicroBatch, 25, &[2]);
}

#[test]
fn resumed_from_each_of_50_steps() {
    const STEPS: u64 = 50;
    let (config, contrast) = (tiny::config(), Contrast::Accumulated);
    let mut t = trainer(&config, contrast);
    let (mut states, mut log) = (vec![state(&t)], Vec::new());
    for step in 0..STEPS {
        log.push(line(&t.step(&batches(&config, step)).unwrap()));
        states.push(state(&t));
    }
    for from in 1..=STEPS {
        let mut t = resume(&config, contrast, &states[from as usize], from);
        for step in from..STEPS {
            assert_eq!(
                line(&t.step(&batches(&config, step)).unwrap()),
                log[step as usize],
                "step {step} from {from}"
            );
        }
        assert!(state(&t) == states[STEPS as usize], "other bytes when resumed from step {from}");
    }
}

#[test]
fn another_seed_is_another_run() {
    let config = tiny::config();
    let of = |seed| {
        let mut t = trainer(&config, Contrast::MicroBatch);
        t.options.seed = seed;
        line(&t.step(&batches(&config, 0)).unwrap())
    };
    assert_eq!(of(42), of(42));
    assert_ne!(of(42), of(43));
}

/// As torch.amp.GradScaler: an infinite gradient halves the scale and leaves everything else as it was; 2000 clean steps
/// double it.
#[test]
fn a_step_that_overflows_changes_nothing_but_the_scale() {
    let config = tiny::config();
    let mut t = trainer(&config, Contrast::MicroBatch);
    t.step(&batches(&config, 0)).unwrap();
    let before = (state(&t), t.optimizer.steps);
    t.scale = LossScale { enabled: true, scale: 2f64.powi(200), clean_steps: 7, skipped: 0 };
    let report = t.step(&batches(&config, 1)).unwrap();
    assert!(!report.applied && report.losses.losses.iter().all(|x| x.is_finite()));
    assert!(before == (state(&t), t.optimizer.steps), "the state changed");
    assert_eq!(t.scale, LossScale { enabled: true, scale: 2f64.powi(199), clean_steps: 0, skipped: 1 });
    assert_eq!(t.step, 2);
    let mut scale = LossScale::F16;
    for _ in 0..1999 {
        assert!(scale.update(true));
    }
    assert_eq!((scale.scale, scale.clean_steps), (65536.0, 1999));
    assert!(scale.update(true));
    assert_eq!((scale.scale, scale.clean_steps), (131_072.0, 0));
    assert!({ LossScale::OFF }.update(false));
}

/// Gradients are divided by the scale again: a power of two changes nothing.
#[test]
fn a_scale_without_overflow_changes_no_weight() {
    let config = tiny::config();
    let of = |scale: LossScale| {
        let mut t = trainer(&config, Contrast::MicroBatch);
        t.scale = scale;
        let report = t.step(&batches(&config, 0)).unwrap();
        (state(&t), report.gradient_norm, report.applied)
    };
    assert!(of(LossScale::OFF) == of(LossScale { scale: 1024.0, ..LossScale::F16 }));
}
