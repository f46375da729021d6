//! What the processor can do, asked at run time.

use core::fmt;

/// A level of processor features that kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Features {
    /// What every processor of the architecture has: SSE2 on x86-64, plain Rust elsewhere.
    Baseline,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes.
    Avx2Fma,
    /// x86-64 with AVX-512 F, BW and VL (and those of [`Features::Avx2Fma`]): 16 lanes.
    Avx512,
    /// x86-64 with AVX-512 VBMI (and those of [`Features::Avx512`]): 16 lanes, and 64 bytes of 8-bit floats at a time.
    Avx512Vbmi,
    /// AArch64 with NEON: 4 lanes.
    Neon,
}

impl Features {
    /// The best level of this machine.
    pub fn detect() -> Features {
        Features::all_available().pop().unwrap_or(Features::Baseline)
    }

    /// The levels that this machine has, the best one last; [`Features::Baseline`] is always there.
    pub fn all_available() -> Vec<Features> {
        use Features::{Avx2Fma, Avx512, Avx512Vbmi, Baseline, Neon};
        [Baseline, Avx2Fma, Avx512, Avx512Vbmi, Neon]
            .into_iter()
            .filter(|level| level.is_available())
            .collect()
    }

    /// Whether this machine can run the level's kernels.
    pub fn is_available(self) -> bool {
        match self {
            Features::Baseline => true,
            #[cfg(target_arch = "x86_64")]
            Features::Avx2Fma => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Features::Avx512 => {
                Features::Avx2Fma.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Features::Avx512Vbmi => Features::Avx512.is_available() && is_x86_feature_detected!("avx512vbmi"),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Features::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "the levels of other architectures")]
            _ => false,
        }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Features::Baseline => "baseline",
            Features::Avx2Fma => "avx2+fma",
            Features::Avx512 => "avx512",
            Features::Avx512Vbmi => "avx512+vbmi",
            Features::Neon => "neon",
        })
    }
}

/// The processor features that matter to products, by name, and whether this machine has them (and, for the AMX
/// ones, whether the operating system saves their registers).
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        let (amx_tile, amx_bf16, amx_int8) = amx();
        vec![
            ("sse4.1", is_x86_feature_detected!("sse4.1")),
            ("avx", is_x86_feature_detected!("avx")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512_vbmi", is_x86_feature_detected!("avx512vbmi")),
            ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512_fp16", is_x86_feature_detected!("avx512fp16")),
            ("amx-tile", amx_tile),
            ("amx-bf16", amx_bf16),
            ("amx-int8", amx_int8),
        ]
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec![
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
            ("sve", std::arch::is_aarch64_feature_detected!("sve")),
            ("sve2", std::arch::is_aarch64_feature_detected!("sve2")),
        ]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

/// AMX tiles, bf16 and int8 products, which the standard library cannot ask for yet.
#[cfg(target_arch = "x86_64")]
fn amx() -> (bool, bool, bool) {
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    #[target_feature(enable = "xsave")]
    fn saved_state() -> u64 {
        // SAFETY: only called where the operating system has enabled XGETBV.
        unsafe { _xgetbv(0) }
    }

    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return (false, false, false);
    }
    // SAFETY: OSXSAVE says that XGETBV runs.
    if unsafe { saved_state() } & TILE_STATE != TILE_STATE {
        return (false, false, false);
    }
    let edx = __cpuid_count(7, 0).edx;
    (edx & 1 << 24 != 0, edx & 1 << 22 != 0, edx & 1 << 25 != 0)
}
