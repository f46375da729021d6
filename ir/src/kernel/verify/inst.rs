//! What each instruction asks of its operands and its result.

use super::*;

impl<'k> Check<'k> {
    /// Checks all but what an instruction's body and the assignment of its result ask for.
    pub(super) fn inst(&mut self, inst: &'k Inst) -> Checked {
        let phase = self.kernel.phase;
        ensure(phases_of(inst).contains(&phase), || {
            format!("is not an instruction of the {} phase", phase_name(phase))
        })?;
        match inst {
            Inst::Program { out, axis } => {
                ensure(*axis < self.kernel.grid.len(), || format!("the grid has no axis {axis}"))?;
                self.gives(*out, RegType::scalar(Elem::I64))
            }
            Inst::Extent { out, .. } => self.gives(*out, RegType::scalar(Elem::I64)),
            Inst::Const { out, value } => {
                let elem = match value {
                    Const::F(_) => Elem::F32,
                    Const::I(_) => Elem::I64,
                    Const::B(_) => Elem::Bool,
                };
                let ty = self.out(*out)?;
                self.gives(*out, RegType { elem, ..ty })
            }
            Inst::Map { out, f, x } => {
                let x = self.ty(*x)?;
                let elems: &[Elem] = match f {
                    Fn1::Neg => &[Elem::F32, Elem::I64],
                    Fn1::Not => &[Elem::Bool],
                    _ => &[Elem::F32],
                };
                is_for(elems, x)?;
                self.gives(*out, x)
            }
            Inst::Zip { out, f, x, y } => {
                let (x, y) = (self.ty(*x)?, self.ty(*y)?);
                ensure(x.elem == y.elem, || format!("operands of different types: {x} and {y}"))?;
                let elems: &[Elem] = match f {
                    Fn2::And | Fn2::Or => &[Elem::Bool],
                    Fn2::Rem => &[Elem::I64],
                    Fn2::Quotient => &[Elem::F32],
                    _ => &[Elem::F32, Elem::I64],
                };
                is_for(elems, x)?;
                let elem = if f.is_predicate() { Elem::Bool } else { x.elem };
                self.gives(*out, RegType { elem, ..stretch(&[x, y])? })
            }
            Inst::Select { out, cond, x, y } => {
                let (cond, x, y) = (self.ty(*cond)?, self.ty(*x)?, self.ty(*y)?);
                is_for(&[Elem::Bool], cond)?;
                ensure(x.elem == y.elem, || format!("operands of different types: {x} and {y}"))?;
                self.gives(*out, RegType { elem: x.elem, ..stretch(&[cond, x, y])? })
            }
            Inst::Cast { out, x } => {
                let (x, elem) = (self.ty(*x)?, self.out(*out)?.elem);
                ensure(elem != Elem::Bool || x.elem == Elem::Bool, || {
                    "numbers become truth values by comparing them".into()
                })?;
                self.gives(*out, RegType { elem, ..x })
            }
            Inst::Round { out, x, to } => {
                let x = self.ty(*x)?;
                is_for(&[Elem::F32], x)?;
                ensure(!to.is_int(), || format!("{to} is not a type of floats"))?;
                self.gives(*out, x)
            }
            Inst::For { index, trips, carried, .. } => {
                self.index(*trips)?;
                for c in carried {
                    self.ty(c.init)?;
                }
                self.gives(*index, RegType::scalar(Elem::I64))
            }

            Inst::Iota { out, axis } => {
                is_axis(*axis)?;
                let mut ty = RegType { elem: Elem::I64, ..self.out(*out)? };
                *(if *axis == 0 { &mut ty.cols } else { &mut ty.rows }) = 1;
                self.gives(*out, ty)
            }
            Inst::Load { out, place } => {
                let (elem, ty) = (self.place(place, Access::Read)?, self.out(*out)?);
                runs_along(place, ty)?;
                self.gives(*out, RegType { elem, ..ty })
            }
            Inst::Gather { out, place, axis, index } => {
                let (elem, index) = (self.place(place, Access::Read)?, self.ty(*index)?);
                is_for(&[Elem::I64], index)?;
                self.has_axis(place.buf, *axis)?;
                let ty = self.out(*out)?;
                let fits = [1, ty.rows].contains(&index.rows) && [1, ty.cols].contains(&index.cols);
                ensure(fits, || format!("the index {index} does not stretch to the tile {ty}"))?;
                self.gives(*out, RegType { elem, ..ty })
            }
            Inst::Store { place, value } => {
                let (elem, value) = (self.place(place, Access::Write)?, self.ty(*value)?);
                runs_along(place, value)?;
                is_for(&[elem], value)
            }
            Inst::Scatter { place, axis, index, value, mask } => {
                let (elem, index) = (self.place(place, Access::Write)?, self.ty(*index)?);
                let (value, mask) = (self.ty(*value)?, self.ty(*mask)?);
                is_for(&[Elem::I64], index)?;
                is_for(&[elem], value)?;
                is_for(&[Elem::Bool], mask)?;
                self.has_axis(place.buf, *axis)?;
                let same = |ty: RegType| (ty.rows, ty.cols) == (value.rows, value.cols);
                ensure(same(index) && same(mask), || {
                    format!("the index {index} and the mask {mask} differ in shape from the value {value}")
                })
            }
            Inst::Reduce { out, f, axis, x } => {
                let mut ty = self.ty(*x)?;
                is_fold(*f, ty)?;
                is_axis(*axis)?;
                *(if *axis == 0 { &mut ty.rows } else { &mut ty.cols }) = 1;
                self.gives(*out, ty)
            }
            Inst::Scan { out, x } => {
                let x = self.ty(*x)?;
                is_fold(Fn2::Add, x)?;
                self.gives(*out, x)
            }
            Inst::Columns { out, x, .. } => {
                let x = self.ty(*x)?;
                ensure(x.cols % 2 == 0, || format!("{x} has an odd number of columns"))?;
                self.gives(*out, x)
            }
            Inst::Reshape { out, x } => {
                let (x, out_ty) = (self.ty(*x)?, self.out(*out)?);
                ensure(x.rows * x.cols == out_ty.rows.saturating_mul(out_ty.cols), || {
                    format!("{out_ty} has another number of elements than {x}")
                })?;
                self.gives(*out, RegType { elem: x.elem, ..out_ty })
            }
            Inst::Dot { out, acc, x, y } => {
                let (acc, x, y) = (self.ty(*acc)?, self.ty(*x)?, self.ty(*y)?);
                for ty in [acc, x, y] {
                    is_for(&[Elem::F32], ty)?;
                }
                ensure(x.cols == y.cols, || format!("{x} and {y} differ in the number of terms"))?;
                let product = RegType { elem: Elem::F32, rows: x.rows, cols: y.rows };
                ensure(acc == product, || format!("the product is {product}, but is added to {acc}"))?;
                self.gives(*out, product)
            }

            Inst::VLoad { out, from } => {
                let (elem, ty) = (self.memory(from, Access::Read)?, self.out(*out)?);
                self.gives(*out, RegType { elem, ..ty })
            }
            Inst::VStore { to, value } => {
                let (elem, value) = (self.memory(to, Access::Write)?, self.ty(*value)?);
                is_for(&[elem], value)
            }
            Inst::If { cond, .. } => {
                let cond = self.ty(*cond)?;
                ensure(cond == RegType::scalar(Elem::Bool), || {
                    format!("the condition is {cond}, not one truth value")
                })
            }
            Inst::Across { out, f, x } => {
                let x = self.ty(*x)?;
                is_vector(x)?;
                is_fold(*f, x)?;
                self.gives(*out, RegType::scalar(Elem::F32))
            }
            Inst::SwapPairs { out, x } => {
                let x = self.ty(*x)?;
                is_vector(x)?;
                self.gives(*out, x)
            }
            Inst::Micro(micro) => self.micro(micro),
            Inst::Block(inst) => self.block_inst(inst),
        }
    }

