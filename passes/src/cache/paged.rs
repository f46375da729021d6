//! Caches in pages: each state `[b, t, …]` becomes a pool `[pool, r, …]`, and tables say which pages a sequence has.
//!
//! ```text
//! %c = cache_write %cache, %new, %start   =>   %p = page_write %cache, %new, %page_table, %start
//!                                              %c = page_read %p, %page_table {tokens = [t]}
//! ```
//!
//! A function gets an input `page_table: i32[b, pages]` for each batch that its states have, which is one; so do its callers.

use crate::rebuild::{free_name, ill_typed, push_op, without_dead};
use eva_ir::diag::Diag;
use eva_ir::dim::Dim;
use eva_ir::entity::{Arena, Entity};
use eva_ir::graph::{Def, Func, Function, Module, ParamKind, Value, ValueData, call_type};
use eva_ir::ops::{Op, page_read::PageRead, page_write::PageWrite};
use eva_ir::types::{DType, TensorType};
use eva_ir::verify::{StateResults, state_results};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A parameter of a rewritten function.
enum Param {
    /// The old function's of this number.
    Old(usize),
    /// The table for this batch.
    Table(Dim),
}

/// The extents that pages bring.
struct Extents {
    /// Pages in a pool.
    pool: Dim,
    /// Pages of a sequence that a table has room for.
    pages: Dim,
    /// Rows of a page.
    rows: i64,
}

/// The module with its states in pages of `rows` tokens.
pub(super) fn rewrite(module: &Module, rows: usize) -> Result<Module, Diag> {
    let tables = state_results(module);
    let mut new = Module { dims: module.dims.clone(), kv_budget: module.kv_budget, ..Module::default() };
    let mut declare = |name: &str| {
        let taken = |name: &str| module.dims.iter().any(|(sym, _)| sym.as_str() == name);
        let name = free_name(name, 1, |name| !taken(name));
        new.dims.push((name.as_str().into(), None));
        Dim::sym(&name)
    };
    let (pool, pages) = (declare("pool"), declare("pages"));
    let rows = i64::try_from(rows).ok().filter(|rows| *rows > 0);
    let rows = rows.ok_or_else(|| Diag::new("eva::pages", "a page has one row at least"))?;
    let extents = Extents { pool, pages, rows };
    let mut signatures: Arena<Func, Option<Vec<Param>>> = Arena::default();
    for (func, f) in module.funcs.iter() {
        let in_pages: HashSet<Value> =
            super::caches(module, f).filter(|&param| !is_pool(module, func, param)).collect();
        if in_pages.is_empty() {
            new.funcs.push(f.clone());
            signatures.push(None);
            continue;
        }
        if !f.alternatives.is_empty() {
            let message = format!("@{} has alternatives, and its states cannot be put in pages", f.name);
            return Err(Diag::new("eva::pages", message));
        }
        let writer = Writer {
            f,
            new: &new,
            states: &tables,
            signatures: &signatures,
            extents: &extents,
            to: Function::new(&f.name),
            taken: f.values.iter().map(|(_, data)| data.name.clone()).collect(),
            map: HashMap::new(),
            pools: HashMap::new(),
            reads: HashMap::new(),
            tables: Vec::new(),
        };
        let (function, signature) = writer.run(&in_pages)?;
        new.funcs.push(Arc::new(function));
        signatures.push(Some(signature));
    }
    Ok(new)
}

/// Whether a state is in pages already.
fn is_pool(module: &Module, func: Func, state: Value) -> bool {
    let f = &module.funcs[func];
    f.values.iter().any(|(_, data)| match &data.def {
        Def::Op(Op::PageWrite(_), args) => args[0] == state,
        Def::Call(callee, args) => {
            args.iter().enumerate().any(|(i, arg)| *arg == state && is_pool(module, *callee, Value::new(i)))
        }
        _ => false,
    })
}

struct Writer<'a> {
    f: &'a Function,
    new: &'a Module,
    states: &'a Arena<Func, StateResults>,
    signatures: &'a Arena<Func, Option<Vec<Param>>>,
    extents: &'a Extents,
    to: Function,
    taken: HashSet<String>,
    map: HashMap<Value, Value>,
    /// The pool of each version of a state.
    pools: HashMap<Value, Value>,
    /// The tokens of each version that something reads.
    reads: HashMap<Value, Value>,
    tables: Vec<(Dim, Value)>,
}

