//! A kernel's text, for people and snapshots. Nothing reads it back.
//!
//! * Registers are numbered in the order in which they appear, whatever their numbers in the kernel: two
//!   kernels that differ only in how registers were numbered have the same text.
//! * The right-hand column is the type of the register that a line assigns: `f32<4x2>` has 4 rows and 2
//!   columns, `f32` is a single number.
//! * `$x[%0, %1+row, %2+col < %3]` is a rectangle of the buffer `x`: where it starts along each axis, which
//!   axes its rows and columns run along, and where an axis ends early. `$x[%0, %1+%7]` is one element of
//!   `x` for each element of `%7`. In the lane and block phases `$x[%0]` counts from the base of the memory.
//! * What only the block phase has is in `print/block.rs`.

mod block;

use super::block::BlockInst;
use super::*;
use crate::entity::Entity;
use std::collections::HashMap;
use std::fmt;

/// Blocks nested deeper than this are not printed, and refused by the verifier.
pub(super) const MAX_DEPTH: usize = 32;

/// Lines with a longer left-hand side push the column of types aside.
const MAX_COLUMN: usize = 72;

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut printer = Printer::new(self);
        printer.block(&self.body, 1);
        printer.header(f)?;
        let width = |line: &Line| line.ty.as_ref().map(|_| line.text.chars().count());
        let column = printer.lines.iter().filter_map(width).filter(|&w| w <= MAX_COLUMN).max().unwrap_or(0);
        for Line { text, ty } in &printer.lines {
            match ty {
                Some(ty) => writeln!(f, "{text:column$} : {ty}")?,
                None => writeln!(f, "{text}")?,
            }
        }
        f.write_str("}")
    }
}

impl fmt::Display for RegType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let elem = self.elem.name();
        if self.is_scalar() { f.write_str(elem) } else { write!(f, "{elem}<{}x{}>", self.rows, self.cols) }
    }
}

impl Elem {
    /// The type's spelling in a kernel's text.
    pub fn name(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::I64 => "i64",
            Elem::Bool => "bool",
        }
    }
}

/// What instructions and registers are called in a kernel's text.
pub(super) struct Names<'k>(Printer<'k>);

impl<'k> Names<'k> {
    pub(super) fn new(kernel: &'k Kernel) -> Self {
        let mut printer = Printer::new(kernel);
        printer.block(&kernel.body, 1);
        Self(printer)
    }

    /// The instruction's line, without its type.
    pub(super) fn inst(&mut self, inst: &Inst) -> String {
        self.0.line(inst)
    }

    pub(super) fn reg(&mut self, reg: Reg) -> String {
        self.0.reg(reg)
    }
}

struct Line {
    text: String,
    ty: Option<RegType>,
}

struct Printer<'k> {
    kernel: &'k Kernel,
    /// The number of each register that has appeared.
    numbers: HashMap<Reg, usize>,
    lines: Vec<Line>,
}

impl<'k> Printer<'k> {
    fn new(kernel: &'k Kernel) -> Self {
        Self { kernel, numbers: HashMap::new(), lines: Vec::new() }
    }

