//! What element-wise ops share: type rules, broadcasting, and one macro each for one and two operands.

use crate::dim::Dim;
use crate::eval::Array;
use crate::op::TypeError;
use crate::types::{Shape, TensorType};

/// The type rule of a function of one float.
pub fn float(op: &str, ty: &TensorType) -> Result<(), TypeError> {
    if ty.dtype.is_float() {
        return Ok(());
    }
    let error = TypeError::new(format!("`{op}` takes floats, not {}", ty.dtype)).at(0);
    Err(if ty.dtype.is_int() {
        error.help("cast it first: `.cast(F32)`")
    } else {
        error.help("dequantize it first")
    })
}

/// The type of an element-wise function of two tensors: same elements, shapes aligned from the right,
/// where an extent fits an equal one, a literal 1, or none.
pub fn broadcast(a: &TensorType, b: &TensorType) -> Result<TensorType, TypeError> {
    if a.dtype != b.dtype {
        let error =
            TypeError::new(format!("the left side has {} elements but the right side {}", a.dtype, b.dtype));
        return Err(error.at(1).help(format!("cast one side: `.cast({})`", a.dtype.name().to_uppercase())));
    }
    if a.dtype.is_f8() {
        return Err(TypeError::new(format!("{} has no arithmetic", a.dtype))
            .at(0)
            .help("dequantize it first"));
    }
    let rank = a.rank().max(b.rank());
    let one = Dim::from(1);
    let mut shape = Shape::new();
    for i in 0..rank {
        let extent = |ty: &TensorType| (i + ty.rank()).checked_sub(rank).map(|i| ty.shape[i].clone());
        shape.push(match (extent(a), extent(b)) {
            (Some(x), Some(y)) if x == y || y == one => x,
            (Some(x), Some(y)) if x == one => y,
            (Some(x), Some(y)) => {
                let place = match rank - 1 - i {
                    0 => "the last axis".into(),
                    n => format!("axis -{}", n + 1),
                };
                return Err(TypeError::new(format!("{place} is {x} on the left but {y} on the right")).at(1));
            }
            (Some(x), None) | (None, Some(x)) => x,
            (None, None) => unreachable!("one of the two has this rank"),
        });
    }
    Ok(TensorType::new(a.dtype, shape))
}

/// [`broadcast`], of floats only.
pub fn broadcast_floats(a: &TensorType, b: &TensorType) -> Result<TensorType, TypeError> {
    float("div", a)?;
    broadcast(a, b)
}

/// `f` of two arrays, element by element, with [`broadcast`]'s rule.
pub fn zip(a: &Array, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    let rank = a.rank().max(b.rank());
    let extent = |x: &Array, i: usize| (i + x.rank()).checked_sub(rank).map_or(1, |i| x.shape[i]);
    let shape: Vec<usize> =
        (0..rank).map(|i| if extent(a, i) == 1 { extent(b, i) } else { extent(a, i) }).collect();
    let pick = |x: &Array, index: &[usize]| {
        let index = &index[rank - x.rank()..];
        x.at(&index.iter().zip(&x.shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect::<Vec<_>>())
    };
    Array::from_fn(&shape, |index| f(pick(a, index), pick(b, index)))
}

/// An op that is a function of each float. `vjp` is what the operand's gradient is, of the operand and the result's.
macro_rules! unary {
    (
        $(#[$meta:meta])*
        $name:literal => $Op:ident; eval |$x:ident| $eval:expr; tile |$t:ident| $tile:expr;
        vjp |$cx:ident, $v:ident, $g:ident| $share:expr
    ) => {
        use $crate::eval::{Array, Sizes};
        use $crate::kernel::build::Tile;
        use $crate::lower::{Cx, LowerError, Lowering, Request, View};
        use $crate::op::{OpDef, TypeError, op};
        use $crate::types::{TensorType, Type};
        use $crate::vjp::{Shares, Vjp};

        op! {
            $(#[$meta])*
            $name => $Op(x) {}
        }

        impl OpDef for $Op {
            fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
                $crate::ops::pointwise::float($name, args[0])?;
                Ok(args[0].clone().into())
            }
            fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
                vec![args[0].map(|$x| $eval)]
            }
            fn lowering(&self) -> Lowering {
                Lowering::Pointwise
            }
            fn tile<'k>(&self, _: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
                let $t = args[0].at(at)?;
                Ok($tile)
            }
            fn vjp(&self, $cx: &mut Vjp<'_>) -> Shares {
                let [$v] = $cx.args();
                let $g = $cx.grad();
                let share = $share?;
                Ok(vec![Some(share)])
            }
        }
    };
}
pub(super) use unary;

/// An op that is a function of two elements, with broadcasting. `vjp` is what the operands' gradients are, as if nothing
/// were broadcast.
macro_rules! binary {
    (
        $(#[$meta:meta])*
        $name:literal => $Op:ident; infer $infer:ident; eval |$x:ident, $y:ident| $eval:expr; tile |$s:ident, $t:ident| $tile:expr;
        vjp |$cx:ident, $a:ident, $b:ident, $g:ident| $shares:expr
    ) => {
        use $crate::eval::{Array, Sizes};
        use $crate::kernel::build::Tile;
        use $crate::lower::{Cx, LowerError, Lowering, Request, View};
        use $crate::op::{OpDef, TypeError, op};
        use $crate::types::{TensorType, Type};
        use $crate::vjp::{Shares, Vjp};

        op! {
            $(#[$meta])*
            $name => $Op(x, y) {}
        }

        impl OpDef for $Op {
            fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
                Ok($crate::ops::pointwise::$infer(args[0], args[1])?.into())
            }
            fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
                vec![$crate::ops::pointwise::zip(args[0], args[1], |$x, $y| $eval)]
            }
            fn lowering(&self) -> Lowering {
                Lowering::Pointwise
            }
            fn tile<'k>(&self, cx: &Cx<'k>, args: &[View<'k>], at: &Request<'k>) -> Result<Tile<'k>, LowerError> {
                let $s = args[0].at(&at.broadcast(cx, &args[0].ty.shape))?;
                let $t = args[1].at(&at.broadcast(cx, &args[1].ty.shape))?;
                Ok($tile)
            }
            fn vjp(&self, $cx: &mut Vjp<'_>) -> Shares {
                let [$a, $b] = $cx.args();
                let $g = $cx.grad();
                let [da, db] = $shares;
                let [a, b] = [$cx.ty($a), $cx.ty($b)];
                Ok(vec![Some($cx.sum_to(da, &a)?), Some($cx.sum_to(db, &b)?)])
            }
        }
    };
}
pub(super) use binary;
