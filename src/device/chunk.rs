//! How many pictures a device computes together where nothing is trained.

use super::Device;

/// Pictures that are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// How many, at most where it is not fixed.
    pub pictures: usize,
    /// Whether a chunk always has as many: a GPU chooses how it computes a matmul by the number of its rows.
    pub fixed: bool,
}

impl Chunk {
    /// What a device computes best.
    pub fn of(device: &Device) -> Chunk {
        match device {
            // Enough to read a weight rarely, and little memory.
            Device::Cpu => Chunk { pictures: 16, fixed: false },
            Device::Gpu(gpu) if gpu.is_emulated() => Chunk { pictures: 4, fixed: true },
            Device::Gpu(_) => Chunk { pictures: 32, fixed: true },
        }
    }

    /// At least `batch` pictures, in whole chunks where those are fixed.
    pub fn whole(self, batch: usize) -> usize {
        if self.fixed { batch.next_multiple_of(self.pictures) } else { batch }
    }
}
