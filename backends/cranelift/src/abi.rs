//! How a kernel is called: the function round its program.

use crate::Error;
use crate::emit::Emitter;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, FuncRef, Function, InstBuilder, MemFlagsData, Signature,
    UserExternalName, UserFuncName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::verify::verify;
use eva_ir::kernel::{Elem, Inst, Kernel};
use eva_microkernels::Elem as MicroElem;
use std::collections::{BTreeMap, HashMap};
use target_lexicon::Architecture;

/// A compiled kernel: runs the programs `first..last` of its grid, numbered with the last axis fastest.
///
/// 1. the base addresses of the buffers, in the order of [`Kernel::bufs`]; offsets are not added;
/// 2. the values of the symbols, in the order of [`Kernel::syms`];
/// 3. `first`;
/// 4. `last`;
/// 5. memory for this call alone, [`KernelFn::scratch_bytes`](crate::KernelFn::scratch_bytes) long and aligned to
///    [`SCRATCH_ALIGN`]; each scratch of the kernel begins at a multiple of [`SCRATCH_ALIGN`] in it.
pub type RawKernel = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8);

/// The alignment of every scratch, in bytes.
pub const SCRATCH_ALIGN: usize = 64;

/// Bytes of one element in scratch memory: `f32`, `i64`, and a byte of 0 or 1 for a truth value.
pub(crate) fn scratch_bytes_of(elem: Elem) -> usize {
    match elem {
        Elem::F32 => 4,
        Elem::I64 => 8,
        Elem::Bool => 1,
    }
}

/// Where each scratch begins in the private memory, and how long that is; `None` beyond 2³¹ bytes.
pub(crate) fn scratch_layout(kernel: &Kernel) -> Option<(Vec<i32>, usize)> {
    let mut end = 0usize;
    let mut starts = Vec::with_capacity(kernel.scratch.len());
    for (_, scratch) in kernel.scratch.iter() {
        starts.push(i32::try_from(end).ok()?);
        let bytes = scratch.len.checked_mul(scratch_bytes_of(scratch.elem))?;
        end = end.checked_add(bytes)?.checked_next_multiple_of(SCRATCH_ALIGN)?;
    }
    i32::try_from(end).ok()?;
    Some((starts, end))
}

/// A function outside the generated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Extern {
    /// `f32 -> f32`, by its number in [`FUNCTIONS`].
    Function(usize),
    /// A microkernel, for its operands' types.
    Dot(MicroElem, MicroElem),
}

type Real = extern "C" fn(f32) -> f32;

/// Functions that are called lane by lane: nearest `f32` of the `f64` result, but for one in millions.
const FUNCTIONS: [(&str, Real); 3] = [("eva_log", log), ("eva_sin", sin), ("eva_cos", cos)];
const MICRO_ELEMS: [MicroElem; 5] =
    [MicroElem::F32, MicroElem::Bf16, MicroElem::F16, MicroElem::F8E4M3, MicroElem::F8E5M2];

extern "C" fn log(x: f32) -> f32 {
    libm::log(x.into()) as f32
}

/// `libm` reduces any finite `f64` angle exactly, and an `f32` is one.
extern "C" fn sin(x: f32) -> f32 {
    libm::sin(x.into()) as f32
}

extern "C" fn cos(x: f32) -> f32 {
    libm::cos(x.into()) as f32
}

impl Extern {
    pub(crate) const LOG: Self = Self::Function(0);
    pub(crate) const SIN: Self = Self::Function(1);
    pub(crate) const COS: Self = Self::Function(2);

    /// All of them; the index in this list is the number by which generated code names one.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let dots = MICRO_ELEMS.into_iter().flat_map(|a| MICRO_ELEMS.map(|b| Self::Dot(a, b)));
        (0..FUNCTIONS.len()).map(Self::Function).chain(dots)
    }

    /// A unique name.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Function(i) => FUNCTIONS[i].0.to_owned(),
            Self::Dot(a, b) => format!("eva_dot_{a:?}_{b:?}").to_lowercase(),
        }
    }

    /// Where it is in this process.
    pub(crate) fn address(self) -> *const u8 {
        match self {
            Self::Function(i) => FUNCTIONS[i].1 as *const u8,
            Self::Dot(a, b) => eva_microkernels::dot(a, b) as *const u8,
        }
    }

    pub(crate) fn signature(self, conv: CallConv) -> Signature {
        let mut signature = Signature::new(conv);
        match self {
            Self::Function(_) => {
                signature.params.push(AbiParam::new(types::F32));
                signature.returns.push(AbiParam::new(types::F32));
            }
            Self::Dot(..) => signature.params.push(AbiParam::new(types::I64)),
        }
        signature
    }

    /// Its name in `func`, declared there if it was not yet.
    pub(crate) fn import(self, func: &mut Function, known: &mut HashMap<Self, FuncRef>) -> FuncRef {
        *known.entry(self).or_insert_with(|| {
            let index = Self::all().position(|other| other == self).expect("`all` has every function");
            let name = UserExternalName { namespace: 0, index: index as u32 };
            let name = ExternalName::user(func.declare_imported_user_function(name));
            let conv = func.signature.call_conv;
            let signature = func.import_signature(self.signature(conv));
            func.import_function(ExtFuncData { name, signature, colocated: false, patchable: false })
        })
    }
}

pub(crate) fn signature(conv: CallConv) -> Signature {
    let mut signature = Signature::new(conv);
    signature.params.extend([types::I64; 5].map(AbiParam::new));
    signature
}

