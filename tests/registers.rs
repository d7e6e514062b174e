//! What the compiler gives each kernel: registers, static shared memory, spills, on every architecture. They are compared
//! with `tests/kernels/registers.txt`; after a change to a kernel that means to move them:
//!
//!     UPDATE_REGISTERS=1 cargo test --features cuda --test registers
#![cfg(feature = "cuda")]

use std::collections::BTreeSet;

const STORED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/registers.txt");

fn built() -> String {
    std::fs::read_to_string(env!("QFORMER_KERNEL_RESOURCES")).expect("the table of this build")
}

/// `kernel sm_80 registers R shared S spilled B`, split up; the first line names the compiler.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().skip(1).map(|l| l.split(' ').collect()).collect()
}

#[test]
fn the_table_is_the_stored_one() {
    let built = built();
    if std::env::var_os("UPDATE_REGISTERS").is_some() {
        std::fs::write(STORED, &built).expect("write the table");
    }
    let stored = std::fs::read_to_string(STORED).expect("the stored table");
    if built.lines().next() != stored.lines().next() {
        println!("SKIPPED: stored with another compiler: {:?}", stored.lines().next());
        return;
    }
    let [built, stored] = [&built, &stored].map(|t| t.lines().collect::<BTreeSet<&str>>());
    let changed: Vec<_> = built.symmetric_difference(&stored).collect();
    assert!(changed.is_empty(), "not as stored (see the head of tests/registers.rs): {changed:#?}");
}

/// Kernels that spill on Blackwell, whose ptxas assigns registers differently: at most so many bytes a thread.
const SPILLS: &[(&str, u32)] = &[
    // f32 is the mode of proofs, not of speed: 2 of 255 registers, stored once per thread.
    ("attention_bwd_q_f32", 8),
    // Heads of 129 to 160 columns, which one family of language models has: 4 of 255 registers, stored once per thread.
    ("attention_bwd_q_f16_d160", 16),
    ("attention_bwd_q_bf16_d160", 16),
    // A residual stream in f32 of at most 768 columns: f32 alone, the mode of proofs, trains with one. 4 of 128 registers.
    ("layer_norm_bwd_whole_f32", 16),
    ("layer_norm_bwd_whole_f16_f32", 16),
    ("layer_norm_bwd_whole_bf16_f32", 16),
];

#[test]
fn nothing_spills_but_what_is_listed() {
    let built = built();
    let rows = rows(&built);
    assert!(rows.iter().any(|r| r[0] == "attention_bwd_kv_bf16_d88" && r[1] == "sm_90a"));
    for r in &rows {
        let listed = SPILLS.iter().find(|(name, _)| *name == r[0]);
        let allowed = listed.filter(|_| matches!(r[1], "sm_100" | "sm_120")).map_or(0, |(_, bytes)| *bytes);
        let spilled: u32 = r[7].parse().expect("a number of bytes");
        assert!(spilled <= allowed, "{r:?}");
    }
}

/// GPUs of consumers (8.6, 8.9, 12.0) have 99 KB of shared memory a block; only kernels for warp groups (9.0) may ask for more.
#[test]
fn static_shared_memory_fits_every_gpu() {
    let built = built();
    for r in rows(&built) {
        let shared: u32 = r[5].parse().expect("a number of bytes");
        assert!(shared <= 48 << 10, "{r:?}");
    }
}

/// The kernels that the host runs are those that a GPU gets, for every architecture.
#[cfg(feature = "host-kernels")]
#[test]
fn host_and_gpu_have_the_same_kernels() {
    let built = built();
    let names = qformer::device::emulator::signatures().iter().map(|s| s.name.as_str());
    let host: BTreeSet<&str> =
        names.filter(|n| !n.starts_with("planted_") && !n.starts_with("wrapper_")).collect();
    for architecture in ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"] {
        let gpu: BTreeSet<&str> =
            rows(&built).iter().filter(|r| r[1] == architecture).map(|r| r[0]).collect();
        assert_eq!(host, gpu, "{architecture}");
    }
}
