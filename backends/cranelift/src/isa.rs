//! What machine code is made for, and how.

use crate::Error;
use cranelift_codegen::isa::{Builder, OwnedTargetIsa, TargetIsa, lookup};
use cranelift_codegen::settings::{self, Configurable};
use std::num::NonZeroUsize;
use target_lexicon::{Architecture, Triple};

/// An instruction set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Host,
    Named { arch: Architecture, features: Vec<String> },
}

impl Isa {
    /// This machine's, with every feature that it is found to have at run time.
    pub fn host() -> Self {
        Self(Kind::Host)
    }

    /// What every x86-64 processor has (SSE2), and the given features, named as Cranelift does: `has_avx2`.
    pub fn x86_64(features: &[&str]) -> Self {
        let features = features.iter().map(|f| f.to_string()).collect();
        Self(Kind::Named { arch: Architecture::X86_64, features })
    }

    /// What every 64-bit Arm processor has.
    pub fn aarch64() -> Self {
        let arch = Architecture::Aarch64(target_lexicon::Aarch64Architecture::Aarch64);
        Self(Kind::Named { arch, features: Vec::new() })
    }

    /// What every processor of this machine's architecture has.
    pub fn baseline() -> Self {
        Self(Kind::Named { arch: Triple::host().architecture, features: Vec::new() })
    }

    /// What Cranelift needs to know to make code as `options` say.
    pub(crate) fn targets(&self, options: &Options) -> Result<Targets, Error> {
        let plain = Options { optimise: OptLevel::None, ..options.clone() };
        Ok(Targets { chosen: self.build(options)?, plain: self.build(&plain)? })
    }

    pub(crate) fn build(&self, options: &Options) -> Result<OwnedTargetIsa, Error> {
        let refused = |e: &dyn std::fmt::Display| Error::Target(format!("no code for this target: {e}"));
        let mut builder = match &self.0 {
            Kind::Host => cranelift_native::builder().map_err(|e| refused(&e))?,
            Kind::Named { arch, features } => {
                let mut builder =
                    lookup(Triple { architecture: *arch, ..Triple::host() }).map_err(|e| refused(&e))?;
                for feature in features {
                    builder.enable(feature).map_err(|e| refused(&e))?;
                }
                builder
            }
        };
        finish(&mut builder, options).map_err(|e| refused(&e))
    }

    /// Fails unless this machine can run code for `target`, made from this instruction set.
    pub(crate) fn check_runs_here(&self, target: &dyn TargetIsa) -> Result<(), Error> {
        let Kind::Named { features, .. } = &self.0 else { return Ok(()) };
        let host = Self::host().build(&Options::default())?;
        if target.triple().architecture != host.triple().architecture {
            let (arch, here) = (target.triple().architecture, host.triple().architecture);
            return Err(Error::Target(format!("this machine runs {here} code, not {arch} code")));
        }
        let has = |feature: &str| {
            host.isa_flags().iter().any(|flag| flag.name == feature && flag.as_bool() == Some(true))
        };
        match features.iter().find(|feature| !has(feature)) {
            Some(feature) => Err(Error::Target(format!("this machine lacks the feature `{feature}`"))),
            None => Ok(()),
        }
    }
}

/// A target with the settings asked for, and with those for functions that are too long for them.
pub(crate) struct Targets {
    pub chosen: OwnedTargetIsa,
    plain: OwnedTargetIsa,
}

impl Targets {
    /// The target for a function of this many instructions.
    pub fn for_length(&self, insts: usize) -> &dyn TargetIsa {
        const LONG: usize = 5000;
        if insts > LONG { &*self.plain } else { &*self.chosen }
    }
}

fn finish(builder: &mut Builder, options: &Options) -> Result<OwnedTargetIsa, Box<dyn std::error::Error>> {
    let mut flags = settings::builder();
    let optimise = match options.optimise {
        OptLevel::None => "none",
        OptLevel::Speed => "speed",
    };
    flags.set("opt_level", optimise)?;
    let registers = match options.registers {
        Registers::SinglePass => "single_pass",
        Registers::Backtracking => "backtracking",
    };
    flags.set("regalloc_algorithm", registers)?;
    flags.set("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" })?;
    flags.set("is_pic", "false")?;
    flags.set("use_colocated_libcalls", "false")?;
    flags.set("unwind_info", "false")?;
    Ok(builder.finish(settings::Flags::new(flags))?)
}

/// How machine code is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The instructions that may be used.
    pub isa: Isa,
    /// How many threads compile kernels at once.
    pub threads: NonZeroUsize,
    /// How much Cranelift rewrites.
    pub optimise: OptLevel,
    /// How Cranelift gives values registers.
    pub registers: Registers,
}

impl Default for Options {
    /// This machine, one thread, and the settings that measure best.
    ///
    /// All 57 kernels of a DeepSeek-V3 model, compiled by one thread, and then run with large extents:
    ///
    /// | | compile | prefill | its attention | decode |
    /// | --- | --- | --- | --- | --- |
    /// | `None`, `Backtracking` | 16 ms | 54.1 ms | 1.78 ms | 2.98 ms |
    /// | `None`, `SinglePass` | 8 ms | 56.9 ms | 1.73 ms | 3.04 ms |
    /// | `Speed`, `Backtracking` | 22 ms | 53.0 ms | 1.44 ms | 2.99 ms |
    /// | `Speed`, `SinglePass` | 13 ms | 56.5 ms | 1.76 ms | 3.04 ms |
    ///
    /// Microkernels have most of the time of the whole; `Speed` tells where there is more than products.
    fn default() -> Self {
        Self {
            isa: Isa::host(),
            threads: NonZeroUsize::MIN,
            optimise: OptLevel::Speed,
            registers: Registers::Backtracking,
        }
    }
}

/// How much Cranelift rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptLevel {
    /// Nothing: instructions come out in the order that the kernel has them.
    None,
    /// Common subexpressions, constants, and what does not change in a loop. Not in functions of over
    /// 5000 Cranelift instructions: there it takes more time the longer they are, out of proportion.
    Speed,
}

/// How values are given registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// In one pass: quick to compile, slower code.
    SinglePass,
    /// With splitting and eviction.
    Backtracking,
}
