//! The entry point: its parameters, its attributes, and what it does before the kernel's first instruction.

use crate::emit::Emitter;
use crate::entry_name;
use crate::ir::{Done, Fault, I, Ir, V, attribute, fail, int, space};
use crate::layout::{Layout, SWIZZLE_ALIGN};
use crate::team::Team;
use eva_ir::dim::{Dim, Sym};
use eva_ir::kernel::block::{BlockInst, Launch};
use eva_ir::kernel::verify::verify;
use eva_ir::kernel::{Inst, Kernel, Phase};
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::targets::TargetMachine;
use inkwell::types::BasicMetadataTypeEnum;
use inkwell::values::PointerValue;
use inkwell::{AddressSpace, IntPredicate};
use std::collections::BTreeMap;

/// LLVM's number for the calling convention of entry points.
const PTX_KERNEL: u32 = 71;
/// Bytes that all parameters together may take.
const MAX_PARAMS: usize = 4096;
/// Bytes of a tensor map, and its alignment.
const MAP: (u32, u64) = (128, 64);
/// Registers of a multiprocessor.
const REGISTERS: usize = 65536;

/// How many threads a multiprocessor should have at once, if not as many as `ptxas` likes: it spills rather than have
/// fewer. So it is told of kernels with many numbers in a thread, and of products.
fn most_threads(kernel: &Kernel) -> Option<usize> {
    let multiplies = has(&kernel.body, &|inst| matches!(inst, BlockInst::Fma { .. }));
    let many = kernel.regs.iter().any(|(_, ty)| ty.cols > 16);
    (multiplies || many).then_some(256)
}

/// What a kernel has before its first instruction.
pub(crate) struct Entry<'c> {
    /// The address of each buffer.
    pub bufs: Vec<PointerValue<'c>>,
    /// The values of the symbols.
    pub syms: BTreeMap<Sym, I<'c>>,
    /// The tensor maps.
    pub maps: Vec<PointerValue<'c>>,
    /// The first byte of shared memory.
    pub shared: PointerValue<'c>,
    /// Where things lie there.
    pub layout: Layout,
    /// Registers that a thread has from the start.
    pub registers: usize,
}

