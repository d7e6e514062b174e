//! A group's calls, its ranks being threads.

use super::{Ask, Group, PIECE};
use std::time::Duration;

/// Runs `body` as every rank; what they return, in turn.
fn ranks<T: Send>(size: usize, body: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    let groups = Group::of_threads(size, Duration::from_secs(60)).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = groups.iter().map(|group| scope.spawn(|| body(group))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn everyone_gets_what_everyone_has_in_turn() {
    let own = |rank: usize| vec![rank as u8; 3 * rank];
    let all: Vec<Vec<u8>> = (0..4).map(own).collect();
    let got = ranks(4, |group| {
        let first = group.all_gather("test", &own(group.rank())).unwrap();
        group.barrier("test").unwrap();
        (first, group.gather("test", &[group.rank() as f64, -0.0]).unwrap(), group.take_traffic())
    });
    for (rank, (bytes, numbers, traffic)) in got.into_iter().enumerate() {
        assert_eq!(bytes, all);
        let bits: Vec<Vec<u64>> = numbers.iter().map(|n| n.iter().map(|x| x.to_bits()).collect()).collect();
        assert_eq!(
            bits,
            (0..4).map(|r| vec![f64::from(r).to_bits(), (-0.0f64).to_bits()]).collect::<Vec<_>>()
        );
        // 3 r bytes and 16 more to each of three others; from others all but its own.
        let traffic = traffic["test"];
        assert_eq!(traffic.sent, 3 * (3 * rank as u64 + 16));
        assert_eq!(traffic.received, (18 - 3 * rank as u64) + 3 * 16);
    }
    let alone = Group::alone();
    assert_eq!(alone.all_gather("test", b"ab").unwrap(), [b"ab".to_vec()]);
    assert!(alone.leads() && alone.take_traffic().is_empty() && alone.end().is_ok());
    assert_eq!(Group::open(Ask::None, Duration::from_secs(1)).unwrap().size(), 1);
}

#[test]
fn what_is_sent_to_each_arrives() {
    let message = |from: usize, to: usize| vec![(10 * from + to) as u8; (from + 2 * to) % 5];
    let got = ranks(5, |group| {
        let me = group.rank();
        let out: Vec<Vec<u8>> = (0..5).map(|to| message(me, to)).collect();
        let lengths: Vec<usize> = (0..5).map(|from| message(from, me).len()).collect();
        group.exchange("test", &out, &lengths).unwrap()
    });
    for (to, got) in got.into_iter().enumerate() {
        assert_eq!(got, (0..5).map(|from| message(from, to)).collect::<Vec<_>>());
    }
}

/// Sums of f32 in the order of ranks: other orders have other bits. More than one piece, the last one shorter.
#[test]
fn a_sum_is_that_of_one_process_to_the_bit() {
    let n = 2 * PIECE / 4 + 77;
    let own = |rank: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + rank * 104_729) % 10_007) as f32 * 1.1e-3 - 4.9).collect()
    };
    for size in [2, 3, 4] {
        let whole = (1..size).fold(own(0), |mut sum, rank| {
            sum.iter_mut().zip(own(rank)).for_each(|(a, b)| *a += b);
            sum
        });
        let reversed = (0..size - 1).rev().fold(own(size - 1), |mut sum, rank| {
            sum.iter_mut().zip(own(rank)).for_each(|(a, b)| *a += b);
            sum
        });
        assert!(size == 2 || whole != reversed, "the order shows");
        let got = ranks(size, |group| {
            let mut sum = vec![0f32; n];
            let mine = own(group.rank());
            let add = |at: usize, piece: &mut [u8]| {
                for (bytes, x) in piece.chunks_exact_mut(4).zip(&mine[at / 4..]) {
                    let have = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    let sum = if group.rank() == 0 { *x } else { have + x };
                    bytes.copy_from_slice(&sum.to_le_bytes());
                }
                Ok(())
            };
            group.sum_in_order("test", bytemuck::cast_slice_mut(&mut sum), add).unwrap();
            sum
        });
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(got.iter().all(|sum| bits(sum) == bits(&whole)), "{size} ranks");
    }
}

#[test]
fn a_rank_that_ended_is_an_error_with_its_place() {
    let groups = Group::of_threads(2, Duration::from_secs(60)).unwrap();
    let [first, second]: [Group; 2] = groups.try_into().ok().unwrap();
    first.at_step(5);
    drop(second);
    let e = first.all_gather("gather features", b"x").unwrap_err();
    assert_eq!(e.exit_code(), 8);
    assert!(e.to_string().contains("rank 0 of 2, step 5: gather features"), "{e}");
}
