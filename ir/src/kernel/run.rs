//! What a kernel means: an interpreter for all phases, slow and obvious.
//!
//! * Arithmetic is exact as far as `f64` goes: floats are rounded by [`Inst::Round`], and by stores to types
//!   narrower than `f32`. [`Options::f32`] rounds every float to `f32`, as machines do. Sums run from the
//!   first element to the last; a backend may take another order.
//! * Integers overflow, divide by less than one, or do not fit the buffer they are stored in: a [`Fault`].
//! * Tile phase: an element outside its buffer's shape or outside a limit reads as zero and is not written.
//!   An element inside the shape but outside its allocation is a [`Fault`].
//! * Lane phase: every access is inside its memory, and private memory is written before it is read; all
//!   else is a [`Fault`].
//! * No program touches an element that another program of the launch writes ([`Options::races`]).
//! * Block phase: warps take turns at random ([`Options::schedule`]), and every access to shared memory is checked
//!   against barriers, pipes and what is under way: what a machine may get right by luck is a [`Fault`].

mod access;
mod arith;
mod block;
mod exec;
mod memory;

pub use arith::round;
pub use memory::Storage;

use super::print::Names;
use super::verify::verify;
use super::*;
use crate::dim::Sym;
use crate::entity::Entity;
use memory::{MAX_PROGRAMS, Marks, Private};

/// How to run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether each float is rounded to `f32` as it is put into a register.
    pub f32: bool,
    /// In which order the programs run (block phase: the blocks).
    pub order: Order,
    /// The seed of the order in which the warps of a block take turns.
    pub schedule: u64,
    /// How many blocks a [persistent](super::block::Launch::Persistent) launch has, as far as there are programs; 0
    /// counts as 1.
    pub blocks: u64,
    /// Whether programs that touch an element that another one writes are found; needs 8 bytes an element.
    pub races: bool,
    /// About how many elements may be computed before the run is given up.
    pub fuel: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { f32: false, order: Order::Forward, schedule: 0, blocks: 3, races: true, fuel: 1 << 32 }
    }
}

/// An order of the programs of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The last axis fastest.
    Forward,
    /// The last program first.
    Backward,
    /// Some other order, the same for the same seed.
    Shuffled(u64),
}

impl Order {
    /// The program that runs as number `i` of `n`.
    fn nth(self, i: u64, n: u64) -> u64 {
        match self {
            Order::Forward => i,
            Order::Backward => n - 1 - i,
            Order::Shuffled(seed) => {
                // Steps of a size that has no divisor in common with n come by every program once.
                let gcd = |mut a: u64, mut b: u64| {
                    while b != 0 {
                        (a, b) = (b, a % b);
                    }
                    a
                };
                let random = mix(seed);
                let step = (random % n..).find(|&step| gcd(step, n) == 1).unwrap_or(1);
                ((u128::from(i) * u128::from(step) + u128::from(mix(random))) % u128::from(n)) as u64
            }
        }
    }
}

/// One step of the SplitMix64 generator.
fn mix(seed: u64) -> u64 {
    let x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// What a run did. Elements outside a buffer are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// How many programs ran.
    pub programs: u64,
    /// For each buffer of the kernel, how many elements were loaded, each as often as it was.
    pub loaded: Vec<u64>,
    /// For each buffer of the kernel, how many elements were stored, each as often as it was.
    pub stored: Vec<u64>,
}

