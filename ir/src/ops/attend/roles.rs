//! The axes of an attention, what its operands must be, and its scores by definition.

use crate::attr::{Axis, Real, Spec};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::op::{OpDef, TypeError};
use crate::ops::einsum::{Einsum, extents, same_dtype};
use crate::ops::pointwise;
use crate::poly::Amount;
use crate::types::{DType, TensorType};

/// What each axis of an attention does.
pub struct Roles {
    pub batch: Axis,
    pub query: Axis,
    pub key: Axis,
    pub value: Axis,
    /// The summed axis of each pair.
    pub summed: Vec<Axis>,
    /// The rest of the result's axes.
    pub heads: Vec<Axis>,
}

impl Roles {
    /// The roles of the axes of `spec`; or why it is not an attention.
    pub fn of(spec: &Spec) -> Result<Self, String> {
        let Spec { inputs, out, .. } = spec;
        let bad = |why: &str| format!("\"{spec}\" is not an attention: {why}");
        if inputs.len() < 3 || inputs.len().is_multiple_of(2) {
            return Err(bad("it takes pairs of queries and keys, then values"));
        }
        let (values, pairs) = inputs.split_last().expect("there are three operands");
        let [batch, query, ..] = out[..] else { return Err(bad("the result needs a batch and new tokens")) };
        let own: Vec<Axis> = values.iter().copied().filter(|a| !out.contains(a)).collect();
        let &[key] = own.as_slice() else { return Err(bad("the values need one axis of keys")) };
        let mut summed = Vec::new();
        for pair in pairs.chunks(2) {
            let (q, k) = (&pair[0], &pair[1]);
            let inner: Vec<Axis> = q.iter().copied().filter(|a| k.contains(a) && !out.contains(a)).collect();
            let &[inner] = inner.as_slice() else { return Err(bad("a pair must have one summed axis")) };
            let fits = q.contains(&query)
                && !k.contains(&query)
                && k.contains(&key)
                && !q.contains(&key)
                && q.contains(&batch)
                && k.contains(&batch)
                && q.iter().all(|a| *a == inner || out.contains(a))
                && k.iter().all(|a| *a == inner || *a == key || (out.contains(a) && *a != query));
            if !fits {
                return Err(bad("a pair's axes do not fit the result's"));
            }
            summed.push(inner);
        }
        let in_queries = |axis: &Axis| pairs.iter().step_by(2).any(|q| q.contains(axis));
        let value: Vec<Axis> = out.iter().copied().filter(|a| !in_queries(a)).collect();
        let &[value] = value.as_slice() else { return Err(bad("the values need one axis of their own")) };
        if !values.contains(&batch)
            || !values.contains(&value)
            || values.contains(&query)
            || out.last() != Some(&value)
        {
            return Err(bad("the values' axes do not fit the result's"));
        }
        let heads: Vec<Axis> = out.iter().copied().filter(|a| ![batch, query, value].contains(a)).collect();
        if !heads.iter().all(|h| pairs.iter().step_by(2).all(|q| q.contains(h))) {
            return Err(bad("every query needs the result's heads"));
        }
        Ok(Roles { batch, query, key, value, summed, heads })
    }

    /// The axes of the scores: batch, heads, new tokens, keys.
    pub fn scores(&self) -> Vec<Axis> {
        [&self.sums()[..], &[self.key]].concat()
    }

    /// The axes of what there is of each row of the scores.
    pub fn sums(&self) -> Vec<Axis> {
        [&[self.batch], &self.heads[..], &[self.query]].concat()
    }
}

/// The type rule that all ops of attention share, for the pairs, the values and `start`: the element type, the extent
/// of each axis, and what each axis does.
pub fn operands(spec: &Spec, args: &[&TensorType]) -> Result<(DType, Vec<Dim>, Roles), TypeError> {
    let n = spec.inputs.len();
    let Some((start, tensors)) = args.get(..=n).and_then(|args| args.split_last()) else {
        let message = format!("\"{spec}\" is for {n} operands and `start`, but there are {}", args.len());
        return Err(TypeError::new(message));
    };
    let extents = extents(spec, tensors)?;
    let dtype = same_dtype(tensors)?;
    let roles = Roles::of(spec).map_err(TypeError::new)?;
    if !start.dtype.is_int() || start.shape.as_slice() != [extents[roles.batch as usize].clone()] {
        let message = format!("`start` must be i32[{}], not {start}", extents[roles.batch as usize]);
        return Err(TypeError::new(message).at(n));
    }
    Ok((dtype, extents, roles))
}

/// Operations of the products of scores and of the values' sum, of what is seen.
pub fn flops<N: Amount>(spec: &Spec, args: &[&TensorType], size: &dyn Fn(&TensorType) -> N) -> [N; 2] {
    let zero = || [N::from(0.0), N::from(0.0)];
    let Ok(extents) = extents(spec, &args[..spec.inputs.len()]) else { return zero() };
    // No more keys than new tokens: none came before them, and each sees half of them or so.
    let half =
        Roles::of(spec).is_ok_and(|roles| extents[roles.query as usize] == extents[roles.key as usize]);
    let product = |axes: &[Axis]| {
        let mut all = axes.to_vec();
        all.sort();
        all.dedup();
        N::from(if half { 1.0 } else { 2.0 })
            * size(&args[0].with_shape(all.iter().map(|&a| extents[a as usize].clone())))
    };
    let (values, pairs) = spec.inputs.split_last().expect("there are operands");
    let scores = pairs.chunks(2).fold(N::from(0.0), |sum, pair| sum + product(&pair.concat()));
    [scores, product(&[values.as_slice(), &spec.out].concat())]
}

/// A product of arrays, whose axes are those of `spec`.
pub fn einsum(spec: &Spec, sizes: &Sizes, inputs: &[&[Axis]], out: &[Axis], args: &[&Array]) -> Array {
    let spec = Spec::new(inputs, out, |axis| spec.letter(axis));
    Einsum { spec }.eval(sizes, args).remove(0)
}

/// The scaled scores, by their definition.
pub fn scores(spec: &Spec, scale: Real, roles: &Roles, sizes: &Sizes, tensors: &[&Array]) -> Array {
    let axes = roles.scores();
    let pairs = spec.inputs.chunks_exact(2).zip(tensors.chunks_exact(2));
    let parts = pairs.map(|(pair, args)| einsum(spec, sizes, &[&pair[0], &pair[1]], &axes, args));
    let sum = parts.reduce(|sum, part| pointwise::zip(&sum, &part, |a, b| a + b));
    sum.expect("there is a pair").map(|x| x * scale.get())
}

/// How many keys each row of the scores sees, row by row.
pub fn seen<'a>(scores: &'a Array, start: &'a Array) -> impl Iterator<Item = usize> + 'a {
    let [.., s, t] = scores.shape[..] else { unreachable!("scores have new tokens and keys") };
    let rows_per_batch = scores.shape[1..scores.rank() - 1].iter().product::<usize>();
    let rows = scores.shape[..scores.rank() - 1].iter().product::<usize>();
    (0..rows).map(move |r| {
        let last = start.data[r / rows_per_batch] as i64 + (r % s) as i64;
        usize::try_from(last + 1).unwrap_or(0).min(t)
    })
}
