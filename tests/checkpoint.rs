//! Checkpoints under every fault: the n-th operation fails, the power goes, the process is killed, the disk is
//! full, bits flip. What must hold each time: the newest intact checkpoint loads, it is never older than the last
//! one whose save returned Ok, and it is never a mix of two. The expected contents are computed from the step
//! alone (`expected`), not read from a file.

#[path = "checkpoint/disk.rs"]
mod disk;
#[path = "checkpoint/real.rs"]
mod real;

use disk::{Dice, Fault, Lie, SimDisk};
use qformer::train::checkpoint::{
    self, Checkpoint, EXP_AVG, EXP_AVG_SQ, Folder, KEEP_LAST, Loaded, Metric, Progress, Stored, Tensor,
};
use qformer::{Error, Kind};
use safetensors::Dtype;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// What a run has at a step: odd sizes, several dtypes, a scalar, an empty tensor; `scale` multiplies the largest.
pub fn expected(step: u64, scale: usize) -> Loaded {
    let mut dice = Dice(step);
    let shapes = [
        ("query_tokens", Dtype::F32, vec![1, 3, 77 * scale]),
        ("temp", Dtype::F32, vec![]),
        ("itm_head.bias", Dtype::BF16, vec![13]),
        ("state.random", Dtype::U8, vec![131]),
        ("state.empty", Dtype::I64, vec![0, 4]),
    ];
    let mut tensors = BTreeMap::new();
    for before in ["", EXP_AVG, EXP_AVG_SQ] {
        for (name, dtype, shape) in &shapes {
            let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let bytes: Vec<u8> =
                (0..length.div_ceil(8)).flat_map(|_| dice.next().to_le_bytes()).take(length).collect();
            tensors.insert(format!("{before}{name}"), Stored { dtype: *dtype, shape: shape.clone(), bytes });
        }
    }
    let config = json!({ "optim": { "init_lr": 1e-4, "betas": [0.9, 0.999] }, "batch": 25, "猫": null });
    let state = json!({ "loss_tail": [0.1, 1.0 / 3.0, 1e-310], "scale": 65536.0 });
    let metric = Metric { name: "CIDEr".into(), value: (step % 5) as f64, higher_is_better: true };
    let seed = u64::MAX - 6;
    let vit_blake3 = "ab".repeat(32);
    let progress = Progress { step, epoch: step / 3, seed, config, vit_blake3, metric: Some(metric), state };
    Loaded { progress, tensors }
}

pub fn save(folder: &mut Folder, what: &Loaded) -> qformer::Result<std::path::PathBuf> {
    let tensors = what.tensors.iter().map(|(name, t)| Tensor {
        name: name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        bytes: t.bytes.as_slice().into(),
    });
    folder.save(&Checkpoint { progress: what.progress.clone(), tensors: tensors.collect() })
}

fn here() -> &'static Path {
    Path::new("run")
}

/// A disk with whole checkpoints of these steps.
fn disk_with(steps: &[u64]) -> SimDisk {
    let disk = SimDisk::default();
    let mut folder = Folder::own(&disk, here()).unwrap();
    for &step in steps {
        save(&mut folder, &expected(step, 1)).unwrap();
    }
    drop(folder);
    disk
}

/// The step of the newest intact checkpoint (0: none) and how many torn ones were passed over; its contents are
/// compared byte for byte.
fn newest(disk: &SimDisk) -> Result<(u64, usize), String> {
    let mut torn = 0;
    let found = checkpoint::latest(disk, here(), |_| torn += 1).map_err(|e| e.to_string())?;
    let Some(path) = found else { return Ok((0, torn)) };
    let loaded = checkpoint::load(disk, &path).map_err(|e| e.to_string())?;
    let step = loaded.progress.step;
    if loaded != expected(step, 1) {
        return Err(format!("{} holds something else than step {step}", path.display()));
    }
    Ok((step, torn))
}

fn name(step: u64) -> String {
    format!("step-{step:09}.safetensors")
}

#[test]
fn any_safetensors_reader_sees_the_tensors_and_the_same_state_gives_the_same_bytes() {
    let (a, b) = (disk_with(&[7]), disk_with(&[7]));
    let bytes = a.contents(&name(7));
    assert_eq!(bytes, b.contents(&name(7)));
    let seen = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let wanted = expected(7, 1).tensors;
    assert_eq!(seen.len(), wanted.len() + 1, "the tensors and the seal");
    for (name, t) in &wanted {
        let view = seen.tensor(name).unwrap();
        assert_eq!(
            (view.dtype(), view.shape(), view.data()),
            (t.dtype, &t.shape[..], &t.bytes[..]),
            "{name}"
        );
    }
    assert_eq!(newest(&a), Ok((7, 0)));
}

const ENOSPC: Fault = Fault::Errno(28);
const EIO: Fault = Fault::Errno(5);
const EINTR: Fault = Fault::Errno(4);
const EMFILE: Fault = Fault::Errno(24);

