//! [`Scope`]: where a function's parameters are declared, and [`State`], a parameter that is kept between calls.

use super::record::{Recording, Request, here};
use super::rotary::{Rotary, Yarn};
use super::tensor::{Tensor, no_help};
use eva_ir::attr::{Dims, Real};
use eva_ir::diag::{Diag, Loc};
use eva_ir::dim::Dim;
use eva_ir::graph::ParamKind;
use eva_ir::ops::Op;
use eva_ir::ops::assign::Assign;
use eva_ir::ops::cache_write::CacheWrite;
use eva_ir::ops::full::Full;
use eva_ir::ops::rope_freqs::RopeFreqs;
use eva_ir::scales::Scales;
use eva_ir::text::is_value_name;
use eva_ir::types::{DType, TensorType};
use std::rc::Rc;

/// A place in a function: parameters declared here have names that start with its path.
#[derive(Clone)]
pub struct Scope {
    pub(super) recording: Rc<Recording>,
    path: String,
}

impl Scope {
    /// The outermost scope of a function.
    pub(super) fn new(recording: Rc<Recording>) -> Self {
        Self { recording, path: String::new() }
    }

    /// The scope `name` within this one; `name` may have dots.
    #[track_caller]
    pub fn scope(&self, name: &str) -> Scope {
        if !is_value_name(name) {
            let message = format!("`{name}` is not a name for a scope");
            let help = "letters, digits, `_` and `.`";
            self.recording.note(Diag::new("eva::name", message).label(Some(here()), "here").help(help));
            return self.clone();
        }
        Scope { recording: self.recording.clone(), path: self.full_name(name) }
    }

    /// The names of the scopes around, outermost first, joined by dots; empty for the function itself.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `name` as the function's caller sees it.
    pub fn full_name(&self, name: &str) -> String {
        match (self.path.as_str(), name) {
            ("", name) => name.into(),
            (path, "") => path.into(),
            (path, name) => [path, ".", name].concat(),
        }
    }

    #[track_caller]
    fn param<D: Into<Dim>>(
        &self,
        kind: ParamKind,
        name: &str,
        dtype: DType,
        dims: impl IntoIterator<Item = D>,
    ) -> Tensor {
        self.typed(kind, name, TensorType::new(dtype, dims.into_iter().map(Into::into)))
    }

    #[track_caller]
    fn typed(&self, kind: ParamKind, name: &str, ty: TensorType) -> Tensor {
        let (recording, name, loc) = (&self.recording, self.full_name(name), here());
        if !is_value_name(&name) {
            let message = format!("`{name}` is not a name for a parameter");
            let help = "letters, digits, `_` and `.`";
            recording.note(Diag::new("eva::name", message).label(Some(loc), "here").help(help));
            return recording.poison();
        }
        if !recording.declared([&ty], loc) {
            return recording.poison();
        }
        recording.param(kind, &name, ty, loc)
    }

    /// A tensor that the caller gives each time.
    #[track_caller]
    pub fn input<D: Into<Dim>>(&self, name: &str, dtype: DType, dims: impl IntoIterator<Item = D>) -> Tensor {
        self.param(ParamKind::Input, name, dtype, dims)
    }

    /// A tensor that is given once, when the program is loaded. Asked for again with the same type, it is the same.
    #[track_caller]
    pub fn weight<D: Into<Dim>>(
        &self,
        name: &str,
        dtype: DType,
        dims: impl IntoIterator<Item = D>,
    ) -> Tensor {
        self.param(ParamKind::Weight, name, dtype, dims)
    }

    /// A weight of 8-bit floats (`f8e4m3` or `f8e5m2`) with `scales`, one entry of which is for each axis: how many
    /// neighbours along it share a scale. Who loads the program gives two tensors: `name`, the codes, and
    /// `name_scale_inv`, the scales, which codes are multiplied by.
    ///
    /// ```
    /// use eva::prelude::*;
    /// # let p = Program::new();
    /// # let (s, m, r) = (p.dim("s"), p.dim_fixed("m", 144), p.dim_fixed("r", 160));
    /// # p.function("main", |f| {
    /// # let x = f.input("x", F32, [&s, &m]);
    /// let w = f.weight_scaled("proj.weight", F8E4M3, [&r, &m], Scales::new([Block::Of(128), Block::Of(128)]));
    /// let y = x.linear(&w.dequantize(F32));
    /// # y
    /// # });
    /// # p.finish().unwrap();
    /// ```
    #[track_caller]
    pub fn weight_scaled<D: Into<Dim>>(
        &self,
        name: &str,
        dtype: DType,
        dims: impl IntoIterator<Item = D>,
        scales: Scales,
    ) -> Tensor {
        let ty = TensorType::new(dtype, dims.into_iter().map(Into::into)).scaled(dtype, scales);
        let wrong = match &ty.scales {
            _ if !dtype.is_f8() => {
                Some(format!("{dtype} has no scales: 8-bit floats are `f8e4m3` and `f8e5m2`"))
            }
            Some(scales) if scales.blocks.len() != ty.rank() => {
                Some(format!("scales for {} axes, but there are {}", scales.blocks.len(), ty.rank()))
            }
            _ => None,
        };
        if let Some(message) = wrong {
            let diag = Diag::new("eva::scales", message).label(Some(here()), "here");
            self.recording
                .note(diag.help("a block for each axis: `Scales::new([Block::Of(128), Block::Of(128)])`"));
            return self.recording.poison();
        }
        self.typed(ParamKind::Weight, name, ty)
    }

