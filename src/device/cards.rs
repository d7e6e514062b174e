//! GPUs by name, with the figures of the maker's data sheets, and the rates that the roofline of a step takes of them.
//!
//! An H200 was measured: a copy reaches 4.3 of its 4.8 TB/s, a matmul of 8192 in bf16 790 of its 989 TFLOP/s. Of another
//! card a prediction takes the same shares. In f32, data sheets' figures stand as they are.

use super::storage::Storage;

/// A GPU. Rates are those of the data sheet: bytes and operations per second; tensor cores in 16 bits without sparsity,
/// accumulating in f32.
#[derive(Debug, PartialEq)]
pub struct Card {
    /// As `--device plan:NAME` has it.
    pub name: &'static str,
    /// What the driver calls it begins with this.
    pub title: &'static str,
    /// What programs see, in bytes.
    pub memory: u64,
    /// Multiprocessors (SMs).
    pub multiprocessors: usize,
    /// Compute capability 9.0 has matmuls of warp groups.
    pub warp_groups: bool,
    /// Of its memory, in bytes a second.
    pub bandwidth: f64,
    /// Dense matmuls in 16 bits with sums in f32, in FLOP a second.
    pub tensor: f64,
    /// Arithmetic in f32, in FLOP a second.
    pub single: f64,
    /// Where the figures stand.
    pub source: &'static str,
}

/// Shares of its data sheet that an H200 reached (`benches/RESULTS.md`).
const COPY_SHARE: f64 = 4.3 / 4.8;
const MATMUL_SHARE: f64 = 790.0 / 989.0;

const GIB: u64 = 1 << 30;

/// The cards whose roofline can be asked for.
pub const CARDS: &[Card] = &[
    Card {
        name: "rtx-4080-laptop",
        title: "NVIDIA GeForce RTX 4080 Laptop GPU",
        memory: 12 * GIB,
        multiprocessors: 58,
        warp_groups: false,
        bandwidth: 432e9,
        // 58 multiprocessors x 512 operations a clock (as the RTX 4090's figure) x 2.28 GHz.
        tensor: 67.7e12,
        single: 33.9e12,
        source: "NVIDIA, GeForce laptops compared: 7,424 cores, boost 1.35 to 2.28 GHz, 12 GB, 192 bit; at the highest clock",
    },
    Card {
        name: "rtx-3090",
        title: "NVIDIA GeForce RTX 3090",
        memory: 24 * GIB,
        multiprocessors: 82,
        warp_groups: false,
        bandwidth: 936e9,
        tensor: 71e12,
        single: 35.6e12,
        source: "NVIDIA Ampere GA102 GPU architecture, appendix A",
    },
    Card {
        name: "rtx-4090",
        title: "NVIDIA GeForce RTX 4090",
        memory: 24 * GIB,
        multiprocessors: 128,
        warp_groups: false,
        bandwidth: 1008e9,
        tensor: 165.2e12,
        single: 82.6e12,
        source: "NVIDIA Ada GPU architecture, appendix A",
    },
    Card {
        name: "rtx-5090",
        title: "NVIDIA GeForce RTX 5090",
        memory: 32 * GIB,
        multiprocessors: 170,
        warp_groups: false,
        bandwidth: 1792e9,
        tensor: 209.5e12,
        single: 104.8e12,
        source: "NVIDIA RTX Blackwell GPU architecture, appendix A",
    },
    Card {
        name: "a100",
        title: "NVIDIA A100",
        memory: 80 * GIB,
        multiprocessors: 108,
        warp_groups: false,
        bandwidth: 2039e9,
        tensor: 312e12,
        single: 19.5e12,
        source: "NVIDIA A100 data sheet, 80 GB SXM",
    },
    Card {
        name: "h100",
        title: "NVIDIA H100",
        memory: 80 * GIB,
        multiprocessors: 132,
        warp_groups: true,
        bandwidth: 3.35e12,
        tensor: 989e12,
        single: 67e12,
        source: "NVIDIA H100 data sheet, SXM, half of the figure with sparsity",
    },
    H200,
];

/// The one that was measured.
pub const H200: Card = Card {
    name: "h200",
    title: "NVIDIA H200",
    memory: 139 * GIB,
    multiprocessors: 132,
    warp_groups: true,
    bandwidth: 4.8e12,
    tensor: 989e12,
    single: 67e12,
    source: "NVIDIA H200 data sheet, SXM, half of the figure with sparsity",
};

/// By the name that `plan:NAME` has.
pub fn named(name: &str) -> Option<&'static Card> {
    CARDS.iter().find(|card| card.name == name)
}

/// By what the driver calls it.
pub fn titled(title: &str) -> Option<&'static Card> {
    CARDS.iter().filter(|card| title.starts_with(card.title)).max_by_key(|card| card.title.len())
}

impl Card {
    /// Bytes per second that a copy is expected to reach.
    pub fn copy_rate(&self) -> f64 {
        COPY_SHARE * self.bandwidth
    }

    /// Operations per second that a large matmul is expected to reach.
    pub fn matmul_rate(&self, storage: Storage) -> f64 {
        if storage == Storage::F32 { self.single } else { MATMUL_SHARE * self.tensor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was measured on the H200 is what its roofline takes.
    #[test]
    fn the_h200_is_as_measured() {
        assert!((H200.copy_rate() - 4.3e12).abs() < 1e6);
        assert!((H200.matmul_rate(Storage::BF16) - 790e12).abs() < 1e6);
        assert_eq!(H200.matmul_rate(Storage::F32), 67e12);
    }

    /// Tensor cores do 512 operations a clock and multiprocessor on consumers' GPUs from Ampere to Blackwell, 2048 on an A100 and
    /// 4096 on Hopper, and bandwidth is a bus of so many pins: figures that were mistyped do not fit a clock.
    #[test]
    fn figures_fit_a_clock() {
        for card in CARDS {
            let a_clock = match card.name {
                "a100" => 2048.0,
                "h100" | "h200" => 4096.0,
                _ => 512.0,
            };
            let clock = card.tensor / a_clock / card.multiprocessors as f64;
            assert!((1.3e9..2.6e9).contains(&clock), "{}: {clock}", card.name);
            let lanes = card.single / 2.0 / clock / card.multiprocessors as f64;
            let want = if card.name == "a100" { 64.0 } else { 128.0 };
            assert!((lanes / want - 1.0).abs() < 0.1, "{}: {lanes}", card.name);
            assert!(!card.source.is_empty());
        }
    }

    #[test]
    fn cards_are_known_by_both_names() {
        for card in CARDS {
            assert_eq!((named(card.name), titled(card.title)), (Some(card), Some(card)));
        }
        assert_eq!(titled("NVIDIA A100-SXM4-80GB").map(|c| c.name), Some("a100"));
        assert_eq!(titled("NVIDIA H100 80GB HBM3").map(|c| c.name), Some("h100"));
        assert_eq!(titled("NVIDIA GeForce RTX 4080"), None);
        assert_eq!(named("rtx-4080"), None);
    }
}