    fn micro(&mut self, micro: &Micro) -> Checked {
        let Micro { m, n, k, a, a_strides, b, b_strides, c, c_stride, a_scales, b_scales, .. } = micro;
        for reg in [m, n, k, c_stride].into_iter().chain(a_strides).chain(b_strides) {
            self.index(*reg)?;
        }
        for (operand, scales) in [(a, a_scales), (b, b_scales)] {
            if let Some(scales) = scales {
                self.micro_scales(operand, scales)?;
            }
            let elem = self.memory(operand, Access::Read)?;
            ensure(elem == Elem::F32, || format!("an operand's elements are {}, not floats", elem.name()))?;
            ensure(operand.space != c.space, || "an operand is in the result's memory".into())?;
        }
        let elem = self.memory(c, Access::Write)?;
        ensure(matches!(c.space, Space::Scratch(_)) && elem == Elem::F32, || {
            "the result is not f32 private memory".into()
        })
    }

    fn micro_scales(&mut self, operand: &Mem, scales: &MicroScales) -> Checked {
        let dtype = match operand.space {
            Space::Buf(buf) => self.kernel.bufs.get(buf).map(|data| data.dtype),
            _ => None,
        };
        ensure(dtype.is_some_and(is_code), || "an operand with scales is no buffer of 8-bit floats".into())?;
        let Space::Buf(by) = scales.first.space else {
            return Err("an operand's scales are in private memory".into());
        };
        self.scales(by)?;
        self.index(scales.first.index)?;
        for run in [scales.rows, scales.terms] {
            ensure(run.block >= 1, || format!("{} neighbours share a scale", run.block))?;
            self.index(run.place)?;
            self.index(run.stride)?;
        }
        Ok(())
    }

