//! The microkernels that compiled code calls for matrix products on a CPU.
//!
//! Code made by Cranelift has 128-bit vectors only; these kernels have what the processor has, chosen once at run
//! time by [`dot`]. Callers block their product (to a few rows, up to some hundred columns, some thousand of k), and
//! call the [`DotFn`] for each block, so that work before and after it happens on data still in the caches.
//!
//! # What is computed
//!
//! [`DotArgs`] says it all: `c[i,j] = (accumulate ? c[i,j] : 0) + Σ_k a[i,k]·b[j,k]`. Operands are f32, bf16, f16 or
//! 8-bit floats in memory, in any pairing and with any strides; they are expanded to f32, exactly, and all arithmetic is
//! f32. Elements of 8 bits may have [`Scales`]: an element is then its code times its scale, rounded to f32.
//! Where both operands have scales that are constant over the same blocks of k, and sums run along k, the products of codes
//! are summed over each block, and that sum is multiplied with the scale of the row and then with that of the column.
//! The strides choose one of two ways to sum:
//!
//! - **along k**, when both operands are contiguous along k (x·Wᵀ with weights stored `[out, in]`): each
//!   `c[i,j]` has one vector of partial sums, added up lane by lane at the end of every [`K_BLOCK_ALONG_K`] of k;
//! - **along j**, when `b` is contiguous along j (p·V): each `c[i,j]` is a chain of multiply-adds along k, begun
//!   anew every [`K_BLOCK_ALONG_J`] of k;
//! - with any other strides, panels are gathered and summed along k.
//!
//! # The same bits for every batch
//!
//! The operations that make `c[i,j]` depend on k, on the way of summing (which the three strides `a_k`, `b_row`
//! and `b_k` alone decide), on the level of [`Features`] and on the values; never on m, n, i or j, nor on the
//! element types beyond the values they hold. A row multiplied alone gives the bits that it gives among others.
//!
//! # Speed
//!
//! One row streams `b` once, several lines at a time. From about three tiles of rows on (a tile is 6 rows with
//! AVX-512), 16-bit operands are expanded once into panels in the L1 cache. The panels are buffers of the thread,
//! of at most half a MiB, made by the first product that needs them.

mod codes;
mod drive;
mod features;
mod late;
mod level;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod pack;
mod scalar;
mod scales;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use features::{Features, cpu_features};
pub use scales::{ScaleElem, Scales};

use std::sync::OnceLock;
use vector::Level;

/// Elements of k after which the partial sums of products along k are added up: 512.
pub const K_BLOCK_ALONG_K: usize = 512;
/// Elements of k after which products along j begin a new chain: 128.
pub const K_BLOCK_ALONG_J: usize = 128;

/// Element type of an operand in memory. Arithmetic is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Elem {
    /// IEEE binary32, 4 bytes.
    F32 = 0,
    /// The upper half of an f32, 2 bytes.
    Bf16 = 1,
    /// IEEE binary16, 2 bytes.
    F16 = 2,
    /// 4 exponent bits, 3 of mantissa, no infinities: 1 byte.
    F8E4M3 = 3,
    /// The upper half of an f16, 1 byte.
    F8E5M2 = 4,
}

impl Elem {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Elem::F32 => 4,
            Elem::Bf16 | Elem::F16 => 2,
            Elem::F8E4M3 | Elem::F8E5M2 => 1,
        }
    }
}

