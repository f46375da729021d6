//! Products by the tensor cores: `wgmma`.
//!
//! Accumulators are ordinary values. A product is one piece of assembly that gets them and gives them back in the same
//! registers (fence, the products of 32 bytes of terms each, commit), and waiting is one that passes them on: so nothing
//! can read them too early, and no register is copied between the two.

use crate::emit::{Emitter, Slots};
use crate::ir::{Done, Effect, F, I, V, fail, float};
use crate::layout::PANEL;
use eva_ir::entity::Entity;
use eva_ir::kernel::Reg;
use eva_ir::kernel::block::{BlockInst, Keep, MmaLeft, MmaTile};
use eva_ir::types::DType;
use std::fmt::Write;

/// Rows of the swizzle's pattern, in bytes: from one group of 8 to the next.
const GROUP: u32 = 1024;
/// Bits of a descriptor's upper half: the swizzle is that of 128 bytes.
const SWIZZLE_128: u32 = 1 << 30;
/// Addresses and distances in descriptors are in these many bytes.
const UNIT: u32 = 16;

/// A tile as an operand of products: the descriptor of the terms from number 0 on, and how to get at others.
struct Operand<'c> {
    /// The lower half: the address, and the distance of panels where they run along the rows.
    low: I<'c>,
    dtype: DType,
    transposed: bool,
    /// Bytes from one panel to the next.
    panel: usize,
    first: usize,
}

impl Operand<'_> {
    /// The upper half of the descriptor: the distance of groups of eight rows, and the swizzle.
    const HIGH: u32 = (GROUP / UNIT) | SWIZZLE_128;

    /// How far from the descriptor's address term `term` is, in its units.
    fn offset(&self, term: usize) -> usize {
        let term = self.first + term;
        let bytes = if self.transposed {
            term * PANEL
        } else {
            let bytes = term * self.dtype.bytes() as usize;
            bytes / PANEL * self.panel + bytes % PANEL
        };
        bytes / UNIT as usize
    }

    fn name(&self) -> &'static str {
        match self.dtype {
            DType::Tf32 => "tf32",
            DType::F16 => "f16",
            DType::F8E4M3 => "e4m3",
            DType::F8E5M2 => "e5m2",
            _ => "bf16",
        }
    }
}

/// The left operand.
enum Left<'c> {
    Shared(Operand<'c>),
    /// Pairs of 16-bit numbers, four words for 16 terms.
    Registers(Vec<I<'c>>),
}

impl<'c> Emitter<'_, 'c> {
    pub(crate) fn mma(&mut self, inst: &BlockInst) -> Done {
        let BlockInst::Mma { out, acc, keep, a, b, b_row, n, k } = inst else {
            return fail(format!("{inst:?} is no product"));
        };
        let acc = self.floats(*acc)?;
        let right = self.operand(b, *b_row)?;
        let left = match a {
            MmaLeft::Shared { tile, row } => Left::Shared(self.operand(tile, *row)?),
            MmaLeft::Registers(reg) => Left::Registers(self.left_registers(*reg, right.dtype)?),
        };
        let when = match keep {
            Keep::When(reg) => Some(self.truth(*reg)?),
            Keep::Yes | Keep::No => None,
        };
        // Values that are not read need not be put into registers.
        let tied = !(*keep == Keep::No && acc.iter().all(|x| x.is_const()));

        let results = acc.len();
        let mut args: Vec<V<'c>> = Vec::new();
        let mut constraints = vec!["=f".to_owned(); results];
        if tied {
            constraints.extend((0..results).map(|i| i.to_string()));
            args.extend(acc.iter().map(|&x| V::from(x)));
        }
        let mut operand = |letter: &str, value: V<'c>| {
            constraints.push(letter.into());
            args.push(value);
            format!("${}", constraints.len() - 1)
        };
        let left = match left {
            Left::Shared(tile) => (operand("r", tile.low.into()), Left::Shared(tile)),
            Left::Registers(words) => {
                let names: Vec<String> = words.iter().map(|&word| operand("r", word.into())).collect();
                (names.join(", "), Left::Registers(words))
            }
        };
        let right = (operand("r", right.low.into()), right);
        let when = when.map(|when| operand("b", when.into()));
        let first_keep = match keep {
            Keep::Yes => "1",
            Keep::No => "0",
            Keep::When(_) => when.as_deref().unwrap_or("1"),
        };
        let text = product(*n, *k, results, &left, &right, first_keep);
        let types = vec![self.ir.ctx.f32_type().into(); results];
        let values = self.ir.asm(Effect::Some, &text, &constraints, &types, &args)?;
        self.set(*out, Slots::new(eva_ir::kernel::Elem::F32, &values)?)
    }

    pub(crate) fn mma_wait(&mut self, pending: usize, values: &[(Reg, Reg)]) -> Done {
        let slots = values.iter().map(|&(_, x)| self.floats(x)).collect::<Done<Vec<_>>>()?;
        let all: Vec<V<'c>> = slots.iter().flatten().map(|&x| V::from(x)).collect();
        let mut constraints = vec!["=f".to_owned(); all.len()];
        constraints.extend((0..all.len()).map(|i| i.to_string()));
        let types = vec![self.ir.ctx.f32_type().into(); all.len()];
        let text = format!("wgmma.wait_group.sync.aligned {pending};");
        let waited = self.ir.asm(Effect::Some, &text, &constraints, &types, &all)?;
        let mut waited = waited.into_iter();
        for (&(out, _), slots) in values.iter().zip(&slots) {
            let values = waited.by_ref().take(slots.len()).map(float).collect::<Done<Vec<F<'c>>>>()?;
            self.set(out, Slots::Floats(values))?;
        }
        Ok(())
    }

    /// A tile as an operand, whose rows (columns, where transposed) begin at `row`.
    fn operand(&self, tile: &MmaTile, row: Reg) -> Done<Operand<'c>> {
        let (ir, b) = (&self.ir, &self.ir.b);
        let Some(data) = self.block.shared.get(tile.tile) else {
            return fail(format!("{tile:?} is no tile of it"));
        };
        let layout = self.entry.layout.tiles[tile.tile.index()];
        let row = ir.low(self.int(row)?)?;
        let (panel_bytes, bytes) = (layout.panel as u32, data.dtype.bytes() as u32);
        let row_offset = if tile.transposed {
            let cols = PANEL as u32 / bytes;
            let panel = b.build_int_unsigned_div(row, ir.i32(cols), "")?;
            let in_panel = b.build_int_unsigned_rem(row, ir.i32(cols), "")?;
            let panel = b.build_int_nuw_mul(panel, ir.i32(panel_bytes), "")?;
            b.build_int_nuw_add(panel, b.build_int_nuw_mul(in_panel, ir.i32(bytes), "")?, "")?
        } else {
            b.build_int_nuw_mul(row, ir.i32(PANEL as u32), "")?
        };
        let mut at = b.build_int_nuw_add(self.shared_base()?, ir.i32(layout.start as u32), "")?;
        if data.stages > 1 {
            let stage = self.stage(self.int(tile.turn)?, data.stages)?;
            let stage = b.build_int_nuw_mul(stage, ir.i32(layout.stage as u32), "")?;
            at = b.build_int_nuw_add(at, stage, "")?;
        }
        at = b.build_int_nuw_add(at, row_offset, "")?;
        let address = ir.shr(at, u64::from(UNIT.trailing_zeros()))?;
        // Of operands that are not transposed, the field means nothing.
        let distance = if tile.transposed { panel_bytes / UNIT } else { 1 };
        let low = b.build_or(address, ir.i32(distance << 16), "")?;
        let (dtype, transposed) = (data.dtype, tile.transposed);
        Ok(Operand { low, dtype, transposed, panel: layout.panel, first: tile.first })
    }

    /// The left operand from registers, rounded.
    fn left_registers(&self, reg: Reg, dtype: DType) -> Done<Vec<I<'c>>> {
        if dtype.bytes() != 2 {
            return fail(format!("a left operand of {dtype} in registers"));
        }
        self.floats(reg)?.chunks(2).map(|pair| self.pack_16(pair, dtype)).collect()
    }
}

