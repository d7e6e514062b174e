//! The memory that `train --dry-run` promises, beside what a step really allocates (counted by the allocator), and the memory
//! and time that it takes itself.

use qformer::model::{Config as Sizes, Image, Model, Profile};
use qformer::nn::{Params, Precision};
use qformer::tensor::{DType, Tensor};
use qformer::train::config::{Config, Length, yaml};
use qformer::train::plan::Memory;
use qformer::train::rehearsal::Run;
use qformer::train::trainer::{Micro, Trainer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only its sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time counts.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes at the peak of two steps, parameters and moments included, pictures not.
fn measured(config: &Config, sizes: &Sizes, batch: usize, text: usize) -> f64 {
    let before = NOW.load(Relaxed);
    let (model, specs) = Model::new(sizes.clone(), config.trains_vit()).unwrap();
    let params = Params::random(specs, DType::F32, 1).unwrap();
    let mut trainer = Trainer::new(model, params, config.options(config.length(10))).unwrap();
    let s = sizes.image_size;
    let pixels: Vec<f32> = (0..batch * 3 * s * s).map(|i| (i % 101) as f32 / 50.0 - 1.0).collect();
    let caption = |b: usize| -> Vec<u32> {
        let middle = (0..text - 2).map(|i| (5 + (b * 7 + i * 3) % (sizes.vocab - 6)) as u32);
        [2].into_iter().chain(middle).chain([3]).collect()
    };
    let micro = Micro {
        image: Image::Pixels(Tensor::new(pixels, &[batch, 3, s, s]).unwrap()),
        text: (0..batch).map(caption).collect(),
        image_id: None,
        names: vec![String::new(); batch],
    };
    let pictures = batch * 3 * s * s * 4;
    let micro = [micro];
    trainer.step(&micro).unwrap();
    PEAK.store(NOW.load(Relaxed), Relaxed);
    trainer.step(&micro).unwrap();
    (PEAK.load(Relaxed) - before - pictures) as f64
}

/// Of this process, so that others that compute meanwhile do not count.
fn processor_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// A step on a GPU is rehearsed in memory and time that grow with the batch and not with its square: 10 s and 1 GB at the most.
#[test]
fn a_rehearsal_takes_little_memory_and_time() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let length = Length { steps: 100, whole: 100, steps_per_epoch: 100, max_epoch: 1, warmup_steps: 10 };
    for (name, gb) in [
        ("tiny", 1),
        ("tiny", 4),
        ("tiny", 24),
        ("tiny", 192),
        ("small", 24),
        ("heads", 24),
        ("heads", 192),
        ("base", 24),
        ("full", 12),
        ("full", 192),
    ] {
        let entries = ["batch=4", "start=x"].map(|e| yaml::assignment(e).unwrap());
        let config = Config::from_entries(&entries).unwrap();
        let sizes = if name == "small" {
            Config::from_entries(&[]).unwrap().model_sizes(3000).unwrap()
        } else {
            Sizes::named(name).unwrap()
        };
        let run =
            Run { llm: None, config: &config, sizes: &sizes, length, precision: Precision::BF16, text: 30 };
        let (before, begun) = (NOW.load(Relaxed), processor_seconds());
        PEAK.store(before, Relaxed);
        let found = run.rehearse(Some(gb * 1_000_000_000), true).unwrap();
        let (took, peak) = (processor_seconds() - begun, PEAK.load(Relaxed) - before);
        println!("{name} plan:{gb}: {:?} in {took:.1} s and {} MB", found.largest_batch, peak / 1_000_000);
        assert!(took < 10.0 && peak < 1_000_000_000, "{name} plan:{gb}: {took:.1} s, {peak} bytes");
        // What is found fits, and a fiftieth more does not.
        let batch = found.largest_batch.unwrap();
        let peak = |batch: usize| {
            let entries = [format!("batch={batch}"), "start=x".into()].map(|e| yaml::assignment(&e).unwrap());
            let config = Config::from_entries(&entries).unwrap();
            Run { config: &config, ..run }.rehearse(None, false).unwrap().peak
        };
        assert!(peak(batch) <= gb * 1_000_000_000, "{name} plan:{gb}: {batch} does not fit");
        if batch < 8_192 {
            assert!(
                peak(batch + batch.div_ceil(50)) > gb * 1_000_000_000,
                "{name} plan:{gb}: more than {batch} fits"
            );
        }
    }
}

