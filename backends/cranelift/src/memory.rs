//! Loads, stores, and numbers as memory holds them.

use crate::Error;
use crate::emit::{Emitter, LANES};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use eva_ir::entity::Entity;
use eva_ir::kernel::{Elem, Mem, RegType, Space};
use eva_ir::types::DType;

/// Elements may lie at any address: a file decides where weights are.
const FLAGS: MemFlagsData = MemFlagsData::new().with_notrap();

/// The bit that makes a NaN quiet: in the upper half, so that it survives as a NaN of bf16.
const QUIET: u32 = 0x0040_0000;
const INFINITY: u32 = 0x7f80_0000;
/// The bits of 2⁻¹²⁷, the least number of `e8m0`.
const LEAST_POWER: u32 = 0x0040_0000;

/// What is in a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Elements of a buffer.
    Buf(DType),
    /// Elements of a scratch.
    Scratch(Elem),
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Memory::Buf(dtype) => write!(f, "{dtype}"),
            Memory::Scratch(elem) => write!(f, "private {elem:?}"),
        }
    }
}

impl Memory {
    /// Bytes per element: a power of two.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Memory::Buf(dtype) => dtype.bytes() as usize,
            Memory::Scratch(elem) => crate::abi::scratch_bytes_of(elem),
        }
    }

    fn small(self) -> Option<Small> {
        match self {
            Memory::Buf(dtype) => Small::of(dtype),
            Memory::Scratch(_) => None,
        }
    }
}

/// A float of 16 or 8 bits that is no prefix of an `f32`.
#[derive(Clone, Copy)]
struct Small {
    /// Bits, with the sign.
    width: u32,
    /// Stored bits of the mantissa.
    mantissa: u32,
    bias: u32,
    /// The bits of the largest finite number.
    largest: u32,
    /// What larger numbers become.
    overflow: u32,
    nan: u32,
}

impl Small {
    fn of(dtype: DType) -> Option<Self> {
        let half = Self { width: 16, mantissa: 10, bias: 15, largest: 0x7bff, overflow: 0x7c00, nan: 0x7e00 };
        match dtype {
            DType::F16 => Some(half),
            DType::F8E5M2 => {
                Some(Self { width: 8, mantissa: 2, largest: 0x7b, overflow: 0x7c, nan: 0x7e, ..half })
            }
            DType::F8E4M3 => {
                Some(Self { width: 8, mantissa: 3, bias: 7, largest: 0x7e, overflow: 0x7f, nan: 0x7f })
            }
            DType::F64 | DType::F32 | DType::Tf32 | DType::Bf16 | DType::I64 | DType::I32 | DType::E8M0 => {
                None
            }
        }
    }
}

impl Emitter<'_, '_> {
    /// Where an element is, and what is there.
    pub(crate) fn address(&mut self, mem: Mem) -> Result<(Value, Memory), Error> {
        let index = self.get(mem.index, Elem::I64, 1)?;
        let (base, memory) = match mem.space {
            Space::Buf(buf) => match self.kernel.bufs.get(buf) {
                Some(data) => (self.entry.bufs[buf.index()], Memory::Buf(data.dtype)),
                None => return self.fail(format!("{buf} is no buffer of it")),
            },
            Space::Scratch(scratch) => match self.kernel.scratch.get(scratch) {
                Some(data) => (self.entry.scratch[scratch.index()], Memory::Scratch(data.elem)),
                None => return self.fail(format!("{scratch} is no scratch of it")),
            },
            Space::Shared(shared) => return self.fail(format!("{shared} is not memory of the lane phase")),
        };
        let shift = memory.bytes().trailing_zeros();
        let bytes = if shift == 0 { index } else { self.b.ins().ishl_imm_u(index, i64::from(shift)) };
        Ok((self.b.ins().iadd(base, bytes), memory))
    }

