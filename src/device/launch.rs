//! What running a kernel means, on every driver: a name, a grid, a block, the dynamic shared memory, and arguments
//! with a type. Each driver knows of its kernels what they declare ([`Signature`]), and [`Launch::check`] compares:
//! a wrong launch is an error with the kernel's name, never an abort.

use crate::{Error, Result};
use std::ffi::c_void;

/// The most threads of a block, and the most dynamic shared memory (compute capability 9.0).
pub const MAX_THREADS: u64 = 1024;
/// Bytes of dynamic shared memory a block can have.
pub const MAX_SHARED: u32 = 227 * 1024;

/// A kernel and how many threads run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch<'a> {
    /// Its name.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

/// One argument. A pointer is an address in the device's memory; null where a kernel's header allows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// An address in the device's memory.
    Pointer(*mut c_void),
    /// One with the bytes that a kernel reads or writes there.
    Memory(*mut c_void, usize),
    /// A whole number.
    I32(i32),
    /// A whole number, 0 or more.
    U32(u32),
    /// A count.
    U64(u64),
    /// A number.
    F32(f32),
}

impl Arg {
    /// No memory, where a kernel's header allows it.
    pub const NULL: Arg = Arg::Pointer(std::ptr::null_mut());

    /// Where the value lies, as a driver's launch call wants it.
    pub fn address(&self) -> *mut c_void {
        match self {
            Arg::Pointer(v) | Arg::Memory(v, _) => std::ptr::from_ref(v) as *mut c_void,
            Arg::I32(v) => std::ptr::from_ref(v) as *mut c_void,
            Arg::U32(v) => std::ptr::from_ref(v) as *mut c_void,
            Arg::U64(v) => std::ptr::from_ref(v) as *mut c_void,
            Arg::F32(v) => std::ptr::from_ref(v) as *mut c_void,
        }
    }

    /// How much memory a kernel is handed here.
    pub fn bytes(&self) -> usize {
        if let Arg::Memory(_, bytes) = self { *bytes } else { 0 }
    }

    /// What a kernel must declare to be given it.
    pub fn param(&self) -> Param {
        match self {
            Arg::Pointer(_) | Arg::Memory(..) => Param { kind: ParamKind::Pointer, size: 8 },
            Arg::I32(_) | Arg::U32(_) => Param { kind: ParamKind::Integer, size: 4 },
            Arg::U64(_) => Param { kind: ParamKind::Integer, size: 8 },
            Arg::F32(_) => Param { kind: ParamKind::Float, size: 4 },
        }
    }
}

impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Arg::I32(v)
    }
}
impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Arg::U32(v)
    }
}
impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Arg::U64(v)
    }
}
impl From<f32> for Arg {
    fn from(v: f32) -> Self {
        Arg::F32(v)
    }
}

/// What sort of parameter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// An address.
    Pointer,
    /// A whole number.
    Integer,
    /// A number with a fraction.
    Float,
    /// Several together.
    Structure,
}

/// A parameter as the kernel declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Pointer, number or structure.
    pub kind: ParamKind,
    /// In bytes.
    pub size: u32,
}

/// What a kernel declares of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The kernel's.
    pub name: String,
    /// In their order.
    pub params: Vec<Param>,
    /// Of a block.
    pub max_threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

impl Launch<'_> {
    /// Compares the number of blocks with what a GPU can do.
    pub fn check_grid(&self) -> Result<()> {
        let [x, y, z] = self.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            let expected = "1 to 2147483647, 65535 and 65535 blocks";
            let operation = format!("launch {}", self.kernel);
            return Err(Error::argument(operation, "grid", expected, format!("{:?}", self.grid)));
        }
        Ok(())
    }

    /// Compares the launch with what the kernel declares and with what a GPU can do.
    pub fn check(&self, signature: &Signature, args: &[Arg]) -> Result<()> {
        let wrong = |argument: &str, expected: String, got: String| {
            Err(Error::argument(format!("launch {}", self.kernel), argument, expected, got))
        };
        let threads = self.block.iter().map(|&n| u64::from(n)).product::<u64>();
        let limit = u64::from(signature.max_threads).min(MAX_THREADS);
        if threads == 0 || threads > limit || self.block[2] > 64 {
            return wrong("block", format!("1 to {limit} threads"), format!("{:?}", self.block));
        }
        self.check_grid()?;
        if self.shared != signature.shared || self.shared > MAX_SHARED {
            return wrong(
                "shared memory",
                format!("{} bytes", signature.shared),
                format!("{} bytes", self.shared),
            );
        }
        if args.len() != signature.params.len() {
            let (expected, got) = (signature.params.len(), args.len());
            return wrong("arguments", format!("{expected} of them"), got.to_string());
        }
        for (i, (arg, &param)) in args.iter().zip(&signature.params).enumerate() {
            if arg.param() != param {
                let expected = format!("{:?} of {} bytes", param.kind, param.size);
                return wrong(&format!("argument {i}"), expected, format!("{arg:?}"));
            }
        }
        Ok(())
    }
}