/// `c[i,j] = (accumulate ? c[i,j] : 0) + Σ_k a[i,k]·b[j,k]` for `i < m`, `j < n`, over `k` products.
///
/// Extents below zero count as zero. Strides are in elements, of any sign. `a` and `b` need no alignment; `c` is
/// aligned to 4 and overlaps neither. Every element named is inside its operand; none other is read or written.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DotArgs {
    /// Rows of `a` and of `c`.
    pub m: i64,
    /// Rows of `b`, columns of `c`.
    pub n: i64,
    /// Products in each sum.
    pub k: i64,
    /// `a[i,k]` is at `a + (i*a_row + k*a_k)*size`.
    pub a: *const u8,
    /// Elements of `a` from one i to the next.
    pub a_row: i64,
    /// Elements of `a` from one k to the next.
    pub a_k: i64,
    /// `b[j,k]` is at `b + (j*b_row + k*b_k)*size`.
    pub b: *const u8,
    /// Elements of `b` from one j to the next.
    pub b_row: i64,
    /// Elements of `b` from one k to the next.
    pub b_k: i64,
    /// `c[i,j]` is at `c + i*c_row + j`.
    pub c: *mut f32,
    /// Elements of `c` from one i to the next.
    pub c_row: i64,
    /// Nonzero: add to `c`; zero: overwrite it, whatever it holds.
    pub accumulate: i64,
    /// The scales of `a`, of 8-bit floats; null: 1.
    pub a_scales: *const Scales,
    /// The scales of `b`, whose rows are j; likewise.
    pub b_scales: *const Scales,
}

/// A microkernel; the contract of its argument is that of [`DotArgs`].
pub type DotFn = unsafe extern "C" fn(*const DotArgs);

/// The microkernel for these operand types, best for this machine.
pub fn dot(a: Elem, b: Elem) -> DotFn {
    static BEST: OnceLock<Features> = OnceLock::new();
    let best = *BEST.get_or_init(Features::detect);
    dot_with(best, a, b).unwrap_or_else(|| portable(a, b))
}

/// The microkernel of one level of features, or `None` if this machine lacks it.
pub fn dot_with(features: Features, a: Elem, b: Elem) -> Option<DotFn> {
    if !features.is_available() {
        return None;
    }
    match features {
        #[cfg(target_arch = "x86_64")]
        Features::Baseline => Some(entry_of::<x86::sse2::Sse2>(a, b)),
        #[cfg(target_arch = "x86_64")]
        Features::Avx2Fma => Some(entry_of::<x86::avx2::Avx2>(a, b)),
        #[cfg(target_arch = "x86_64")]
        Features::Avx512 => Some(entry_of::<x86::avx512::Avx512>(a, b)),
        #[cfg(target_arch = "x86_64")]
        Features::Avx512Vbmi => Some(entry_of::<x86::avx512::vbmi::Avx512Vbmi>(a, b)),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Features::Neon => Some(entry_of::<neon::Neon>(a, b)),
        #[cfg(not(target_arch = "x86_64"))]
        Features::Baseline => Some(portable(a, b)),
        #[allow(unreachable_patterns, reason = "the levels of other architectures")]
        _ => None,
    }
}

/// The microkernel in plain Rust, which runs everywhere: [`Features::Baseline`] where there is no better one.
pub fn portable(a: Elem, b: Elem) -> DotFn {
    entry_of::<scalar::Portable>(a, b)
}

fn entry_of<L: Level>(a: Elem, b: Elem) -> DotFn {
    use vector::{Bf16, F8E4M3, F8E5M2, F16, F32};
    match a {
        Elem::F32 => entry_with::<L, F32>(b),
        Elem::Bf16 => entry_with::<L, Bf16>(b),
        Elem::F16 => entry_with::<L, F16>(b),
        Elem::F8E4M3 => entry_with::<L, F8E4M3>(b),
        Elem::F8E5M2 => entry_with::<L, F8E5M2>(b),
    }
}

fn entry_with<L: Level, A: vector::Element>(b: Elem) -> DotFn {
    use vector::{Bf16, F8E4M3, F8E5M2, F16, F32};
    match b {
        Elem::F32 => entry::<L, A, F32>,
        Elem::Bf16 => entry::<L, A, Bf16>,
        Elem::F16 => entry::<L, A, F16>,
        Elem::F8E4M3 => entry::<L, A, F8E4M3>,
        Elem::F8E5M2 => entry::<L, A, F8E5M2>,
    }
}

unsafe extern "C" fn entry<L: Level, A: vector::Element, B: vector::Element>(args: *const DotArgs) {
    // SAFETY: the caller's contract; an entry is handed out only where the processor has its level.
    unsafe { drive::product(const { &L::KERNELS }, A::ELEM, B::ELEM, &*args) }
}
