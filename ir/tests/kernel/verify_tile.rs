//! What the verifier asks of kernels in the tile phase.

use crate::support::*;
use eva_ir::kernel::*;
use eva_ir::types::DType;

#[test]
fn there_is_nothing_of_the_lane_phase() {
    let mut k = Raw::new(Phase::Tile);
    k.scratch(Elem::F32, 4);
    assert_eq!(k.errors(), "the private memory &0 is there in the tile phase");
    let mut k = Raw::new(Phase::Tile);
    let cond = k.bools(1, 1, true);
    k.push(Inst::If { cond, body: vec![] });
    assert_eq!(k.errors(), "`if %0 {`: is not an instruction of the tile phase");
    let mut k = Raw::new(Phase::Tile);
    let x = k.floats(1, 4, 1.0);
    k.emit(Elem::F32, 1, 4, |out| Inst::SwapPairs { out, x });
    assert_eq!(k.errors(), "`%1 = swap_pairs %0`: is not an instruction of the tile phase");
}

/// A load of a `3 × 5` tile from a buffer of three axes, with this place.
fn load(rows: usize, cols: usize, change: impl FnOnce(&mut Raw, &mut Place)) -> Raw {
    let mut k = Raw::new(Phase::Tile);
    let a = k.buf(DType::F32, &["t", "7", "u"], Access::Read);
    let zero = k.int(0);
    let mut place = place(a, &[zero; 3], [Some(2), Some(0)]);
    change(&mut k, &mut place);
    k.emit(Elem::F32, rows, cols, |out| Inst::Load { out, place });
    k
}

#[test]
fn places_fit_their_buffer() {
    load(3, 5, |_, _| ()).is_fine();
    let error = |rows, cols, change: fn(&mut Raw, &mut Place)| {
        let error = load(rows, cols, change).errors();
        error.split_once("`: ").expect("an instruction and a clause").1.to_string()
    };
    assert_eq!(error(3, 5, |_, p| p.at.truncate(2)), "2 indices into a buffer of 3 axes");
    assert_eq!(error(3, 5, |_, p| p.axes[0] = Some(3)), "the buffer has no axis 3");
    assert_eq!(error(3, 5, |_, p| p.axes[0] = Some(0)), "rows and columns run along the same axis");
    assert_eq!(error(3, 5, |_, p| p.axes[1] = None), "f32<3x5> runs along an axis that is not said");
    assert_eq!(error(3, 5, |k, p| p.limits = vec![(4, k.int(2))]), "the buffer has no axis 4");
    assert_eq!(error(3, 5, |k, p| p.limits = vec![(1, k.floats(1, 1, 2.0))]), "%1 is f32, not one integer");
    assert_eq!(
        error(3, 5, |k, p| p.at[1] = k.emit(Elem::I64, 1, 2, |out| Inst::Iota { out, axis: 1 })),
        "%1 is i64<1x2>, not one integer"
    );
    load(3, 1, |_, p| p.axes[1] = None).is_fine();
    load(1, 1, |_, p| p.axes = [None, None]).is_fine();
    load(3, 5, |k, p| p.limits = vec![(1, k.int(2)), (2, k.int(1))]).is_fine();
}

#[test]
fn indices_and_masks_have_the_shape_of_the_tile() {
    let gather = |rows, cols, axis, elem| {
        let mut k = Raw::new(Phase::Tile);
        let a = k.buf(DType::Bf16, &["t", "7"], Access::Read);
        let zero = k.int(0);
        let index = k.emit(elem, 1, 5, |out| match elem {
            Elem::I64 => Inst::Iota { out, axis: 1 },
            _ => Inst::Const { out, value: Const::F(0.0) },
        });
        let place = place(a, &[zero; 2], [None, None]);
        k.emit(Elem::F32, rows, cols, |out| Inst::Gather { out, place, axis, index });
        k
    };
    gather(1, 5, 1, Elem::I64).is_fine();
    let message = "`%2 = gather $a[%0, %0+%1]`: the index i64<1x5> does not stretch to the tile f32<5x1>";
    assert_eq!(gather(5, 1, 1, Elem::I64).errors(), message);
    assert!(gather(1, 5, 2, Elem::I64).errors().contains("has no axis 2"));
    assert!(gather(1, 5, 1, Elem::F32).errors().contains("is for i64, not f32<1x5>"));

    let scatter = |index: usize, value: usize, mask: usize| {
        let mut k = Raw::new(Phase::Tile);
        let a = k.buf(DType::F32, &["t"], Access::Write);
        let (zero, value, mask) = (k.int(0), k.floats(1, value, 1.0), k.bools(1, mask, true));
        let index = k.emit(Elem::I64, 1, index, |out| Inst::Iota { out, axis: 1 });
        k.push(Inst::Scatter { place: place(a, &[zero], [None, None]), axis: 0, index, value, mask });
        k
    };
    scatter(5, 5, 5).is_fine();
    for (index, value, mask) in [(1, 5, 5), (5, 1, 5), (5, 5, 1)] {
        assert!(scatter(index, value, mask).errors().contains("differ in shape"));
    }
}

