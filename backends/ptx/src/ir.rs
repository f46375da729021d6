//! A layer over inkwell: constants, intrinsics by name, inline assembly. It knows nothing of kernels.

use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::basic_block::BasicBlock;
use inkwell::builder::{Builder, BuilderError};
use inkwell::context::Context;
use inkwell::intrinsics::Intrinsic;
use inkwell::module::Module;
use inkwell::types::{BasicMetadataTypeEnum, BasicType, BasicTypeEnum, IntType};
use inkwell::values::{
    BasicMetadataValueEnum, BasicValueEnum, FloatValue, FunctionValue, IntValue, PointerValue,
};
use inkwell::{AddressSpace, IntPredicate};

/// A value of any type.
pub(crate) type V<'c> = BasicValueEnum<'c>;
/// An integer or a truth value.
pub(crate) type I<'c> = IntValue<'c>;
/// A float.
pub(crate) type F<'c> = FloatValue<'c>;
/// A pointer.
pub(crate) type P<'c> = PointerValue<'c>;

/// What went wrong; the kernel's name is added at the end.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The kernel is not one that can be translated.
    Kernel(String),
    /// LLVM says no.
    Llvm(String),
}

impl From<BuilderError> for Fault {
    fn from(error: BuilderError) -> Self {
        Self::Llvm(error.to_string())
    }
}

pub(crate) type Done<T = ()> = Result<T, Fault>;

/// The kernel is wrong.
pub(crate) fn fail<T>(what: impl Into<String>) -> Done<T> {
    Err(Fault::Kernel(what.into()))
}

/// Address spaces.
pub(crate) mod space {
    /// Any.
    pub const GENERIC: u16 = 0;
    /// Buffers.
    pub const GLOBAL: u16 = 1;
    /// Constants.
    pub const CONSTANT: u16 = 4;
    /// Shared memory of a block.
    pub const SHARED: u16 = 3;
    /// Shared memory of a cluster of blocks, of which this one is the only.
    pub const CLUSTER: u16 = 7;
}

/// What inline assembly does beside giving its results.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: it may be moved, or left out.
    None,
    /// It reads or writes memory, or is done by threads together.
    Some,
}

/// A function that is being written.
pub(crate) struct Ir<'c> {
    pub ctx: &'c Context,
    pub module: Module<'c>,
    pub b: Builder<'c>,
    pub f: FunctionValue<'c>,
}

/// The attribute `name` with a number.
pub(crate) fn attribute(ctx: &Context, name: &str, value: u64) -> Attribute {
    ctx.create_enum_attribute(Attribute::get_named_enum_kind_id(name), value)
}