    /// The declared type of a register that the instruction assigns.
    pub(super) fn out(&mut self, out: Reg) -> Checked<RegType> {
        self.kernel.regs.get(out).copied().ok_or_else(|| format!("{} has no type", self.names.reg(out)))
    }

    pub(super) fn gives(&mut self, out: Reg, ty: RegType) -> Checked {
        let have = self.out(out)?;
        ensure(have == ty, || format!("{} is {have}, but the value is {ty}", self.names.reg(out)))
    }

    /// Checks an index or a size.
    pub(super) fn index(&mut self, reg: Reg) -> Checked {
        let ty = self.ty(reg)?;
        ensure(ty == RegType::scalar(Elem::I64), || {
            format!("{} is {ty}, not one integer", self.names.reg(reg))
        })
    }

    fn has_axis(&self, buf: Buf, axis: usize) -> Checked {
        let rank = self.kernel.bufs[buf].shape.len();
        ensure(axis < rank, || format!("the buffer has no axis {axis}"))
    }

    /// What elements of a buffer are in a register, if it may be accessed like this.
    pub(super) fn access(&self, buf: Buf, access: Access) -> Checked<Elem> {
        let data = self.kernel.bufs.get(buf).ok_or_else(|| format!("there is no buffer {buf}"))?;
        ensure(data.access == access, || match access {
            Access::Read => format!("`{}` is only written", data.name),
            Access::Write => format!("`{}` is only read", data.name),
        })?;
        Ok(if data.dtype.is_int() { Elem::I64 } else { Elem::F32 })
    }

    fn memory(&mut self, mem: &Mem, access: Access) -> Checked<Elem> {
        self.index(mem.index)?;
        match mem.space {
            Space::Buf(buf) => self.access(buf, access),
            Space::Scratch(scratch) => {
                let data = self.kernel.scratch.get(scratch);
                Ok(data.ok_or_else(|| format!("there is no private memory {scratch}"))?.elem)
            }
            Space::Shared(shared) => Err(format!("{shared} is not memory of the lane phase")),
        }
    }

