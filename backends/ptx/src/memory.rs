//! Loads and stores.

use crate::emit::{Emitter, Slots, Words, slot};
use crate::ir::{Done, Effect, I, P, V, fail, int, space};
use crate::layout::PANEL;
use crate::number::words;
use eva_ir::entity::Entity;
use eva_ir::kernel::block::Shared;
use eva_ir::kernel::{Elem, Mem, Reg, RegType, Space};
use eva_ir::types::DType;
use inkwell::types::BasicTypeEnum;
use inkwell::values::{BasicValue, InstructionValue};

/// The most bytes that one instruction moves.
const WIDEST: usize = 16;
/// Pieces of a panel's row that the swizzle exchanges, in bytes.
const PIECE: u32 = 16;

/// Consecutive elements that one instruction moves.
#[derive(Clone, Copy)]
struct Piece<'c> {
    pointer: P<'c>,
    space: u16,
    dtype: DType,
    /// How many elements.
    n: usize,
    /// Whether a load may be moved over stores and barriers.
    moves: bool,
}

impl<'c> Piece<'c> {
    fn align(&self) -> u32 {
        (self.n * self.dtype.bytes() as usize) as u32
    }

    /// What `ld` and `st` say of where it is and how wide it is, and a register of each word.
    fn suffix(&self) -> String {
        let place = if self.space == space::GLOBAL { "global" } else { "shared" };
        let (count, bits) = words(self.dtype, self.n);
        let vector = if count > 1 { format!(".v{count}") } else { String::new() };
        format!("{place}{vector}.b{bits}")
    }

    /// The letter for a register of a word in inline assembly.
    fn letter(&self) -> &'static str {
        match words(self.dtype, self.n).1 {
            64 => "l",
            32 => "r",
            _ => "h",
        }
    }
}

/// `{$first, $first+1, …}`, or `$first` alone.
fn registers(first: usize, n: usize) -> String {
    let names: Vec<String> = (first..first + n).map(|i| format!("${i}")).collect();
    if n == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) }
}

