//! A method for every op.

use super::args::{Operands, SliceRange};
use super::record::{Request, here};
use super::rotary::Pairs;
use super::tensor::{Tensor, absolute, no_help};
use eva_ir::attr::{Dims, Range, Real, Spec};
use eva_ir::diag::{Diag, Loc};
use eva_ir::dim::Dim;
use eva_ir::ops::{self, Op};
use eva_ir::scales::Scales;
use eva_ir::types::{DType, TensorType};

type Help<'a> = &'a dyn Fn(&[TensorType]) -> Option<String>;

impl Tensor {
    /// Records an op whose first operand this is.
    fn op(&self, what: &str, loc: Loc, op: impl Into<Op>, others: &[&Tensor], help: Help) -> Tensor {
        let operands: Vec<Tensor> = std::iter::once(self).chain(others.iter().copied()).cloned().collect();
        self.recording.op(Request { what, loc, help }, op, &operands)
    }

    /// `axis` counted from the front; a wrong one is left to the op to complain about.
    fn axis(&self, axis: i64) -> i64 {
        self.ty().map_or(axis, |ty| if axis >= -(ty.rank() as i64) { absolute(axis, &ty) } else { axis })
    }

    fn spec(&self, what: &str, spec: &str, loc: Loc) -> Option<Spec> {
        let parsed = spec.parse().ok();
        if parsed.is_none() {
            let message = format!("\"{spec}\" does not say which axes `{what}` multiplies");
            let diag = Diag::new("eva::einsum", message).label(Some(loc), "here");
            self.recording
                .note(diag.help("a letter for each axis, operands joined by commas: \"bsm,rm->bsr\""));
        }
        parsed
    }

    /// The same numbers with another element type; the tensor itself if it has that type.
    #[track_caller]
    pub fn cast(&self, to: DType) -> Tensor {
        if self.ty().is_none_or(|ty| ty.dtype == to) {
            return self.clone();
        }
        self.op("cast", here(), ops::cast::Cast { to }, &[], &no_help)
    }

    /// The tensor as 8-bit floats of type `to`, with a scale for each block of `scales` (one entry an axis): its largest
    /// magnitude, or `least` if that is more, over the largest number of `to`.
    ///
    /// ```
    /// # use eva::prelude::*;
    /// # let p = Program::new();
    /// # let (s, m) = (p.dim("s"), p.dim_fixed("m", 144));
    /// # p.function("main", |f| {
    /// # let x = f.input("x", F32, [&s, &m]);
    /// let q = x.quantize(F8E4M3, Scales::new([Block::Each, Block::Of(128)]), 1e-4);
    /// # q.dequantize(F32)
    /// # });
    /// # p.finish().unwrap();
    /// ```
    #[track_caller]
    pub fn quantize(&self, to: DType, scales: Scales, least: f64) -> Tensor {
        let Some(ty) = self.ty() else { return self.clone() };
        let loc = here();
        if scales.blocks.len() != ty.rank() {
            let message = format!("scales for {} axes, but there are {}", scales.blocks.len(), ty.rank());
            let diag = Diag::new("eva::scales", message).label(Some(loc), "here");
            self.recording
                .note(diag.help("a block for each axis: `Scales::new([Block::Each, Block::Of(128)])`"));
            return self.recording.poison();
        }
        self.op("quantize", loc, ops::quantize::Quantize::new(&ty, to, &scales, least), &[], &no_help)
    }

    /// The numbers that 8-bit floats and their scales stand for, as an `f32`, `bf16` or `f16` tensor. Nothing is stored:
    /// each element's scale is applied where it is read.
    #[track_caller]
    pub fn dequantize(&self, to: DType) -> Tensor {
        self.op("dequantize", here(), ops::dequantize::Dequantize { to }, &[], &no_help)
    }

    /// The larger of two tensors, element by element, with broadcasting.
    #[track_caller]
    pub fn maximum(&self, other: &Tensor) -> Tensor {
        self.binary("maximum", ops::maximum::Maximum {}, other)
    }

    /// The same elements in the same (row-major) order, with other extents.
    #[track_caller]
    pub fn reshape<D: Into<Dim>>(&self, shape: impl IntoIterator<Item = D>) -> Tensor {
        let shape = Dims(shape.into_iter().map(Into::into).collect());
        let help = |args: &[TensorType]| {
            let old: Vec<String> = args.first()?.shape.iter().map(|dim| dim.to_string()).collect();
            Some(format!("the product of the extents must stay {}, by name", old.join(" * ")))
        };
        self.op("reshape", here(), ops::reshape::Reshape { shape }, &[], &help)
    }

