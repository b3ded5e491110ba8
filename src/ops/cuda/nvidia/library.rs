//! Matrix products by cuBLASLt, NVIDIA's library.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    fmt,
    ptr::from_ref,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys,
    },
    driver::{self, CudaDevice},
};

use super::failed as failed_driver;
use crate::ops::cuda::{GpuError, Kind, Matrices, Product};

/// Bytes of memory for algorithms. NVIDIA recommends as many on compute capability 9.0.
const WORKSPACE: usize = 32 << 20;
/// The alignment that [`Gpu::multiply`](crate::ops::cuda::Gpu::multiply) ensures.
const ALIGNMENT: u32 = 16;

/// The version, e.g. 130100.
pub fn version() -> usize {
    // SAFETY: the function has no conditions.
    unsafe { sys::cublasLtGetVersion() }
}

/// cuBLASLt on a device.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    /// Address of memory for algorithms. All products use it, one after the other in the order of the stream.
    workspace: u64,
    /// What each kind of product needs, by its shape and whether a bias is added.
    plans: Mutex<HashMap<(Product, bool), Plan>>,
}

/// The descriptions that a call takes, and the algorithm.
struct Plan {
    work: Work,
    a: Layout,
    b: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: cuBLASLt's handles may be used from any thread of the process; descriptions are used by one thread at a time.
unsafe impl Send for Library {}
// SAFETY: as above: the plans are behind a lock.
unsafe impl Sync for Library {}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("cuBLASLt")
    }
}

impl Library {
    /// Opens the library on a device, whose context must be the thread's.
    ///
    /// # Errors
    /// When the library or the device fails.
    pub fn open(device: &Arc<CudaDevice>) -> Result<Self, GpuError> {
        device.bind_to_thread().map_err(failed_driver("changing threads"))?;
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        // SAFETY: the memory is never read before an algorithm has written it, and never freed.
        let workspace =
            unsafe { driver::result::malloc_sync(WORKSPACE) }.map_err(failed_driver("taking memory for cuBLASLt"))?;
        Ok(Self { handle, workspace, plans: Mutex::default() })
    }

    /// Computes products on a stream of the device.
    ///
    /// # Errors
    /// When the library fails, or has no algorithm for the products.
    ///
    /// # Safety
    /// The device must have the matrices of the product at these addresses, and its context must be the thread's.
    pub unsafe fn multiply(
        &self,
        product: Product,
        at: Matrices<u64>,
        stream: driver::sys::CUstream,
    ) -> Result<(), GpuError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let Plan { work, a, b, d, algorithm } = match plans.entry((product, at.bias.is_some())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.plan(product, at.bias)?),
        };
        if let Some(bias) = at.bias {
            work.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, beta) = (1.0f32, if at.added.is_some() { 1.0f32 } else { 0.0 });
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the descriptions are those of the product, whose matrices the device has, as the caller promises; the workspace
        // is as long as the algorithm was told.
        let done = unsafe {
            result::matmul(
                self.handle,
                work.0,
                from_ref(&one).cast(),
                from_ref(&beta).cast(),
                pointer(at.a),
                a.0,
                pointer(at.b),
                b.0,
                pointer(at.added.unwrap_or(at.d)),
                d.0,
                pointer(at.d),
                d.0,
                algorithm,
                pointer(self.workspace),
                WORKSPACE,
                stream.cast(),
            )
        };
        done.map_err(failed("cublasLtMatmul"))
    }

    /// The plan of a product. The algorithm is the one that the library prefers for the usual number of columns and products,
    /// among those that take each sum in one piece.
    fn plan(&self, product: Product, bias: Option<u64>) -> Result<Plan, GpuError> {
        let work = Work::new(product, bias)?;
        let [n, count] = product.chosen_for;
        let [a, b, d] = layouts(Product { n, count, ..product })?;
        let preference = Preference::new()?;
        let found = result::get_matmul_algo_heuristic(self.handle, work.0, a.0, b.0, d.0, d.0, preference.0);
        let algorithm = found.map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?.algo;
        let [a, b, d] = layouts(product)?;
        Ok(Plan { work, a, b, d, algorithm })
    }
}

/// The layouts of A, B and D.
fn layouts(product: Product) -> Result<[Layout; 3], GpuError> {
    let Product { m, n, k, transposed, factors, result, count, .. } = product;
    let stored =
        |transposed: bool, [rows, columns]: [usize; 2]| if transposed { [columns, rows] } else { [rows, columns] };
    Ok([
        Layout::new(factors, stored(transposed[0], [m, k]), count)?,
        Layout::new(factors, stored(transposed[1], [k, n]), count)?,
        Layout::new(result, [m, n], count)?,
    ])
}

/// The library's number for a type.
fn type_of(kind: Kind) -> sys::cudaDataType {
    match kind {
        Kind::F16 => sys::cudaDataType::CUDA_R_16F,
        Kind::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Kind::F32 => sys::cudaDataType::CUDA_R_32F,
        _ => unreachable!("factors and results are floats"),
    }
}

/// A description of equal matrices, one after the other.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(kind: Kind, [rows, columns]: [usize; 2], count: usize) -> Result<Self, GpuError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let layout = result::create_matrix_layout(type_of(kind), rows as u64, columns as u64, rows as i64)
            .map_err(failed("cublasLtMatrixLayoutCreate"))?;
        let layout = Self(layout);
        layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(count as i32))?;
        layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &((rows * columns) as i64))?;
        Ok(layout)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatrixLayoutAttribute_t, value: &T) -> Result<(), GpuError> {
        // SAFETY: the description exists, and the attribute has the type of the value.
        unsafe { sys::cublasLtMatrixLayoutSetAttribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) }
            .result()
            .map_err(failed("cublasLtMatrixLayoutSetAttribute"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: the description exists and is not used again. A failure has no consequence.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// A description of what is computed.
struct Work(sys::cublasLtMatmulDesc_t);

impl Work {
    fn new(product: Product, bias: Option<u64>) -> Result<Self, GpuError> {
        use sys::{cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as Attribute};
        let compute = match product.factors {
            Kind::F32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let work =
            result::create_matmul_desc(compute, type_of(Kind::F32)).map_err(failed("cublasLtMatmulDescCreate"))?;
        let work = Self(work);
        let [a, b] = product.transposed.map(i32::from); // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1
        work.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &a)?;
        work.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &b)?;
        if let Some(bias) = bias {
            work.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            work.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(work)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), GpuError> {
        // SAFETY: the description exists, and the attribute has the type of the value.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: the description exists and is not used again. A failure has no consequence.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Which algorithms fit.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, GpuError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        let whole_sums = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &whole_sums)?;
        for alignment in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(alignment, &ALIGNMENT)?;
        }
        Ok(preference)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), GpuError> {
        // SAFETY: the preference exists, and the attribute has the type of the value.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) }
            .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: the preference exists and is not used again. A failure has no consequence.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// Converts a failure of the library's function `what`.
fn failed(what: &str) -> impl FnOnce(CublasError) -> GpuError {
    move |CublasError(status)| GpuError::Failed { what: what.into(), why: format!("{status:?}") }
}