    fn place(&mut self, place: &Place, access: Access) -> Checked<Elem> {
        let elem = self.access(place.buf, access)?;
        let rank = self.kernel.bufs[place.buf].shape.len();
        ensure(place.at.len() == rank, || {
            format!("{} indices into a buffer of {rank} axes", place.at.len())
        })?;
        let limits = place.limits.iter();
        for &(_, reg) in limits.clone() {
            self.index(reg)?;
        }
        for &reg in &place.at {
            self.index(reg)?;
        }
        for axis in place.axes.into_iter().flatten().chain(limits.map(|(axis, _)| *axis)) {
            self.has_axis(place.buf, axis)?;
        }
        let twice = place.axes[0].is_some() && place.axes[0] == place.axes[1];
        ensure(!twice, || "rows and columns run along the same axis".into())?;
        Ok(elem)
    }
}

/// The phases that the instruction belongs to.
fn phases_of(inst: &Inst) -> &'static [Phase] {
    match inst {
        Inst::Program { .. } => &[Phase::Tile, Phase::Lane],
        Inst::Extent { .. }
        | Inst::Const { .. }
        | Inst::Map { .. }
        | Inst::Zip { .. }
        | Inst::Select { .. }
        | Inst::Cast { .. }
        | Inst::Round { .. }
        | Inst::For { .. } => &[Phase::Tile, Phase::Lane, Phase::Block],
        Inst::Iota { .. }
        | Inst::Load { .. }
        | Inst::Gather { .. }
        | Inst::Store { .. }
        | Inst::Scatter { .. }
        | Inst::Reduce { .. }
        | Inst::Scan { .. }
        | Inst::Columns { .. }
        | Inst::Reshape { .. }
        | Inst::Dot { .. } => &[Phase::Tile],
        Inst::VLoad { .. }
        | Inst::VStore { .. }
        | Inst::Across { .. }
        | Inst::SwapPairs { .. }
        | Inst::Micro(_) => &[Phase::Lane],
        Inst::If { .. } => &[Phase::Lane, Phase::Block],
        Inst::Block(_) => &[Phase::Block],
    }
}

/// The shape that operands stretch to; its element type means nothing.
pub(super) fn stretch(operands: &[RegType]) -> Checked<RegType> {
    let extent = |of: fn(&RegType) -> usize| operands.iter().map(of).max().unwrap_or(1);
    let (rows, cols) = (extent(|ty| ty.rows), extent(|ty| ty.cols));
    let fits = |ty: &RegType| [1, rows].contains(&ty.rows) && [1, cols].contains(&ty.cols);
    ensure(operands.iter().all(fits), || {
        let shapes: Vec<_> = operands.iter().map(|ty| ty.to_string()).collect();
        format!("shapes do not stretch to each other: {}", shapes.join(", "))
    })?;
    Ok(RegType { elem: Elem::F32, rows, cols })
}

pub(super) fn is_for(elems: &[Elem], ty: RegType) -> Checked {
    ensure(elems.contains(&ty.elem), || {
        let names: Vec<_> = elems.iter().map(|elem| elem.name()).collect();
        format!("is for {}, not {ty}", names.join(" and "))
    })
}

fn is_fold(f: Fn2, ty: RegType) -> Checked {
    let elems: &[Elem] = match f {
        Fn2::Add | Fn2::Mul | Fn2::Max | Fn2::Min => &[Elem::F32, Elem::I64],
        Fn2::And | Fn2::Or => &[Elem::Bool],
        _ => &[],
    };
    ensure(!elems.is_empty(), || "is not a function to fold with".into())?;
    is_for(elems, ty)
}

fn is_vector(ty: RegType) -> Checked {
    let want = RegType { elem: Elem::F32, rows: 1, cols: LANES };
    ensure(ty == want, || format!("is for {want}, not {ty}"))
}

fn is_axis(axis: usize) -> Checked {
    ensure(axis < 2, || format!("a tile has no axis {axis}"))
}

/// Checks that a tile has extent 1 where it runs along no axis.
fn runs_along(place: &Place, ty: RegType) -> Checked {
    for (axis, extent) in place.axes.iter().zip([ty.rows, ty.cols]) {
        ensure(axis.is_some() || extent == 1, || format!("{ty} runs along an axis that is not said"))?;
    }
    Ok(())
}