    /// The positions `range` of an axis, which counts from the end if negative: `x.slice(-1, ..&n)`.
    #[track_caller]
    pub fn slice(&self, axis: i64, range: impl SliceRange) -> Tensor {
        self.slice_at("slice", axis, range, here())
    }

    fn slice_at(&self, what: &str, axis: i64, range: impl SliceRange, loc: Loc) -> Tensor {
        let axis = self.axis(axis);
        let extent = self.ty().and_then(|ty| ty.shape.get(usize::try_from(axis).ok()?).cloned());
        let range: Range = range.positions(&extent.unwrap_or_else(|| Dim::from(1)));
        let help = |args: &[TensorType]| {
            let ty = args.first()?;
            Some(match usize::try_from(axis).ok().and_then(|axis| ty.shape.get(axis)) {
                Some(extent) => {
                    format!("positions are in 0..{extent}; extents compare by name, not by value")
                }
                None => "axes count from 0, or from -1 at the end".into(),
            })
        };
        self.op(what, loc, ops::slice::Slice { axis, range }, &[], &help)
    }

    /// Neighbouring parts of an axis, of these lengths: `let [a, b] = x.split(-1, [&n, &p]);`.
    #[track_caller]
    pub fn split<const N: usize, D: Into<Dim>>(&self, axis: i64, lengths: [D; N]) -> [Tensor; N] {
        let loc = here();
        let lengths = lengths.map(Into::into);
        let sum = lengths.iter().fold(Dim::from(0), |sum, dim| &sum + dim);
        if let Some(ty) = self.ty()
            && let Some(extent) = usize::try_from(self.axis(axis)).ok().and_then(|i| ty.shape.get(i))
            && *extent != sum
        {
            let message = format!("the parts of axis {axis} are {sum} together, but it is {extent}");
            let made = self.value.and_then(|v| self.recording.inner().values[v].loc);
            let diag = Diag::new("eva::type_mismatch", message).label(Some(loc), "split here");
            self.recording.note(diag.label(made, format!("the tensor is {ty}")));
            return std::array::from_fn(|_| self.recording.poison());
        }
        let mut start = Dim::from(0);
        lengths.map(|len| {
            let end = &start + &len;
            let part = self.slice_at("split", axis, start.clone()..end.clone(), loc);
            start = end;
            part
        })
    }

    /// The tensors one after another along `axis`, this one first.
    #[track_caller]
    pub fn concat(&self, axis: i64, others: impl Operands) -> Tensor {
        let others = others.tensors();
        let others: Vec<&Tensor> = others.iter().collect();
        let op = ops::concat::Concat { axis: self.axis(axis) };
        self.op("concat", here(), op, &others, &no_help)
    }

    /// Multiplies along shared axes, sums those missing from the result: `x.einsum("bsm,rm->bsr", &w)`; with several
    /// other operands, `x.einsum("ab,bc,cd->ad", [&y, &z])`.
    #[track_caller]
    pub fn einsum(&self, spec: &str, others: impl Operands) -> Tensor {
        let loc = here();
        let Some(spec) = self.spec("einsum", spec, loc) else { return self.recording.poison() };
        let others = others.tensors();
        let others: Vec<&Tensor> = others.iter().collect();
        let help = |args: &[TensorType]| {
            let letters: Vec<usize> = spec.inputs.iter().map(Vec::len).collect();
            let ranks: Vec<usize> = args.iter().map(TensorType::rank).collect();
            (letters.len() != ranks.len() || letters != ranks)
                .then(|| "one group of letters for each operand, one letter for each axis".into())
        };
        self.op("einsum", loc, ops::einsum::Einsum { spec: spec.clone() }, &others, &help)
    }

    /// The axes in another order: `x.permute("bsm->bms")`; an axis that is left out is summed.
    #[track_caller]
    pub fn permute(&self, spec: &str) -> Tensor {
        let loc = here();
        let Some(spec) = self.spec("permute", spec, loc) else { return self.recording.poison() };
        self.op("permute", loc, ops::einsum::Einsum { spec }, &[], &no_help)
    }

    /// `x · wᵀ` over the last axis of `x`, for a weight `[out, in]`; `w` is cast to the element type of `x`.
    #[track_caller]
    pub fn linear(&self, w: &Tensor) -> Tensor {
        let loc = here();
        let rank = self.rank().max(1);
        // Letters are for reading only.
        let letters: &[char] = match rank {
            1 => &['m', 'r'],
            2 => &['t', 'm', 'r'],
            _ => &['b', 's', 'm', 'r'],
        };
        let letter = |axis: usize| {
            let from_end = rank + 1 - axis;
            letters.len().checked_sub(from_end).map_or('x', |i| letters[i])
        };
        let (x, out): (Vec<usize>, Vec<usize>) = ((0..rank).collect(), (0..rank - 1).chain([rank]).collect());
        let spec = Spec::new(&[&x, &[rank, rank - 1]], &out, letter);
        let help = |args: &[TensorType]| {
            let [x, w] = args else { return None };
            let width = x.shape.last()?;
            Some(if w.shape.first() == Some(width) {
                format!("`linear` takes a weight [out, in], here [out, {width}]: this one looks transposed")
            } else {
                format!("`linear` takes a weight [out, in], here [out, {width}]")
            })
        };
        let w = w.cast_at(self, loc);
        self.op("linear", loc, ops::einsum::Einsum { spec }, &[&w], &help)
    }

