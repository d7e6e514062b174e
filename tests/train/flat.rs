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

/// From the first look, which is after warming up, to the last: memory within so many per mille, all else equal.
#[track_caller]
pub fn assert_flat(seen: &[[u64; 3]], per_mille: u64) {
    println!("memory kB, threads, handles: {seen:?}");
    let ([first, first_threads, first_handles], last) = (seen[0], seen[seen.len() - 1]);
    println!("memory grew by {:.2} %", 100.0 * (last[0] as f64 / first as f64 - 1.0));
    assert!(last[0] * 1000 <= first * (1000 + per_mille), "memory grew: {seen:?}");
    assert_eq!([first_threads, first_handles], last[1..], "threads or open files grew: {seen:?}");
}
