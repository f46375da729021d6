//! `+ - * /` between tensors, and between a tensor and a number.

use super::record::{Request, here};
use super::tensor::{Tensor, no_help};
use eva_ir::attr::{Real, Spec};
use eva_ir::dim::Dim;
use eva_ir::ops::{Op, add::Add as AddOp, div::Div as DivOp, mul::Mul as MulOp, sub::Sub as SubOp};
use eva_ir::ops::{offset::Offset, scale::Scale};
use eva_ir::types::TensorType;
use std::ops::{Add, Div, Mul, Neg, Sub};

impl Tensor {
    /// An element-wise op of two tensors.
    #[track_caller]
    pub(super) fn binary(&self, what: &str, op: impl Into<Op>, other: &Tensor) -> Tensor {
        let request = Request { what, loc: here(), help: &transposed };
        self.recording.op(request, op, &[self.clone(), other.clone()])
    }

    #[track_caller]
    fn scaled(&self, by: f64) -> Tensor {
        let request = Request { what: "*", loc: here(), help: &no_help };
        self.recording.op(request, Scale { by: Real::new(by) }, std::slice::from_ref(self))
    }

    #[track_caller]
    fn shifted(&self, by: f64) -> Tensor {
        let request = Request { what: "+", loc: here(), help: &no_help };
        self.recording.op(request, Offset { by: Real::new(by) }, std::slice::from_ref(self))
    }
}

/// Advice where one side has the axes of the other in another order.
fn transposed(args: &[TensorType]) -> Option<String> {
    let [a, b] = args else { return None };
    if a.rank() != b.rank() || a.shape == b.shape {
        return None;
    }
    let mut left: Vec<usize> = (0..b.rank()).collect();
    let mut take = |dim: &Dim| left.iter().position(|&i| b.shape[i] == *dim).map(|at| left.remove(at));
    let order: Vec<usize> = a.shape.iter().map(&mut take).collect::<Option<_>>()?;
    let axes: Vec<usize> = (0..b.rank()).collect();
    let letter = |i: usize| {
        let first = b.shape[i].to_string().chars().next().filter(char::is_ascii_alphabetic);
        first.unwrap_or('a')
    };
    let spec = Spec::new(&[&axes], &order, letter);
    Some(format!("the axes are the same in another order: `.permute(\"{spec}\")` on the right side"))
}

macro_rules! operators {
    ($($Op:ident $op:ident $what:literal $Ir:ident |$x:ident, $y:ident| $number:expr;)*) => {$(
        operators!(@pair $Op $op $what $Ir: &Tensor, &Tensor);
        operators!(@pair $Op $op $what $Ir: &Tensor, Tensor);
        operators!(@pair $Op $op $what $Ir: Tensor, &Tensor);
        operators!(@pair $Op $op $what $Ir: Tensor, Tensor);
        impl $Op<f64> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $op(self, $y: f64) -> Tensor { let $x = self; $number }
        }
        impl $Op<f64> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $op(self, $y: f64) -> Tensor { let $x = &self; $number }
        }
    )*};
    (@pair $Op:ident $op:ident $what:literal $Ir:ident: $Left:ty, $Right:ty) => {
        impl $Op<$Right> for $Left {
            type Output = Tensor;
            #[track_caller]
            fn $op(self, right: $Right) -> Tensor {
                let (left, right): (&Tensor, &Tensor) = (&self, &right);
                left.binary($what, $Ir {}, right)
            }
        }
    };
}

operators! {
    Add add "+" AddOp |x, by| x.shifted(by);
    Sub sub "-" SubOp |x, by| x.shifted(-by);
    Mul mul "*" MulOp |x, by| x.scaled(by);
    Div div "/" DivOp |x, by| x.scaled(by.recip());
}

macro_rules! neg {
    ($($Of:ty),*) => {$(
        impl Neg for $Of {
            type Output = Tensor;
            #[track_caller]
            fn neg(self) -> Tensor { self.scaled(-1.0) }
        }
    )*};
}
neg!(&Tensor, Tensor);

macro_rules! number_first {
    ($($Of:ty),*) => {$(
        impl Mul<$Of> for f64 {
            type Output = Tensor;
            #[track_caller]
            fn mul(self, x: $Of) -> Tensor { x.scaled(self) }
        }
        impl Add<$Of> for f64 {
            type Output = Tensor;
            #[track_caller]
            fn add(self, x: $Of) -> Tensor { x.shifted(self) }
        }
    )*};
}
number_first!(&Tensor, Tensor);
