//! `einsum`: the only contraction in the graph IR.

use crate::attr::{Axis, Spec};
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::build::Tile;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::poly::Amount;
use crate::types::{DType, Shape, TensorType, Type};
use crate::vjp::{Shares, Vjp};

pub(super) mod codes;
mod product;
mod scaled;
pub mod sums;

pub use product::join_parts;

op! {
    /// Multiplies tensors along shared axes and sums the axes missing from the result.
    ///
    /// Every projection and both attention products are einsums, so that one associativity rule covers
    /// them all; a transposition is an einsum of one operand.
    "einsum" => Einsum(; x...) {
        /// Which axes meet, and which stay.
        spec: Spec,
    }
}

/// The extent of each axis of `spec`, or what does not fit.
pub(super) fn extents(spec: &Spec, args: &[&TensorType]) -> Result<Vec<Dim>, TypeError> {
    if spec.inputs.len() != args.len() {
        let (n, m) = (spec.inputs.len(), args.len());
        return Err(TypeError::new(format!("\"{spec}\" is for {n} operands, but there are {m}")));
    }
    let mut extents: Vec<Option<(Dim, usize)>> = vec![None; spec.axes()];
    for (i, (ty, axes)) in args.iter().zip(&spec.inputs).enumerate() {
        if ty.rank() != axes.len() {
            let letters: String = axes.iter().map(|&axis| spec.letter(axis)).collect();
            let message = format!("`{letters}` names {} axes, but {ty} has {}", axes.len(), ty.rank());
            return Err(TypeError::new(message).at(i));
        }
        for (&axis, dim) in axes.iter().zip(&ty.shape) {
            match &extents[axis as usize] {
                Some((other, _)) if other != dim => {
                    let letter = spec.letter(axis);
                    let message = if args.len() == 2 && i == 1 {
                        format!("axis `{letter}` is {other} on the left but {dim} on the right")
                    } else {
                        format!("axis `{letter}` is {other} before but {dim} here")
                    };
                    return Err(TypeError::new(message).at(i));
                }
                Some(_) => {}
                None => extents[axis as usize] = Some((dim.clone(), i)),
            }
        }
    }
    let missing = || {
        let axis = (0..spec.axes()).find(|&a| extents[a].is_none()).expect("one is missing") as Axis;
        TypeError::new(format!("axis `{}` of the result is in no operand", spec.letter(axis)))
    };
    let all: Option<Vec<Dim>> = extents.iter().map(|e| e.as_ref().map(|(dim, _)| dim.clone())).collect();
    all.ok_or_else(missing)
}

/// Checks that operands can be multiplied, and gives the result's element type: theirs, or `f32` for two of 8 bits or of `tf32`.
/// Of the axis `chosen`, if there is one, each term has one index.
pub(super) fn product_dtype(
    spec: &Spec,
    args: &[&TensorType],
    chosen: Option<Axis>,
) -> Result<DType, TypeError> {
    match args {
        [x, y] if x.dtype.is_f8() || y.dtype.is_f8() => scaled::product(spec, [x, y], chosen),
        [x, y] if x.dtype == DType::Tf32 && y.dtype == DType::Tf32 => Ok(DType::F32),
        [x, _, _, ..] if x.dtype == DType::Tf32 => {
            Err(TypeError::new("of tf32, two operands are multiplied at a time").help("their product is f32"))
        }
        _ => same_dtype(args),
    }
}

/// Checks that operands are floats alike, and gives their element type.
pub(super) fn same_dtype(args: &[&TensorType]) -> Result<DType, TypeError> {
    for (i, ty) in args.iter().enumerate() {
        super::pointwise::float("einsum", ty).map_err(|e| e.at(i))?;
        if ty.dtype != args[0].dtype {
            let error = TypeError::new(format!("cannot multiply {} by {}", args[0].dtype, ty.dtype)).at(i);
            return Err(
                error.help(format!("cast one side: `.cast({})`", args[0].dtype.name().to_uppercase()))
            );
        }
    }
    Ok(args[0].dtype)
}

