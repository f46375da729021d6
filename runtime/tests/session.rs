//! Calls: results are taken once, by name or all at once, and caches are kept between them.

use eva_ir::text::parse;
use eva_runtime::{CompileOptions, Error, Executable, Session, Tensor, Weights};
use std::sync::Arc;

fn session(text: &str, weights: &Weights) -> Session {
    let module = parse(text).unwrap_or_else(|diags| panic!("{diags}"));
    let exe = Executable::compile(&module, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    Session::new(Arc::new(exe), "f", weights).unwrap_or_else(|e| panic!("{e}"))
}

const TWO: &str = "dim s
fn @f(%x: f32[s], weight %w: f32[s]) -> f32[s], f32[s] {
  %sum = add %x, %w : f32[s]
  %product = mul %x, %w : f32[s]
  return %sum, %product
}";

fn two() -> Session {
    let weight = Tensor::from_f32(&[3], &[10.0, 20.0, 30.0]);
    session(TWO, &Weights::from([("w".to_string(), Arc::new(weight.into()))]))
}

#[test]
fn results_come_in_order() {
    let x = Tensor::from_f32(&[3], &[1.0, 2.0, 3.0]);
    let results = two().run(&[("x", &x)], None, &[]).unwrap();
    let results: Vec<(&str, Vec<f32>)> =
        results.iter().map(|(name, t)| (name.as_str(), t.to_f32())).collect();
    let (sum, product) = (vec![11.0, 22.0, 33.0], vec![10.0, 40.0, 90.0]);
    assert_eq!(results, [("sum", sum), ("product", product)]);
}

#[test]
fn a_result_is_taken_once() {
    let mut session = two();
    let taken = |session: &mut Session, name: &str| session.take(name).map(|t| t.to_f32());
    assert!(matches!(taken(&mut session, "product"), Err(Error::NoResult { .. })), "there was no call yet");
    session.start(&[("x", &Tensor::from_f32(&[3], &[1.0, 2.0, 3.0]))], None, &[]).unwrap();
    session.wait().unwrap();
    assert_eq!(taken(&mut session, "product").unwrap(), [10.0, 40.0, 90.0]);
    let error = taken(&mut session, "product").unwrap_err();
    assert_eq!(error.to_string(), "the last call of @f has no result `product`, or it was taken");
    // The next call's results take the place of what was left.
    session.start(&[("x", &Tensor::from_f32(&[3], &[2.0, 0.0, 5.0]))], None, &[]).unwrap();
    assert_eq!(taken(&mut session, "product").unwrap(), [20.0, 0.0, 150.0]);
    assert_eq!(taken(&mut session, "sum").unwrap(), [12.0, 20.0, 35.0]);
    // A call that is refused leaves nothing to take.
    assert!(session.start(&[("y", &Tensor::from_f32(&[3], &[0.0; 3]))], None, &[]).is_err());
}

#[test]
fn caches_are_kept_between_calls() {
    let text = "dim b
dim s
dim t
dim c = 3
fn @f(%x: f32[b, s, c], %start: i32[b], state %k: f32[b, t, c]) -> f32[b, 1, c], f32[b, t, c] {
  %now = cache_write %k, %x, %start : f32[b, t, c]
  %sum = sum %now {axis = 1} : f32[b, 1, c]
  return %sum, %now
}";
    let mut session = session(text, &Weights::new());
    assert_eq!(session.state_bytes_per_token(), 12);
    let mut states = session.new_states(2, 5).unwrap();
    for (start, rows) in [(0, 2), (2, 1)] {
        let x: Vec<f32> = (0..2 * rows * 3).map(|i| (100 * start + i) as f32).collect();
        let x = Tensor::from_f32(&[2, rows, 3], &x);
        let at = Tensor::from_i32(&[2], &[start as i32; 2]);
        session.run(&[("x", &x), ("start", &at)], Some(&mut states), &[("t", start + rows)]).unwrap();
    }
    let have = states.read("k", 3).unwrap().to_f32();
    let want = [0., 1., 2., 3., 4., 5., 200., 201., 202., 6., 7., 8., 9., 10., 11., 203., 204., 205.];
    assert_eq!(have, want);
    assert_eq!(states.read("k", 5).unwrap().to_f32()[9..15], [0.0; 6], "rows that nothing was written to");
}
