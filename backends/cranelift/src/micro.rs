//! Products: calls of microkernels.

use crate::Error;
use crate::abi::Extern;
use crate::emit::Emitter;
use crate::memory::Memory;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, StackSlotData, StackSlotKind, Value, types};
use eva_ir::kernel::{Elem, Micro, MicroScales, Space};
use eva_ir::types::DType;
use eva_microkernels::{DotArgs, Elem as MicroElem, ScaleElem, Scales};
use std::mem::offset_of;

type Done<T = ()> = Result<T, Error>;

/// Where the scales of each operand are described, behind the arguments.
const SCALES: [i32; 2] =
    [size_of::<DotArgs>() as i32, size_of::<DotArgs>() as i32 + size_of::<Scales>() as i32];

impl Emitter<'_, '_> {
    pub(crate) fn micro(&mut self, micro: &Micro) -> Done {
        let (a, a_memory) = self.address(micro.a)?;
        let (b, b_memory) = self.address(micro.b)?;
        let (c, c_memory) = self.address(micro.c)?;
        let (Space::Scratch(_), Memory::Scratch(Elem::F32)) = (micro.c.space, c_memory) else {
            return self.fail("a product whose result is not a scratch of F32");
        };
        let dot = Extern::Dot(self.operand(a_memory)?, self.operand(b_memory)?);
        let slot = *self.dot_args.get_or_insert_with(|| {
            let size = SCALES[1] as u32 + size_of::<Scales>() as u32;
            self.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, size, 4))
        });
        let args = self.b.ins().stack_addr(types::I64, slot, 0);
        let accumulate = self.b.ins().iconst(types::I64, i64::from(micro.accumulate));
        let [a_strides, b_strides] = [micro.a_strides, micro.b_strides];
        let numbers = [
            (offset_of!(DotArgs, m), micro.m),
            (offset_of!(DotArgs, n), micro.n),
            (offset_of!(DotArgs, k), micro.k),
            (offset_of!(DotArgs, a_row), a_strides[0]),
            (offset_of!(DotArgs, a_k), a_strides[1]),
            (offset_of!(DotArgs, b_row), b_strides[0]),
            (offset_of!(DotArgs, b_k), b_strides[1]),
            (offset_of!(DotArgs, c_row), micro.c_stride),
        ];
        for (offset, reg) in numbers {
            let value = self.get(reg, Elem::I64, 1)?;
            self.b.ins().store(MemFlagsData::trusted(), value, args, offset as i32);
        }
        let a_scales = self.scales(args, SCALES[0], micro.a_scales.as_ref())?;
        let b_scales = self.scales(args, SCALES[1], micro.b_scales.as_ref())?;
        let addresses = [
            (offset_of!(DotArgs, a_scales), a_scales),
            (offset_of!(DotArgs, b_scales), b_scales),
            (offset_of!(DotArgs, a), a),
            (offset_of!(DotArgs, b), b),
            (offset_of!(DotArgs, c), c),
            (offset_of!(DotArgs, accumulate), accumulate),
        ];
        for (offset, value) in addresses {
            self.b.ins().store(MemFlagsData::trusted(), value, args, offset as i32);
        }
        let dot = dot.import(self.b.func, &mut self.externs);
        self.b.ins().call(dot, &[args]);
        Ok(())
    }

    /// Describes an operand's scales `at` bytes from `base`; the address of that, or null.
    fn scales(&mut self, base: Value, at: i32, scales: Option<&MicroScales>) -> Done<Value> {
        let Some(MicroScales { first, rows, terms }) = scales else {
            return Ok(self.b.ins().iconst(types::I64, 0));
        };
        let (address, memory) = self.address(*first)?;
        let elem = match memory {
            Memory::Buf(DType::F32) => ScaleElem::F32,
            Memory::Buf(DType::E8M0) => ScaleElem::E8M0,
            other => return self.fail(format!("a product with scales of {other}")),
        };
        let elem = self.b.ins().iconst(types::I64, elem as i64);
        let row_block = self.b.ins().iconst(types::I64, rows.block);
        let k_block = self.b.ins().iconst(types::I64, terms.block);
        let numbers = [
            (offset_of!(Scales, at), address),
            (offset_of!(Scales, elem), elem),
            (offset_of!(Scales, row_place), self.get(rows.place, Elem::I64, 1)?),
            (offset_of!(Scales, row_block), row_block),
            (offset_of!(Scales, row_stride), self.get(rows.stride, Elem::I64, 1)?),
            (offset_of!(Scales, k_place), self.get(terms.place, Elem::I64, 1)?),
            (offset_of!(Scales, k_block), k_block),
            (offset_of!(Scales, k_stride), self.get(terms.stride, Elem::I64, 1)?),
        ];
        for (offset, value) in numbers {
            self.b.ins().store(MemFlagsData::trusted(), value, base, at + offset as i32);
        }
        Ok(self.b.ins().iadd_imm_s(base, i64::from(at)))
    }

    fn operand(&self, memory: Memory) -> Done<MicroElem> {
        match memory {
            Memory::Buf(DType::F32 | DType::Tf32) | Memory::Scratch(Elem::F32) => Ok(MicroElem::F32),
            Memory::Buf(DType::Bf16) => Ok(MicroElem::Bf16),
            Memory::Buf(DType::F16) => Ok(MicroElem::F16),
            Memory::Buf(DType::F8E4M3) => Ok(MicroElem::F8E4M3),
            Memory::Buf(DType::F8E5M2) => Ok(MicroElem::F8E5M2),
            other => self.fail(format!("a product of elements of {other}")),
        }
    }
}