impl<'c> Emitter<'_, 'c> {
    /// What is loaded, as numbers and as memory has it.
    pub(crate) fn load(&self, ty: RegType, from: Mem, mask: Option<Reg>) -> Done<(Slots<'c>, Words<'c>)> {
        let index = self.ints(from.index)?;
        let (dtype, n) = (self.dtype(from.space)?, width(ty.cols, index.len())?);
        check(dtype, n, ty.elem)?;
        let mask = self.masks(mask, index.len())?;
        // Beside products, registers are few: `ptxas` would begin with all loads of what is written part by part.
        let updated = matches!(from.space, Space::Buf(buf) if self.kernel.is_updated(buf));
        let moves = !updated && (self.block.pipes.is_empty() || ty.cols == 1);
        let mut values = Vec::with_capacity(ty.cols);
        let mut accesses = Vec::with_capacity(index.len());
        for (i, &index) in index.iter().enumerate() {
            let pointer = self.address(from.space, index)?;
            let piece = Piece { pointer, space: space_of(from.space), dtype, n, moves };
            let words = match &mask {
                None => self.load_words(piece)?,
                Some(mask) => self.load_words_if(piece, slot(mask, i))?,
            };
            let mut loaded = self.unpack(&words, dtype, n)?.values();
            // Bytes of zero are no zeros of this type.
            if let (DType::E8M0, Some(mask)) = (dtype, &mask) {
                for value in &mut loaded {
                    let zero = V::from(self.ir.f32(0.0));
                    *value = self.ir.b.build_select(slot(mask, i), *value, zero, "")?;
                }
            }
            values.extend(loaded);
            accesses.push(words);
        }
        Ok((Slots::new(ty.elem, &values)?, Words { dtype, n, accesses }))
    }

    pub(crate) fn store(&self, to: Mem, reg: Reg, mask: Option<Reg>) -> Done {
        let (index, value) = (self.ints(to.index)?, self.get(reg)?);
        let (dtype, all, elem) = (self.dtype(to.space)?, value.values(), value.elem());
        let n = width(all.len(), index.len())?;
        check(dtype, n, elem)?;
        let mask = self.masks(mask, index.len())?;
        // What is only moved is neither widened nor rounded. Not so what registers do not hold as it is, and bytes that a mask
        // left zero, which are no zeros of `e8m0`.
        let same =
            |words: &&Words<'c>| (words.dtype, words.n, words.accesses.len()) == (dtype, n, index.len());
        let as_it_is = !matches!(dtype, DType::F64 | DType::E8M0);
        let moved = self.loaded.get(&reg).filter(same).filter(|_| as_it_is);
        let single = if n == 1 && moved.is_none() { self.singles(&value, dtype)? } else { Vec::new() };
        for (i, (&index, value)) in index.iter().zip(all.chunks(n)).enumerate() {
            let pointer = self.address(to.space, index)?;
            let piece = Piece { pointer, space: space_of(to.space), dtype, n, moves: false };
            let words = match (moved, single.get(i)) {
                (Some(words), _) => words.accesses[i].clone(),
                (None, Some(&word)) => vec![word],
                (None, None) => self.pack(&Slots::new(elem, value)?, dtype)?,
            };
            match &mask {
                None => self.store_words(piece, &words)?,
                Some(mask) => self.store_words_if(piece, &words, slot(mask, i))?,
            }
        }
        Ok(())
    }

    /// Numbers of 16 bits, for stores one by one; none for other types. They are rounded in pairs: where `ptxas` 13.0
    /// finds what a product gave rounded one by one, it says that it must wait for every product (C7514).
    fn singles(&self, value: &Slots<'c>, dtype: DType) -> Done<Vec<I<'c>>> {
        let (DType::Bf16 | DType::F16, Slots::Floats(xs)) = (dtype, value) else { return Ok(Vec::new()) };
        let (b, half) = (&self.ir.b, self.ir.ctx.i16_type());
        let mut singles = Vec::with_capacity(xs.len());
        for pair in xs.chunks(2) {
            let word = self.pack_16(pair, dtype)?;
            if pair.len() == 1 {
                singles.push(word);
                continue;
            }
            singles.push(b.build_int_truncate(word, half, "")?);
            let high = b.build_right_shift(word, self.ir.i32(16), false, "")?;
            singles.push(b.build_int_truncate(high, half, "")?);
        }
        Ok(singles)
    }

    fn load_words(&self, piece: Piece<'c>) -> Done<Vec<I<'c>>> {
        let (count, ty) = self.word_types(piece)?;
        let b = &self.ir.b;
        let loaded = b.build_load(ty, piece.pointer, "")?;
        let inst = loaded.as_instruction_value();
        self.annotate(inst, piece)?;
        match loaded {
            V::VectorValue(all) => {
                let word = |i| int(b.build_extract_element(all, self.ir.i32(i as u32), "")?);
                (0..count).map(word).collect()
            }
            one => Ok(vec![int(one)?]),
        }
    }

    fn store_words(&self, piece: Piece<'c>, words: &[I<'c>]) -> Done {
        let b = &self.ir.b;
        let inst = match self.word_types(piece)?.1 {
            BasicTypeEnum::VectorType(ty) => {
                let mut all = ty.get_undef();
                for (i, &word) in words.iter().enumerate() {
                    all = b.build_insert_element(all, word, self.ir.i32(i as u32), "")?;
                }
                b.build_store(piece.pointer, all)?
            }
            _ => b.build_store(piece.pointer, words[0])?,
        };
        self.annotate(Some(inst), piece)
    }

    /// Zeros where `mask` does not hold; memory is not touched then.
    fn load_words_if(&self, piece: Piece<'c>, mask: I<'c>) -> Done<Vec<I<'c>>> {
        if mask.get_zero_extended_constant() == Some(1) {
            return self.load_words(piece);
        }
        let (count, bits) = words(piece.dtype, piece.n);
        // A buffer that is read is not written, so that its loads may be moved.
        let (effect, load) = match piece.space {
            space::GLOBAL if piece.moves => (Effect::None, piece.suffix().replacen("global", "global.nc", 1)),
            _ => (Effect::Some, piece.suffix()),
        };
        let register = bits.max(16);
        let mut text: String = (0..count).map(|i| format!("mov.b{register} ${i}, 0;\n")).collect();
        let (at, when) = (count, count + 1);
        text += &format!("@${when} ld.{load} {}, [${at}];", registers(0, count));
        let mut constraints = vec![format!("=&{}", piece.letter()); count];
        constraints.extend(["l", "b"].map(String::from));
        let ty = self.ir.integer(register)?;
        let results = vec![ty.into(); count];
        let args = [piece.pointer.into(), mask.into()];
        let loaded = self.ir.asm(effect, &text, &constraints, &results, &args)?;
        let narrow = |word: V<'c>| match bits {
            8 => Ok(self.ir.b.build_int_truncate(int(word)?, self.ir.ctx.i8_type(), "")?),
            _ => int(word),
        };
        loaded.into_iter().map(narrow).collect()
    }

    fn store_words_if(&self, piece: Piece<'c>, words: &[I<'c>], mask: I<'c>) -> Done {
        if mask.get_zero_extended_constant() == Some(1) {
            return self.store_words(piece, words);
        }
        let n = words.len();
        let text = format!("@${} st.{} [${n}], {};", n + 1, piece.suffix(), registers(0, n));
        let mut constraints = vec![piece.letter().to_owned(); n];
        constraints.extend(["l", "b"].map(String::from));
        let mut args = Vec::with_capacity(n + 2);
        for &word in words {
            let wide = match word.get_type().get_bit_width() {
                8 => self.ir.b.build_int_z_extend(word, self.ir.ctx.i16_type(), "")?,
                _ => word,
            };
            args.push(V::from(wide));
        }
        args.extend([V::from(piece.pointer), V::from(mask)]);
        self.ir.asm(Effect::Some, &text, &constraints, &[], &args)?;
        Ok(())
    }

    /// How many words a piece has, and the type of all of them.
    fn word_types(&self, piece: Piece<'c>) -> Done<(usize, BasicTypeEnum<'c>)> {
        let (count, bits) = words(piece.dtype, piece.n);
        let word = self.ir.integer(bits)?;
        Ok((count, if count == 1 { word.into() } else { word.vec_type(count as u32).into() }))
    }

    /// Alignment; and that what is loaded from a buffer never changes, where that may be used.
    fn annotate(&self, inst: Option<InstructionValue<'c>>, piece: Piece<'c>) -> Done {
        let llvm = |e: &dyn std::fmt::Display| crate::ir::Fault::Llvm(e.to_string());
        let inst = inst.ok_or_else(|| llvm(&"a load is no instruction"))?;
        inst.set_alignment(piece.align()).map_err(|e| llvm(&e))?;
        let is_load = inst.get_opcode() == inkwell::values::InstructionOpcode::Load;
        if is_load && piece.space == space::GLOBAL && piece.moves {
            let ctx = self.ir.ctx;
            inst.set_metadata(ctx.metadata_node(&[]), ctx.get_kind_id("invariant.load"))
                .map_err(|e| llvm(&e))?;
        }
        Ok(())
    }

    fn dtype(&self, space: Space) -> Done<DType> {
        match space {
            Space::Buf(buf) => match self.kernel.bufs.get(buf) {
                Some(data) => Ok(data.dtype),
                None => fail(format!("{buf} is no buffer of it")),
            },
            Space::Shared(shared) => match self.block.shared.get(shared) {
                Some(data) => Ok(data.dtype),
                None => fail(format!("{shared} is no tile of it")),
            },
            Space::Scratch(scratch) => fail(format!("{scratch} is not memory of the block phase")),
        }
    }

    /// The mask of `n` addresses.
    fn masks(&self, mask: Option<Reg>, n: usize) -> Done<Option<Vec<I<'c>>>> {
        match mask.map(|mask| self.truths(mask)).transpose()? {
            Some(mask) if mask.len() != 1 && mask.len() != n => {
                fail(format!("a mask of {} slots for {n} addresses", mask.len()))
            }
            mask => Ok(mask),
        }
    }

    /// Where an element is.
    fn address(&self, space: Space, index: I<'c>) -> Done<P<'c>> {
        match space {
            Space::Buf(buf) => {
                let element = self.ir.integer(8 * self.dtype(space)?.bytes() as u32)?;
                self.ir.element(element, self.entry.bufs[buf.index()], index)
            }
            Space::Shared(shared) => {
                let at = self.shared_offset(shared, self.ir.low(index)?)?;
                self.ir.offset(self.entry.shared, at)
            }
            Space::Scratch(scratch) => fail(format!("{scratch} is not memory of the block phase")),
        }
    }

    /// The address of the first byte of shared memory, in 32 bits.
    pub(crate) fn shared_base(&self) -> Done<I<'c>> {
        Ok(self.ir.b.build_ptr_to_int(self.entry.shared, self.ir.ctx.i32_type(), "")?)
    }

    /// Where element number `index` of a tile is, in bytes from the beginning of shared memory.
    fn shared_offset(&self, shared: Shared, index: I<'c>) -> Done<I<'c>> {
        let (b, ir) = (&self.ir.b, &self.ir);
        let (data, layout) = (&self.block.shared[shared], self.entry.layout.tiles[shared.index()]);
        let bytes = data.dtype.bytes() as u32;
        let at = b.build_int_nuw_mul(index, ir.i32(bytes), "")?;
        let start = ir.i32(layout.start as u32);
        if !data.swizzle {
            return Ok(b.build_int_nuw_add(at, start, "")?);
        }
        let row_bytes = ir.i32(data.cols as u32 * bytes);
        let (mut row, in_row) =
            (b.build_int_unsigned_div(at, row_bytes, "")?, b.build_int_unsigned_rem(at, row_bytes, "")?);
        let mut place = start;
        if data.stages > 1 {
            let rows = ir.i32(data.rows as u32);
            let stage = b.build_int_unsigned_div(row, rows, "")?;
            row = b.build_int_unsigned_rem(row, rows, "")?;
            let stage = b.build_int_nuw_mul(stage, ir.i32(layout.stage as u32), "")?;
            place = b.build_int_nuw_add(place, stage, "")?;
        }
        let mut in_panel = in_row;
        if layout.panels > 1 {
            let panel = ir.shr(in_row, u64::from(PANEL.trailing_zeros()))?;
            in_panel = b.build_and(in_row, ir.i32(PANEL as u32 - 1), "")?;
            let panel = b.build_int_nuw_mul(panel, ir.i32(layout.panel as u32), "")?;
            place = b.build_int_nuw_add(place, panel, "")?;
        }
        // Of a panel's eight pieces of 16 bytes, row `r` has piece `i` at `i ^ (r % 8)`.
        let turn = b.build_and(row, ir.i32(7), "")?;
        let turn = b.build_int_nuw_mul(turn, ir.i32(PIECE), "")?;
        let in_panel = b.build_xor(in_panel, turn, "")?;
        let row = b.build_int_nuw_mul(row, ir.i32(PANEL as u32), "")?;
        place = b.build_int_nuw_add(place, row, "")?;
        Ok(b.build_int_nuw_add(place, in_panel, "")?)
    }
}

/// The address space of a memory.
fn space_of(space: Space) -> u16 {
    if matches!(space, Space::Buf(_)) { space::GLOBAL } else { space::SHARED }
}

/// How many elements each address stands for.
fn width(slots: usize, addresses: usize) -> Done<usize> {
    if addresses == 0 || !slots.is_multiple_of(addresses) {
        return fail(format!("{slots} slots at {addresses} addresses"));
    }
    Ok(slots / addresses)
}

/// That one instruction moves `n` elements, and that registers hold them so.
fn check(dtype: DType, n: usize, elem: Elem) -> Done {
    let bytes = n.saturating_mul(dtype.bytes() as usize);
    if !n.is_power_of_two() || bytes > WIDEST {
        return fail(format!("{n} elements of {dtype} at once"));
    }
    let fits = elem == if dtype.is_int() { Elem::I64 } else { Elem::F32 };
    if fits { Ok(()) } else { fail(format!("{elem:?} where memory holds {dtype}")) }
}