    /// `ty.cols` elements from `address` on.
    pub(crate) fn load(&mut self, address: Value, memory: Memory, ty: RegType) -> Result<Value, Error> {
        let vector = ty.cols == LANES;
        let load = |e: &mut Self, ty| e.b.ins().load(ty, FLAGS, address, 0);
        Ok(match (memory, ty.elem) {
            (Memory::Scratch(Elem::F32) | Memory::Buf(DType::F32 | DType::Tf32), Elem::F32) if vector => {
                // Cranelift 0.135 merges a load into `cmpps` as if that did not ask for 16-byte alignment, which it
                // does before AVX. What is loaded as integers is not merged.
                let ty = if self.entry.aligned_operands { types::I32X4 } else { types::F32X4 };
                let lanes = load(self, ty);
                self.as_float(lanes)
            }
            (Memory::Scratch(Elem::F32) | Memory::Buf(DType::F32 | DType::Tf32), Elem::F32) => {
                load(self, types::F32)
            }
            (Memory::Scratch(Elem::I64) | Memory::Buf(DType::I64), Elem::I64) => load(self, types::I64),
            (Memory::Buf(DType::I32), Elem::I64) => self.b.ins().sload32(FLAGS, address, 0),
            (Memory::Scratch(Elem::Bool), Elem::Bool) if vector => {
                let truth = self.load_bytes(address);
                self.b.ins().ineg(truth)
            }
            (Memory::Scratch(Elem::Bool), Elem::Bool) => load(self, types::I8),
            (Memory::Buf(DType::Bf16), Elem::F32) => {
                let bits = self.load_halves(address, vector);
                let bits = self.b.ins().ishl_imm_u(bits, 16);
                self.as_float(bits)
            }
            (Memory::Buf(DType::F64), Elem::F32) if vector => {
                let low = load(self, types::F64X2);
                let high = self.b.ins().load(types::F64X2, FLAGS, address, 16);
                let (low, high) = (self.b.ins().fvdemote(low), self.b.ins().fvdemote(high));
                let (low, high) = (self.cast_bits(types::I8X16, low), self.cast_bits(types::I8X16, high));
                let both = std::array::from_fn(|i| if i < 8 { i as u8 } else { i as u8 + 8 });
                let both = self.shuffle_bytes(low, high, both);
                self.cast_bits(types::F32X4, both)
            }
            (Memory::Buf(DType::F64), Elem::F32) => {
                let x = load(self, types::F64);
                self.b.ins().fdemote(types::F32, x)
            }
            (Memory::Buf(DType::E8M0), Elem::F32) => {
                let codes = match vector {
                    true => self.load_bytes(address),
                    false => self.b.ins().uload8(types::I32, FLAGS, address, 0),
                };
                self.power_of_two(codes)
            }
            (memory, elem) => match memory.small() {
                Some(small) if elem == Elem::F32 => {
                    let bits = match (small.width, vector) {
                        (8, true) => self.load_bytes(address),
                        (8, false) => self.b.ins().uload8(types::I32, FLAGS, address, 0),
                        _ => self.load_halves(address, vector),
                    };
                    let number = self.widen(bits, small);
                    if let Memory::Buf(dtype) = memory
                        && dtype.is_f8()
                    {
                        self.codes.insert(number, (dtype, bits));
                    }
                    number
                }
                _ => return self.fail(format!("a load of {elem:?} from {memory}")),
            },
        })
    }

    /// Writes `value`, of type `ty`, from `address` on.
    pub(crate) fn store(
        &mut self,
        address: Value,
        memory: Memory,
        value: Value,
        ty: RegType,
    ) -> Result<(), Error> {
        let vector = ty.cols == LANES;
        if let Some(&(dtype, bits)) = self.codes.get(&value)
            && memory == Memory::Buf(dtype)
        {
            self.store_bytes(address, bits, vector);
            return Ok(());
        }
        match (memory, ty.elem) {
            (Memory::Scratch(Elem::F32) | Memory::Buf(DType::F32), Elem::F32)
            | (Memory::Scratch(Elem::I64) | Memory::Buf(DType::I64), Elem::I64) => {
                self.b.ins().store(FLAGS, value, address, 0);
            }
            (Memory::Buf(DType::I32), Elem::I64) => {
                self.b.ins().istore32(FLAGS, value, address, 0);
            }
            (Memory::Scratch(Elem::Bool), Elem::Bool) if vector => {
                let word = self.first_bytes(value);
                let truth = self.b.ins().band_imm_u(word, 0x0101_0101);
                self.b.ins().store(FLAGS, truth, address, 0);
            }
            (Memory::Scratch(Elem::Bool), Elem::Bool) => {
                self.b.ins().store(FLAGS, value, address, 0);
            }
            (Memory::Buf(DType::Tf32), Elem::F32) => {
                let rounded = self.round(value, DType::Tf32)?;
                self.b.ins().store(FLAGS, rounded, address, 0);
            }
            (Memory::Buf(DType::Bf16), Elem::F32) => {
                let bits = self.round_upper(value, 16);
                let bits = self.b.ins().sshr_imm_u(bits, 16);
                self.store_halves(address, bits, vector);
            }
            (Memory::Buf(DType::F64), Elem::F32) if vector => {
                let high = self.shuffle(value, [2, 3, 0, 1]);
                let (low, high) = (self.b.ins().fvpromote_low(value), self.b.ins().fvpromote_low(high));
                self.b.ins().store(FLAGS, low, address, 0);
                self.b.ins().store(FLAGS, high, address, 16);
            }
            (Memory::Buf(DType::F64), Elem::F32) => {
                let x = self.b.ins().fpromote(types::F64, value);
                self.b.ins().store(FLAGS, x, address, 0);
            }
            (Memory::Buf(DType::E8M0), Elem::F32) => {
                let codes = self.exponent(value);
                self.store_bytes(address, codes, vector);
            }
            (memory, elem) => match memory.small() {
                Some(small) if elem == Elem::F32 => {
                    let bits = self.narrow(value, small);
                    match small.width {
                        8 => self.store_bytes(address, bits, vector),
                        _ => self.store_halves(address, bits, vector),
                    }
                }
                _ => return self.fail(format!("a store of {elem:?} to {memory}")),
            },
        }
        Ok(())
    }

