//! One function backwards: the joint graph of what it computes and of its gradients.

use super::active::Active;
use super::{GRADIENT, Pair};
use crate::rebuild::ill_typed;
use eva_ir::diag::Diag;
use eva_ir::entity::Entity;
use eva_ir::graph::{Def, Func, Module, ParamKind, Value, ValueData, call_type};
use eva_ir::op::TypeError;
use eva_ir::ops::{Op, add::Add, get::Get};
use eva_ir::vjp::{Growing, NoGradient, Vjp, gradient_type};
use std::collections::HashMap;

/// What a function computes and its gradients, in one graph. Its parameters are not in front.
pub(super) struct Joint {
    pub grown: Growing,
    /// Each value of the function, in its order.
    pub forward: Vec<Value>,
    /// The parameters, and the results.
    pub params: Vec<Value>,
    pub results: Vec<Value>,
    /// The parameters that gradients of results come in by, one for each of the results that have one.
    pub seeds: Vec<Value>,
    pub seeded: Vec<usize>,
    /// The number and the name of each parameter that is differentiated by, and its gradient if there is one.
    pub gradients: Vec<(usize, String, Option<Value>)>,
}

/// A mistake of the pass's own.
pub(super) fn internal(error: TypeError) -> Diag {
    ill_typed("grad", error)
}

/// The joint graph of `func`, whose callees are `pairs` in `new`.
pub(super) fn reverse(
    new: &Module,
    module: &Module,
    func: Func,
    params: &[bool],
    seeds: &[usize],
    active: &Active<'_>,
    pairs: &HashMap<Func, Pair>,
) -> Result<Joint, Diag> {
    let f = &module.funcs[func];
    let mut grown = Growing::new(Default::default());
    let mut map: Vec<Value> = Vec::with_capacity(f.values.len());

    // Forwards: as it was, but for calls of what has been differentiated.
    for (_, data) in f.values.iter() {
        let args = |args: &[Value]| args.iter().map(|arg| map[arg.index()]).collect::<Vec<_>>();
        let copy = |def: Def| ValueData { def, ..data.clone() };
        let value = match &data.def {
            Def::Param(kind) => grown.push(copy(Def::Param(*kind))),
            Def::Call(callee, old) if pairs.contains_key(callee) => {
                let (pair, args) = (&pairs[callee], args(old));
                let forward = &new.funcs[pair.forward];
                let ty = call_type(forward, &grown.function.values, &args).map_err(internal)?;
                let call = grown.push(ValueData { ty, ..copy(Def::Call(pair.forward, args)) });
                match pair.wrapped {
                    true => grown.op(&data.name, Get { index: 0 }, &[call], call).map_err(internal)?,
                    false => call,
                }
            }
            Def::Call(callee, old) => grown.push(copy(Def::Call(*callee, args(old)))),
            Def::Op(op, old) => grown.push(copy(Def::Op(op.clone(), args(old)))),
        };
        map.push(value);
    }
    let results: Vec<Value> = f.results.iter().map(|result| map[result.index()]).collect();
    let params_at: Vec<Value> = f.params().map(|(param, _)| map[param.index()]).collect();

    // Backwards.
    let mut r = Reverse { new, pairs, grown, shares: HashMap::new() };
    let mut seed_values = Vec::new();
    for &i in seeds {
        let data = &r.grown.function.values[results[i]];
        let ty = gradient_type(data.ty.tensor().expect("results are tensors"));
        let (name, loc) = (format!("{}{GRADIENT}", data.name), data.loc);
        let def = Def::Param(ParamKind::Input);
        let seed = r.grown.push(ValueData { name, ty: ty.into(), def, loc });
        r.add(results[i], 0, seed)?;
        seed_values.push(seed);
    }
    let parts = active.parts(func, params);
    let old_of: HashMap<Value, usize> = map.iter().enumerate().map(|(i, &value)| (value, i)).collect();
    let wanted = |arg: Value| old_of.get(&arg).is_none_or(|&old| parts[old].iter().any(|&part| part));
    for index in (0..r.grown.function.values.len()).rev() {
        r.back(Value::new(index), &wanted)?;
    }
    let mut gradients = Vec::new();
    for (i, &param) in params_at.iter().enumerate().filter(|(i, _)| params[*i]) {
        let gradient = r.take(param, 1)[0];
        gradients.push((i, r.grown.function.values[param].name.clone(), gradient));
    }
    Ok(Joint {
        grown: r.grown,
        forward: map,
        params: params_at,
        results,
        seeds: seed_values,
        seeded: seeds.to_vec(),
        gradients,
    })
}

