//! What the runtime runs: kernels in order, and the buffers they work on.

use crate::cache::CacheBytes;
use eva_ir::dim::{Dim, Sym};
use eva_ir::entity::{Arena, Entity};
use eva_ir::estimate::{Estimate, least};
use eva_ir::eval::Array;
use eva_ir::graph::{Func, ParamKind};
use eva_ir::kernel::Kernel;
use eva_ir::types::{DType, TensorType};

/// The symbol of how many tokens a cache has room for: the distance of its sequences, in rows. No extent of a
/// user's can have this name.
pub const CAPACITY: &str = "@capacity";

/// A kernel of a [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelId(u32);

impl Entity for KernelId {
    fn new(index: usize) -> Self {
        Self(u32::try_from(index).expect("fewer than 2^32 kernels fit in memory"))
    }
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// A compiled module, but for the machine code.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kernels in the tile phase.
    pub tiles: Arena<KernelId, Kernel>,
    /// The same kernels in the lane phase.
    pub kernels: Arena<KernelId, Kernel>,
    /// One entry for each function of the module.
    pub funcs: Arena<Func, FuncPlan>,
    /// The values of the extents that are fixed.
    pub dims: Vec<(eva_ir::dim::Sym, Option<i64>)>,
    /// Of what each function gives statistics, if that was asked for ([`crate::fp8::observe`]).
    pub statistics: Vec<Observed>,
}

/// A function's name, and of what it gives statistics.
pub type Observed = (String, Vec<crate::fp8::observe::Site>);

/// How one function runs.
#[derive(Clone, Debug)]
pub struct FuncPlan {
    /// The function's name.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<ParamPlan>,
    /// The function that computes its [`ParamPlan::prepared`] weights, if it has any.
    pub prepare: Option<Func>,
    /// Its results, in order.
    pub results: Vec<ResultPlan>,
    /// Its buffers; views and steps name them by their place here.
    pub bases: Vec<Base>,
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// What this body takes, beside the alternatives.
    pub estimate: Estimate,
    /// Other bodies that compute the same from the same parameters, by names of their own. For given extents, the one
    /// whose estimate is least runs.
    pub alternatives: Vec<FuncPlan>,
}

/// A parameter of a function.
#[derive(Clone, Debug)]
pub struct ParamPlan {
    /// The name.
    pub name: String,
    /// How it is given.
    pub kind: ParamKind,
    /// Its type.
    pub ty: TensorType,
    /// Its buffer.
    pub base: usize,
    /// Whether it is a pool of pages: as large as its type says, whatever the capacity.
    pub paged: bool,
    /// Whether it is a state that is replaced as a whole (`assign`): as large as its type says, likewise.
    pub whole: bool,
    /// Whether a call looks at it at all. What is not needed has no address in a call.
    pub needed: bool,
    /// For a weight that is computed when the function is loaded: from what.
    pub prepared: Option<Prepared>,
    /// For 8-bit floats: the number of the parameter that has their scales. Those come after the function's own
    /// parameters, and are named after theirs ([`eva_ir::lower::SCALES`]).
    pub scales: Option<usize>,
}

/// A weight that is computed when a function is loaded ([`crate::hoist`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The number of the result of [`FuncPlan::prepare`] that it is.
    pub result: usize,
    /// What it is: of equal weights, prepared weights of one plan with one key are equal.
    pub key: usize,
    /// The names of the weights that it is computed from, sorted.
    pub from: Vec<String>,
}

/// A result of a function.
#[derive(Clone, Debug)]
pub struct ResultPlan {
    /// The name.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// The state parameter that it is the updated value of; such a result has no buffer of its own.
    pub state: Option<usize>,
    /// For 8-bit floats: the number of the result that has their scales, likewise.
    pub scales: Option<usize>,
}

/// A buffer of a function.
#[derive(Clone, Debug)]
pub enum Base {
    /// A parameter, by its number.
    Param(usize),
    /// A result, by its number: row-major, given by the caller.
    Result(usize),
    /// Memory of the arena.
    Temp(Temp),
    /// A tensor computed by the compiler.
    Constant(DType, Array),
}

/// Memory of the arena that holds a tensor from one step to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Temp {
    /// The tensor's name, for people.
    pub name: String,
    /// Its size.
    pub bytes: Dim,
    /// The step that writes it.
    pub first: usize,
    /// The last step that uses it.
    pub last: usize,
    /// For which extents it is used at all.
    pub when: Option<When>,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Runs a kernel; one base for each of its buffers.
    Launch {
        /// The kernel.
        kernel: KernelId,
        /// Its buffers' bases.
        bases: Vec<usize>,
        /// What the result is called, for people.
        name: String,
        /// For which extents; others have another launch that computes the same.
        when: Option<When>,
    },
    /// Runs another function.
    Call {
        /// The function.
        func: Func,
        /// The buffer of each parameter, row-major (a state's sequences at their capacity's distance).
        args: Vec<usize>,
        /// The buffer of each result that is not a state's.
        results: Vec<Option<usize>>,
        /// What the call is named, for people.
        name: String,
    },
}

/// A condition on an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When {
    /// The extent.
    pub extent: Dim,
    /// It is more than this.
    pub above: i64,
    /// It is at most this.
    pub most: i64,
}

impl When {
    /// Whether it holds for known sizes; `None` if the extent is not known.
    pub fn holds(&self, size_of: &dyn Fn(&Dim) -> Option<i64>) -> Option<bool> {
        size_of(&self.extent).map(|n| self.above < n && n <= self.most)
    }
}