    /// Floats rounded to the values of a type that is no finer than `f32`.
    pub(crate) fn round(&mut self, x: Value, to: DType) -> Result<Value, Error> {
        match to {
            DType::F64 | DType::F32 => Ok(x),
            DType::Bf16 | DType::Tf32 => {
                let cut = if to == DType::Bf16 { 16 } else { 13 };
                let bits = self.round_upper(x, cut);
                let mask = self.bits(u32::MAX << cut, self.lanes(x));
                let bits = self.b.ins().band(bits, mask);
                Ok(self.as_float(bits))
            }
            DType::E8M0 => {
                let codes = self.exponent(x);
                Ok(self.power_of_two(codes))
            }
            _ => match Small::of(to) {
                Some(small) => {
                    let bits = self.narrow(x, small);
                    Ok(self.widen(bits, small))
                }
                None => self.fail(format!("rounding to {to}")),
            },
        }
    }

    /// The low bytes of 32-bit numbers.
    fn store_bytes(&mut self, address: Value, bits: Value, vector: bool) {
        if !vector {
            self.b.ins().istore8(FLAGS, bits, address, 0);
            return;
        }
        let high = self.b.ins().ishl_imm_u(bits, 24);
        let extended = self.b.ins().sshr_imm_u(high, 24);
        let four = self.first_bytes(extended);
        self.b.ins().store(FLAGS, four, address, 0);
    }

    /// One byte of each lane, in one word; lanes must be sign-extended bytes.
    fn first_bytes(&mut self, lanes: Value) -> Value {
        let halves = self.b.ins().snarrow(lanes, lanes);
        let bytes = self.b.ins().snarrow(halves, halves);
        let words = self.cast_bits(types::I32X4, bytes);
        self.b.ins().extractlane(words, 0)
    }

    /// Four bytes, each in 32 bits.
    fn load_bytes(&mut self, address: Value) -> Value {
        let word = self.b.ins().load(types::I32, FLAGS, address, 0);
        let words = self.b.ins().scalar_to_vector(types::I32X4, word);
        let bytes = self.cast_bits(types::I8X16, words);
        let halves = self.b.ins().uwiden_low(bytes);
        self.b.ins().uwiden_low(halves)
    }

    /// One 16-bit number, or four, each in the low half of 32 bits.
    fn load_halves(&mut self, address: Value, vector: bool) -> Value {
        match vector {
            true => self.b.ins().uload16x4(FLAGS, address, 0),
            false => self.b.ins().uload16(types::I32, FLAGS, address, 0),
        }
    }

    /// The low halves of 32-bit numbers; of vectors, they must be sign-extended.
    fn store_halves(&mut self, address: Value, bits: Value, vector: bool) {
        if !vector {
            self.b.ins().istore16(FLAGS, bits, address, 0);
            return;
        }
        let halves = self.b.ins().snarrow(bits, bits);
        let pairs = self.cast_bits(types::I64X2, halves);
        let four = self.b.ins().extractlane(pairs, 0);
        self.b.ins().store(FLAGS, four, address, 0);
    }

    /// Codes of `e8m0`, one in each lane, as floats.
    fn power_of_two(&mut self, codes: Value) -> Value {
        let lanes = self.lanes(codes);
        let bits = self.b.ins().ishl_imm_u(codes, 23);
        // The least is subnormal, and the exponent of infinities is NaN's.
        let (one, least) = (self.bits(1, lanes), self.bits(LEAST_POWER, lanes));
        let is_least = self.int_gt(one, codes);
        let bits = self.pick(is_least, least, bits);
        let (last, nan) = (self.bits(254, lanes), self.bits(INFINITY | QUIET, lanes));
        let is_nan = self.int_gt(codes, last);
        let bits = self.pick(is_nan, nan, bits);
        self.as_float(bits)
    }

    /// Floats rounded up to codes of `e8m0`.
    fn exponent(&mut self, x: Value) -> Value {
        let lanes = self.lanes(x);
        let bits = self.as_int(x);
        let mantissa = self.bits((1 << 23) - 1, lanes);
        let up = self.b.ins().iadd(bits, mantissa);
        let code = self.b.ins().ushr_imm_u(up, 23);
        // Negative numbers are negative as integers, too.
        let (above, zero) = (self.bits(LEAST_POWER + 1, lanes), self.bits(0, lanes));
        let is_small = self.int_gt(above, bits);
        let code = self.pick(is_small, zero, code);
        let (largest, last) = (self.bits(254 << 23, lanes), self.bits(254, lanes));
        let is_large = self.int_gt(bits, largest);
        let code = self.pick(is_large, last, code);
        let (is_nan, nan) = (self.b.ins().fcmp(FloatCC::Unordered, x, x), self.bits(255, lanes));
        self.pick(is_nan, nan, code)
    }

