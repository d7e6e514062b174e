//! A training that a program runs: each step reported, stopped when asked, resumed to the same bytes; a refused one writes nothing.

use super::world::{World, exists};
use qformer::train::{Ending, StepLine, Training, Watch};

fn training(world: &World, out: &str) -> Training {
    let small =
        [("model.layers", 2), ("model.vit_depth", 1), ("model.hidden", 32), ("batch", 6), ("steps", 6)];
    let training = Training::new()
        .path("images", world.path("images"))
        .path("captions", world.path("captions.json"))
        .path("out", world.path(out))
        .set("size", "tiny")
        .set("device", "cpu")
        .set("warmup_steps", 2);
    small.into_iter().fold(training, |training, (name, n)| training.set(name, n))
}

/// Asks to stop after a step; keeps what it was told.
struct Until {
    step: u64,
    told: Vec<u64>,
    begun: usize,
}

impl Watch for Until {
    fn begin(&mut self) -> qformer::Result<()> {
        self.begun += 1;
        Ok(())
    }

    fn step(&mut self, line: &StepLine, _samples: usize, _seconds: f64) {
        self.told.push(line.step);
    }

    fn stop(&self) -> bool {
        self.told.last().is_some_and(|step| *step >= self.step)
    }
}

#[test]
fn a_watched_training_stops_when_asked_and_resumes_to_the_same_bytes() {
    let world = World::new();
    let mut losses = Vec::new();
    let whole = training(&world, "whole").run(&mut |step: &StepLine| losses.push(step.loss)).unwrap();
    assert_eq!((&whole.ending, whole.step, whole.whole), (&Ending::Trained, 6, 6));
    assert!(losses.len() == 6 && losses.iter().all(|loss| loss.is_finite()));
    assert!(exists(whole.model.join("model.safetensors")));

    let mut until = Until { step: 2, told: Vec::new(), begun: 0 };
    let stopped = training(&world, "stopped").run(&mut until).unwrap();
    assert_eq!((&stopped.ending, stopped.step), (&Ending::Stopped, 2));
    assert_eq!((until.told, until.begun), (vec![1, 2], 1));
    assert!(!exists(&stopped.model));
    let resumed = Training::resume(world.path("stopped")).run(&mut ()).unwrap();
    assert_eq!((&resumed.ending, resumed.step), (&Ending::Trained, 6));
    let bytes = |out: &str| std::fs::read(world.path(out).join("model/model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("stopped"));
}

#[test]
fn a_refused_training_writes_nothing_and_names_the_setting() {
    let world = World::new();
    let mut until = Until { step: 1, told: Vec::new(), begun: 0 };
    let error = training(&world, "run").set("bacth", 4).run(&mut until).unwrap_err();
    assert!(error.to_string().contains("batch"), "{error}");
    let error = training(&world, "run").set("init_lr", -1.0).run(&mut until).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("init_lr"), "{error}");
    assert!(until.begun == 0 && !exists(world.path("run")));
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff");
    let error = training(&world, "run").path("out", odd).run(&mut until).unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
    let error = Training::resume(world.path("run")).run(&mut ()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(!exists(world.path("run")));
}
