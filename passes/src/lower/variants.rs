//! The kernels of an op that owns its loops: one for all extents, and others that pay for some of them.

use super::FnLower;
use super::kernel::{Env, add_buf};
use crate::plan::When;
use crate::target::Machine;
use eva_ir::dim::Dim;
use eva_ir::graph::{Def, Value};
use eva_ir::kernel::build::{Build, Tile};
use eva_ir::kernel::{Access, Kernel};
use eva_ir::lower::{BufView, Cx, FewRows, LowerError, Request, Schedule, View};
use eva_ir::ops::{Op, attend, einsum};
use eva_ir::types::{DType, TensorType};
use std::cell::RefCell;

/// Which kernel of an op.
#[derive(Clone, Copy)]
pub(super) enum Variant<'a> {
    /// The one that does for all extents.
    Whole,
    /// The same with tile sizes that suit the ordinary units.
    Plain,
    /// One for few rows.
    Few(&'a FewRows),
    /// One for the last columns.
    Rest,
    /// One that divides what is summed into parts, which another kernel joins.
    Parts(usize),
    /// One that divides a sum by the ordinary units into parts, which another kernel adds up.
    Terms(usize),
    /// One of several that an op is.
    Named(&'static str),
}

/// What an op has said of itself while its first kernel was written.
#[derive(Default)]
pub(super) struct Said {
    /// How many rows it has, among how many experts, and whether there are experts.
    rows: Option<(Dim, i64, bool)>,
    /// How many terms a product by the ordinary units sums, and how many elements it has.
    terms: Option<(Dim, Dim)>,
    /// How many queries.
    queries: Option<Dim>,
    /// Whether the last columns are to be another kernel's.
    rest: bool,
    /// The offsets of experts' rows that it numbers tiles by, and the rows of a tile.
    aligned: Option<(Value, i64)>,
}

/// Stands for the base of where experts' rows begin, before there is one.
const ALIGNED: usize = usize::MAX;

/// A kernel and the bases of its buffers.
pub(super) type Written = (Kernel, Vec<usize>);

impl FnLower<'_> {
    /// Writes the kernels of `root`, which owns its loops, with `chain` behind it.
    pub(super) fn kernel(&mut self, root: Value, chain: &[Value]) -> Result<(), LowerError> {
        let last = chain.last().copied().unwrap_or(root);
        let Def::Op(op, args) = &self.f.values[root].def else { unreachable!("a root is an op") };
        if let Op::SortByExpert(op) = op {
            return self.sort(root, &op.experts, args[0]);
        }
        let quantized = self.fusion.quantized(last);
        if let Some(quantized) = quantized {
            let home = self.new_home(quantized, 0);
            self.homes.insert(quantized, vec![home.clone()]);
            self.behind.insert(root, (quantized, home));
        }
        let homes: Vec<BufView> = if op.updates_state() {
            vec![self.home(args[0])]
        } else if quantized.is_some() && !self.fusion.is_stored(last) {
            Vec::new()
        } else {
            (0..self.f.values[last].ty.parts().len()).map(|part| self.new_home(last, part)).collect()
        };
        let said = RefCell::default();
        let (mut whole, mut bases) = self.written(root, chain, &homes, Variant::Whole, &said)?;
        let mut said: Said = said.into_inner();
        if !self.suits(&whole) {
            let plain = RefCell::default();
            (whole, bases) = self.written(root, chain, &homes, Variant::Plain, &plain)?;
            said = Said { terms: plain.into_inner().terms, ..Said::default() };
        }
        let tensor = self.target.schedule.tensor.clone();
        let mut above = None;
        let between = |extent: &Dim, above: Option<i64>, most: i64| {
            Some(When { extent: extent.clone(), above: above.unwrap_or(i64::MIN), most })
        };
        let mut extent = None;
        if let (Some((rows, each, experts)), Some(tensor)) = (&said.rows, &tensor) {
            for few in tensor.few.iter().filter(|few| if *experts { few.experts } else { few.dense }) {
                let (kernel, bases) =
                    self.written(root, chain, &homes, Variant::Few(few), &RefCell::default())?;
                // Then the next one does.
                if !self.suits(&kernel) {
                    continue;
                }
                let most = few.most.saturating_mul(*each);
                self.launch(kernel, bases, between(rows, above, most));
                above = Some(most);
            }
            extent = Some(rows);
        } else if let (Some(queries), Some(tensor)) = (&said.queries, &tensor) {
            for parts in &tensor.parts {
                let when = between(queries, above, parts.most);
                self.in_parts(root, chain, &homes, parts.parts, when)?;
                above = Some(parts.most);
            }
            extent = Some(queries);
        }
        let mut when = extent.filter(|_| above.is_some()).and_then(|extent| between(extent, above, i64::MAX));
        if let (Some((terms, elements)), Some(cut)) = (&said.terms, self.target.schedule.terms.clone())
            && self.module.constant(elements).is_some_and(|n| n <= cut.elements)
            && self.module.constant(terms).is_none_or(|n| n > cut.above)
        {
            let many = between(terms, Some(cut.above), i64::MAX);
            self.terms_in_parts(root, chain, &homes, cut.parts, many)?;
            if self.module.constant(terms).is_some() {
                self.homes.insert(last, homes);
                return Ok(());
            }
            when = between(terms, None, cut.above);
        }
        if let Some(aligned) = said.aligned {
            let base = self.aligned(root, aligned, &when)?;
            bases.iter_mut().filter(|it| **it == ALIGNED).for_each(|it| *it = base);
        }
        self.launch(whole, bases, when.clone());
        if said.rest {
            let (rest, bases) = self.written(root, chain, &homes, Variant::Rest, &RefCell::default())?;
            self.launch(rest, bases, when);
        }
        self.homes.insert(last, homes);
        Ok(())
    }

    /// Whether a kernel that has tile sizes for tensor cores can be theirs.
    fn suits(&self, kernel: &Kernel) -> bool {
        match self.target.machine {
            Machine::Hopper(hopper) if self.target.schedule.tensor.is_some() => {
                crate::spread::suits_block(kernel, &hopper)
            }
            _ => true,
        }
    }

    /// Attention with its keys in parts, and the kernel that joins them.
    fn in_parts(
        &mut self,
        root: Value,
        chain: &[Value],
        homes: &[BufView],
        parts: usize,
        when: Option<When>,
    ) -> Result<(), LowerError> {
        let shape = self.fixed_type(self.tensor(root)).shape;
        let name = format!("{}.parts", self.f.values[root].name);
        let mut found = Vec::new();
        for rank in [shape.len(), shape.len() - 1] {
            let shape = [Dim::from(parts as i64)].into_iter().chain(shape[..rank].iter().cloned());
            let ty = TensorType::new(DType::F32, shape);
            let base = self.temp_when(&name, &ty, when.clone());
            found.push(self.row_major(base, &name, &ty));
        }
        let said = RefCell::default();
        let (kernel, bases) = self.written(root, &[], &found, Variant::Parts(parts), &said)?;
        self.launch(kernel, bases, when.clone());
        let (kernel, bases) = self.with_cx(root, chain, homes, Variant::Whole, &said, &|cx, _| {
            attend::join_parts(cx, &found[0], &found[1])
        })?;
        self.launch(kernel, bases, when);
        Ok(())
    }

    /// A product with its sum in parts, and the kernel that adds them up.
    fn terms_in_parts(
        &mut self,
        root: Value,
        chain: &[Value],
        homes: &[BufView],
        parts: usize,
        when: Option<When>,
    ) -> Result<(), LowerError> {
        let shape = self.fixed_type(self.tensor(root)).shape;
        let shape = [Dim::from(parts as i64)].into_iter().chain(shape.iter().cloned());
        let (name, ty) = (format!("{}.parts", self.f.values[root].name), TensorType::new(DType::F32, shape));
        let base = self.temp_when(&name, &ty, when.clone());
        let found = self.row_major(base, &name, &ty);
        let said = RefCell::default();
        let (kernel, bases) =
            self.written(root, &[], std::slice::from_ref(&found), Variant::Terms(parts), &said)?;
        self.launch(kernel, bases, when.clone());
        let (kernel, bases) =
            self.with_cx(root, chain, homes, Variant::Named("joined"), &said, &|cx, _| {
                einsum::join_parts(cx, &found)
            })?;
        self.launch(kernel, bases, when);
        Ok(())
    }

    /// One kernel of `root` with `chain` behind it.
    fn written(
        &self,
        root: Value,
        chain: &[Value],
        homes: &[BufView],
        variant: Variant<'_>,
        said: &RefCell<Said>,
    ) -> Result<Written, LowerError> {
        let Def::Op(op, args) = &self.f.values[root].def else { unreachable!("a root is an op") };
        self.with_cx(root, chain, homes, variant, said, &|cx, env| {
            let views: Vec<View<'_>> =
                args.iter().map(|&arg| env.view(arg, false)).collect::<Result<_, _>>()?;
            op.kernel(cx, &views)
        })
    }

    /// A kernel that `write` writes, whose result is `root`'s.
    pub(super) fn with_cx(
        &self,
        root: Value,
        chain: &[Value],
        homes: &[BufView],
        variant: Variant<'_>,
        said: &RefCell<Said>,
        write: &dyn for<'k> Fn(&Cx<'k>, &Env<'k>) -> Result<(), LowerError>,
    ) -> Result<Written, LowerError> {
        let Def::Op(_, args) = &self.f.values[root].def else { unreachable!("a root is an op") };
        let last = chain.last().copied().unwrap_or(root);
        let mut name = format!("{}.{}", self.name, self.f.values[last].name);
        match variant {
            Variant::Whole | Variant::Plain => {}
            Variant::Few(few) => name += &format!(".{}", few.most),
            Variant::Parts(parts) | Variant::Terms(parts) => name += &format!(".in{parts}"),
            Variant::Rest => name += ".rest",
            Variant::Named(part) => name += &format!(".{part}"),
        }
        let k = Build::new(&name);
        let parts = match variant {
            Variant::Parts(parts) | Variant::Terms(parts) => Some(parts),
            _ => None,
        };
        let ordinary = matches!(variant, Variant::Plain | Variant::Terms(_));
        let plain = Schedule { tensor: None, ..self.target.schedule.clone() };
        let bases = RefCell::new(Vec::new());
        {
            let groups = RefCell::new(None);
            let read = |view: &BufView| add_buf(&k, &bases, view, Access::Read);
            // Behind the parts come the scales of the only one.
            let into = |part: usize| match homes.get(part) {
                Some(home) => add_buf(&k, &bases, home, Access::Write),
                None => add_buf(&k, &bases, &scales_of(&homes[0]), Access::Write),
            };
            let constant = |dim: &Dim| self.module.constant(dim);
            let env =
                Env { low: self, k: &k, bases: &bases, read: &read, constant: &constant, groups: &groups };
            let in_parts = parts.is_some();
            let emit = |part: usize, at: &Request<'_>, tile: Tile<'_>| {
                if !in_parts {
                    return env.finish(root, chain, homes.get(part), at, tile);
                }
                let view = part_view(&homes[part], groups.borrow().as_deref(), part)
                    .ok_or_else(|| LowerError::new("axes cannot be made fewer"))?;
                env.store(&view, at, tile);
                Ok(())
            };
            let merge_out = |wanted: &[usize]| {
                let fits = if in_parts {
                    (0..homes.len()).all(|part| part_view(&homes[part], Some(wanted), part).is_some())
                } else {
                    homes.len() == 1
                        && homes[0].merge(wanted).is_some()
                        && env.chain_merges(root, chain, wanted)
                };
                if fits {
                    *groups.borrow_mut() = Some(wanted.to_vec());
                }
                fits
            };
            let cx = Cx {
                k: &k,
                schedule: if ordinary { &plain } else { &self.target.schedule },
                out: self.f.values[root].ty.parts().iter().map(|ty| self.fixed_type(ty)).collect(),
                constant: &constant,
                read: &read,
                write: &into,
                emit: &emit,
                few: if let Variant::Few(few) = variant { Some(few) } else { None },
                by_rows: &|rows, each, experts| said.borrow_mut().rows = Some((rows.clone(), each, experts)),
                parts,
                by_terms: &|terms, elements| {
                    said.borrow_mut().terms = Some((terms.clone(), elements.clone()))
                },
                by_parts: &|queries| said.borrow_mut().queries = Some(queries.clone()),
                merge_out: &merge_out,
                aligned: &|arg, rows| {
                    let offsets = args[arg];
                    said.borrow_mut().aligned = Some((offsets, rows));
                    self.row_major(ALIGNED, "tiles", self.tensor(offsets))
                },
                rest: matches!(variant, Variant::Rest),
                by_columns: &|| {
                    said.borrow_mut().rest = true;
                    matches!(variant, Variant::Whole | Variant::Rest)
                },
            };
            write(&cx, &env)?;
        }
        Ok((k.finish(), bases.into_inner()))
    }
}

/// The tensor of a whole tensor's scales.
fn scales_of(home: &BufView) -> BufView {
    home.scales.as_ref().expect("an op that writes scales makes 8-bit floats").by.clone()
}

/// The parts' values (0), or their sums (1), with the result's groups of axes behind that of the parts.
fn part_view(home: &BufView, groups: Option<&[usize]>, part: usize) -> Option<BufView> {
    let Some(groups) = groups else { return Some(home.clone()) };
    let own = if part == 0 { groups } else { &groups[..groups.len() - 1] };
    home.merge(&[&[1], own].concat())
}