/// The assembly of a product into registers `$0 …`. An operand comes with its name in the assembly: the lower half of
/// a descriptor, or a list of registers.
fn product(
    n: usize,
    k: usize,
    results: usize,
    left: &(String, Left),
    right: &(String, Operand),
    first_keep: &str,
) -> String {
    let terms = 32 / right.1.dtype.bytes() as usize;
    let registers: Vec<String> = (0..results).map(|i| format!("${i}")).collect();
    let registers = registers.join(", ");
    let left_name = match &left.1 {
        Left::Shared(tile) => tile.name(),
        Left::Registers(_) => right.1.name(),
    };
    let shape = format!("m64n{n}k{terms}.f32.{left_name}.{}", right.1.name());
    let flag = |transposed: bool| u32::from(transposed);
    let tail = match &left.1 {
        _ if right.1.dtype.bytes() != 2 => "1, 1".to_owned(),
        Left::Shared(tile) => format!("1, 1, {}, {}", flag(tile.transposed), flag(right.1.transposed)),
        Left::Registers(_) => format!("1, 1, {}", flag(right.1.transposed)),
    };
    let words: Vec<&str> = left.0.split(", ").collect();
    let mut text = format!(
        "{{\n.reg .b32 low, high;\n.reg .b64 left, right;\nmov.b32 high, {};\nwgmma.fence.sync.aligned;\n",
        Operand::HIGH
    );
    let descriptor = |text: &mut String, name: &str, (low, tile): (&str, &Operand), term: usize| {
        let offset = tile.offset(term);
        // A string takes all that is written to it.
        let _ = writeln!(text, "add.u32 low, {low}, {offset};\nmov.b64 {name}, {{low, high}};");
    };
    for (step, term) in (0..k).step_by(terms).enumerate() {
        let left = match &left.1 {
            Left::Shared(tile) => {
                descriptor(&mut text, "left", (&left.0, tile), term);
                "left".to_owned()
            }
            Left::Registers(_) => format!("{{{}}}", words[4 * step..4 * step + 4].join(", ")),
        };
        descriptor(&mut text, "right", (&right.0, &right.1), term);
        let keep = if step == 0 { first_keep } else { "1" };
        let _ = writeln!(
            text,
            "wgmma.mma_async.sync.aligned.{shape} {{{registers}}}, {left}, right, {keep}, {tail};"
        );
    }
    text + "wgmma.commit_group.sync.aligned;\n}"
}
