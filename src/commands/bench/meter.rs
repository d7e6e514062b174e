//! What `qformer bench` measures: the rate this machine reaches in a plain matmul, processor time, memory.

use crate::device::gemm::{View, gemm};
use crate::{Error, Kind, Result};
use std::time::Instant;

/// The best rate of a few f32 matmuls [1536,768] x [768,3072] on all threads, in operations per second.
pub fn matmul_rate() -> f64 {
    let (m, n, k) = (1536, 3072, 768);
    let fill = |len: usize| (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect::<Vec<f32>>();
    let (a, b, mut c) = (fill(m * k), fill(n * k), vec![0f32; m * n]);
    let mut best = f64::INFINITY;
    for _ in 0..12 {
        let start = Instant::now();
        let weight = View::rows(&b, k).transposed();
        gemm((m, n, k), 1.0, View::rows(&a, k), weight, 0.0, &mut c, n, true);
        best = best.min(start.elapsed().as_secs_f64());
    }
    (2 * m * n * k) as f64 / best
}

/// Processor time of all threads of this process so far, in seconds.
pub fn processor_seconds() -> Result<f64> {
    let text = proc("stat")?;
    // After the command's name in parentheses: state is field 3, utime and stime are 14 and 15, in hundredths.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok((user + system) / 100.0),
        _ => Err(unreadable("stat")),
    }
}

/// The largest resident size this process has had, in bytes.
pub fn peak_memory() -> Result<u64> {
    let text = proc("status")?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.map(|k| k * 1024).ok_or_else(|| unreadable("status"))
}

fn proc(name: &str) -> Result<String> {
    let path = format!("/proc/self/{name}");
    std::fs::read_to_string(&path).map_err(|e| Error::io("bench", &path, &e))
}

fn unreadable(name: &str) -> Error {
    Error::new(Kind::File, "bench")
        .about(format!("/proc/self/{name}"))
        .expected("the fields Linux writes")
        .got("other text")
}