#[test]
fn whichever_operation_of_a_save_fails_the_old_checkpoint_stays() {
    let base = disk_with(&[1, 2]);
    base.put(".step-000000003.safetensors.99-0.partial", vec![1; 3000]);
    for fault in [ENOSPC, EIO, EINTR, EMFILE, Fault::Short] {
        let (mut n, mut refused, mut reached) = (0, 0, true);
        while reached {
            n += 1;
            let disk = base.copy();
            disk.fail_at(n, fault);
            let done = Folder::own(&disk, here()).and_then(|mut folder| {
                save(&mut folder, &expected(3, 1))?;
                folder.prune(KEEP_LAST, 0)
            });
            reached = disk.operations() >= n;
            disk.heal();
            let (step, torn) = newest(&disk).unwrap_or_else(|e| panic!("{fault:?} at {n}: {e}"));
            assert_eq!(torn, 0, "{fault:?} at {n}");
            assert!(step >= if done.is_ok() { 3 } else { 2 }, "{fault:?} at {n}: only step {step} is left");
            if let Err(e) = done {
                refused += 1;
                check_message(&e, fault);
            }
            let ours = disk.names().into_iter().find(|n| n.ends_with(".partial") && !n.contains(".99-0."));
            assert_eq!(ours, None, "{fault:?} at {n}: left behind");
        }
        assert!(n > 40, "only {n} operations were tried");
        match fault {
            Fault::Short | EINTR => assert_eq!(refused, 0, "{fault:?} is no reason to fail"),
            _ => assert!(refused > 30, "{fault:?} was noticed only {refused} times in {n}"),
        }
    }
}

/// What, where, what to do.
fn check_message(e: &Error, fault: Fault) {
    let text = e.to_string();
    let remedy = match fault {
        ENOSPC => "free some space on the disk of ",
        EMFILE => "ulimit -n",
        _ => "reports a fault: look into the system log",
    };
    let read = text.starts_with("load checkpoint") || text.starts_with("list checkpoints");
    let safe = if read { "" } else { "nothing saved before is lost" };
    for wanted in ["os error", "run", remedy, safe] {
        assert!(text.contains(wanted), "{fault:?}: no {wanted:?} in {text:?}");
    }
}

#[test]
fn a_read_that_fails_is_an_error_and_never_an_older_checkpoint() {
    let base = disk_with(&[1, 2]);
    for fault in [EIO, EINTR, EMFILE, Fault::Short] {
        let (mut n, mut reached) = (0, true);
        while reached {
            n += 1;
            let disk = base.copy();
            disk.fail_at(n, fault);
            let found = newest(&disk);
            reached = disk.operations() >= n;
            match found {
                Ok(step) => {
                    assert!(step == (2, 0) && (!reached || matches!(fault, EINTR | Fault::Short)), "{n}")
                }
                Err(text) => assert!(text.contains("run") && matches!(fault, EIO | EMFILE), "{n}: {text}"),
            }
        }
        assert!(n > 10, "only {n} operations were tried");
    }
}

/// One life of a training that goes on from what is there; `acknowledged` is the last step whose save returned Ok.
fn live(disk: &SimDisk, saves: u64, acknowledged: &mut u64) -> qformer::Result<()> {
    let start = checkpoint::latest(disk, here(), |_| ())?;
    let start = start.map_or(Ok(0), |path| checkpoint::load(disk, &path).map(|l| l.progress.step))?;
    let mut folder = Folder::own(disk, here())?;
    for step in start + 1..=start + saves {
        save(&mut folder, &expected(step, 1))?;
        *acknowledged = step;
        folder.prune(KEEP_LAST, 1)?;
    }
    Ok(())
}

/// Cuts the power at a random operation of each of two lives in a row, and looks at what is left each time.
fn lose_power_twice(seed: u64, lie: Option<Lie>) -> Result<(), String> {
    let mut dice = Dice(seed);
    let mut disk = SimDisk::default();
    let mut acknowledged = 0;
    for life in 0..2 {
        disk.lie(lie);
        let n = 1 + dice.below(200);
        disk.fail_at(n, Fault::PowerLoss);
        let _ = live(&disk, 4, &mut acknowledged);
        disk = disk.after_power_loss(&mut dice);
        let (step, torn) = newest(&disk).map_err(|e| format!("seed {seed}, life {life}: {e}"))?;
        if step < acknowledged || torn > 0 {
            return Err(format!(
                "seed {seed}, life {life}, operation {n}: step {step}, {torn} torn, {acknowledged} acknowledged"
            ));
        }
        acknowledged = step; // what is found is what the next life builds on
    }
    Ok(())
}

#[test]
fn two_thousand_power_losses_lose_nothing_that_was_acknowledged() {
    let whole = SimDisk::default();
    let mut acknowledged = 0;
    live(&whole, 4, &mut acknowledged).unwrap();
    assert!((100..=200).contains(&whole.operations()), "a life has {} operations", whole.operations());
    for seed in 0..1000 {
        lose_power_twice(seed, None).unwrap();
    }
    // The same simulation sees a disk that only pretends to sync.
    for lie in [Lie::FileSync, Lie::FolderSync] {
        let caught = (0..100).filter(|&seed| lose_power_twice(seed, Some(lie)).is_err()).count();
        assert!(caught > 20, "{lie:?}: noticed in {caught} of 100 runs");
    }
}