    /// A tensor that is kept between calls, such as a cache; to be written once.
    #[track_caller]
    pub fn state<D: Into<Dim>>(&self, name: &str, dtype: DType, dims: impl IntoIterator<Item = D>) -> State {
        State { tensor: self.param(ParamKind::State, name, dtype, dims) }
    }

    /// Any op, for those without a method. An op with several results gives a tuple: see [`Scope::apply_tuple`].
    #[track_caller]
    pub fn apply(&self, op: impl Into<Op>, operands: &[&Tensor]) -> Tensor {
        let op = op.into();
        let operands: Vec<Tensor> = operands.iter().map(|&x| x.clone()).collect();
        self.recording.op(
            Request { what: op.kind().name(), loc: here(), help: &no_help },
            op.clone(),
            &operands,
        )
    }

    /// Any op with `N` results.
    #[track_caller]
    pub fn apply_tuple<const N: usize>(&self, op: impl Into<Op>, operands: &[&Tensor]) -> [Tensor; N] {
        let op = op.into();
        let tuple = self.apply(op.clone(), operands);
        let parts = tuple.value.map_or(N, |v| self.recording.inner().values[v].ty.parts().len());
        if parts != N {
            let message = format!("`{}` has {parts} results, not {N}", op.kind().name());
            self.recording.note(Diag::new("eva::type_mismatch", message).label(Some(here()), "here"));
            return std::array::from_fn(|_| self.recording.poison());
        }
        self.recording.parts(&tuple, here())
    }

    /// A tensor of one number.
    #[track_caller]
    pub fn full<D: Into<Dim>>(&self, value: f64, dtype: DType, dims: impl IntoIterator<Item = D>) -> Tensor {
        let shape = Dims(dims.into_iter().map(Into::into).collect());
        self.constant("full", Full { value: Real::new(value), shape, dtype }, here())
    }

    /// The frequencies of a rotary embedding of `width` columns, `f32[2, width]`: row 0 the radians per position of
    /// each column, row 1 the sign of its sine. See [`Rotary`].
    #[track_caller]
    pub fn rope_freqs(&self, width: &Dim, rotary: &Rotary) -> Tensor {
        let Rotary { theta, pairs, yarn } = rotary;
        let plain = Yarn { factor: 1.0, beta_fast: 32.0, beta_slow: 1.0, original: 1 };
        let yarn = yarn.as_ref().unwrap_or(&plain);
        let op = RopeFreqs {
            width: width.clone(),
            theta: Real::new(*theta),
            pairs: pairs.word(),
            factor: Real::new(yarn.factor),
            beta_fast: Real::new(yarn.beta_fast),
            beta_slow: Real::new(yarn.beta_slow),
            original: yarn.original,
        };
        self.constant("rope_freqs", op, here())
    }

    fn constant(&self, what: &str, op: impl Into<Op>, loc: Loc) -> Tensor {
        self.recording.op(Request { what, loc, help: &no_help }, op, &[])
    }
}

/// A parameter that is kept between calls. It is written once; what is read is the tensor after the write, or, of a state
/// that is replaced as a whole, before it.
#[derive(Clone)]
pub struct State {
    tensor: Tensor,
}

impl State {
    /// The cache `[b, t, …]` with the rows `new: [b, s, …]` put at `start: i32[b]` of axis 1. The function gives the
    /// updated cache back to its caller by itself.
    #[track_caller]
    pub fn write(&self, new: &Tensor, start: &Tensor) -> Tensor {
        let loc = here();
        let recording = &self.tensor.recording;
        let Some(param) = self.tensor.value else { return recording.poison() };
        if !self.may_be_written(loc) {
            return recording.poison();
        }
        let help = |_: &[TensorType]| Some("the new rows must fit the cache in every axis but axis 1".into());
        let request = Request { what: "write", loc, help: &help };
        let written =
            recording.op(request, CacheWrite {}, &[self.tensor.clone(), new.clone(), start.clone()]);
        recording.set_update(param, loc, written.value);
        written
    }

    /// The state replaced by `new`, of its type; the function gives it back to its caller by itself. Such a state has the
    /// shape of its type, and [`State::value`] may be read.
    #[track_caller]
    pub fn assign(&self, new: &Tensor) -> Tensor {
        let loc = here();
        let recording = &self.tensor.recording;
        if !self.may_be_written(loc) {
            return recording.poison();
        }
        let Some(param) = self.tensor.value else { return recording.poison() };
        let help = |_: &[TensorType]| Some("the new value has the state's type".into());
        let request = Request { what: "assign", loc, help: &help };
        let written = recording.op(request, Assign {}, &[self.tensor.clone(), new.clone()]);
        recording.set_update(param, loc, written.value);
        written
    }

    /// What is kept from the last call, to be read before [`State::assign`] replaces it. A cache is read after it was
    /// written alone.
    pub fn value(&self) -> Tensor {
        self.tensor.clone()
    }

    /// Whether nothing was written yet; notes the mistake otherwise.
    fn may_be_written(&self, loc: Loc) -> bool {
        let recording = &self.tensor.recording;
        let Some((name, first)) = self.tensor.value.and_then(|param| recording.written(param)) else {
            return true;
        };
        let message = format!("the state `{name}` is written twice in one call");
        let diag = Diag::new("eva::state", message)
            .label(Some(loc), "written again")
            .label(Some(first), "first written");
        recording.note(diag.help("write all new rows at once, or declare two states"));
        false
    }

    /// The type; `None` if the declaration was a mistake.
    pub fn ty(&self) -> Option<TensorType> {
        self.tensor.ty()
    }
}