impl OpDef for Einsum {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let extents = extents(&self.spec, args)?;
        let mut seen = vec![false; self.spec.axes()];
        for &axis in &self.spec.out {
            if std::mem::replace(&mut seen[axis as usize], true) {
                return Err(TypeError::new(format!(
                    "axis `{}` is twice in the result",
                    self.spec.letter(axis)
                )));
            }
        }
        for (i, axes) in self.spec.inputs.iter().enumerate() {
            if let Some(axis) = (0..axes.len()).find_map(|j| axes[..j].contains(&axes[j]).then_some(axes[j]))
            {
                let message = format!("axis `{}` is twice in one operand", self.spec.letter(axis));
                return Err(TypeError::new(message).at(i));
            }
        }
        let shape: Shape = self.spec.out.iter().map(|&axis| extents[axis as usize].clone()).collect();
        if let [x] = args
            && x.scales.is_some()
        {
            return scaled::transposed(&self.spec, x, shape).map(Type::from);
        }
        Ok(TensorType::new(product_dtype(&self.spec, args, None)?, shape).into())
    }

    fn flops<N: Amount>(&self, args: &[&TensorType], _: &Type, size: &dyn Fn(&TensorType) -> N) -> N {
        let Ok(extents) = extents(&self.spec, args) else { return N::from(0.0) };
        let all = TensorType::new(args[0].dtype, extents);
        size(&all) * N::from(args.len() as f64)
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let mut extent = vec![1; self.spec.axes()];
        for (axes, arg) in self.spec.inputs.iter().zip(args) {
            axes.iter().zip(&arg.shape).for_each(|(&axis, &n)| extent[axis as usize] = n);
        }
        // The distance in each operand from one index of each axis to the next.
        let step = |axes: &[Axis], arg: &Array| {
            let mut steps = vec![0; extent.len()];
            let mut step = 1;
            for (&axis, &n) in axes.iter().zip(&arg.shape).rev() {
                steps[axis as usize] = step;
                step *= n;
            }
            steps
        };
        let steps: Vec<Vec<usize>> =
            self.spec.inputs.iter().zip(args).map(|(axes, arg)| step(axes, arg)).collect();
        let summed: Vec<usize> =
            (0..extent.len()).filter(|&axis| !self.spec.out.contains(&(axis as Axis))).collect();
        let terms: usize = summed.iter().map(|&axis| extent[axis]).product();
        let shape: Vec<usize> = self.spec.out.iter().map(|&axis| extent[axis as usize]).collect();
        vec![Array::from_fn(&shape, |index| {
            let mut base = vec![0; args.len()];
            for (&axis, &i) in self.spec.out.iter().zip(index) {
                base.iter_mut().zip(&steps).for_each(|(b, s)| *b += s[axis as usize] * i);
            }
            let term = |mut k: usize| {
                let mut at = base.clone();
                for &axis in summed.iter().rev() {
                    let i = k % extent[axis];
                    k /= extent[axis];
                    at.iter_mut().zip(&steps).for_each(|(a, s)| *a += s[axis] * i);
                }
                at.iter().zip(args).map(|(&a, arg)| arg.data[a]).product::<f64>()
            };
            (0..terms).map(term).sum()
        })]
    }

    /// Each operand's share is the product of the gradient with all other operands.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        let (args, g) = (cx.all_args(), cx.grad());
        let mut shares = Vec::new();
        for (i, &arg) in args.iter().enumerate() {
            if !cx.wants(i) {
                shares.push(None);
                continue;
            }
            let dtype = cx.ty(g).dtype;
            let mut inputs: Vec<&[Axis]> = vec![&self.spec.out];
            let mut operands = vec![g];
            for (j, &other) in args.iter().enumerate().filter(|&(j, _)| j != i) {
                inputs.push(&self.spec.inputs[j]);
                operands.push(cx.cast(other, dtype)?);
            }
            // Along an axis that was summed of this operand alone, the share is the same everywhere.
            let mine = &self.spec.inputs[i];
            let lost: Vec<Axis> =
                mine.iter().copied().filter(|axis| !inputs.iter().any(|axes| axes.contains(axis))).collect();
            if !lost.is_empty() {
                let ty = cx.ty(arg);
                let extent = |axis: &Axis| mine.iter().position(|a| a == axis).map(|at| ty.shape[at].clone());
                let ones = TensorType::new(dtype, lost.iter().filter_map(extent));
                operands.push(cx.full(1.0, &ones)?);
                inputs.push(&lost);
            }
            let spec = Spec::new(&inputs, mine, |axis| self.spec.letter(axis));
            shares.push(Some(cx.op(Einsum { spec }, &operands)?));
        }
        Ok(shares)
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    fn in_memory(&self, _: usize) -> bool {
        self.spec.inputs.len() > 1
    }

    /// A transposition, as a part of another kernel.
    fn tile<'k>(&self, _: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
        let place = |axis: &Axis| self.spec.out.iter().position(|out| out == axis);
        let ([x], [axes]) = (args, &self.spec.inputs[..]) else {
            return Err(LowerError::new("a product has loops of its own"));
        };
        let coords: Option<Vec<Coord<'k>>> = axes.iter().map(|axis| Some(at.coords[place(axis)?])).collect();
        let coords = coords.ok_or_else(|| LowerError::new("a sum has loops of its own"))?;
        let limits = at
            .limits
            .iter()
            .filter_map(|&(axis, end)| Some((axes.iter().position(|own| *own == self.spec.out[axis])?, end)));
        x.at(&Request { limits: limits.collect(), ..at.with_coords(coords) })
    }

    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        match args {
            [x] if x.ty.scales.is_some() => scaled::transpose(cx, &self.spec, x),
            [x] => product::one(cx, &self.spec, x),
            [x, y] => product::two(cx, &self.spec, x, y),
            _ => {
                Err(LowerError::new("a contraction of more than two operands is taken apart before lowering"))
            }
        }
    }
}