    fn header(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kernel = self.kernel;
        let phase = match kernel.phase {
            Phase::Tile => "tile",
            Phase::Lane => "lane",
            Phase::Block => "block",
        };
        writeln!(f, "{phase} kernel @{} (", kernel.name)?;
        let rows: Vec<_> = kernel.bufs.iter().map(|(buf, data)| (self.buf(buf) + ":", data)).collect();
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, data) in rows {
            let access = match data.access {
                Access::Read => "read ",
                Access::Write => "write",
            };
            write!(f, "  {access} {name:width$} {}{}", data.dtype, dims(&data.shape))?;
            if data.strides != crate::lower::row_major_strides(&data.shape) {
                write!(f, " strides {}", dims(&data.strides))?;
            }
            if data.offset.as_const() != Some(0) {
                write!(f, " offset {}", data.offset)?;
            }
            if let Some(scaled) = &data.scaled {
                write!(f, " scaled by {}[{}]", self.buf(scaled.by), scale_index(scaled))?;
            }
            writeln!(f, ",")?;
        }
        for (scratch, data) in kernel.scratch.iter() {
            writeln!(f, "  scratch {scratch}: {}[{}],", data.elem.name(), data.len)?;
        }
        if let Some(block) = &kernel.block {
            self.block_header(block, f)?;
        }
        let axis = |axis: &GridAxis| match axis.tile {
            1 => axis.extent.to_string(),
            tile => format!("ceil({} / {tile})", axis.extent),
        };
        let grid: Vec<_> = kernel.grid.iter().map(axis).collect();
        writeln!(f, ") grid [{}] {{", grid.join(", "))
    }

    fn block(&mut self, body: &[Inst], depth: usize) {
        let indent = "  ".repeat(depth);
        if depth > MAX_DEPTH {
            self.lines.push(Line { text: format!("{indent}…"), ty: None });
            return;
        }
        for inst in body {
            let text = indent.clone() + &self.line(inst);
            let ty = single_out(inst).and_then(|out| self.kernel.regs.get(out).copied());
            self.lines.push(Line { text, ty });
            let (body, carried): (_, &[Carried]) = match inst {
                Inst::For { body, carried, .. } => (body, carried),
                Inst::If { body, .. } => (body, &[]),
                Inst::Block(BlockInst::Roles { roles }) => {
                    self.roles(roles, depth);
                    continue;
                }
                _ => continue,
            };
            self.block(body, depth + 1);
            if !carried.is_empty() {
                let next: Vec<_> = carried.iter().map(|c| self.reg(c.next)).collect();
                self.lines.push(Line { text: format!("{indent}  yield {}", next.join(", ")), ty: None });
            }
            self.lines.push(Line { text: format!("{indent}}}"), ty: None });
        }
    }

    /// The register's name: the first to appear is `%0`.
    fn reg(&mut self, reg: Reg) -> String {
        let next = self.numbers.len();
        format!("%{}", self.numbers.entry(reg).or_insert(next))
    }

    fn buf(&self, buf: Buf) -> String {
        let Some(data) = self.kernel.bufs.get(buf) else { return buf.to_string() };
        let same = self.kernel.bufs.iter().filter(|(_, other)| other.name == data.name).count();
        if same == 1 { format!("${}", data.name) } else { format!("${}#{}", data.name, buf.index()) }
    }

    fn mem(&mut self, mem: &Mem) -> String {
        let space = match mem.space {
            Space::Buf(buf) => self.buf(buf),
            Space::Scratch(scratch) => scratch.to_string(),
            Space::Shared(shared) => self.shared(shared),
        };
        format!("{space}[{}]", self.reg(mem.index))
    }

    fn place(&mut self, place: &Place, shift: Option<(usize, Reg)>) -> String {
        let mut axes = Vec::new();
        for (axis, &at) in place.at.iter().enumerate() {
            let mut text = self.reg(at);
            for (along, name) in place.axes.iter().zip(["row", "col"]) {
                if *along == Some(axis) {
                    text += &format!("+{name}");
                }
            }
            if let Some((_, by)) = shift.filter(|(along, _)| *along == axis) {
                text += &format!("+{}", self.reg(by));
            }
            for &(_, end) in place.limits.iter().filter(|(along, _)| *along == axis) {
                text += &format!(" < {}", self.reg(end));
            }
            axes.push(text);
        }
        format!("{}[{}]", self.buf(place.buf), axes.join(", "))
    }

    /// The instruction's first line, without indentation and type.
    fn line(&mut self, inst: &Inst) -> String {
        // The assigned register appears first.
        let out = single_out(inst).map(|out| self.reg(out));
        let text = match inst {
            Inst::Program { axis, .. } => format!("program {axis}"),
            Inst::Extent { dim, .. } => format!("extent {dim}"),
            Inst::Const { value, .. } => match value {
                Const::F(x) => format!("const {x:?}"),
                Const::I(n) => format!("const {n}"),
                Const::B(b) => format!("const {b}"),
            },
            Inst::Map { f, x, .. } => format!("{} {}", lower_case(f), self.reg(*x)),
            Inst::Zip { f, x, y, .. } => format!("{} {}, {}", lower_case(f), self.reg(*x), self.reg(*y)),
            Inst::Select { cond, x, y, .. } => {
                format!("select {}, {}, {}", self.reg(*cond), self.reg(*x), self.reg(*y))
            }
            Inst::Cast { x, .. } => format!("cast {}", self.reg(*x)),
            Inst::Round { x, to, .. } => format!("round {} to {to}", self.reg(*x)),
            Inst::For { index, trips, carried, .. } => self.for_line(*index, *trips, carried),
            Inst::Iota { axis, .. } => format!("iota {}", along(*axis)),
            Inst::Load { place, .. } => format!("load {}", self.place(place, None)),
            Inst::Gather { place, axis, index, .. } => {
                format!("gather {}", self.place(place, Some((*axis, *index))))
            }
            Inst::Store { place, value } => {
                format!("store {} = {}", self.place(place, None), self.reg(*value))
            }
            Inst::Scatter { place, axis, index, value, mask } => {
                let to = self.place(place, Some((*axis, *index)));
                format!("scatter {to} = {} if {}", self.reg(*value), self.reg(*mask))
            }
            Inst::Reduce { f, axis, x, .. } => {
                format!("reduce.{} {} {}", lower_case(f), along(*axis), self.reg(*x))
            }
            Inst::Scan { x, .. } => format!("scan {}", self.reg(*x)),
            Inst::Columns { x, order, .. } => match order {
                ColumnOrder::SwapPairs => format!("columns.swap_pairs {}", self.reg(*x)),
                ColumnOrder::SwapHalves => format!("columns.swap_halves {}", self.reg(*x)),
            },
            Inst::Reshape { x, .. } => format!("reshape {}", self.reg(*x)),
            Inst::Dot { acc, x, y, .. } => {
                format!("dot {} + {} * {}'", self.reg(*acc), self.reg(*x), self.reg(*y))
            }
            Inst::VLoad { from, .. } => format!("vload {}", self.mem(from)),
            Inst::VStore { to, value } => format!("vstore {} = {}", self.mem(to), self.reg(*value)),
            Inst::If { cond, .. } => format!("if {} {{", self.reg(*cond)),
            Inst::Across { f, x, .. } => format!("across.{} {}", lower_case(f), self.reg(*x)),
            Inst::SwapPairs { x, .. } => format!("swap_pairs {}", self.reg(*x)),
            Inst::Micro(micro) => self.micro_line(micro),
            Inst::Block(inst) => self.block_line(inst),
        };
        out.map(|out| format!("{out} = ")).unwrap_or_default() + &text
    }

    fn for_line(&mut self, index: Reg, trips: Reg, carried: &[Carried]) -> String {
        let outs: Vec<_> = carried.iter().map(|c| self.reg(c.out)).collect();
        let mut text = if outs.is_empty() { String::new() } else { format!("{} = ", outs.join(", ")) };
        text += &format!("for {} in 0..{}", self.reg(index), self.reg(trips));
        let args: Vec<_> =
            carried.iter().map(|c| format!("{} = {}", self.reg(c.arg), self.reg(c.init))).collect();
        if !args.is_empty() {
            text += &format!(" ({})", args.join(", "));
        }
        text + " {"
    }

    fn micro_line(&mut self, micro: &Micro) -> String {
        let Micro { m, n, k, a, a_strides, b, b_strides, c, c_stride, accumulate, a_scales, b_scales } =
            micro;
        let c = format!("{} by {}", self.mem(c), self.reg(*c_stride));
        let set = if *accumulate { "+=" } else { "=" };
        let a = self.micro_operand(a, *a_strides, a_scales.as_ref());
        let b = self.micro_operand(b, *b_strides, b_scales.as_ref());
        let sizes = format!("{}, {}, {}", self.reg(*m), self.reg(*n), self.reg(*k));
        format!("micro ({c}) {set} ({a}) * ({b})' for {sizes}")
    }

    fn micro_operand(&mut self, first: &Mem, strides: [Reg; 2], scales: Option<&MicroScales>) -> String {
        let mut text = format!("{} by {}, {}", self.mem(first), self.reg(strides[0]), self.reg(strides[1]));
        if let Some(MicroScales { first, rows, terms }) = scales {
            text += &format!(" scaled {}", self.mem(first));
            for (by, run) in [("by", rows), (",", terms)] {
                let gap = if by == "by" { " " } else { "" };
                let (stride, place) = (self.reg(run.stride), self.reg(run.place));
                text += &format!("{gap}{by} {stride} at {place} / {}", run.block);
            }
        }
        text
    }
}

