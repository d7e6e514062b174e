//! Matmuls by cuBLASLt. It thinks in columns: row-major c = a b is, column by column, c^T = b^T a^T with the same
//! memory, so `b` goes first, sizes change places, and `transposed` keeps its meaning.
//!
//! Sums are in f32 (no TF32: f32 is the oracle), also those of parts. For every shape the library's heuristic is asked once
//! for an algorithm; where it has none that adds the bias, the bias is written first and the matmul added to it. GELU is
//! the library's own or an error.

use super::super::gpu::{Matmul, Operand, Storage};
use crate::{Error, Kind, Result};
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys as blas;
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::from_ref;

/// What cuBLAS recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// A step has about a hundred shapes, and half of them recur.
const MOST_PLANS: usize = 2048;

/// CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: where k is split, parts are not rounded to c's storage before they are added.
const IN_F32: u32 = 2;

/// What an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: (usize, usize, usize),
    a: (Storage, usize, bool),
    b: (Storage, usize, bool),
    c: (Storage, usize),
    bias: bool,
    add: bool,
    gelu: bool,
    /// Of the addresses of b, a, c and the bias, up to 256 bytes.
    alignments: [u32; 4],
}

struct Plan {
    description: blas::cublasLtMatmulDesc_t,
    layouts: [blas::cublasLtMatrixLayout_t; 3],
    algorithm: blas::cublasLtMatmulAlgo_t,
}

pub(super) struct Matmuls {
    handle: blas::cublasLtHandle_t,
    stream: sys::CUstream,
    workspace: sys::CUdeviceptr,
    /// None where the library has no algorithm.
    plans: HashMap<Key, Option<Plan>>,
}

fn failed(p: &Matmul, e: CublasError) -> Error {
    Error::new(Kind::Device, "matmul").about(p.name()).got(format!("cuBLAS error {:?}", e.0))
}

fn data_type(storage: Storage) -> blas::cudaDataType {
    match storage {
        Storage::F32 => blas::cudaDataType::CUDA_R_32F,
        Storage::F16 => blas::cudaDataType::CUDA_R_16F,
        Storage::BF16 => blas::cudaDataType::CUDA_R_16BF,
        Storage::I32 => blas::cudaDataType::CUDA_R_32I,
        Storage::U8 => blas::cudaDataType::CUDA_R_8U,
    }
}

fn alignment(at: *mut c_void) -> u32 {
    1 << (at as usize).trailing_zeros().min(8)
}

fn key(p: &Matmul) -> Key {
    let of = |x: &Operand| (x.storage, x.row, x.transposed);
    Key {
        sizes: p.sizes,
        a: of(&p.a),
        b: of(&p.b),
        c: (p.c.storage, p.c.row),
        bias: p.bias.is_some(),
        add: p.add,
        gelu: p.gelu,
        alignments: [p.b.at, p.a.at, p.c.at, p.bias.unwrap_or(std::ptr::null_mut())].map(alignment),
    }
}

impl Matmuls {
    pub fn new(stream: sys::CUstream) -> Result<Matmuls> {
        let none = |e: String| Error::new(Kind::Device, "open cuBLASLt").got(e);
        let handle = lt::create_handle().map_err(|e| none(format!("{:?}", e.0)))?;
        // SAFETY: fails where there is no memory.
        let workspace = unsafe { cu::malloc_sync(WORKSPACE) }.map_err(|e| none(format!("{e:?}")))?;
        Ok(Matmuls { handle, stream, workspace, plans: HashMap::new() })
    }