/// Why a kernel could not be run to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The verifier refuses it.
    #[error("not a well-formed kernel: {}", .0.join("; "))]
    Malformed(Vec<String>),
    /// A buffer's storage is missing or of another type.
    #[error("the buffer `{buf}`: {why}")]
    Binding {
        /// The buffer's name.
        buf: String,
        /// What is wrong, a clause.
        why: String,
    },
    /// An extent of the grid or of a buffer is not known, or is negative.
    #[error("the extent {0} has no value")]
    Extent(Dim),
    /// More programs than can be told apart.
    #[error("the grid has too many programs")]
    TooManyPrograms,
    /// An instruction did what none may do: a mistake of the compiler.
    #[error("program {program:?}: `{inst}`: {fault}")]
    At {
        /// The program's index along each axis of the grid.
        program: Vec<i64>,
        /// The instruction, as in the kernel's text.
        inst: String,
        /// What it did.
        fault: Fault,
    },
    /// The same, in the block phase.
    #[error("block {block}, warp {warp}: `{inst}`: {fault}")]
    InBlock {
        /// The block's number.
        block: u64,
        /// The warp's number in the block, and the name of its role.
        warp: String,
        /// The instruction, as in the kernel's text.
        inst: String,
        /// What it did.
        fault: Fault,
    },
    /// No warp of a block can go on.
    #[error("block {block}: nobody can go on: {}", waiting.join("; "))]
    Deadlock {
        /// The block's number.
        block: u64,
        /// Which warp waits at which instruction, for each that has not come to its end.
        waiting: Vec<String>,
    },
}