#[test]
fn planned_memory_is_near_what_a_step_takes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut wide = Sizes::tiny();
    (wide.hidden, wide.ffn, wide.vocab, wide.max_txt_len) = (128, 512, 3000, 32);
    let mut deep = Sizes::heads();
    (deep.layers, deep.vit_depth, deep.cross_freq) = (6, 4, 1);
    let cases = [
        (Sizes::tiny(), true, 16, 12),
        (Sizes::tiny(), false, 16, 6),
        (Sizes::heads(), true, 8, 32),
        (Sizes::heads(), false, 24, 20),
        (wide, true, 12, 32),
        (deep, false, 6, 10),
    ];
    for (sizes, train_vit, batch, text) in cases {
        let entries = [format!("train_vit={train_vit}"), "start=x".into()];
        let entries: Vec<_> = entries.iter().map(|e| yaml::assignment(e).unwrap()).collect();
        let config = Config::from_entries(&entries).unwrap();
        assert_eq!(config.profile, Profile::LavisDiagonal);
        let (_, specs) = Model::new(sizes.clone(), train_vit).unwrap();
        let planned = Memory::of(&config, &sizes, &specs, batch, text);
        let planned = (planned.total() - planned.pictures) as f64;
        let ratio = planned / measured(&config, &sizes, batch, text);
        println!("{sizes:?} batch {batch} text {text} vit {train_vit}: planned / measured = {ratio:.3}");
        // a plan that is too low lets a run die, one that is far too high forbids what would fit
        assert!((0.9..1.5).contains(&ratio), "planned / measured = {ratio:.3}");
    }
}

/// What a rank of 8 and of 16 receives in a step of BLIP-2's size, B = 128, in bf16, counted with nothing computed. By hand: features of
/// pictures and captions, (32 + 1) rows of 256 numbers of 16 bits of each of 128 samples, from W - 1 others; of those 128 draws hit about
/// 105 (W = 8), each 257 x 1408 numbers of 16 bits; gradients twice, up and round, but rank 0 begins the sum: once.
#[test]
fn what_travels_in_a_step_of_many_ranks() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (batch, sizes) = (128, Sizes::full());
    for world in [8usize, 16] {
        let entries = ["contrast=world", "start=x"].map(|e| yaml::assignment(e).unwrap());
        let config = Config::from_entries(&entries).unwrap();
        let device = qformer::tensor::Device::open("plan:500").unwrap();
        let precision = Precision::named("bf16").unwrap();
        let (model, specs) = Model::new(sizes.clone(), false).unwrap();
        let params = Params::zeros(specs, &device, precision).unwrap();
        let trained: usize =
            params.specs().iter().filter(|s| s.trained).map(|s| s.shape.iter().product::<usize>()).sum();
        let mut trainer = Trainer::new(model, params, config.options(config.length(10))).unwrap();
        trainer.group = qformer::group::Group::counted(0, world).unwrap();
        let s = sizes.image_size;
        let pixels =
            qformer::ops::pixel_planes(&device, &vec![0; batch * 3 * s * s], s, [0.0; 3], [1.0; 3]).unwrap();
        let micro = Micro {
            image: Image::Pixels(pixels),
            text: vec![vec![2, 5, 6, 7, 8, 9, 3]; batch],
            image_id: None,
            names: vec![String::new(); batch],
        };
        trainer.step(&[micro]).unwrap();
        let traffic = trainer.group.take_traffic();
        let received = |name: &str| traffic[name].received as f64;
        let others = (world - 1) as f64;
        let features = received("gather features of pictures") + received("gather features of captions");
        assert_eq!(features, others * 128.0 * 33.0 * 256.0 * 2.0);
        let drawn = received("exchange drawn pictures") / (257.0 * 1408.0 * 2.0);
        // 128 draws of 128 W - 1 pictures, those of others, each once: the mean, and five standard deviations of the draws.
        let all = 128.0 * world as f64 - 1.0;
        let mean = (all - 127.0) * (1.0 - (1.0 - 1.0 / all).powf(128.0));
        assert!(
            (drawn - mean).abs() < 5.0 * (128.0f64 / world as f64).sqrt(),
            "{drawn} pictures, {mean} expected"
        );
        assert_eq!(received("sum gradients"), 4.0 * trained as f64);
        println!("W {world}: {traffic:?}");
    }
}