    /// This weight with the element type of `x`, if both are floats and it has another.
    fn cast_at(&self, x: &Tensor, loc: Loc) -> Tensor {
        match (x.ty(), self.ty()) {
            (Some(x), Some(w)) if x.dtype != w.dtype && x.dtype.is_float() && w.dtype.is_float() => {
                self.op("cast", loc, ops::cast::Cast { to: x.dtype }, &[], &no_help)
            }
            _ => self.clone(),
        }
    }

    /// `x / √(mean(x²) + eps) · gain` along the last axis; `gain` is cast to the element type of `x`.
    #[track_caller]
    pub fn rms_norm(&self, gain: &Tensor, eps: f64) -> Tensor {
        let loc = here();
        let gain = gain.cast_at(self, loc);
        let help = |args: &[TensorType]| {
            Some(format!("the gain has one number for each column: [{}]", args.first()?.shape.last()?))
        };
        self.op("rms_norm", loc, ops::rms_norm::RmsNorm { eps: Real::new(eps) }, &[&gain], &help)
    }

    /// Softmax of `scores[b, …, s, t]` along the keys `t`, where token `i` of row `b` sees keys `0 ..= start[b] + i`.
    #[track_caller]
    pub fn causal_softmax(&self, start: &Tensor) -> Tensor {
        self.op("causal_softmax", here(), ops::causal_softmax::CausalSoftmax {}, &[start], &no_help)
    }

    /// The rows of this table `[w, m]` that `ids` name: `[…, m]`.
    #[track_caller]
    pub fn embedding(&self, ids: &Tensor) -> Tensor {
        self.op("embedding", here(), ops::embedding::Embedding {}, &[ids], &no_help)
    }

    /// `x[i, at[i], …]` for each `i`: one token of each sequence.
    #[track_caller]
    pub fn take_row(&self, at: &Tensor) -> Tensor {
        self.op("take_row", here(), ops::take_row::TakeRow {}, &[at], &no_help)
    }

    /// The positions `start[i] + j` of `new` tokens after this `start: i32[b]`.
    #[track_caller]
    pub fn positions(&self, new: &Dim) -> Tensor {
        self.op("positions", here(), ops::positions::Positions { new: new.clone() }, &[], &no_help)
    }

    /// Cosines and signed sines `f32[b, s, 2, p]` at these positions `[b, s]`, times `factor`; see
    /// [`super::Scope::rope_freqs`] for `freqs`.
    #[track_caller]
    pub fn rope_table(&self, freqs: &Tensor, factor: f64) -> Tensor {
        let op = ops::rope_table::RopeTable { factor: Real::new(factor) };
        self.op("rope_table", here(), op, &[freqs], &no_help)
    }

    /// The columns of `x[b, s, …, p]` turned in pairs by the angles of a [`Tensor::rope_table`].
    #[track_caller]
    pub fn rope(&self, table: &Tensor, pairs: Pairs) -> Tensor {
        self.op("rope", here(), ops::rope::Rope { pairs: pairs.word() }, &[table], &no_help)
    }

    /// DeepSeek-V3's router on `logits: f32[t, e]`: (`i32[t, k]` experts, best first; `f32[t, k]` weights).
    #[track_caller]
    pub fn route_noaux_tc(
        &self,
        bias: &Tensor,
        k: &Dim,
        groups: Groups,
        normalize: bool,
        scale: f64,
    ) -> (Tensor, Tensor) {
        let Groups { count, kept } = groups;
        let scale = Real::new(scale);
        let op = ops::route_noaux_tc::RouteNoauxTc { k: k.clone(), groups: count, kept, normalize, scale };
        let loc = here();
        let [index, weight] =
            self.recording.parts(&self.op("route_noaux_tc", loc, op, &[bias], &no_help), loc);
        (index, weight)
    }

    /// DeepSeek-V2-Lite's router; results as of [`Tensor::route_noaux_tc`].
    #[track_caller]
    pub fn route_greedy(&self, k: &Dim, scale: f64) -> (Tensor, Tensor) {
        let op = ops::route_greedy::RouteGreedy { k: k.clone(), scale: Real::new(scale) };
        let loc = here();
        let [index, weight] = self.recording.parts(&self.op("route_greedy", loc, op, &[], &no_help), loc);
        (index, weight)
    }

