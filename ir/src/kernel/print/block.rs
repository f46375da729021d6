//! The text of the block phase: see [`super`] for the rest.
//!
//! * `#a` is a tile in shared memory, `|a` a pipe, `~0` a tiling of a buffer. `#a[%0]` is element `%0`;
//!   `#a{%1}[%2..+64, 0..+16]` is 64 rows from `%2` on and 16 columns of the stage of turn `%1`.
//! * Products are `left * right'`: the prime says that the right operand's rows are the result's columns. A tile whose
//!   rows are the summed axis (`transposed`) has its own prime, as in `#a{%1}[0..+16, %2..+64]'`.

use super::*;
use crate::kernel::block::{Block, BlockInst, Keep, Launch, Map, MmaLeft, MmaTile, Pipe, Role, Shared};

impl Printer<'_> {
    /// What the kernel has beside its buffers, a line each.
    pub(super) fn block_header(&self, block: &Block, f: &mut fmt::Formatter) -> fmt::Result {
        let launch = match block.launch {
            Launch::Each { per_block: 1 } => "one a program".into(),
            Launch::Each { per_block } => format!("one for each {per_block} programs"),
            Launch::Persistent { per_multiprocessor } => {
                format!("persistent, {per_multiprocessor} a multiprocessor")
            }
        };
        writeln!(f, "  blocks of {} warps, {launch},", block.warps)?;
        for (shared, data) in block.shared.iter() {
            let swizzle = if data.swizzle { ", swizzled" } else { "" };
            let stages = if data.stages == 1 { String::new() } else { format!(" x {} stages", data.stages) };
            let (name, dtype, rows, cols) = (self.shared(shared), data.dtype, data.rows, data.cols);
            writeln!(f, "  shared {name}: {dtype}[{rows}x{cols}]{stages}{swizzle},")?;
        }
        for (pipe, data) in block.pipes.iter() {
            let tiles: Vec<_> = data.tiles.iter().map(|&tile| self.shared(tile)).collect();
            let (name, tiles, stages, consumers) =
                (self.pipe(pipe), tiles.join(", "), data.stages, data.consumers);
            writeln!(f, "  pipe {name}: {tiles} x {stages} stages, released by {consumers} warps,")?;
        }
        for (map, data) in block.maps.iter() {
            let ([row, col], buf) = (data.axes, self.buf(data.buf));
            let (rows, cols) = (data.rows, data.cols);
            let plain = if data.swizzle { "" } else { ", not swizzled" };
            writeln!(
                f,
                "  map {map}: {rows}x{cols} of {buf}, rows along axis {row}, columns along {col}{plain},"
            )?;
        }
        Ok(())
    }

    /// The bodies of roles, each with a line of its own.
    pub(super) fn roles(&mut self, roles: &[Role], depth: usize) {
        let indent = "  ".repeat(depth);
        for Role { name, warps, registers, solo, body } in roles {
            let solo = if *solo { ", one thread" } else { "" };
            let text = format!("{indent}  {name}: {warps} warps, {registers} registers{solo} {{");
            self.lines.push(Line { text, ty: None });
            self.block(body, depth + 2);
            self.lines.push(Line { text: format!("{indent}  }}"), ty: None });
        }
        self.lines.push(Line { text: format!("{indent}}}"), ty: None });
    }

    /// The instruction's first line, without indentation, result and type.
    pub(super) fn block_line(&mut self, inst: &BlockInst) -> String {
        match inst {
            BlockInst::Thread { .. } => "thread".into(),
            BlockInst::Number { .. } => "number".into(),
            BlockInst::Launched { .. } => "launched".into(),
            BlockInst::Slots { values, .. } => format!("slots [{}]", runs(values)),
            BlockInst::Pick { x, slots, .. } => {
                let slots: Vec<i64> = slots.iter().map(|&slot| slot.into()).collect();
                format!("pick {} [{}]", self.reg(*x), runs(&slots))
            }
            BlockInst::Join { parts, .. } => format!("join {}", self.regs(parts)),
            BlockInst::Fma { x, y, acc, .. } => {
                format!("fma {} * {} + {}", self.reg(*x), self.reg(*y), self.reg(*acc))
            }
            BlockInst::Load { from, mask, .. } => format!("load {}{}", self.mem(from), self.when(*mask)),
            BlockInst::Store { to, value, mask } => {
                format!("store {} = {}{}", self.mem(to), self.reg(*value), self.when(*mask))
            }
            BlockInst::Shuffle { x, xor, .. } => format!("shuffle {} ^ {xor}", self.reg(*x)),
            BlockInst::Barrier { warps: 1, .. } => "barrier of a warp".into(),
            BlockInst::Barrier { id, warps } => format!("barrier {id} of {warps} warps"),
            BlockInst::Roles { .. } => "roles {".into(),
            BlockInst::Acquire { pipe, turn } => {
                format!("acquire {}{{{}}}", self.pipe(*pipe), self.reg(*turn))
            }
            BlockInst::Copy { pipe, turn, tile, map, at } => {
                let (pipe, turn, tile) = (self.pipe(*pipe), self.reg(*turn), self.shared(*tile));
                format!("copy {pipe}{{{turn}}} {tile} = {}", self.tiling(*map, at))
            }
            BlockInst::Wait { pipe, turn } => format!("wait {}{{{}}}", self.pipe(*pipe), self.reg(*turn)),
            BlockInst::Release { pipe, turn, when } => {
                format!("release {}{{{}}}{}", self.pipe(*pipe), self.reg(*turn), self.when(*when))
            }
            BlockInst::Mma { acc, keep, a, b, b_row, n, k, .. } => {
                let acc = self.reg(*acc);
                let (acc, into) = match keep {
                    Keep::Yes => (format!("{acc} + "), String::new()),
                    Keep::No => (String::new(), format!(" into {acc}")),
                    Keep::When(reg) => (format!("({acc} if {}) + ", self.reg(*reg)), String::new()),
                };
                let a = match a {
                    MmaLeft::Shared { tile, row } => self.mma_tile(tile, *row, 64, *k),
                    MmaLeft::Registers(reg) => self.reg(*reg),
                };
                format!("mma {acc}{a} * ({})'{into}", self.mma_tile(b, *b_row, *n, *k))
            }
            BlockInst::MmaWait { pending, values } => {
                let values = values.iter().map(|(out, x)| format!("{} = {}", self.reg(*out), self.reg(*x)));
                let values = values.collect::<Vec<_>>().join(", ");
                let colon = if values.is_empty() { "" } else { ": " };
                format!("mma_wait {pending}{colon}{values}")
            }
            BlockInst::FenceAsync => "fence_async".into(),
            BlockInst::CopyOut { map, tile, turn, at, when } => {
                let (to, when) = (self.tiling(*map, at), self.when(Some(*when)));
                format!("copy_out {to} = {}{{{}}}{when}", self.shared(*tile), self.reg(*turn))
            }
            BlockInst::CopyOutWait { pending } => format!("copy_out_wait {pending}"),
        }
    }

    /// A part of a stage, as an operand of a product.
    fn mma_tile(&mut self, tile: &MmaTile, row: Reg, rows: usize, k: usize) -> String {
        let stage = format!("{}{{{}}}", self.shared(tile.tile), self.reg(tile.turn));
        let (rows, summed) = (format!("{}..+{rows}", self.reg(row)), format!("{}..+{k}", tile.first));
        if tile.transposed {
            format!("{stage}[{summed}, {rows}]'")
        } else {
            format!("{stage}[{rows}, {summed}]")
        }
    }

    fn tiling(&mut self, map: Map, at: &[Reg]) -> String {
        format!("{map}[{}]", self.regs(at))
    }

    fn when(&mut self, mask: Option<Reg>) -> String {
        mask.map(|mask| format!(" if {}", self.reg(mask))).unwrap_or_default()
    }

    fn regs(&mut self, regs: &[Reg]) -> String {
        let names: Vec<_> = regs.iter().map(|&reg| self.reg(reg)).collect();
        names.join(", ")
    }

    pub(super) fn shared(&self, shared: Shared) -> String {
        let tiles = self.kernel.block.iter().flat_map(|block| block.shared.iter());
        named("#", shared, &tiles.map(|(id, data)| (id, data.name.as_str())).collect::<Vec<_>>())
    }

    fn pipe(&self, pipe: Pipe) -> String {
        let pipes = self.kernel.block.iter().flat_map(|block| block.pipes.iter());
        named("|", pipe, &pipes.map(|(id, data)| (id, data.name.as_str())).collect::<Vec<_>>())
    }
}

/// What `id` is called: by its name, and by its number too if others have the name.
fn named<E: Entity + fmt::Display>(sigil: &str, id: E, all: &[(E, &str)]) -> String {
    match all.iter().find(|(other, _)| *other == id) {
        Some((_, "")) | None => id.to_string(),
        Some((_, name)) if all.iter().filter(|(_, other)| other == name).count() == 1 => {
            format!("{sigil}{name}")
        }
        Some((_, name)) => format!("{sigil}{name}#{}", id.index()),
    }
}

/// A list of numbers; three and more in a row as `first..=last`.
fn runs(values: &[i64]) -> String {
    let mut parts = Vec::new();
    let mut rest = values;
    while let Some(&first) = rest.first() {
        let follows = |(i, &value): (usize, &i64)| {
            i64::try_from(i).ok().and_then(|i| first.checked_add(i)) == Some(value)
        };
        let len = rest.iter().enumerate().take_while(|&item| follows(item)).count();
        let len = if len < 3 { 1 } else { len };
        parts.push(if len == 1 { first.to_string() } else { format!("{first}..={}", rest[len - 1]) });
        rest = &rest[len..];
    }
    parts.join(", ")
}