#[test]
fn folds_counts_and_orders_of_columns() {
    let of = |elem: Elem, [rows, cols]: [usize; 2], out: [usize; 2], inst: &dyn Fn(Reg, Reg) -> Inst| {
        let mut k = Raw::new(Phase::Tile);
        let value = match elem {
            Elem::F32 => Const::F(1.0),
            Elem::I64 => Const::I(1),
            Elem::Bool => Const::B(true),
        };
        let x = k.emit(elem, rows, cols, |out| Inst::Const { out, value });
        k.emit(elem, out[0], out[1], |out| inst(out, x));
        verify::verify(&k.0).map_err(|errors| errors.join("; "))
    };
    let fine = Ok(());
    let reduce = |f, axis| move |out, x| Inst::Reduce { out, f, axis, x };
    assert_eq!(of(Elem::F32, [3, 5], [1, 5], &reduce(Fn2::Add, 0)), fine);
    assert_eq!(of(Elem::I64, [3, 5], [3, 1], &reduce(Fn2::Min, 1)), fine);
    assert_eq!(of(Elem::Bool, [3, 5], [3, 1], &reduce(Fn2::Or, 1)), fine);
    assert!(of(Elem::F32, [3, 5], [3, 1], &reduce(Fn2::Add, 0)).is_err());
    assert!(of(Elem::F32, [3, 5], [3, 1], &reduce(Fn2::Sub, 1)).unwrap_err().contains("to fold with"));
    assert!(of(Elem::F32, [3, 5], [3, 1], &reduce(Fn2::Or, 1)).unwrap_err().contains("is for bool"));
    assert!(of(Elem::F32, [3, 5], [3, 5], &reduce(Fn2::Add, 2)).unwrap_err().contains("no axis 2"));

    let scan = |out, x| Inst::Scan { out, x };
    assert_eq!(of(Elem::I64, [3, 5], [3, 5], &scan), fine);
    assert!(of(Elem::Bool, [3, 5], [3, 5], &scan).is_err());
    let iota = |axis| move |out, _| Inst::Iota { out, axis };
    assert_eq!(of(Elem::I64, [1, 1], [1, 5], &iota(1)), fine);
    assert_eq!(of(Elem::I64, [1, 1], [5, 1], &iota(0)), fine);
    assert!(of(Elem::I64, [1, 1], [5, 1], &iota(1)).is_err());
    assert!(of(Elem::F32, [1, 1], [1, 5], &iota(1)).is_err());
    assert!(of(Elem::I64, [1, 1], [1, 5], &iota(2)).is_err());

    let halves = |out, x| Inst::Columns { out, x, order: ColumnOrder::SwapHalves };
    let pairs = |out, x| Inst::Columns { out, x, order: ColumnOrder::SwapPairs };
    for inst in [&halves as &dyn Fn(Reg, Reg) -> Inst, &pairs] {
        assert_eq!(of(Elem::F32, [3, 6], [3, 6], inst), fine);
        assert!(of(Elem::F32, [6, 3], [6, 3], inst).unwrap_err().contains("odd number"));
    }
    let reshape = |out, x| Inst::Reshape { out, x };
    assert_eq!(of(Elem::Bool, [4, 6], [3, 8], &reshape), fine);
    assert!(of(Elem::F32, [4, 6], [3, 7], &reshape).unwrap_err().contains("another number of elements"));
}

#[test]
fn products_agree_in_their_extents() {
    let dot = |acc: [usize; 2], x: [usize; 2], y: [usize; 2]| {
        let mut k = Raw::new(Phase::Tile);
        let [acc_reg, x, y] = [acc, x, y].map(|[rows, cols]| k.floats(rows, cols, 1.0));
        k.emit(Elem::F32, acc[0], acc[1], |out| Inst::Dot { out, acc: acc_reg, x, y });
        k
    };
    dot([2, 3], [2, 5], [3, 5]).is_fine();
    assert!(dot([2, 3], [2, 5], [3, 4]).errors().contains("differ in the number of terms"));
    assert!(
        dot([2, 3], [2, 5], [2, 5]).errors().contains("the product is f32<2x2>, but is added to f32<2x3>")
    );
    // A product's start does not stretch.
    assert!(dot([1, 1], [2, 5], [3, 5]).errors().contains("is added to f32"));
}
