//! Which values are stored, and which are computed inside the kernels that use them.
//!
//! Stored are: results, what calls and products take, what several ops use (unless it is only a wider
//! reading of a stored tensor), and what a kernel of its own computes. Where an op can look up the rows of what it takes, the
//! tensor that they are of is stored in place of them. Behind an op with its own loops
//! comes a *chain*: element-wise ops of the same shape, each the only user of the one before.

use crate::target::Machine;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Function, Module, Uses, Value};
use eva_ir::lower::Lowering;
use eva_ir::ops::Op;
use eva_ir::types::DType;
use std::collections::{HashMap, HashSet};

mod state;

/// The decisions for one function.
pub struct Fusion {
    stored: Vec<bool>,
    /// The ops fused behind each op with loops of its own, in order.
    chains: HashMap<Value, Vec<Value>>,
    /// The op with loops behind which each value is fused.
    root_of: HashMap<Value, Value>,
    /// The op that quantizes what a chain ends with, in its kernel.
    quantized: HashMap<Value, Value>,
    /// New values of states that are computed where the states are; the version that each replaces.
    in_place: HashMap<Value, Value>,
    /// Views of old versions of states that are read when those are there no more.
    copied: HashSet<Value>,
    /// Transpositions that are a part of the kernel that quantizes what they give.
    turned: HashSet<Value>,
    uses: Uses,
}

/// Whether `op` only reads a tensor in memory as a wider float, which a product does as it loads.
pub fn widens(f: &Function, op: &Op, args: &[Value]) -> bool {
    let Op::Cast(cast) = op else { return false };
    let from = args.first().and_then(|&arg| f.tensor(arg)).map(|ty| ty.dtype);
    cast.to == DType::F32 && matches!(from, Some(DType::Bf16 | DType::F16 | DType::F32))
}

/// What must be in memory for rows of `value` to be read where they are, if it is rows of another tensor.
fn rows_of(f: &Function, value: Value) -> Option<&[Value]> {
    match &f.values[value].def {
        Def::Op(Op::Dispatch(_), args) => Some(args),
        _ => None,
    }
}

/// The axis along which elements of a transposition are neighbours in memory, if that is not the last one.
pub fn neighbours(def: &Def) -> Option<usize> {
    let Def::Op(Op::Einsum(einsum), args) = def else { return None };
    let last = einsum.spec.inputs[0].last().filter(|_| args.len() == 1)?;
    einsum.spec.out.iter().position(|axis| axis == last)
}

impl Fusion {
    /// Decides for every value of `f`.
    ///
    /// On a GPU what is quantized is transposed there, too: threads read neighbours in one order and write neighbours in the
    /// other.
    pub fn new(module: &Module, f: &Function, machine: &Machine) -> Self {
        let mut this = Self {
            stored: vec![false; f.values.len()],
            chains: HashMap::new(),
            root_of: HashMap::new(),
            quantized: HashMap::new(),
            in_place: HashMap::new(),
            copied: HashSet::new(),
            turned: HashSet::new(),
            uses: f.uses(),
        };
        this.store_what_must_be(f);
        if !matches!(machine, Machine::Cpu) {
            this.find_turned(f);
        }
        state::keep_old_versions(&mut this, module, f);
        this.find_chains(module, f, machine);
        this
    }

    /// The op that quantizes `last`, in the kernel that computes it.
    pub fn quantized(&self, last: Value) -> Option<Value> {
        self.quantized.get(&last).copied()
    }

    /// The version of a state in whose memory `value` is computed, being what replaces it.
    pub fn in_place(&self, value: Value) -> Option<Value> {
        self.in_place.get(&value).copied()
    }

    /// Whether a view of other memory must be a copy.
    pub fn is_copied(&self, value: Value) -> bool {
        self.copied.contains(&value)
    }

    /// Whether the value is a transposition that is a part of the kernel that uses it.
    pub fn is_turned(&self, value: Value) -> bool {
        self.turned.contains(&value)
    }