    pub fn run(&mut self, p: &Matmul) -> Result<()> {
        let unsupported = || failed(p, CublasError(blas::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        if self.multiply(p).map_err(|e| failed(p, e))? {
            return Ok(());
        }
        if p.gelu {
            return Err(Error::new(Kind::Device, "matmul")
                .about(p.name())
                .expected("an algorithm of cuBLASLt that ends with GELU")
                .got("none")
                .fix("use the exact one: --vit-gelu exact"));
        }
        let Some(bias) = p.bias.filter(|_| !p.add && p.c.row == p.sizes.1) else { return Err(unsupported()) };
        self.repeat(bias, p)
            .map_err(|e| Error::new(Kind::Device, "matmul").about(p.name()).got(format!("{e:?}")))?;
        let added = Matmul { bias: None, add: true, ..*p };
        if self.multiply(&added).map_err(|e| failed(p, e))? { Ok(()) } else { Err(unsupported()) }
    }

    /// Writes the bias to every row of c: to one, then what is written to as many again.
    fn repeat(&self, bias: *mut c_void, p: &Matmul) -> Result<(), DriverError> {
        let (m, n, _) = p.sizes;
        let (row, c) = (n * p.c.storage.bytes(), p.c.at as sys::CUdeviceptr);
        let copy = |to: usize, from, rows: usize| {
            // SAFETY: c has m rows, and the bias is as long as one.
            unsafe { cu::memcpy_dtod_async(c + (to * row) as u64, from, rows * row, self.stream) }
        };
        copy(0, bias as sys::CUdeviceptr, 1)?;
        let mut written = 1;
        while written < m {
            let more = written.min(m - written);
            copy(written, c, more)?;
            written += more;
        }
        Ok(())
    }

    /// Whether the library has an algorithm for it.
    fn multiply(&mut self, p: &Matmul) -> Result<bool, CublasError> {
        let key = key(p);
        if !self.plans.contains_key(&key) {
            if self.plans.len() == MOST_PLANS {
                self.forget();
            }
            let made = self.plan(p, &key)?;
            self.plans.insert(key, made);
        }
        let Some(Some(plan)) = self.plans.get(&key) else { return Ok(false) };
        let (one, beta) = (1f32, if p.add { 1f32 } else { 0f32 });
        let [b, a, c] = plan.layouts;
        // SAFETY: the plan's handles are alive, the operands as large as the layouts say (`Matmul`'s contract).
        let done = unsafe {
            set_bias(plan.description, p).and_then(|()| {
                lt::matmul(
                    self.handle,
                    plan.description,
                    from_ref(&one).cast(),
                    from_ref(&beta).cast(),
                    p.b.at,
                    b,
                    p.a.at,
                    a,
                    p.c.at,
                    c,
                    p.c.at,
                    c,
                    &plan.algorithm,
                    self.workspace as *mut c_void,
                    WORKSPACE,
                    self.stream.cast(),
                )
            })
        };
        done.map(|()| true)
    }

    fn plan(&self, p: &Matmul, key: &Key) -> Result<Option<Plan>, CublasError> {
        let (m, n, k) = p.sizes;
        // [rows, columns] as they stand in memory, seen column by column.
        let layout = |x: &Operand, rows: usize, columns: usize| {
            let (r, c) = if x.transposed { (columns, rows) } else { (rows, columns) };
            lt::create_matrix_layout(data_type(x.storage), c as u64, r as u64, x.row as i64)
        };
        let layouts = [layout(&p.b, k, n)?, layout(&p.a, m, k)?, layout(&p.c, m, n)?];
        let description = lt::create_matmul_desc(
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas::cudaDataType::CUDA_R_32F,
        )?;
        use blas::cublasLtMatmulDescAttributes_t as Attribute;
        // cublasOperation_t: CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        let turned = |x: &Operand| i32::from(x.transposed);
        // SAFETY: the handles were made just now; every value is of the type that its attribute has.
        unsafe {
            set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &turned(&p.b))?;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &turned(&p.a))?;
            use blas::cublasLtEpilogue_t as Epilogue;
            let epilogue = match (p.bias.is_some(), p.gelu) {
                (false, false) => None,
                (true, false) => Some(Epilogue::CUBLASLT_EPILOGUE_BIAS),
                (false, true) => Some(Epilogue::CUBLASLT_EPILOGUE_GELU),
                (true, true) => Some(Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS),
            };
            if let Some(epilogue) = epilogue {
                set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            }
            set_bias(description, p)?;
            let wishes = lt::create_matmul_pref()?;
            use blas::cublasLtMatmulPreferenceAttributes_t as Wish;
            let wish =
                |what, value: *const c_void, bytes| lt::set_matmul_pref_attribute(wishes, what, value, bytes);
            let [b, a, c, _bias] = &key.alignments;
            wish(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, from_ref(&WORKSPACE).cast(), 8)?;
            wish(Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, from_ref(&IN_F32).cast(), 4)?;
            wish(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, from_ref(b).cast(), 4)?;
            wish(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, from_ref(a).cast(), 4)?;
            wish(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, from_ref(c).cast(), 4)?;
            wish(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, from_ref(c).cast(), 4)?;
            let [b, a, c] = layouts;
            let found = lt::get_matmul_algo_heuristic(self.handle, description, b, a, c, c, wishes);
            lt::destroy_matmul_pref(wishes)?;
            match found {
                Ok(found) => Ok(Some(Plan { description, layouts, algorithm: found.algo })),
                Err(CublasError(blas::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => Ok(None),
                Err(e) => Err(e),
            }
        }
    }

    /// Captions of other lengths make other shapes in every step: plans may not pile up.
    fn forget(&mut self) {
        for plan in self.plans.drain().filter_map(|(_, plan)| plan) {
            // SAFETY: each handle was made by `plan` and is destroyed once.
            unsafe {
                let _ = lt::destroy_matmul_desc(plan.description);
                plan.layouts.into_iter().for_each(|l| _ = lt::destroy_matrix_layout(l));
            }
        }
    }

    pub fn close(&mut self) {
        self.forget();
        // SAFETY: nothing runs any more (the driver has waited).
        unsafe {
            let _ = (lt::destroy_handle(self.handle), cu::free_sync(self.workspace));
        }
    }
}

/// # Safety
/// `description` is alive, and `value` of the attribute's type.
unsafe fn set<T>(
    description: blas::cublasLtMatmulDesc_t,
    what: blas::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), CublasError> {
    // SAFETY: as the caller says.
    unsafe { lt::set_matmul_desc_attribute(description, what, from_ref(value).cast(), size_of::<T>()) }
}

/// # Safety
/// `description` is alive, and the bias as long as a row of c.
unsafe fn set_bias(description: blas::cublasLtMatmulDesc_t, p: &Matmul) -> Result<(), CublasError> {
    let what = blas::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    match &p.bias {
        // SAFETY: as the caller says.
        Some(bias) => unsafe { set(description, what, bias) },
        None => Ok(()),
    }
}