    /// The bits of `x` rounded to those above the lower `cut`, ties to even; these are of no meaning.
    fn round_upper(&mut self, x: Value, cut: u32) -> Value {
        let lanes = self.lanes(x);
        let bits = self.as_int(x);
        let shifted = self.b.ins().ushr_imm_u(bits, i64::from(cut));
        let (one, below_half) = (self.bits(1, lanes), self.bits((1 << (cut - 1)) - 1, lanes));
        let odd = self.b.ins().band(shifted, one);
        let up = self.b.ins().iadd(bits, below_half);
        let up = self.b.ins().iadd(up, odd);
        let quiet = self.bits(QUIET, lanes);
        let quiet = self.b.ins().bor(bits, quiet);
        let nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        self.pick(nan, quiet, up)
    }

    /// Numbers of a small type, one in the low bits of each lane, as floats: exact.
    fn widen(&mut self, bits: Value, small: Small) -> Value {
        let lanes = self.lanes(bits);
        let mask = self.bits((1 << (small.width - 1)) - 1, lanes);
        let magnitude = self.b.ins().band(bits, mask);
        let sign = self.b.ins().bxor(bits, magnitude);
        let sign = self.b.ins().ishl_imm_u(sign, i64::from(32 - small.width));
        let widened = self.b.ins().ishl_imm_u(magnitude, i64::from(23 - small.mantissa));
        // The difference of the exponents' biases; multiplying by it is right for subnormals too.
        let scale = self.float(f32::from_bits((127 + 127 - small.bias) << 23), lanes);
        let float = self.as_float(widened);
        let float = self.b.ins().fmul(float, scale);
        let finite = self.as_int(float);
        let (infinity, largest) = (self.bits(INFINITY, lanes), self.bits(small.largest, lanes));
        let infinite = self.b.ins().bor(widened, infinity);
        let beyond = self.int_gt(magnitude, largest);
        let magnitude = self.pick(beyond, infinite, finite);
        let bits = self.b.ins().bor(magnitude, sign);
        self.as_float(bits)
    }

    /// Floats rounded to a small type, ties to even; sign-extended to the 32 bits of a lane.
    fn narrow(&mut self, x: Value, small: Small) -> Value {
        let lanes = self.lanes(x);
        let drop = 23 - small.mantissa;
        let bits = self.as_int(x);
        let mask = self.bits(0x7fff_ffff, lanes);
        let magnitude = self.b.ins().band(bits, mask);

        // Normal results: the exponent is rebiased, the mantissa rounded by an addition that may carry into it.
        let shifted = self.b.ins().ushr_imm_u(magnitude, i64::from(drop));
        let one = self.bits(1, lanes);
        let odd = self.b.ins().band(shifted, one);
        let below_half = (1u32 << (drop - 1)) - 1;
        let rebias = self.bits(below_half.wrapping_sub((127 - small.bias) << 23), lanes);
        let normal = self.b.ins().iadd(magnitude, rebias);
        let normal = self.b.ins().iadd(normal, odd);
        let normal = self.b.ins().ushr_imm_u(normal, i64::from(drop));

        // Subnormal results: adding a power of two makes the processor round at the right place.
        let align = (127 - small.bias + drop + 1) << 23;
        let (align_float, align) = (self.float(f32::from_bits(align), lanes), self.bits(align, lanes));
        let float = self.as_float(magnitude);
        let tiny = self.b.ins().fadd(float, align_float);
        let tiny = self.as_int(tiny);
        let tiny = self.b.ins().isub(tiny, align);
        let smallest = self.bits((127 - small.bias + 1) << 23, lanes);
        let is_tiny = self.int_gt(smallest, magnitude);
        let code = self.pick(is_tiny, tiny, normal);

        let (largest, overflow) = (self.bits(small.largest, lanes), self.bits(small.overflow, lanes));
        let beyond = self.int_gt(code, largest);
        let code = self.pick(beyond, overflow, code);
        let (nan, infinity) = (self.bits(small.nan, lanes), self.bits(INFINITY, lanes));
        let is_nan = self.int_gt(magnitude, infinity);
        let code = self.pick(is_nan, nan, code);

        let sign = self.b.ins().bxor(bits, magnitude);
        let sign = self.b.ins().sshr_imm_u(sign, i64::from(32 - small.width));
        self.b.ins().bor(code, sign)
    }
}
