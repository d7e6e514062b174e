//! What an error of a running GPU means: codes of `CUresult` in CUDA's `cuda.h`, in words, with what to do. A plain table, tested
//! without a GPU; errors of opening one are in `setup`.

use crate::{Error, Kind};

/// `CUDA_ERROR_OUT_OF_MEMORY`: the one code that is called that. It harms nothing that the GPU holds.
pub const OUT_OF_MEMORY: u32 = 2;

struct Row {
    code: u32,
    name: &'static str,
    what: &'static str,
    fix: &'static str,
}

const HARDWARE: &str =
    "dmesg names the cause (NVRM: Xid); reset the GPU or reboot, and look at power and temperature";
const KERNEL: &str = "run again with QFORMER_SYNC=1 to learn which kernel it is, and report it";

const ROWS: &[Row] = &[
    Row {
        code: OUT_OF_MEMORY,
        name: "CUDA_ERROR_OUT_OF_MEMORY",
        what: "no memory is left",
        fix: "use a smaller batch",
    },
    Row {
        code: 4,
        name: "CUDA_ERROR_DEINITIALIZED",
        what: "the driver is shutting down",
        fix: "look whether the driver was updated meanwhile, and reboot",
    },
    Row {
        code: 46,
        name: "CUDA_ERROR_DEVICE_UNAVAILABLE",
        what: "the GPU was taken away",
        fix: "see what nvidia-smi shows",
    },
    Row {
        code: 100,
        name: "CUDA_ERROR_NO_DEVICE",
        what: "the GPU is gone",
        fix: "in a container, restart it; else see what nvidia-smi shows, and reboot",
    },
    Row {
        code: 214,
        name: "CUDA_ERROR_ECC_UNCORRECTABLE",
        what: "the GPU's memory has an error that could not be corrected",
        fix: HARDWARE,
    },
    Row {
        code: 220,
        name: "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        what: "a link between GPUs failed",
        fix: HARDWARE,
    },
    Row {
        code: 700,
        name: "CUDA_ERROR_ILLEGAL_ADDRESS",
        what: "a kernel used memory that it may not use",
        fix: KERNEL,
    },
    Row {
        code: 702,
        name: "CUDA_ERROR_LAUNCH_TIMEOUT",
        what: "a kernel took longer than a GPU with a display allows",
        fix: "use a GPU without a display, or a smaller batch",
    },
    Row {
        code: 715,
        name: "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        what: "a kernel met an instruction that this GPU lacks",
        fix: KERNEL,
    },
    Row {
        code: 716,
        name: "CUDA_ERROR_MISALIGNED_ADDRESS",
        what: "a kernel used an address that is not aligned",
        fix: KERNEL,
    },
    Row {
        code: 717,
        name: "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        what: "a kernel used an address of another space",
        fix: KERNEL,
    },
    Row { code: 718, name: "CUDA_ERROR_INVALID_PC", what: "a kernel lost its place", fix: HARDWARE },
    Row {
        code: 719,
        name: "CUDA_ERROR_LAUNCH_FAILED",
        what: "the GPU stopped in the middle of a kernel",
        fix: HARDWARE,
    },
    Row {
        code: 721,
        name: "CUDA_ERROR_CONTAINED",
        what: "the GPU ended this process for an error of its memory",
        fix: HARDWARE,
    },
    Row {
        code: 999,
        name: "CUDA_ERROR_UNKNOWN",
        what: "the driver failed; the GPU may have fallen off the bus",
        fix: "dmesg names the cause (NVRM: Xid 79); reboot, and look at power and temperature; in a container, restart it",
    },
];

/// The error of `operation` that ended with a code; `name` is what the driver calls codes that are not in the table.
pub fn failure(operation: &str, code: u32, name: &str) -> Error {
    let kind = if code == OUT_OF_MEMORY { Kind::Memory } else { Kind::Device };
    let base = Error::new(kind, operation);
    match ROWS.iter().find(|row| row.code == code) {
        Some(Row { name, what, fix, .. }) => base.got(format!("{what} ({name}, {code})")).fix(fix),
        None => base.got(format!("CUDA error {code} {name}").trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_words() {
        let mut whats = std::collections::BTreeSet::new();
        for row in ROWS {
            let error = failure("launch adamw_f32", row.code, "");
            let text = error.to_string();
            assert_eq!(error.exit_code(), 6);
            assert!(text.starts_with("launch adamw_f32: ") && text.contains(row.name), "{text}");
            assert!(whats.insert(row.what), "{text}");
            let memory = text.contains("no memory") || text.contains("OUT_OF_MEMORY");
            assert_eq!(memory, row.code == OUT_OF_MEMORY, "{text}");
            assert_eq!(error.kind() == Kind::Memory, row.code == OUT_OF_MEMORY);
        }
        assert_eq!(failure("copy", 1, "invalid value").to_string(), "copy: CUDA error 1 invalid value");
    }
}