/// The register that the instruction assigns, if its line has room for the type: loops have several.
pub(super) fn single_out(inst: &Inst) -> Option<Reg> {
    match inst {
        Inst::Program { out, .. }
        | Inst::Extent { out, .. }
        | Inst::Const { out, .. }
        | Inst::Map { out, .. }
        | Inst::Zip { out, .. }
        | Inst::Select { out, .. }
        | Inst::Cast { out, .. }
        | Inst::Round { out, .. }
        | Inst::Iota { out, .. }
        | Inst::Load { out, .. }
        | Inst::Gather { out, .. }
        | Inst::Reduce { out, .. }
        | Inst::Scan { out, .. }
        | Inst::Columns { out, .. }
        | Inst::Reshape { out, .. }
        | Inst::Dot { out, .. }
        | Inst::VLoad { out, .. }
        | Inst::Across { out, .. }
        | Inst::SwapPairs { out, .. } => Some(*out),
        Inst::For { .. }
        | Inst::Store { .. }
        | Inst::Scatter { .. }
        | Inst::VStore { .. }
        | Inst::If { .. }
        | Inst::Micro(_) => None,
        Inst::Block(inst) => inst.out(),
    }
}

fn lower_case(f: &impl fmt::Debug) -> String {
    format!("{f:?}").to_lowercase()
}

