//! What a process holds while it runs, and that it does not grow.

/// Resident memory in kB, threads, open files of a process; None if it has ended.
pub fn held(id: u32) -> Option<[u64; 3]> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let handles = std::fs::read_dir(format!("/proc/{id}/fd")).ok()?.count() as u64;
    Some([field("VmRSS:")?, field("Threads:")?, handles])
}

/// From the first look, which is after warming up, to the last: memory within so many per mille, and no more threads or open
/// files.
#[track_caller]
pub fn assert_flat(seen: &[[u64; 3]], per_mille: u64) {
    println!("memory kB, threads, handles: {seen:?}");
    let (first, last) = (seen[0][0], seen[seen.len() - 1]);
    println!("memory grew by {:.2} %", 100.0 * (last[0] as f64 / first as f64 - 1.0));
    assert!(last[0] * 1000 <= first * (1000 + per_mille), "memory grew: {seen:?}");
    // A file may be open while it is saved, so of each half the smallest numbers count.
    let (before, after) = seen.split_at(seen.len() / 2);
    let least = |half: &[[u64; 3]], k: usize| half.iter().map(|s| s[k]).min();
    for k in [1, 2] {
        assert!(least(after, k) <= least(before, k), "threads or open files grew: {seen:?}");
    }
}