/// The kernel's module, unverified.
pub(crate) fn module<'c>(kernel: &Kernel, ctx: &'c Context, machine: &TargetMachine) -> Done<Module<'c>> {
    let block = match &kernel.block {
        Some(block) if kernel.phase == Phase::Block => block,
        _ => return fail("it is not in the block phase"),
    };
    verify(kernel).map_err(|errors| Fault::Kernel(errors.join("; ")))?;
    let layout = Layout::new(block);
    if layout.bytes != block.shared_bytes() {
        return Err(Fault::Llvm(format!(
            "{} bytes of shared memory, not {}",
            layout.bytes,
            block.shared_bytes()
        )));
    }
    let threads = 32 * block.warps;
    let module = ctx.create_module(&entry_name(kernel));
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());

    let (bufs, syms, maps) = (kernel.bufs.len(), kernel.syms(), block.maps.len());
    let before_maps = 8 * (bufs + syms.len());
    if before_maps.next_multiple_of(MAP.1 as usize) + MAP.0 as usize * maps > MAX_PARAMS {
        return fail(format!("its parameters are over {MAX_PARAMS} bytes"));
    }
    let [global, generic] = [space::GLOBAL, space::GENERIC].map(|s| ctx.ptr_type(AddressSpace::from(s)));
    let mut types: Vec<BasicMetadataTypeEnum> = vec![global.into(); bufs];
    types.extend(syms.iter().map(|_| BasicMetadataTypeEnum::from(ctx.i64_type())));
    types.extend(block.maps.keys().map(|_| BasicMetadataTypeEnum::from(generic)));
    let f = module.add_function(&entry_name(kernel), ctx.void_type().fn_type(&types, false), None);
    f.set_call_conventions(PTX_KERNEL);
    let per_multiprocessor = match block.launch {
        Launch::Persistent { per_multiprocessor } => per_multiprocessor,
        Launch::Each { .. } => 1,
    };
    let mut attributes = vec![("nvvm.maxntid", threads)];
    let has_roles = has(&kernel.body, &|inst| matches!(inst, BlockInst::Roles { .. }));
    if has_roles || matches!(block.launch, Launch::Persistent { .. }) {
        attributes.push(("nvvm.minctasm", per_multiprocessor));
    } else if let Some(most) = most_threads(kernel) {
        attributes.push(("nvvm.minctasm", (most / threads).max(1)));
    }
    for (name, value) in attributes {
        f.add_attribute(AttributeLoc::Function, ctx.create_string_attribute(name, &value.to_string()));
    }
    for name in ["convergent", "nounwind"] {
        f.add_attribute(AttributeLoc::Function, attribute(ctx, name, 0));
    }
    let byval = ctx.create_type_attribute(
        Attribute::get_named_enum_kind_id("byval"),
        ctx.i8_type().array_type(MAP.0).into(),
    );
    for map in 0..maps {
        let at = AttributeLoc::Param((bufs + syms.len() + map) as u32);
        f.add_attribute(at, byval);
        f.add_attribute(at, attribute(ctx, "align", MAP.1));
        f.add_attribute(at, ctx.create_string_attribute("nvvm.grid_constant", ""));
    }
    let shared_space = AddressSpace::from(space::SHARED);
    let shared = if block.shared.is_empty() && block.pipes.is_empty() {
        ctx.ptr_type(shared_space).const_null()
    } else {
        let all = module.add_global(ctx.i8_type().array_type(0), Some(shared_space), "eva_shared_memory");
        all.set_alignment(SWIZZLE_ALIGN as u32);
        all.as_pointer_value()
    };

    let ir = Ir { ctx, module, b: ctx.create_builder(), f };
    ir.b.position_at_end(ir.block("entry"));
    let mut params = f.get_param_iter();
    let mut pointers = |n: usize| -> Done<Vec<PointerValue<'c>>> {
        let pointer = |param| match param {
            Some(V::PointerValue(pointer)) => Ok(pointer),
            _ => Err(Fault::Llvm("a parameter is no pointer".into())),
        };
        (0..n).map(|_| pointer(params.next())).collect()
    };
    let buf_params = pointers(bufs)?;
    let mut values = BTreeMap::new();
    for (i, sym) in syms.into_iter().enumerate() {
        let value =
            f.get_nth_param((bufs + i) as u32).ok_or_else(|| Fault::Llvm("a parameter is missing".into()))?;
        let value = int(value)?;
        // What callers promise, so that arithmetic can be done in 32 bits where that is enough.
        assume(&ir, IntPredicate::ULT, value, ir.i64(1 << 31))?;
        values.insert(sym, value);
    }
    for axis in kernel.grid.iter().filter(|axis| axis.extent.as_const().is_none()) {
        // There are programs.
        assume(&ir, IntPredicate::SGE, polynomial(&ir, &axis.extent, &values)?, ir.i64(1))?;
    }
    let maps = (0..maps).map(|i| match f.get_nth_param((f.count_params() as usize - maps + i) as u32) {
        Some(V::PointerValue(pointer)) => Ok(pointer),
        _ => Err(Fault::Llvm("a tensor map is no pointer".into())),
    });
    let entry = Entry {
        bufs: buf_params,
        syms: values,
        maps: maps.collect::<Done<_>>()?,
        shared,
        layout,
        registers: registers_at_start(threads, per_multiprocessor),
    };
    let by_warps = has(&kernel.body, &|inst| {
        matches!(inst, BlockInst::Roles { .. } | BlockInst::Mma { .. } | BlockInst::Release { .. })
    });
    let team = Team::all(&ir, block.warps, by_warps)?;
    let mut emitter = Emitter::new(kernel, block, ir, entry, team);
    emitter.kernel_body()?;
    Ok(emitter.finish())
}

/// Tells LLVM what holds anyway.
fn assume<'c>(ir: &Ir<'c>, how: IntPredicate, x: I<'c>, y: I<'c>) -> Done {
    ir.run("llvm.assume", &[ir.compare(how, x, y)?.into()])
}

/// How many registers `ptxas` lets a thread have, so that `blocks` blocks fit.
fn registers_at_start(threads: usize, blocks: usize) -> usize {
    (REGISTERS / (threads * blocks.max(1)) / 8 * 8).min(255)
}

/// Whether `body` has an instruction of the block phase that is `wanted`.
pub(crate) fn has(body: &[Inst], wanted: &dyn Fn(&BlockInst) -> bool) -> bool {
    body.iter().any(|inst| match inst {
        Inst::For { body, .. } | Inst::If { body, .. } => has(body, wanted),
        Inst::Block(inst) => {
            let inside = match inst {
                BlockInst::Roles { roles } => roles.iter().any(|role| has(&role.body, wanted)),
                _ => false,
            };
            inside || wanted(inst)
        }
        _ => false,
    })
}

/// The value of an extent.
pub(crate) fn polynomial<'c>(ir: &Ir<'c>, dim: &Dim, syms: &BTreeMap<Sym, I<'c>>) -> Done<I<'c>> {
    let mut sum = None;
    for (monomial, n) in dim.terms() {
        let mut term = ir.i64(n);
        for sym in monomial {
            let Some(&value) = syms.get(sym) else {
                return fail(format!("the extent `{sym}` is not one of it"));
            };
            term = ir.b.build_int_nsw_mul(term, value, "")?;
        }
        sum = Some(match sum {
            None => term,
            Some(sum) => ir.b.build_int_nsw_add(sum, term, "")?,
        });
    }
    Ok(sum.unwrap_or_else(|| ir.i64(0)))
}