/// What no instruction may do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An access outside a buffer's allocation or outside private memory.
    #[error("element {index} of {memory}, which has {len}")]
    Outside {
        /// The buffer's name, or the private memory's.
        memory: String,
        /// The element's number.
        index: i64,
        /// How many there are.
        len: usize,
    },
    /// A read of private memory that the program has not written.
    #[error("element {index} of {memory} is read before it is written")]
    Unwritten {
        /// The private memory's name.
        memory: String,
        /// The element's number.
        index: usize,
    },
    /// An access to an element that another program or thread writes, or a write to one that another reads.
    #[error("element {index} of {memory} is also touched by another program, or another thread of the block")]
    Race {
        /// The buffer's name.
        memory: String,
        /// The element's number in its allocation.
        index: usize,
    },
    /// An integer beyond 64 bits.
    #[error("an integer overflows")]
    Overflow,
    /// An integer divided by less than one.
    #[error("an integer is divided by {0}")]
    Divisor(i64),
    /// A number that an element of a buffer cannot be.
    #[error("{value} is not an integer that {dtype} can hold here")]
    Unrepresentable {
        /// The number.
        value: String,
        /// The elements' type.
        dtype: DType,
    },
    /// A product with a negative size.
    #[error("a size is {0}")]
    Size(i64),
    /// An extent without a value.
    #[error("the extent {0} has no value")]
    Extent(Dim),
    /// More elements than [`Options::fuel`] allows.
    #[error("the run took too long")]
    Fuel,
    /// Threads of one block touch an element, one writing it, and no barrier is between.
    #[error("element {index} of {memory} is touched by warp {warp} too, and no barrier is between")]
    Unordered {
        /// The shared memory's name, or the buffer's.
        memory: String,
        /// The element's number.
        index: usize,
        /// Whose access came first.
        warp: usize,
    },
    /// Threads of one block give an element different values, and nothing says which one stays.
    #[error("element {index} of {memory} is given different values by threads of a block")]
    Conflict {
        /// The shared memory's name, or the buffer's.
        memory: String,
        /// The element's number.
        index: usize,
    },
    /// A product or a bulk copy of what an ordinary store wrote, without a fence.
    #[error("element {index} of {memory} was written and not fenced before the last barrier")]
    Unfenced {
        /// The shared memory's name.
        memory: String,
        /// The element's number.
        index: usize,
    },
    /// A write to what a product or a bulk copy still reads, or its release.
    #[error("{memory} is still being read by a product or a bulk copy")]
    Busy {
        /// The shared memory's name.
        memory: String,
    },
    /// An access to a stage of a pipe by a warp that has not waited for it, or has released it.
    #[error("stage {stage} of {memory} is not between a wait and a release of this warp")]
    NotHeld {
        /// The shared memory's name.
        memory: String,
        /// The stage.
        stage: usize,
    },
    /// A turn of a pipe that is not the one to come.
    #[error("turn {turn}: {why}")]
    Turn {
        /// The turn.
        turn: i64,
        /// What is wrong.
        why: String,
    },
    /// A bulk copy that does not begin with a unit of 16 bytes: the column.
    #[error("a bulk copy begins at column {0}, inside of 16 bytes")]
    Begins(i64),
    /// A value that all threads of a warp, warpgroup or role must agree in.
    #[error("threads differ in {0}")]
    Differ(&'static str),
    /// Products that are not the same for the four warps of a warpgroup.
    #[error("the warps of a warpgroup come to different products")]
    Apart,
    /// A number that should be a multiple of another one.
    #[error("{index} is not a multiple of {by}")]
    Misaligned {
        /// The number.
        index: i64,
        /// What it should be a multiple of.
        by: usize,
    },
    /// A read of a product's result before a wait has seen it finished.
    #[error("a product is read that may be under way")]
    Unfinished,
    /// The kernel's end before something has been waited for.
    #[error("{0} may be under way at the end")]
    Left(&'static str),
}

/// Runs every program of `kernel`.
///
/// `sizes` gives the extents' values; buffer `i` of the kernel lies in `storages[binding[i]]`.
/// After an error the storages hold what was written until then.
pub fn run(
    kernel: &Kernel,
    sizes: &dyn Fn(&Sym) -> Option<i64>,
    storages: &mut [Storage],
    binding: &[usize],
    options: Options,
) -> Result<Stats, RunError> {
    verify(kernel).map_err(RunError::Malformed)?;
    let views = views(kernel, sizes, storages, binding)?;

    let counts = kernel.grid.iter().map(|axis| {
        let extent = eval_extent(&axis.extent, sizes)?;
        Ok((extent as u64).div_ceil(axis.tile as u64))
    });
    let counts: Vec<u64> = counts.collect::<Result<_, RunError>>()?;
    let programs = counts.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let programs = programs.filter(|&n| n <= MAX_PROGRAMS).ok_or(RunError::TooManyPrograms)?;

    if let Some(block) = &kernel.block {
        return block::run(kernel, block, sizes, options, views, storages, programs);
    }
    let (mut slots, mut words) = (Vec::new(), 0);
    for (_, ty) in kernel.regs.iter() {
        slots.push(words);
        // Registers that no instruction assigns may have any size: they have no elements.
        words += if ty.fits() { ty.rows * ty.cols } else { 0 };
    }
    let marks = storages.iter().map(|s| Marks::new(if options.races { s.data.len() } else { 0 })).collect();
    let mut launch = Launch {
        kernel,
        sizes,
        options,
        views,
        storages,
        marks,
        scratch: kernel.scratch.iter().map(|(_, data)| Private::new(data.len)).collect(),
        slots,
        words: vec![0; words],
        coords: Vec::new(),
        id: 0,
        fuel: options.fuel,
        stats: Stats { programs: 0, loaded: vec![0; kernel.bufs.len()], stored: vec![0; kernel.bufs.len()] },
    };
    for i in 0..programs {
        launch.program(options.order.nth(i, programs), &counts).map_err(|(fault, inst)| {
            let inst = inst.map_or("kernel".into(), |inst| Names::new(kernel).inst(inst));
            RunError::At { program: launch.coords.clone(), inst, fault }
        })?;
        launch.stats.programs += 1;
    }
    Ok(launch.stats)
}

/// A buffer's shape at this launch, in elements.
struct BufView {
    storage: usize,
    shape: Vec<i64>,
    strides: Vec<i64>,
    offset: i64,
    scaled: Option<ScaledView>,
}

/// Where a buffer's scales are at this launch; see [`Scaled`].
struct ScaledView {
    by: Buf,
    offset: i64,
    along: Vec<ScaledAxisView>,
}

/// A [`ScaledAxis`] with its numbers.
struct ScaledAxisView {
    block: i64,
    from: i64,
    steps: Vec<i64>,
    stride: i64,
}

/// A kernel being run.
struct Launch<'a> {
    kernel: &'a Kernel,
    sizes: &'a dyn Fn(&Sym) -> Option<i64>,
    options: Options,
    views: Vec<BufView>,
    storages: &'a mut [Storage],
    /// One for each storage.
    marks: Vec<Marks>,
    scratch: Vec<Private>,
    /// Where each register's elements start.
    slots: Vec<usize>,
    /// The elements of all registers, row by row, as bits.
    words: Vec<u64>,
    /// The program's index along each axis of the grid.
    coords: Vec<i64>,
    /// The program's number in the grid, from 1.
    id: u32,
    fuel: u64,
    stats: Stats,
}