    /// DeepSeek-V2's router; results as of [`Tensor::route_noaux_tc`].
    #[track_caller]
    pub fn route_group_limited_greedy(&self, k: &Dim, groups: Groups, scale: f64) -> (Tensor, Tensor) {
        let Groups { count, kept } = groups;
        let scale = Real::new(scale);
        let op = ops::route_group_limited_greedy::RouteGroupLimitedGreedy {
            k: k.clone(),
            groups: count,
            kept,
            scale,
        };
        let loc = here();
        let routed = self.op("route_group_limited_greedy", loc, op, &[], &no_help);
        let [index, weight] = self.recording.parts(&routed, loc);
        (index, weight)
    }

    /// Sorts the items of these choices `i32[t, k]` among `experts`: the item at each place, the place of each item
    /// `[t, k]`, and where each expert's items begin `[experts + 1]`.
    #[track_caller]
    pub fn sort_by_expert(&self, experts: &Dim) -> (Tensor, Tensor, Tensor) {
        let loc = here();
        let op = ops::sort_by_expert::SortByExpert { experts: experts.clone() };
        let [order, position, offsets] =
            self.recording.parts(&self.op("sort_by_expert", loc, op, &[], &no_help), loc);
        (order, position, offsets)
    }

    /// The rows of `x[t, m]` in the `order` of [`Tensor::sort_by_expert`], each token `k` times.
    #[track_caller]
    pub fn dispatch(&self, order: &Tensor, k: &Dim) -> Tensor {
        self.op("dispatch", here(), ops::dispatch::Dispatch { k: k.clone() }, &[order], &no_help)
    }

    /// Sorted rows times the weights `w[e, …]` of the expert that each belongs to: `rows.grouped("gm,efm->gf", &w,
    /// &offsets)`. `w` is cast to the rows' element type.
    #[track_caller]
    pub fn grouped(&self, spec: &str, w: &Tensor, offsets: &Tensor) -> Tensor {
        let loc = here();
        let Some(spec) = self.spec("grouped", spec, loc) else { return self.recording.poison() };
        let w = w.cast_at(self, loc);
        self.op("grouped", loc, ops::grouped::Grouped { spec }, &[&w, offsets], &no_help)
    }

    /// `Σ_j weight[t, j] · rows[position[t, j]]` of these sorted rows: `[t, m]`.
    #[track_caller]
    pub fn combine(&self, position: &Tensor, weight: &Tensor) -> Tensor {
        self.op("combine", here(), ops::combine::Combine {}, &[position, weight], &no_help)
    }

    /// The mean of `-log softmax(x)[label]` over the rows of `x[n, w]` whose label is not negative: `f32[]`.
    #[track_caller]
    pub fn cross_entropy(&self, labels: &Tensor) -> Tensor {
        self.op("cross_entropy", here(), ops::cross_entropy::CrossEntropy {}, &[labels], &no_help)
    }
}

/// The groups of experts that a router limits a token to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How many there are, of neighbouring experts.
    pub count: i64,
    /// How many a token may choose from.
    pub kept: i64,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $Op:ident)*) => {
        impl Tensor {
            $($(#[$doc])*
            #[track_caller]
            pub fn $name(&self) -> Tensor {
                self.op(stringify!($name), here(), ops::$name::$Op {}, &[], &no_help)
            })*
        }
    };
}

unary! {
    /// `eˣ`.
    exp Exp
    /// The natural logarithm.
    log Log
    /// The square root.
    sqrt Sqrt
    /// `1/√x`.
    rsqrt Rsqrt
    /// `1/x`.
    recip Recip
    /// `1/(1 + e⁻ˣ)`.
    sigmoid Sigmoid
    /// `x · sigmoid(x)`.
    silu Silu
    /// `exp(x)` divided by its sum along the last axis.
    softmax Softmax
}

macro_rules! reductions {
    ($($(#[$doc:meta])* $name:ident $Op:ident)*) => {
        impl Tensor {
            $($(#[$doc])*
            #[track_caller]
            pub fn $name(&self, axis: i64) -> Tensor {
                let help = |_: &[TensorType]| Some("axes count from 0, or from -1 at the end".into());
                self.op(stringify!($name), here(), ops::$name::$Op { axis: self.axis(axis) }, &[], &help)
            })*
        }
    };
}

reductions! {
    /// The sum along an axis, which stays with extent 1.
    sum Sum
    /// The mean along an axis, which stays with extent 1.
    mean Mean
    /// The largest element along an axis, which stays with extent 1.
    max Max
}