#[test]
fn every_flipped_header_byte_and_2000_flipped_data_bytes_are_found() {
    let disk = disk_with(&[1, 2]);
    let whole = disk.contents(&name(2));
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 32;
    let mut dice = Dice(1);
    let data: Vec<usize> = (0..2000).map(|_| header + dice.below(whole.len() - header)).collect();
    for at in (0..header).chain(data) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << dice.below(8);
        check_damaged(&disk, bytes, &format!("byte {at}"));
    }
    for length in (0..whole.len()).step_by(61) {
        check_damaged(&disk, whole[..length].to_vec(), &format!("cut at {length}"));
    }
    check_damaged(&disk, [&whole[..], &[0]].concat(), "one byte more");
    check_damaged(&disk, vec![0; whole.len()], "zeros");
    disk.put(&name(2), whole);
    assert_eq!(newest(&disk), Ok((2, 0)));
}

fn check_damaged(disk: &SimDisk, bytes: Vec<u8>, what: &str) {
    disk.put(&name(2), bytes);
    let e = checkpoint::load(disk, &here().join(name(2))).map(|_| ()).expect_err(what);
    assert_eq!((e.kind(), e.exit_code()), (Kind::File, 3), "{what}: {e}");
    assert!(e.to_string().contains("run/step-000000002.safetensors: expected a whole checkpoint"), "{e}");
    assert_eq!(newest(disk), Ok((1, 1)), "{what}");
}

#[test]
fn pruning_keeps_the_last_and_the_best_and_counts_only_what_is_intact() {
    // The metric of step n is n % 5, higher is better: step 4 has 4; 3 and 8 have 3; 10 has 0.
    let disk = disk_with(&[1, 2, 3, 4, 6, 8, 10]);
    let mut torn = disk.contents(&name(10));
    *torn.last_mut().unwrap() ^= 1;
    disk.put(&name(10), torn);
    let mut folder = Folder::own(&disk, here()).unwrap();
    assert_eq!(folder.prune(0, 0).unwrap_err().kind(), Kind::Argument);
    folder.prune(2, 2).unwrap();
    assert_eq!(disk.names(), [4, 6, 8].map(name), "10 is torn, 8 and 6 are the last, 4 and 8 the best");
    save(&mut folder, &expected(11, 1)).unwrap();
    folder.prune(1, 0).unwrap();
    assert_eq!(disk.names(), [11].map(name));
    // With nothing intact left, nothing is removed.
    disk.put(&name(11), vec![0; 100]);
    disk.put(&name(12), vec![0; 100]);
    assert_eq!(Folder::own(&disk, here()).unwrap().prune(1, 1), Ok(vec![]));
    assert_eq!(disk.names(), [11, 12].map(name));
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let disk = disk_with(&[5]);
    let mut folder = Folder::own(&disk, here()).unwrap();
    let mut refuse = |change: &dyn Fn(&mut Loaded), wanted: &str| {
        let mut what = expected(6, 1);
        change(&mut what);
        let e = save(&mut folder, &what).unwrap_err();
        assert!(e.to_string().contains(wanted) && e.kind() == Kind::Argument, "{e}");
    };
    refuse(&|l| l.progress.step = 4, "no checkpoint newer than step 4, got step 5");
    refuse(
        &|l| l.progress.metric.as_mut().unwrap().value = f64::NAN,
        "CIDEr: expected a finite metric, got NaN",
    );
    refuse(
        &|l| l.tensors.get_mut("temp").unwrap().bytes.truncate(3),
        "temp: expected the bytes of F32 [], got 3 bytes",
    );
    let odd = Stored { dtype: Dtype::U8, shape: vec![1], bytes: vec![1] };
    refuse(&|l| drop(l.tensors.insert("qformer.seal".into(), odd.clone())), "a name that is taken");
    disk.set_free(1000);
    let e = save(&mut folder, &expected(6, 1)).unwrap_err();
    assert!(e.to_string().contains("bytes free (1.1 times the file), got 1000; free "), "{e}");
    assert_eq!(e.kind(), Kind::Write);
    assert_eq!(disk.names(), [name(5)]);
}

#[test]
fn another_configuration_is_refused_with_each_difference() {
    let saved = expected(1, 1).progress;
    let mut now = expected(9, 1).progress;
    assert_eq!(saved.check_same_run(&now), Ok(()));
    now.config["optim"]["init_lr"] = json!(2e-4);
    now.config["batch"] = json!(null);
    now.config.as_object_mut().unwrap().remove("猫");
    now.seed = 3;
    let e = saved.check_same_run(&now).unwrap_err();
    assert_eq!(
        e.to_string(),
        "resume: configuration: expected the one of the checkpoint, \
         got (seed): saved with 18446744073709551609, now 3; batch: saved with 25, now null; \
         optim.init_lr: saved with 0.0001, now 0.0002; 猫: saved with null, now nothing; \
         restore these settings, or start a new run in another folder"
    );
    assert_eq!(e.exit_code(), 2);
}