impl<'a> Launch<'a> {
    /// Runs the program with this number in the grid.
    fn program(&mut self, number: u64, counts: &[u64]) -> Result<(), (Fault, Option<&'a Inst>)> {
        let mut rest = number;
        self.coords = vec![0; counts.len()];
        for (coord, n) in self.coords.iter_mut().zip(counts).rev() {
            *coord = (rest % n) as i64;
            rest /= n;
        }
        self.id = number as u32 + 1;
        for scratch in &mut self.scratch {
            scratch.written.fill(false);
        }
        let cost = 1 + self.scratch.iter().map(|scratch| scratch.words.len()).sum::<usize>();
        self.charge(cost).map_err(|fault| (fault, None))?;
        self.block(&self.kernel.body).map_err(|(fault, inst)| (fault, Some(inst)))
    }

    /// Takes note that `elements` are computed.
    fn charge(&mut self, elements: usize) -> Result<(), Fault> {
        self.fuel = self.fuel.checked_sub(elements as u64).ok_or(Fault::Fuel)?;
        Ok(())
    }
}

fn eval_extent(dim: &Dim, sizes: &dyn Fn(&Sym) -> Option<i64>) -> Result<i64, RunError> {
    dim.eval(sizes).filter(|&n| n >= 0).ok_or_else(|| RunError::Extent(dim.clone()))
}

fn views(
    kernel: &Kernel,
    sizes: &dyn Fn(&Sym) -> Option<i64>,
    storages: &[Storage],
    binding: &[usize],
) -> Result<Vec<BufView>, RunError> {
    let view = |(buf, data): (Buf, &BufData)| {
        let wrong = |why: String| Err(RunError::Binding { buf: data.name.clone(), why });
        let Some(&storage) = binding.get(buf.index()) else { return wrong("it has no storage".into()) };
        match storages.get(storage) {
            None => return wrong(format!("there is no storage {storage}")),
            Some(Storage { dtype, .. }) if *dtype != data.dtype => {
                return wrong(format!("its elements are {}, those of its storage {dtype}", data.dtype));
            }
            Some(_) => {}
        }
        let extents = |dims: &[Dim]| dims.iter().map(|dim| eval_extent(dim, sizes)).collect::<Result<_, _>>();
        let offset = eval_extent(&data.offset, sizes)?;
        let axis = |axis: &ScaledAxis| {
            let (from, stride) = (eval_extent(&axis.from, sizes)?, eval_extent(&axis.stride, sizes)?);
            Ok(ScaledAxisView { block: axis.block, from, steps: extents(&axis.steps)?, stride })
        };
        let scaled = |scaled: &Scaled| {
            let along = scaled.along.iter().map(axis).collect::<Result<_, RunError>>()?;
            Ok(ScaledView { by: scaled.by, offset: eval_extent(&scaled.offset, sizes)?, along })
        };
        let scaled = data.scaled.as_deref().map(scaled).transpose()?;
        Ok(BufView {
            storage,
            shape: extents(&data.shape)?,
            strides: extents(&data.strides)?,
            offset,
            scaled,
        })
    };
    kernel.bufs.iter().map(view).collect()
}