    /// Whether the value is in memory by the time it is used.
    pub fn is_stored(&self, value: Value) -> bool {
        self.stored[value.index()]
    }

    /// Whether the value is used by calls alone.
    pub fn is_passed_on(&self, f: &Function, value: Value) -> bool {
        self.uses.of(value).iter().all(|&(user, _)| matches!(f.values[user].def, Def::Call(..)))
    }

    /// Whether a call takes the value, or whoever has called.
    pub fn is_handed_over(&self, f: &Function, value: Value) -> bool {
        let called = |&(user, _): &(Value, usize)| matches!(f.values[user].def, Def::Call(..));
        f.results.contains(&value) || self.uses.of(value).iter().any(called)
    }

    /// The ops fused behind `root`, which has loops of its own.
    pub fn chain_of(&self, root: Value) -> Option<&[Value]> {
        self.chains.get(&root).map(Vec::as_slice)
    }

    /// The op with loops, and the chain behind it, whose last op is `value`.
    pub fn chain_ending_at(&self, value: Value) -> Option<(Value, Vec<Value>)> {
        let root = *self.root_of.get(&value)?;
        let chain = &self.chains[&root];
        (chain.last() == Some(&value)).then(|| (root, chain.clone()))
    }

    /// The result that `value` is, or that it becomes by reshapes alone; its buffer can be computed into.
    pub fn result_slot(&self, f: &Function, value: Value) -> Option<usize> {
        if let Some(i) = f.results.iter().position(|&v| v == value) {
            return Some(i);
        }
        match *self.uses.of(value) {
            [(user, _)] if matches!(f.values[user].def, Def::Op(Op::Reshape(_), _)) => {
                self.result_slot(f, user)
            }
            _ => None,
        }
    }

    fn store_what_must_be(&mut self, f: &Function) {
        let mut store = f.results.clone();
        for (value, data) in f.values.iter() {
            match &data.def {
                Def::Param(_) => store.push(value),
                Def::Call(_, args) => {
                    store.push(value);
                    store.extend(args);
                }
                Def::Op(op, args) => {
                    for (i, &arg) in args.iter().enumerate() {
                        let scaled = |v: Value| f.tensor(v).is_some_and(|ty| ty.scales.is_some());
                        if op.lowering() == Lowering::Alias {
                            store.push(arg);
                        } else if op.lowering() == Lowering::View && scaled(value) && scaled(arg) {
                            // Codes and scales are moved by kernels of their own.
                            store.push(arg);
                        } else if let Some(parts) = rows_of(f, arg).filter(|_| op.in_rows(i)) {
                            store.extend(parts.iter().map(|&part| self.behind_widening(f, part)));
                        } else if op.in_memory(i) {
                            store.push(self.behind_widening(f, arg));
                        }
                    }
                    let many =
                        self.uses.of(value).len() + f.results.iter().filter(|&&r| r == value).count() > 1;
                    match op.lowering() {
                        Lowering::Alias | Lowering::Constant => store.push(value),
                        _ if many && widens(f, op, args) => store.push(args[0]),
                        // Cheaper made again than read.
                        _ if many && matches!(op, Op::Full(_)) => {}
                        _ if many => store.push(value),
                        _ => {}
                    }
                }
            }
        }
        store.iter().for_each(|v| self.stored[v.index()] = true);
    }

    /// The value itself, or what it reads as a wider float.
    fn behind_widening(&self, f: &Function, value: Value) -> Value {
        match &f.values[value].def {
            Def::Op(op, args) if widens(f, op, args) => args[0],
            _ => value,
        }
    }

    /// Finds transpositions that only an op that quantizes uses: of matrices, whatever axes come before.
    fn find_turned(&mut self, f: &Function) {
        for (value, data) in f.values.iter() {
            let Def::Op(Op::Einsum(einsum), args) = &data.def else { continue };
            let (spec, user) = (&einsum.spec, self.uses.of(value));
            let quantized =
                matches!(user, [(user, _)] if matches!(f.values[*user].def, Def::Op(Op::Quantize(_), _)));
            let turns = args.len() == 1
                && spec.out.len() == spec.inputs[0].len()
                && neighbours(&data.def).is_some_and(|axis| axis + 2 == spec.out.len());
            let plain = f.tensor(value).is_some_and(|ty| ty.scales.is_none());
            if turns && quantized && plain && !self.stored[value.index()] {
                self.store_views(f, args[0]);
                self.turned.insert(value);
            }
        }
    }