struct Reverse<'a> {
    new: &'a Module,
    pairs: &'a HashMap<Func, Pair>,
    grown: Growing,
    /// The gradients of parts of values, as far as they have come together.
    shares: HashMap<(Value, usize), Value>,
}

impl Reverse<'_> {
    /// One more share of the gradient of a part of a value.
    fn add(&mut self, value: Value, part: usize, share: Value) -> Result<(), Diag> {
        let sum = match self.shares.get(&(value, part)) {
            None => share,
            Some(&sum) => {
                let base = format!("{}{GRADIENT}", self.grown.function.values[value].name);
                self.grown.op(&base, Add {}, &[sum, share], value).map_err(internal)?
            }
        };
        self.shares.insert((value, part), sum);
        Ok(())
    }

    /// The gradients of the parts of a value.
    fn take(&mut self, value: Value, parts: usize) -> Vec<Option<Value>> {
        (0..parts).map(|part| self.shares.remove(&(value, part))).collect()
    }

    /// Hands the gradient of `value` on to what it was made of.
    fn back(&mut self, value: Value, wanted: &dyn Fn(Value) -> bool) -> Result<(), Diag> {
        let data = &self.grown.function.values[value];
        let (def, loc, parts) = (data.def.clone(), data.loc, data.ty.parts().len());
        // Those of parameters stay where they are, until the end.
        let grads = if matches!(def, Def::Param(_)) { Vec::new() } else { self.take(value, parts) };
        if grads.iter().all(Option::is_none) {
            return Ok(());
        }
        let (op, args) = match def {
            Def::Param(_) => return Ok(()),
            Def::Op(Op::Get(Get { index }), args) => {
                return grads[0].map_or(Ok(()), |g| self.add(args[0], index as usize, g));
            }
            Def::Call(callee, args) => return self.back_call(value, callee, &args, &grads),
            Def::Op(op, args) => (op, args),
        };
        let wants: Vec<bool> = args.iter().map(|&arg| wanted(arg)).collect();
        let shares = op.vjp(&mut Vjp::new(&mut self.grown, value, grads, wants.clone()));
        let shares = shares.map_err(|error| match error {
            NoGradient::Rule(_) => Diag::new("eva::internal", format!("`{}`: {error}", op.kind().name())),
            _ => {
                let name = &self.grown.function.values[value].name;
                let message = format!("{error}, but the gradient of `{name}` is wanted");
                let help = "leave out of the loss what has no gradient, or name the weights that gradients are wanted of";
                Diag::new("eva::gradient", message).label(loc, "here").help(help)
            }
        })?;
        for ((&arg, share), wants) in args.iter().zip(shares).zip(wants) {
            let Some(share) = share.filter(|_| wants) else { continue };
            let (want, have) = (self.grown.function.tensor(arg), self.grown.function.tensor(share));
            if want.map(gradient_type).as_ref() != have {
                let message = format!("the gradient rule of `{}` gives another type", op.kind().name());
                return Err(Diag::new("eva::internal", message).label(loc, "here"));
            }
            self.add(arg, 0, share)?;
        }
        Ok(())
    }

    /// The same of a call: by the backward function of what it calls.
    fn back_call(
        &mut self,
        call: Value,
        callee: Func,
        args: &[Value],
        grads: &[Option<Value>],
    ) -> Result<(), Diag> {
        let Some(pair) = self.pairs.values().find(|pair| pair.forward == callee) else { return Ok(()) };
        let name = self.grown.function.values[call].name.clone();
        let mut given: Vec<Value> = pair.needed.iter().map(|&i| args[i]).collect();
        for &i in &pair.saved {
            let saved = self.grown.op(&format!("{name}.saved"), Get { index: i as i64 }, &[call], call);
            given.push(saved.map_err(internal)?);
        }
        for &i in &pair.seeds {
            given.push(match grads[i] {
                Some(grad) => grad,
                None => {
                    let ty = gradient_type(&self.grown.function.values[call].ty.parts()[i]);
                    self.grown.full(&format!("{name}{GRADIENT}"), 0.0, &ty, call).map_err(internal)?
                }
            });
        }
        let backward = &self.new.funcs[pair.backward];
        let ty = call_type(backward, &self.grown.function.values, &given).map_err(internal)?;
        let (name, loc) = (format!("{name}{GRADIENT}"), self.grown.function.values[call].loc);
        let def = Def::Call(pair.backward, given);
        let back = self.grown.push(ValueData { name: name.clone(), ty, def, loc });
        for (part, &param) in pair.gradients.iter().enumerate() {
            let share = match pair.gradients.len() {
                1 => back,
                _ => self.grown.op(&name, Get { index: part as i64 }, &[back], back).map_err(internal)?,
            };
            self.add(args[param], 0, share)?;
        }
        Ok(())
    }
}