/// Where each buffer of a function lies in its part of the arena, for known sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Byte offsets, for the bases that are temporaries.
    pub offsets: Vec<Option<usize>>,
    /// Bytes in all, without what called functions need.
    pub bytes: usize,
}

/// Buffers start at multiples of this many bytes.
pub const ALIGNMENT: usize = 64;

impl ParamPlan {
    /// Whether it is a state with a row for each token of the capacity.
    pub fn is_cache(&self) -> bool {
        self.kind == ParamKind::State && !self.paged && !self.whole
    }
}

impl FuncPlan {
    /// Body `i`: this one, or an alternative.
    pub fn body(&self, i: usize) -> &FuncPlan {
        i.checked_sub(1).map_or(self, |i| &self.alternatives[i])
    }

    /// All bodies, this one first.
    pub fn bodies(&self) -> impl Iterator<Item = &FuncPlan> {
        std::iter::once(self).chain(&self.alternatives)
    }

    /// The number of the body that runs for known sizes.
    pub fn choose(&self, size_of: &dyn Fn(&Dim) -> Option<i64>) -> usize {
        if self.alternatives.is_empty() {
            return 0;
        }
        let estimates = self.bodies().map(|body| &body.estimate);
        least(estimates, &|sym| size_of(&Dim::sym(sym.as_str())))
    }

    /// The parameters that callers give: all but those that are prepared.
    pub fn given(&self) -> impl Iterator<Item = &ParamPlan> {
        self.params.iter().filter(|param| param.prepared.is_none())
    }

    /// The weights that are given when the function is loaded.
    pub fn weights(&self) -> impl Iterator<Item = &ParamPlan> {
        self.given().filter(|param| param.kind == ParamKind::Weight)
    }

    /// Places the temporaries: the largest first, each at the lowest address where it meets no other that is alive
    /// at the same time. `None` if a size is not known or does not fit.
    pub fn layout(&self, size_of: &dyn Fn(&Dim) -> Option<i64>) -> Option<Layout> {
        let mut temps = Vec::new();
        for (base, temp) in self.bases.iter().enumerate() {
            if let Base::Temp(temp) = temp {
                let used = temp.when.as_ref().is_none_or(|when| when.holds(size_of) != Some(false));
                let bytes = if used { usize::try_from(size_of(&temp.bytes)?).ok()? } else { 0 };
                temps.push((base, bytes.checked_next_multiple_of(ALIGNMENT)?, temp));
            }
        }
        temps.sort_by_key(|&(base, bytes, _)| (std::cmp::Reverse(bytes), base));
        let mut placed: Vec<(usize, usize, &Temp)> = Vec::new();
        let mut layout = Layout { offsets: vec![None; self.bases.len()], bytes: 0 };
        for (base, bytes, temp) in temps {
            let alive = |other: &Temp| temp.first <= other.last && other.first <= temp.last;
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|(_, _, other)| alive(other))
                .map(|&(at, len, _)| (at, at + len))
                .collect();
            taken.sort();
            let mut at: usize = 0;
            for (start, end) in taken {
                if at.checked_add(bytes)? <= start {
                    break;
                }
                at = at.max(end);
            }
            layout.bytes = layout.bytes.max(at.checked_add(bytes)?);
            layout.offsets[base] = Some(at);
            placed.push((at, bytes, temp));
        }
        Some(layout)
    }
}

impl Plan {
    /// What one token takes in the states of `func`; the name of one whose bytes are not known before it runs
    /// otherwise.
    pub fn cache_bytes(&self, func: Func) -> Result<CacheBytes, String> {
        let params = &self.funcs[func].params;
        let is_scales = |i: usize| params.iter().any(|param| param.scales == Some(i));
        let states = params.iter().enumerate().filter(|(_, param)| param.kind == ParamKind::State);
        // Scales count with what they are of.
        let states = states.filter(|(i, param)| !is_scales(*i) && !param.whole).map(|(_, param)| param);
        let value = |sym: &Sym| self.dims.iter().find(|(name, _)| name == sym).and_then(|(_, value)| *value);
        CacheBytes::new(states.map(|param| (param.name.as_str(), &param.ty)), &|dim| dim.eval(&value))
    }

    /// The bytes of arena that a run of `func` needs, called functions included; `None` if that is not known.
    pub fn arena_bytes(&self, func: Func, size_of: &dyn Fn(&Dim) -> Option<i64>) -> Option<usize> {
        let body = |func: Func| self.funcs[func].body(self.funcs[func].choose(size_of));
        let callees = |func: Func| {
            body(func).steps.iter().filter_map(|step| match step {
                Step::Call { func, .. } => Some(*func),
                Step::Launch { .. } => None,
            })
        };
        // Functions call older ones only: whether one takes part is known when it is met from the last to the first, and
        // what its callees need when they are met in order.
        let mut takes_part = vec![false; func.index() + 1];
        takes_part[func.index()] = true;
        for (id, _) in self.funcs.iter().take(func.index() + 1).rev() {
            if takes_part[id.index()] {
                callees(id).for_each(|callee| takes_part[callee.index()] = true);
            }
        }
        let mut needs: Vec<usize> = Vec::with_capacity(takes_part.len());
        for (id, takes_part) in self.funcs.keys().zip(takes_part) {
            let own = if takes_part { body(id).layout(size_of)?.bytes } else { 0 };
            let most = if takes_part { callees(id).map(|callee| needs[callee.index()]).max() } else { None };
            needs.push(own.checked_add(most.unwrap_or(0))?);
        }
        needs.pop()
    }
}