impl Writer<'_> {
    fn run(mut self, in_pages: &HashSet<Value>) -> Result<(Function, Vec<Param>), Diag> {
        let mut batches: Vec<Dim> = Vec::new();
        for (param, _) in self.f.params().filter(|(param, _)| in_pages.contains(param)) {
            let batch = &self.shape(param)[0];
            if !batches.contains(batch) {
                batches.push(batch.clone());
            }
        }
        let mut signature = Vec::new();
        let params: Vec<(Value, ParamKind)> = self.f.params().collect();
        let inputs = params.iter().take_while(|(_, kind)| *kind == ParamKind::Input).count();
        for i in 0..=params.len() {
            if i == inputs {
                for batch in &batches {
                    let name = self.free("page_table");
                    let ty = TensorType::new(DType::I32, [batch.clone(), self.extents.pages.clone()]);
                    let table = self.to.param(ParamKind::Input, &name, ty);
                    self.tables.push((batch.clone(), table));
                    signature.push(Param::Table(batch.clone()));
                }
            }
            let Some(&(param, _)) = params.get(i) else { break };
            signature.push(Param::Old(i));
            let mut data = self.f.values[param].clone();
            let paged = in_pages.contains(&param);
            if paged {
                let ty = self.f.tensor(param).expect("states are tensors");
                let first = [self.extents.pool.clone(), Dim::from(self.extents.rows)];
                data.ty = ty.with_shape(first.into_iter().chain(ty.shape[2..].iter().cloned())).into();
            }
            let new = self.to.values.push(data);
            if paged {
                self.pools.insert(param, new)
            } else {
                self.map.insert(param, new)
            };
        }
        for (value, data) in self.f.values.iter() {
            match &data.def {
                Def::Param(_) => {}
                Def::Op(Op::CacheWrite(_), args) if self.pools.contains_key(&args[0]) => {
                    let table = self.table(args[0]);
                    let operands = [self.pools[&args[0]], self.get(args[1])?, table, self.get(args[2])?];
                    let new = self.op(data.name.clone(), PageWrite {}, &operands, value)?;
                    self.pools.insert(value, new);
                }
                Def::Op(Op::Get(get), args) if self.is_state(args[0], get.index as usize) => {
                    let new = self.op(data.name.clone(), get.clone(), &[self.map[&args[0]]], value)?;
                    self.pools.insert(value, new);
                }
                Def::Op(op, args) => {
                    let args = args.iter().map(|&arg| self.get(arg)).collect::<Result<Vec<_>, _>>()?;
                    let new = self.op(data.name.clone(), op.clone(), &args, value)?;
                    self.map.insert(value, new);
                }
                Def::Call(callee, args) => self.call(value, *callee, args)?,
            }
        }
        for result in &self.f.results {
            let new = match self.pools.get(result) {
                Some(&pool) => pool,
                None => self.map[result],
            };
            self.to.results.push(new);
        }
        Ok((without_dead(&self.to), signature))
    }

    fn shape(&self, value: Value) -> &[Dim] {
        &self.f.tensor(value).expect("states are tensors").shape
    }

    fn table(&self, state: Value) -> Value {
        let batch = &self.shape(state)[0];
        let found = self.tables.iter().find(|(other, _)| other == batch);
        found.expect("there is a table for the batch of each state").1
    }

    fn free(&mut self, base: &str) -> String {
        let name = free_name(base, 1, |name| !self.taken.contains(name));
        self.taken.insert(name.clone());
        name
    }

    fn op(&mut self, name: String, op: impl Into<Op>, args: &[Value], source: Value) -> Result<Value, Diag> {
        push_op(&mut self.to, self.f, name, op, args, source).map_err(|e| ill_typed("cache", e))
    }

    /// A value, which may be the tokens of a state.
    fn get(&mut self, value: Value) -> Result<Value, Diag> {
        let Some(&pool) = self.pools.get(&value) else { return Ok(self.map[&value]) };
        if let Some(&read) = self.reads.get(&value) {
            return Ok(read);
        }
        let name = self.free(&format!("{}.tokens", self.f.values[value].name));
        let (tokens, table) = (self.shape(value)[1].clone(), self.table(value));
        let read = self.op(name, PageRead { tokens }, &[pool, table], value)?;
        self.reads.insert(value, read);
        Ok(read)
    }

    /// Whether part `index` of `tuple` is a state that is in pages now.
    fn is_state(&self, tuple: Value, index: usize) -> bool {
        let Def::Call(callee, args) = &self.f.values[tuple].def else { return false };
        let state = self.states[*callee].iter().find(|(_, result)| *result == Some(index));
        state.is_some_and(|(param, _)| self.pools.contains_key(&args[param.index()]))
    }

    fn call(&mut self, value: Value, callee: Func, args: &[Value]) -> Result<(), Diag> {
        let data = &self.f.values[value];
        let signatures = self.signatures;
        let new_args: Vec<Value> = match &signatures[callee] {
            None => args.iter().map(|&arg| self.get(arg)).collect::<Result<_, _>>()?,
            Some(signature) => {
                let mut new = Vec::with_capacity(signature.len());
                for param in signature {
                    new.push(match param {
                        Param::Old(i) => match self.pools.get(&args[*i]) {
                            Some(&pool) => pool,
                            None => self.map[&args[*i]],
                        },
                        Param::Table(batch) => {
                            let found = self.tables.iter().find(|(other, _)| other == batch);
                            found.expect("a caller has the states of what it calls").1
                        }
                    });
                }
                new
            }
        };
        let ty = call_type(&self.new.funcs[callee], &self.to.values, &new_args)
            .map_err(|e| ill_typed("cache", e))?;
        let single = ty.tensor().is_some();
        let def = Def::Call(callee, new_args);
        let new = self.to.values.push(ValueData { name: data.name.clone(), ty, def, loc: data.loc });
        let state = self.states[callee].iter().find(|(_, result)| single && *result == Some(0));
        match state {
            Some((param, _)) if self.pools.contains_key(&args[param.index()]) => {
                self.pools.insert(value, new)
            }
            _ => self.map.insert(value, new),
        };
        Ok(())
    }
}