/// What a fold or a count runs along.
fn along(axis: usize) -> String {
    match axis {
        0 => "rows".into(),
        1 => "cols".into(),
        other => format!("axis {other}"),
    }
}

/// The number of the scale of element `[i0, i1, …]`.
fn scale_index(scaled: &Scaled) -> String {
    let nested = |dim: &Dim| match dim.terms().count() {
        0 | 1 => dim.to_string(),
        _ => format!("({dim})"),
    };
    let zero = |dim: &Dim| dim.as_const() == Some(0);
    let one = |dim: &Dim| dim.as_const() == Some(1);
    let mut sum: Vec<String> = Vec::new();
    sum.extend((!zero(&scaled.offset)).then(|| scaled.offset.to_string()));
    for axis in &scaled.along {
        let mut place: Vec<String> = Vec::new();
        place.extend((!zero(&axis.from)).then(|| axis.from.to_string()));
        for (i, step) in axis.steps.iter().enumerate().filter(|(_, step)| !zero(step)) {
            place.push(if one(step) { format!("i{i}") } else { format!("{} * i{i}", nested(step)) });
        }
        if place.is_empty() || zero(&axis.stride) {
            continue;
        }
        let stride = if one(&axis.stride) { String::new() } else { format!("{} * ", nested(&axis.stride)) };
        let place = if place.len() == 1 { place.remove(0) } else { format!("({})", place.join(" + ")) };
        sum.push(format!("{stride}({place} / {})", axis.block));
    }
    if sum.is_empty() { "0".into() } else { sum.join(" + ") }
}

fn dims(dims: &[Dim]) -> String {
    let dims: Vec<_> = dims.iter().map(|dim| dim.to_string()).collect();
    format!("[{}]", dims.join(", "))
}
