//! How caches are laid out: what is kept of a token, decided by bytes, before anything else is.
//!
//! A function may cache whatever it reads: the keys and values of every head, say. Where such rows are a function of
//! something smaller and of weights, the smaller thing is kept, and the rows are computed again where the cache is read
//! (`tokens` says which ops allow that, `cut` finds the fewest bytes). Keys and values of latent attention become the
//! latent and the rotated key that they share: `c + p` numbers a token in place of `h·(n + p + v)`. Which form of
//! attention is then best is for [`crate::form`] to say.
//!
//! ```text
//! %k   = einsum %latent, %w_uk                %kv  = cache_write %latent_cache, %latent, %start
//! %all = cache_write %keys, %k, %start   =>   %all = einsum %kv, %w_uk
//! ```
//!
//! Then rows become 8-bit floats where that is asked for ([`Elements`]; see `eight`).
//!
//! Then, where pages are asked for, states become pools of pages that sequences can share; see `paged`.
//!
//! States are part of signatures, so callers are rewritten too, and functions that share states by name agree.
//! No layout is changed where bytes do not shrink. A module may say how many bytes a token and layer are allowed
//! ([`Module::kv_budget`]); more are an error here.

mod bytes;
mod cut;
mod decide;
mod eight;
mod paged;
mod shrink;
mod tokens;

pub use bytes::{CacheBytes, entries, layout};
use eva_ir::diag::{Diag, Loc};
use eva_ir::entity::Arena;
use eva_ir::graph::{Func, Function, Module, ParamKind, Value};
use eva_ir::types::TensorType;
use eva_ir::verify::is_assigned;

/// Which layout caches get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// The one with the fewest bytes.
    #[default]
    Auto,
    /// As the module has it.
    AsWritten,
}

/// How caches are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// What is kept of a token.
    pub layout: Layout,
    /// How many rows a page has, where tokens are kept in pages of a pool; in one piece for each sequence otherwise.
    pub page: Option<usize>,
    /// What the elements of caches are.
    pub elements: Elements,
}

/// What the elements of caches are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Elements {
    /// As the module has them.
    #[default]
    AsWritten,
    /// 8-bit floats, with an `f32` scale for 128 neighbours of a token: latents, keys and values, and rows that were rotated
    /// if `rotary`.
    Eight {
        /// Whether rows with rotary positions are 8 bits, too.
        rotary: bool,
    },
}

/// What became of a function's states.
#[derive(Clone, Debug, PartialEq)]
pub struct StateReport {
    /// The function.
    pub function: String,
    /// The states that this is about: one that stays, or several that others take the place of.
    pub states: Vec<String>,
    /// The states in their place, with their types; `states` themselves where they stay.
    pub kept: Vec<(String, TensorType)>,
    /// Bytes of a token before and after; `None` if they are not known before the module runs.
    pub bytes: Option<(u64, u64)>,
    /// Why they stay, if they do.
    pub why: Option<String>,
    /// The value that is to blame, with the line that asked for it.
    pub blame: Option<(String, Option<Loc>)>,
}

impl StateReport {
    /// Whether other states have taken the place of these.
    pub fn rewritten(&self) -> bool {
        self.why.is_none()
    }
}

/// The module with its caches laid out.
pub fn lay_out(module: &Module, options: &CacheOptions) -> Result<Module, Diag> {
    lay_out_and_report(module, options).map(|(module, _)| module)
}

/// The module with its caches laid out, and what became of each function's states, in the module's order.
pub fn lay_out_and_report(
    module: &Module,
    options: &CacheOptions,
) -> Result<(Module, Vec<StateReport>), Diag> {
    let any = module.funcs.iter().any(|(_, f)| caches(module, f).next().is_some());
    if options.layout == Layout::AsWritten || !any {
        let module = &with_elements(module, options)?;
        bytes::check_budget(module, &[])?;
        return Ok((in_pages(module, options)?, Vec::new()));
    }
    let decisions = decide::decide(module);
    let reports = report(module, &decisions);
    let unchanged = decisions.iter().all(|(_, decision)| decision.groups.is_empty());
    let module = if unchanged { module.clone() } else { shrink::rewrite(module, &decisions)? };
    let module = with_elements(&module, options)?;
    bytes::check_budget(&module, &reports)?;
    Ok((in_pages(&module, options)?, reports))
}

/// The states of a function that have rows for tokens: all that are not replaced as a whole.
fn caches<'a>(module: &'a Module, f: &'a Function) -> impl Iterator<Item = Value> + 'a {
    let states = f.params().filter(|&(_, kind)| kind == ParamKind::State).map(|(state, _)| state);
    states.filter(|&state| !is_assigned(module, f, state))
}

fn with_elements(module: &Module, options: &CacheOptions) -> Result<Module, Diag> {
    match (options.elements, options.page) {
        (Elements::AsWritten, _) => Ok(module.clone()),
        (Elements::Eight { rotary }, None) => eight::rewrite(module, rotary),
        (Elements::Eight { .. }, Some(_)) => {
            let message = "caches of 8-bit floats cannot be in pages";
            Err(Diag::new("eva::cache", message).help("leave out one of the two"))
        }
    }
}

fn in_pages(module: &Module, options: &CacheOptions) -> Result<Module, Diag> {
    match options.page {
        Some(rows) => paged::rewrite(module, rows),
        None => Ok(module.clone()),
    }
}

/// Bytes that one token takes in a state of this type, its scales included: all axes but sequences and tokens. `None` if an
/// extent is open.
pub fn token_bytes(module: &Module, ty: &TensorType) -> Option<u64> {
    bytes::of_token(ty, &|dim| module.constant(dim))
}

fn report(module: &Module, decisions: &Arena<Func, decide::Decision>) -> Vec<StateReport> {
    let mut reports = Vec::new();
    for (func, f) in module.funcs.iter() {
        let ty = |state| f.tensor(state).expect("states are tensors").clone();
        let name = |state| f.values[state].name.clone();
        let sum = |types: &mut dyn Iterator<Item = TensorType>| {
            types.map(|ty| token_bytes(module, &ty)).sum::<Option<u64>>()
        };
        for group in &decisions[func].groups {
            let before = sum(&mut group.old.iter().map(|&state| ty(state)));
            let after = sum(&mut group.new.iter().map(|new| new.ty.clone()));
            reports.push(StateReport {
                function: f.name.clone(),
                states: group.old.iter().map(|&state| name(state)).collect(),
                kept: group.new.iter().map(|new| (new.name.clone(), new.ty.clone())).collect(),
                bytes: before.zip(after),
                why: None,
                blame: None,
            });
        }
        for stays in &decisions[func].stays {
            let bytes = token_bytes(module, &ty(stays.state));
            reports.push(StateReport {
                function: f.name.clone(),
                states: vec![name(stays.state)],
                kept: vec![(name(stays.state), ty(stays.state))],
                bytes: bytes.map(|bytes| (bytes, bytes)),
                why: Some(stays.why.clone()),
                blame: stays.value.clone(),
            });
        }
    }
    reports
}
