//! `rope_table`: the cosines and sines of a forward pass.

use super::check;
use super::rows::Walk;
use crate::attr::Real;
use crate::dim::Dim;
use crate::eval::{Array, Sizes};
use crate::kernel::Elem;
use crate::lower::{Coord, Cx, LowerError, Lowering, Request, View};
use crate::op::{OpDef, TypeError, op};
use crate::types::{DType, TensorType, Type};
use crate::vjp::{Shares, Vjp};

op! {
    /// For each token, a row of `factor · cos(a)` and a row of `factor · sign · sin(a)`, where `a = position · frequency`.
    ///
    /// `freqs` is what `rope_freqs` gives. The angle `a` is rounded to `f32`: that is what models were trained with,
    /// and far out it moves the angle by more than any tolerance.
    "rope_table" => RopeTable(positions, freqs) {
        /// On both cosine and sine.
        factor: Real,
    }
}

impl OpDef for RopeTable {
    fn infer(&self, args: &[&TensorType]) -> Result<Type, TypeError> {
        let [positions, freqs] = args else { unreachable!("operands were counted") };
        check::ints("rope_table", "positions", positions, 0)?;
        check::axes("positions", "[b, s]", positions, 0, false)?;
        check::f32s("rope_table", "frequencies", freqs, 1)?;
        check::axes("frequencies", "[2, p]", freqs, 1, false)?;
        check::extent(&freqs.shape[0], &Dim::from(2), 1, "the number of rows (frequencies, signs)")?;
        let [b, s] = [0, 1].map(|i| positions.shape[i].clone());
        Ok(TensorType::new(DType::F32, [b, s, Dim::from(2), freqs.shape[1].clone()]).into())
    }

    fn eval(&self, _: &Sizes, args: &[&Array]) -> Vec<Array> {
        let [positions, freqs] = args else { unreachable!("operands were counted") };
        let (width, factor) = (freqs.shape[1], self.factor.get());
        let shape = [positions.shape[0], positions.shape[1], 2, width];
        vec![Array::from_fn(&shape, |index| {
            let &[b, s, row, column] = index else { unreachable!("there are four axes") };
            let angle = f64::from(positions.at(&[b, s]) as f32 * freqs.at(&[0, column]) as f32);
            if row == 0 { factor * angle.cos() } else { factor * freqs.at(&[1, column]) * angle.sin() }
        })]
    }

    /// Positions and frequencies are not learned.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Shares {
        Ok(vec![None, cx.without(1, "rope_table", "freqs")?])
    }

    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }

    /// One program a token: its two rows.
    fn kernel<'k>(&self, cx: &Cx<'k>, args: &[View<'k>]) -> Result<(), LowerError> {
        let [positions, freqs] = args else { unreachable!("operands were counted") };
        let token = cx.programs(&positions.ty.shape);
        let position = positions.at(&Request::element(&token))?.cast(Elem::F32);
        let walk = Walk::over(cx, &freqs.ty.shape[1]);
        let factor = self.factor.get();
        walk.fold([], |first, _, []| {
            let rows = [0, 1].map(|row| Request::row(&[cx.k.int(row)], first, walk.cols));
            let angle = position * freqs.at(&rows[0])?;
            let turns = [angle.cos() * factor, angle.sin() * factor * freqs.at(&rows[1])?];
            for (row, turn) in rows.iter().zip(turns) {
                let coords = [Coord::At(token[0]), Coord::At(token[1]), row.coords[0], row.coords[1]];
                cx.emit(&row.with_coords(coords.to_vec()), turn)?;
            }
            Ok([])
        })?;
        Ok(())
    }
}
