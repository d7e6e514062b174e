//! Configurations: LAVIS's own file, ours, the command line, and what is refused.

use super::world::{World, exists};

/// lavis/projects/blip2/train/pretrain_stage1.yaml of LAVIS 1.0.2, without its comments, and with the storage that its
/// users fill in.
const LAVIS: &str = "\
model:
  arch: blip2
  model_type: pretrain
  load_pretrained: False #pretrain from scratch
  freeze_vit: True


datasets:
  coco_caption:
    vis_processor:
        train:
          name: \"blip2_image_train\"
          image_size: 28
    text_processor:
        train:
          name: \"blip_caption\"
    build_info:
        annotations:
          train:
            storage: captions.json
        images:
            storage: 'images'
  vg_caption: # name of the dataset builder
    vis_processor:
        train:
          name: \"blip_image_train\"
          image_size: 28
    text_processor:
        train:
          name: \"blip_caption\"
    build_info:
        annotations:
          train:
            storage: [captions.json]
        images:
            storage: images/

run:
  task: image_text_pretrain
  # optimizer
  lr_sched: \"linear_warmup_cosine_lr\"
  init_lr: 1e-4
  min_lr: 1e-5
  warmup_lr: 1e-6

  weight_decay: 0.05
  max_epoch: 10
  batch_size_train: 12
  batch_size_eval: 64
  num_workers: 4
  warmup_steps: 5000
  accum_grad_iters: 2

  seed: 42
  output_dir: \"output/BLIP2/Pretrain_stage1\"

  amp: True
  resume_ckpt_path: null

  evaluate: False 
  train_splits: [\"train\"]

  device: \"cuda\"
  world_size: 1
  dist_url: \"env://\"
  distributed: True
";

#[test]
fn lavis_own_file_works_or_says_what_to_change() {
    let world = World::new();
    world.write("stage1.yaml", LAVIS);
    let dry = |more: &[&str]| world.run(&[&["train", "stage1.yaml", "--dry-run"], more].concat());
    // frozen, but nothing to freeze
    dry(&[]).refused(2, &["train_vit", "start directory", "qformer convert", "freeze_vit: False"]);
    let scratch = ["--set", "model.freeze_vit=false", "--size", "tiny", "--set", "max_txt_len=12"];
    let shown = dry(&scratch).good();
    let text = shown.text();
    for line in [
        "out: \"output/BLIP2/Pretrain_stage1\"",
        "batch: 12",
        "accumulate: 2",
        "epochs: 10",
        "warmup_steps: 2500",
        "init_lr: 0.0001",
        "weight_decay: 0.05",
        "workers: 4",
        "coco_caption: captions.json: 24 pictures, 48 captions",
        "vg_caption: captions.json: 24 pictures, 48 captions",
        // 96 captions in micro-batches of 12: 8; two of them a step
        "40 of 2 x 12 captions; 4 in an epoch",
    ] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    let errors = shown.errors();
    assert!(errors.starts_with("device: CPU"), "{errors}");
    assert!(errors.contains("amp: dtype says it here"), "{errors}");
    assert!(text.contains("device: \"cpu\""), "what auto is stands in the settings: {text}");
    // By the name of LAVIS's processor.
    assert!(text.contains("rand_augment: [2,5.0]"), "{text}");
    assert!(!exists(world.path("output")), "a dry run writes nothing");
    dry(&[&scratch[..4], &["--set", "model.image_size=56"]].concat())
        .refused(2, &["image_size of data set coco_caption", "line 12", "expected 56, got 28"]);

    let broken = |from: &str, to: &str| {
        world.write("stage1.yaml", LAVIS.replacen(from, to, 1));
        dry(&scratch)
    };
    let line = |text: &str| LAVIS.lines().position(|l| l.contains(text)).unwrap() + 1;
    let words = |name: &str| format!("stage1.yaml line {}", line(name));
    broken("batch_size_train", "batch_size_trian")
        .refused(2, &["did you mean run.batch_size_train", &words("batch_size_train")]);
    broken("storage: captions.json", "storge: captions.json")
        .refused(2, &["did you mean datasets.coco_caption.build_info.annotations.train.storage"]);
    broken("resume_ckpt_path: null", "resume_ckpt_path: x.pth")
        .refused(2, &["--resume", &words("resume_ckpt_path")]);
    broken("evaluate: False", "evaluate: True").refused(2, &["qformer evaluate"]);
    broken("linear_warmup_cosine_lr", "constant_lr").refused(2, &["expected linear_warmup_cosine_lr"]);
    broken("init_lr: 1e-4", "init_lr: fast").refused(2, &["run.init_lr", "a number", "fast"]);
    broken("world_size: 1", "world_size: 8").refused(2, &["world_size"]);
    // Texts in quotes, not in two pairs of them; all that is wrong in one run.
    let several = broken("arch: blip2", "arch: blip2_t5\n  vit_model: \"clip_L\"");
    several.refused(2, &["2 settings cannot be used", "got \"blip2_t5\"", "got \"clip_L\"", "eva_clip_g"]);
    assert!(!several.errors().contains("\\\""), "{}", several.errors());
    broken("load_pretrained: False", "pretrained: 'https://x/y.pth'")
        .refused(2, &["qformer convert", "start"]);
    broken("            storage: 'images'", "            url: 'images'").refused(2, &["url"]);
    broken("freeze_vit: True", "freeze_vit: [").refused(3, &["stage1.yaml"]);
}

/// What LAVIS's retrieval_coco_ft.yaml and the second stage of the Japanese BLIP-2 say, each key with their values.
#[test]
fn files_for_fine_tuning_and_for_the_second_stage_begin_with_a_model() {
    let world = World::new();
    world.run(&["convert", "--random", "tiny", "--out", "start"]).good();
    let data = [
        "--images",
        "images",
        "--captions",
        "captions.json",
        "--start",
        "start",
        "--batch",
        "6",
        "--dry-run",
    ];
    let dry = |name: &str, more: &[&str]| world.run(&[&["train", name], &data[..], more].concat());
    let sets = |name: &str, size: usize| {
        format!(
            "datasets:\n  {name}:\n    vis_processor:\n        train:\n          name: \"blip2_image_train\"\n          image_size: {size}\n        \
             eval:\n          name: \"blip_image_eval\"\n          image_size: {size}\n    text_processor:\n        train:\n          name: \"blip_caption\"\n        \
             eval:\n          name: \"blip_caption\"\n"
        )
    };
    let run = |task: &str, rest: &str| {
        format!(
            "run:\n  task: {task}\n  lr_sched: \"linear_warmup_cosine_lr\"\n{rest}  weight_decay: 0.05\n  num_workers: 4\n  seed: 42\n  output_dir: \"out\"\n  \
             amp: True\n  resume_ckpt_path: null\n  evaluate: False\n  train_splits: [\"train\"]\n  device: \"cuda\"\n  world_size: 1\n  dist_url: \"env://\"\n"
        )
    };
    let retrieval = format!(
        "model:\n  arch: blip2\n  model_type: coco\n  load_pretrained: True\n  load_finetuned: False \n  freeze_vit: False\n  drop_path_rate: 0.1\n{}{}",
        sets("coco_retrieval", 28),
        run(
            "retrieval",
            "  init_lr: 1e-5\n  min_lr: 0\n  warmup_lr: 1e-8\n  warmup_steps: 1000\n  max_epoch: 5\n  batch_size_train: 14\n  batch_size_eval: 16\n  \
             lr_layer_decay: 0.95\n  accum_grad_iters: 1\n  valid_splits: [\"test\"]\n  k_test: 128\n  use_dist_eval_sampler: False\n",
        )
    );
    world.write("retrieval.yaml", &retrieval);
    let shown = dry("retrieval.yaml", &[]).good();
    for line in [
        "vit_layer_decay: 0.95",
        "vit_drop_path: 0.1",
        "train_vit: true",
        "warmup_steps: 1000",
        "init_lr: 0.00001",
        "start: \"start\"",
    ] {
        assert!(shown.text().contains(line), "no {line} in {}", shown.text());
    }
    assert!(shown.errors().contains("LAVIS: the training begins with start instead"), "{}", shown.errors());
    // Without a model to begin with there is nothing to fine-tune.
    let none = world.run(&[
        "train",
        "retrieval.yaml",
        "--images",
        "images",
        "--captions",
        "captions.json",
        "--dry-run",
    ]);
    none.refused(2, &["a model directory to begin with", "published weights", "--start DIR"]);
    world.write("retrieval.yaml", retrieval.replace("freeze_vit: False", "freeze_vit: True"));
    dry("retrieval.yaml", &[]).refused(2, &["vit_layer_decay", "vit_drop_path", "freeze_vit: False"]);

    let second = |model_type: &str| {
        format!(
            "model:\n  arch: blip2_Japanese\n  model_type: {model_type}\n  load_pretrained: True\n  pretrained: \"./lavis/pretrained_stage1/blip2_pretrained.pth\"\n  \
             freeze_vit: True\n{}{}",
            sets("coco_caption", 28),
            run(
                "image_text_pretrain",
                "  init_lr: 1e-4\n  min_lr: 1e-5\n  warmup_lr: 1e-6\n  max_epoch: 10\n  batch_size_train: 25\n  batch_size_eval: 16\n  warmup_steps: 2000\n",
            )
        )
    };
    for model_type in ["pretrain", "finetune"] {
        world.write("stage2.yaml", second(model_type));
        let shown = dry("stage2.yaml", &[]).good();
        assert!(shown.text().contains("warmup_steps: 2000") && shown.text().contains("train_vit: false"));
    }
    let none = world.run(&[
        "train",
        "stage2.yaml",
        "--images",
        "images",
        "--captions",
        "captions.json",
        "--dry-run",
    ]);
    none.refused(2, &["convert ./lavis/pretrained_stage1/blip2_pretrained.pth with qformer convert"]);
    // A path that LAVIS would not load is no reason to refuse.
    world.write(
        "scratch.yaml",
        second("pretrain")
            .replace("load_pretrained: True", "load_pretrained: False")
            .replace("freeze_vit: True", "freeze_vit: False"),
    );
    let small =
        ["--images", "images", "--captions", "captions.json", "--size", "tiny", "--batch", "6", "--dry-run"];
    world.run(&[&["train", "scratch.yaml"], &small[..]].concat()).good();
}

#[test]
fn unknown_settings_get_a_line_and_a_suggestion() {
    let world = World::new();
    let base = "images: images\ncaptions: captions.json\nsize: tiny\n";
    for (line, suggestion) in [
        ("inti_lr: 1e-4", "init_lr"),
        ("model:\n  hiden: 32", "hidden"),
        ("batchsize: 3", "batch"),
        ("warmup_step: 3", "warmup_steps"),
        ("validation:\n  image: images", "validation.images"),
        ("run:\n  max_epochs: 3", "run.max_epoch"),
    ] {
        world.write("c.yaml", format!("{base}{line}\n"));
        let n = 3 + line.lines().count();
        let done = world.run(&["train", "c.yaml", "--dry-run"]);
        done.refused(
            2,
            &["an unknown one", &format!("c.yaml line {n}"), &format!("did you mean {suggestion}?")],
        );
    }
    world.write("c.yaml", format!("{base}zzzz: 1\n"));
    world.run(&["train", "c.yaml", "--dry-run"]).refused(2, &["zzzz (c.yaml line 4)", "--keys"]);
    world.run(&["train", "--set", "bathc=3"]).refused(2, &["--set", "did you mean batch?"]);
    world.run(&["train", "c.yaml", "--set", "zzzz"]).refused(2, &["name=value"]);
    world.run(&["train", "nowhere.yaml"]).refused(3, &["nowhere.yaml"]);
    world.run(&["train"]).refused(2, &["pictures and captions", "--images"]);
    let keys = world.run(&["train", "--keys"]).good().text();
    assert!(
        keys.contains("init_lr") && keys.contains("(LAVIS: run.init_lr)") && keys.contains("[0.0001]"),
        "{keys}"
    );
}

#[test]
fn settings_out_of_range_are_refused() {
    let world = World::new();
    for (set, words) in [
        ("batch=1", "2 to 1048576"),
        ("batch=2.5", "a whole number"),
        ("batch=49", "at most 48"),
        ("init_lr=-1", "0 or more"),
        ("init_lr=.nan", "a number"),
        ("min_lr=1", "at most init_lr"),
        ("dropout=1", "0 to 0.99"),
        ("crop_scale=[1, 0.5]", "scale"),
        ("crop_scale=3", "two numbers"),
        ("profile=diagonal", "lavis-diagonal or lavis-image-id"),
        ("size=huge", "small, tiny"),
        ("model.heads=5", "heads"),
        ("model.vocab=5", "unknown"),
        ("images=https://x/y", "download"),
        ("epochs=0", "1 or more"),
        ("seed=-1", "0 or more"),
        ("contrast=accumulated", "image encoder is trained"),
        ("vit_gelu=relu", "expected exact or tanh"),
        ("vit_gelu=tanh", "exact where the image encoder is trained"),
        ("keep_last=0", "1 to 1048576"),
    ] {
        world.train("no", &["--dry-run", "--set", set]).refused(2, &[words]);
    }
    assert!(!exists(world.path("no")));
}

/// YAML makes a truth value of a bare on or no, and a number of digits: a setting that is a name takes it, a text wants quotes.
#[test]
fn words_that_yaml_reads_as_something_else() {
    let world = World::new();
    let said = |line: &str| {
        world.write("c.yaml", format!("images: images\ncaptions: captions.json\nsize: tiny\n{line}\n"));
        let file = world.run(&["train", "c.yaml", "--out", "no", "--dry-run"]);
        let set = world.train("no", &["--dry-run", "--set", &line.replacen(": ", "=", 1)]);
        [file, set]
    };
    for (line, shown) in [
        ("recompute: off", "recompute: \"off\""),
        ("recompute: 'off'", "recompute: \"off\""),
        ("recompute: No", "recompute: \"off\""),
        ("recompute: auto", "recompute: \"auto\""),
        ("exif_orientation: on", "exif_orientation: true"),
        ("flip: 1", "flip: 1"),
    ] {
        for done in said(line) {
            let text = done.good().text();
            assert!(text.contains(shown), "{line}: no {shown} in {text}");
        }
    }
    for (line, words) in [
        ("recompute: on", "recompute: expected a language model (llm)"),
        ("recompute: maybe", "expected auto or on or off, got \"maybe\""),
        ("resize: on", "expected fast or exact, got \"true\""),
        ("prompt: no", "expected a text in quotes"),
        ("prompt: 2024", "expected a text in quotes"),
        ("llm: on", "expected a path in quotes"),
        ("prompt: [x]", "expected a text, got"),
        ("prompt: 'no'", "prompt: expected a language model (llm)"),
    ] {
        for done in said(line) {
            done.refused(2, &[words]);
        }
    }
    assert!(!exists(world.path("no")));
}

#[test]
fn several_data_sets_are_drawn_from_by_their_ratios() {
    let world = World::new();
    let sets = "datasets:\n  a: {images: images, captions: captions.json, ratio: 3}\n  b: {images: images, \
                captions: captions.json, ratio: 1}\nsize: tiny\nbatch: 6\n";
    world.write("c.yaml", sets);
    world.run(&["train", "c.yaml", "--out", "run", "--steps", "2", "--set", "model.layers=1"]).good();
    // the resolved settings are a configuration of their own
    let resolved = std::fs::read_to_string(world.path("run/config.yaml")).unwrap();
    world.write("again.yaml", &resolved);
    let out = world.path("again");
    let text = world.run(&["train", "again.yaml", "--out", out.to_str().unwrap(), "--dry-run"]).good().text();
    let again = resolved.replace(world.path("run").to_str().unwrap(), out.to_str().unwrap());
    assert!(text.contains(&again), "{text}\n{again}");
    assert!(text.contains("/captions.json: 24 pictures") && text.contains("ratio: 3"), "{text}");
    world.write("c.yaml", sets.replace(", ratio: 1", ""));
    world.run(&["train", "c.yaml", "--dry-run"]).refused(2, &["ratio", "1 of 2"]);
    world.write("c.yaml", sets.replace("ratio: 1", "ratio: 0"));
    world.run(&["train", "c.yaml", "--dry-run"]).refused(2, &["datasets.b.ratio", "above 0"]);
    world.write("c.yaml", "datasets:\n  a:\n  b: {captions: captions.json}\n");
    world
        .run(&["train", "c.yaml", "--dry-run"])
        .refused(2, &["data set a (c.yaml line 2)", "build_info.images.storage"]);
}

#[test]
fn a_plan_counts_parameters_and_finds_the_largest_batch() {
    let world = World::new();
    let text = world.train("no", &["--dry-run"]).good().text();
    for part in [
        "parameters",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "together",
        "free: a batch of",
        "epoch",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(
        text.contains("16 of 1 x 6 captions; 8 in an epoch; warm-up over 4; schedule of 2 epochs"),
        "{text}"
    );
}