impl<'c> Ir<'c> {
    pub(crate) fn bool(&self, value: bool) -> I<'c> {
        self.ctx.bool_type().const_int(u64::from(value), false)
    }

    pub(crate) fn i32(&self, value: u32) -> I<'c> {
        self.ctx.i32_type().const_int(u64::from(value), false)
    }

    pub(crate) fn i64(&self, value: i64) -> I<'c> {
        self.ctx.i64_type().const_int(value as u64, true)
    }

    pub(crate) fn f32(&self, value: f32) -> F<'c> {
        self.ctx.f32_type().const_float(f64::from(value))
    }

    pub(crate) fn f64(&self, value: f64) -> F<'c> {
        self.ctx.f64_type().const_float(value)
    }

    /// The type of integers of 8, 16, 32 or 64 bits.
    pub(crate) fn integer(&self, bits: u32) -> Done<IntType<'c>> {
        Ok(match bits {
            8 => self.ctx.i8_type(),
            16 => self.ctx.i16_type(),
            32 => self.ctx.i32_type(),
            64 => self.ctx.i64_type(),
            other => return Err(Fault::Llvm(format!("words of {other} bits"))),
        })
    }

    pub(crate) fn compare(&self, how: IntPredicate, x: I<'c>, y: I<'c>) -> Done<I<'c>> {
        Ok(self.b.build_int_compare(how, x, y, "")?)
    }

    /// The low 32 bits.
    pub(crate) fn low(&self, x: I<'c>) -> Done<I<'c>> {
        Ok(self.b.build_int_truncate(x, self.ctx.i32_type(), "")?)
    }

    pub(crate) fn shl(&self, x: I<'c>, bits: u64) -> Done<I<'c>> {
        Ok(self.b.build_left_shift(x, x.get_type().const_int(bits, false), "")?)
    }

    /// Zeros come in.
    pub(crate) fn shr(&self, x: I<'c>, bits: u64) -> Done<I<'c>> {
        Ok(self.b.build_right_shift(x, x.get_type().const_int(bits, false), false, "")?)
    }

    pub(crate) fn as_int(&self, x: F<'c>) -> Done<I<'c>> {
        int(self.b.build_bit_cast(x, self.ctx.i32_type(), "")?)
    }

    pub(crate) fn as_float(&self, x: I<'c>) -> Done<F<'c>> {
        float(self.b.build_bit_cast(x, self.ctx.f32_type(), "")?)
    }

    /// The pointer `bytes` further on, an `i32` or `i64`.
    pub(crate) fn offset(&self, pointer: P<'c>, bytes: I<'c>) -> Done<P<'c>> {
        self.element(self.ctx.i8_type(), pointer, bytes)
    }

    /// The pointer `index` elements further on.
    pub(crate) fn element(&self, element: IntType<'c>, pointer: P<'c>, index: I<'c>) -> Done<P<'c>> {
        // SAFETY: the call itself touches no memory; an integer is what inkwell asks for.
        Ok(unsafe { self.b.build_gep(element, pointer, &[index], "") }?)
    }

    pub(crate) fn block(&self, name: &str) -> BasicBlock<'c> {
        self.ctx.append_basic_block(self.f, name)
    }

    /// The block that is being written.
    pub(crate) fn here(&self) -> Done<BasicBlock<'c>> {
        self.b.get_insert_block().ok_or_else(|| Fault::Llvm("no block is being written".into()))
    }

    /// Calls an intrinsic; `overloads` are the types that its name leaves open.
    fn intrinsic(&self, name: &str, overloads: &[BasicTypeEnum<'c>], args: &[V<'c>]) -> Done<Option<V<'c>>> {
        let unknown = || Fault::Llvm(format!("there is no intrinsic `{name}`"));
        let intrinsic = Intrinsic::find(name).ok_or_else(unknown)?;
        let function = intrinsic.get_declaration(&self.module, overloads).ok_or_else(unknown)?;
        let args: Vec<BasicMetadataValueEnum> = args.iter().map(|&arg| arg.into()).collect();
        Ok(self.b.build_call(function, &args, "")?.try_as_basic_value().basic())
    }

    /// The result of an intrinsic.
    pub(crate) fn value(&self, name: &str, overloads: &[BasicTypeEnum<'c>], args: &[V<'c>]) -> Done<V<'c>> {
        let none = || Fault::Llvm(format!("`{name}` gives nothing"));
        self.intrinsic(name, overloads, args)?.ok_or_else(none)
    }

    /// Calls an intrinsic for what it does.
    pub(crate) fn run(&self, name: &str, args: &[V<'c>]) -> Done {
        self.intrinsic(name, &[], args).map(|_| ())
    }

    /// A special register, of 32 bits.
    pub(crate) fn special(&self, name: &str) -> Done<I<'c>> {
        int(self.value(&format!("llvm.nvvm.read.ptx.sreg.{name}"), &[], &[])?)
    }

    /// Inline assembly with results of the types `results`.
    pub(crate) fn asm(
        &self,
        effect: Effect,
        text: &str,
        constraints: &[String],
        results: &[BasicTypeEnum<'c>],
        args: &[V<'c>],
    ) -> Done<Vec<V<'c>>> {
        let types: Vec<BasicMetadataTypeEnum> = args.iter().map(|arg| arg.get_type().into()).collect();
        let ty = match results {
            [] => self.ctx.void_type().fn_type(&types, false),
            [one] => one.fn_type(&types, false),
            many => self.ctx.struct_type(many, false).fn_type(&types, false),
        };
        let mut constraints = constraints.join(",");
        if effect == Effect::Some {
            constraints += if constraints.is_empty() { "~{memory}" } else { ",~{memory}" };
        }
        let asm = self.ctx.create_inline_asm(
            ty,
            text.into(),
            constraints,
            effect == Effect::Some,
            false,
            None,
            false,
        );
        let args: Vec<BasicMetadataValueEnum> = args.iter().map(|&arg| arg.into()).collect();
        let call = self.b.build_indirect_call(ty, asm, &args, "")?;
        call.add_attribute(AttributeLoc::Function, attribute(self.ctx, "nounwind", 0));
        if effect == Effect::Some {
            call.add_attribute(AttributeLoc::Function, attribute(self.ctx, "convergent", 0));
        } else {
            call.add_attribute(AttributeLoc::Function, attribute(self.ctx, "memory", 0));
        }
        match (results.len(), call.try_as_basic_value().basic()) {
            (0, _) => Ok(Vec::new()),
            (1, Some(value)) => Ok(vec![value]),
            (n, Some(V::StructValue(all))) => {
                (0..n).map(|i| Ok(self.b.build_extract_value(all, i as u32, "")?)).collect()
            }
            _ => Err(Fault::Llvm("assembly without results".into())),
        }
    }

    pub(crate) fn pointer(&self, space: u16) -> inkwell::types::PointerType<'c> {
        self.ctx.ptr_type(AddressSpace::from(space))
    }
}

/// An integer, as which `value` was made.
pub(crate) fn int(value: V<'_>) -> Done<I<'_>> {
    match value {
        V::IntValue(value) => Ok(value),
        other => Err(Fault::Llvm(format!("{} is no integer", other.get_type()))),
    }
}

/// A float, as which `value` was made.
pub(crate) fn float(value: V<'_>) -> Done<F<'_>> {
    match value {
        V::FloatValue(value) => Ok(value),
        other => Err(Fault::Llvm(format!("{} is no float", other.get_type()))),
    }
}