    fn find_chains(&mut self, module: &Module, f: &Function, machine: &Machine) {
        for (root, data) in f.values.iter() {
            let Def::Op(op, args) = &data.def else { continue };
            if op.lowering() != Lowering::Kernel || self.turned.contains(&root) {
                continue;
            }
            // Sums ask for tiles of several rows, and transpositions for columns of others, which re-indexing ops cannot give.
            if let (Op::Einsum(einsum), &[x]) = (op, args.as_slice())
                && (einsum.spec.out.len() < einsum.spec.inputs[0].len()
                    || neighbours(&data.def).is_some_and(|axis| axis + 1 < einsum.spec.out.len()))
            {
                self.store_views(f, x);
            }
            let mut chain = Vec::new();
            let mut last = root;
            while !self.stored[last.index()] && data.ty.tensor().is_some() && !op.updates_state() {
                let [(user, _)] = *self.uses.of(last) else { break };
                let Def::Op(next, args) = &f.values[user].def else { break };
                let same_shape = f.tensor(user).map(|ty| &ty.shape) == f.tensor(root).map(|ty| &ty.shape);
                if next.lowering() != Lowering::Pointwise || !same_shape || self.root_of.contains_key(&user) {
                    break;
                }
                // A tile of several rows is asked of the other operands, which re-indexing ops cannot give.
                for &arg in args.iter().filter(|&&arg| arg != last) {
                    self.store_views(f, arg);
                }
                self.root_of.insert(user, root);
                chain.push(user);
                last = user;
            }
            self.stored[last.index()] = true;
            if op.emits_rows() && !self.in_place.contains_key(&last) {
                self.find_quantized(module, f, last, machine);
            }
            self.chains.insert(root, chain);
        }
        // An op that computes several results, or one that a chain passes through, is not stored itself.
        for chain in self.chains.iter() {
            let through = std::iter::once(chain.0).chain(chain.1);
            let n = chain.1.len();
            through.take(n).for_each(|v| self.stored[v.index()] = false);
        }
    }

    /// Has `last`, whose rows are computed whole, quantized where it is computed; it is stored if others use it, too.
    ///
    /// A GPU's threads have the columns of such a row by digits of their number, which a block's length must not cut.
    fn find_quantized(&mut self, module: &Module, f: &Function, last: Value, machine: &Machine) {
        let constant = |dim: &_| module.constant(dim);
        let whole = f.tensor(last).and_then(|ty| constant(ty.shape.last()?)).unwrap_or(0) as usize;
        let suits = |n: usize| match machine {
            Machine::Cpu => true,
            Machine::Hopper(_) => n.is_power_of_two() || n == whole,
        };
        let quantizes = |user: Value| match (&f.values[user].def, f.tensor(user)) {
            (Def::Op(Op::Quantize(op), _), Some(ty)) => op.blocks_of_rows(ty, &constant).is_some_and(suits),
            _ => false,
        };
        let users = self.uses.of(last);
        let Some(&(user, _)) = users.iter().find(|(user, _)| quantizes(*user)) else { return };
        self.quantized.insert(last, user);
        self.stored[last.index()] = users.len() > 1 || f.results.contains(&last);
    }

    /// Stores the re-indexing ops among the unstored ops before `value`.
    fn store_views(&mut self, f: &Function, value: Value) {
        if self.stored[value.index()] {
            return;
        }
        let Def::Op(op, args) = &f.values[value].def else { return };
        match op.lowering() {
            Lowering::Pointwise => args.iter().for_each(|&arg| self.store_views(f, arg)),
            _ => self.stored[value.index()] = true,
        }
    }
}