/// What a function has computed before its first program: no program changes it.
pub(crate) struct Entry {
    /// The base of each buffer that is used.
    pub bufs: Vec<Value>,
    /// The base of each scratch.
    pub scratch: Vec<Value>,
    /// The extents that instructions ask for.
    pub dims: HashMap<Dim, Value>,
    /// Whether vector instructions with an operand in memory want it aligned: x86-64 before AVX.
    pub aligned_operands: bool,
}

/// The whole function: entry, loop over programs, program.
pub(crate) fn function(kernel: &Kernel, isa: &dyn TargetIsa) -> Result<Function, Error> {
    let fail = |what: &str| Error::Kernel { kernel: kernel.name.clone(), what: what.into() };
    verify(kernel).map_err(|errors| fail(&errors.join("; ")))?;
    let (starts, _) = scratch_layout(kernel).ok_or_else(|| fail("its scratch memory is over 2 GiB"))?;
    let mut func =
        Function::with_name_signature(UserFuncName::user(0, 0), signature(isa.default_call_conv()));
    let mut context = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut func, &mut context);

    let (entry, program, exit) = (b.create_block(), b.create_block(), b.create_block());
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let &[bufs, syms, first, last, scratch] = b.block_params(entry) else {
        return Err(fail("a kernel's function has five parameters"));
    };
    let fixed = MemFlagsData::trusted();
    let bufs =
        kernel.bufs.keys().enumerate().map(|(i, _)| b.ins().load(types::I64, fixed, bufs, 8 * i as i32));
    let bufs: Vec<Value> = bufs.collect();
    let scratch = starts
        .iter()
        .map(|&start| if start == 0 { scratch } else { b.ins().iadd_imm_s(scratch, i64::from(start)) });
    let scratch: Vec<Value> = scratch.collect();

    let mut wanted = Vec::new();
    extents(&kernel.body, &mut wanted);
    let used = wanted.iter().copied().chain(kernel.grid.iter().skip(1).map(|axis| &axis.extent));
    let used: Vec<Sym> = used.flat_map(Dim::syms).collect();
    let values: BTreeMap<Sym, Value> = kernel
        .syms()
        .into_iter()
        .enumerate()
        .filter(|(_, sym)| used.contains(sym))
        .map(|(i, sym)| (sym, b.ins().load(types::I64, fixed, syms, 8 * i as i32)))
        .collect();
    let mut dims = HashMap::new();
    for dim in wanted {
        if !dims.contains_key(dim) {
            dims.insert(dim.clone(), polynomial(&mut b, dim, &values));
        }
    }
    // How many programs each axis but the first has.
    let mut counts = Vec::new();
    for axis in kernel.grid.iter().skip(1) {
        let extent = polynomial(&mut b, &axis.extent, &values);
        let up = b.ins().iadd_imm_s(extent, axis.tile - 1);
        counts.push(match (axis.extent.as_const(), axis.tile) {
            (_, 1) => extent,
            (Some(n), tile) => b.ins().iconst(types::I64, (n + tile - 1) / tile),
            (None, tile) if tile.count_ones() == 1 => {
                b.ins().ushr_imm_u(up, i64::from(tile.trailing_zeros()))
            }
            (None, tile) => {
                let tile = b.ins().iconst(types::I64, tile);
                b.ins().udiv(up, tile)
            }
        });
    }
    let any = b.ins().icmp(IntCC::SignedLessThan, first, last);
    let id = b.append_block_param(program, types::I64);
    b.ins().brif(any, program, &[first.into()], exit, &[]);

    b.switch_to_block(program);
    let mut programs = vec![id; kernel.grid.len()];
    for (axis, &count) in counts.iter().enumerate().rev() {
        let rest = programs[0];
        let quotient = b.ins().udiv(rest, count);
        let whole = b.ins().imul(quotient, count);
        programs[axis + 1] = b.ins().isub(rest, whole);
        programs[0] = quotient;
    }
    let has_avx = isa.isa_flags().iter().any(|flag| flag.name == "has_avx" && flag.as_bool() == Some(true));
    let aligned_operands = isa.triple().architecture == Architecture::X86_64 && !has_avx;
    let mut emitter = Emitter::new(kernel, b, Entry { bufs, scratch, dims, aligned_operands });
    emitter.program(&programs)?;
    let mut b = emitter.into_builder();
    let next = b.ins().iadd_imm_s(id, 1);
    let more = b.ins().icmp(IntCC::SignedLessThan, next, last);
    b.ins().brif(more, program, &[next.into()], exit, &[]);

    b.switch_to_block(exit);
    b.ins().return_(&[]);
    b.seal_all_blocks();
    b.finalize(isa.frontend_config());
    Ok(func)
}

fn extents<'k>(body: &'k [Inst], dims: &mut Vec<&'k Dim>) {
    for inst in body {
        match inst {
            Inst::Extent { dim, .. } => dims.push(dim),
            Inst::For { body, .. } | Inst::If { body, .. } => extents(body, dims),
            _ => {}
        }
    }
}

fn polynomial(b: &mut FunctionBuilder, dim: &Dim, values: &BTreeMap<Sym, Value>) -> Value {
    let mut sum = None;
    for (monomial, n) in dim.terms() {
        let factors = monomial.iter().map(|sym| values[sym]);
        let product = factors.reduce(|x, y| b.ins().imul(x, y));
        let term = match (product, n) {
            (None, n) => b.ins().iconst(types::I64, n),
            (Some(product), 1) => product,
            (Some(product), n) => b.ins().imul_imm_s(product, n),
        };
        sum = Some(sum.map_or(term, |sum| b.ins().iadd(sum, term)));
    }
    sum.unwrap_or_else(|| b.ins().iconst(types::I64, 0))
}
