//! Which extents are sequences, new tokens and cached tokens, and what they are taken to be.
//!
//! One compile serves every length, so most lengths are unknown when a form is chosen. They are taken to be those
//! of decoding: one sequence, one new token, and [`CACHED`] tokens to attend to. They are found by what they do, not
//! by name. A module that fixes them (`dim s = 512`) is chosen for accordingly.

use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::{Def, Function, Module, ParamKind};
use eva_ir::ops::Op;
use eva_ir::types::DType;
use eva_ir::verify::is_assigned;
use std::collections::BTreeMap;

/// How many tokens are taken to be cached if the module does not say.
pub const CACHED: i64 = 4096;

/// The extents that change from call to call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// How many sequences there are: the first axis of a state, or of what is masked or written.
    pub batch: Option<Sym>,
    /// How many tokens of each are new: the rows of causally masked scores, or of what is written into a state.
    pub new: Option<Sym>,
    /// How many tokens are attended to, the new ones included: the second axis of a state, the columns of scores.
    pub cached: Option<Sym>,
}

impl Lengths {
    /// What `module`'s extents do.
    pub fn of(module: &Module) -> Self {
        let mut lengths = Self::default();
        let functions = || module.funcs.iter().map(|(_, f)| f);
        functions().for_each(|f| lengths.find_in_attention(module, f));
        functions().for_each(|f| lengths.find_in_inputs(f));
        lengths
    }

    /// What states, masks and writes say.
    fn find_in_attention(&mut self, module: &Module, f: &Function) {
        for (value, data) in f.values.iter() {
            let shape = |i: usize| {
                let arg = data.def.args().get(i).and_then(|&arg| f.tensor(arg));
                arg.map_or(&[][..], |ty| &ty.shape)
            };
            match &data.def {
                Def::Param(ParamKind::State) if is_assigned(module, f, value) => {}
                Def::Param(ParamKind::State) | Def::Op(Op::PageRead(_), _) => {
                    // The rows of a page are a number, and no extent.
                    if let Some([batch, cached, ..]) = data.ty.tensor().map(|ty| &ty.shape[..])
                        && cached.as_const().is_none()
                    {
                        self.take(Some(batch), None, Some(cached));
                    }
                }
                Def::Op(Op::CausalSoftmax(_), _) => {
                    if let [batch, .., new, cached] = shape(0) {
                        self.take(Some(batch), Some(new), Some(cached));
                    }
                }
                Def::Op(Op::CacheWrite(_) | Op::PageWrite(_), _) => {
                    if let [batch, new, ..] = shape(1) {
                        self.take(Some(batch), Some(new), None);
                    }
                }
                _ => {}
            }
        }
    }

    /// What the tokens given on every call say: whole numbers, `[batch, new]`.
    fn find_in_inputs(&mut self, f: &Function) {
        for (value, kind) in f.params() {
            let tokens = f.tensor(value).filter(|ty| matches!(ty.dtype, DType::I32 | DType::I64));
            if let (ParamKind::Input, Some([batch, new])) = (kind, tokens.map(|ty| &ty.shape[..])) {
                self.take(Some(batch), Some(new), None);
            }
        }
    }

    /// Keeps what is not known yet.
    fn take(&mut self, batch: Option<&Dim>, new: Option<&Dim>, cached: Option<&Dim>) {
        for (slot, dim) in [(&mut self.batch, batch), (&mut self.new, new), (&mut self.cached, cached)] {
            if slot.is_none() {
                *slot = dim.and_then(|dim| dim.syms().into_iter().next());
            }
        }
    }

    /// Values for these extents; where one is two of them, it is the last that counts.
    pub fn sizes(&self, batch: i64, new: i64, cached: i64) -> BTreeMap<Sym, i64> {
        let all = [(&self.batch, batch), (&self.new, new), (&self.cached, cached)];
        all.into_iter().filter_map(|(sym, n)| Some((sym.clone()?, n))).collect()
    }
}

/// The values taken for the extents that `module` leaves open.
pub fn representative(module: &Module) -> BTreeMap<Sym, i64> {
    let open = module.dims.iter().filter(|(_, value)| value.is_none());
    let mut sizes: BTreeMap<Sym, i64> = open.map(|(sym, _)| (sym.clone(), 1)).collect();
    for (sym, n) in Lengths::of(module).sizes(1, 1, CACHED) {
        sizes.entry(sym).and_modify(|size| *size = n);
    }
    sizes
}
