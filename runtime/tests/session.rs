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

/// Bodies that differ, as they never should, so that a result shows which of them ran: x, 2 x and (with a constant) 3 x.
/// The costs are 10 s, s + 20 and 31.
const BODIES: &str = "dim s
dim h
dim m = 3
fn @scaled(%x: f32[s, m], weight %w: f32[h, m]) -> f32[s, m], f32[h, m] {
  %one = exp %w : f32[h, m]
  %y = scale %x {by = 1.0} : f32[s, m]
  return %y, %one
} cost 10.0*s
or twice {
  %y = scale %x {by = 2.0} : f32[s, m]
  %one = exp %w : f32[h, m]
  return %y, %one
} cost 1.0*s+20.0
or thrice {
  %k = full {value = 3.0, shape = [m], dtype = f32} : f32[m]
  %a = softmax %x : f32[s, m]
  %b = add %x, %a : f32[s, m]
  %c = sub %b, %a : f32[s, m]
  %y = einsum \"sm,m->sm\" %c, %k : f32[s, m]
  %one = exp %w : f32[h, m]
  return %y, %one
} cost 31.0
fn @f(%x: f32[s, m], weight %w: f32[h, m]) -> f32[s, m], f32[h, m] {
  %a = call @scaled %x, %w : (f32[s, m], f32[h, m])
  %y = get %a {index = 0} : f32[s, m]
  %b = call @scaled %y, %w : (f32[s, m], f32[h, m])
  %z = get %b {index = 0} : f32[s, m]
  %one = get %b {index = 1} : f32[h, m]
  return %z, %one
}
fn @g(%x: f32[s, m], weight %w: f32[h, m]) -> f32[s, m], f32[h, m] {
  %z = scale %x {by = 1.0} : f32[s, m]
  %one = exp %w : f32[h, m]
  return %z, %one
} cost 10.0*s
or other {
  %v = call @scaled %x, %w : (f32[s, m], f32[h, m])
  %z = get %v {index = 0} : f32[s, m]
  %one = get %v {index = 1} : f32[h, m]
  return %z, %one
} cost 100.0
";

#[test]
fn calls_choose_a_body_by_their_lengths() {
    let weight = Tensor::from_f32(&[1, 3], &[0.0; 3]);
    let weights = Weights::from([("w".to_string(), Arc::new(weight.into()))]);
    let exe = Executable::compile(&parse(BODIES).unwrap(), &CompileOptions::default()).unwrap();
    let exe = Arc::new(exe);
    let factor = |session: &mut Session, s: usize| {
        let numbers: Vec<f32> = (0..3 * s).map(|i| 1.0 + i as f32).collect();
        let results = session.run(&[("x", &Tensor::from_f32(&[s, 3], &numbers))], None, &[]).unwrap();
        assert_eq!(results[0].0, "z");
        assert_eq!(results[1].1.to_f32(), [1.0; 3]);
        let ratios: Vec<f32> = results[0].1.to_f32().iter().zip(&numbers).map(|(y, x)| y / x).collect();
        assert!(ratios.iter().all(|ratio| (ratio - ratios[0]).abs() < 1e-5), "{ratios:?}");
        ratios[0].round()
    };
    let mut called = Session::new(exe.clone(), "f", &weights).unwrap();
    // Equal costs are the first's, and lengths may go up and down: 10 s = s + 20 between 2 and 3, s + 20 = 31 at 11.
    for (s, want) in [(1, 1.0), (2, 1.0), (3, 4.0), (11, 4.0), (12, 9.0), (40, 9.0), (2, 1.0), (3, 4.0)] {
        assert_eq!(factor(&mut called, s), want, "{s}");
    }
    let mut itself = Session::new(exe, "g", &weights).unwrap();
    for (s, want) in [(3, 1.0), (10, 1.0), (11, 2.0), (12, 3.0)] {
        assert_eq!(factor(&mut itself, s), want, "{s}");
    }
    // Activations are those of the body that runs.
    let arena = |s| called.arena_bytes(&[("s", s), ("h", 1)]).unwrap();
    assert!(arena(12) > arena(11), "the last body has more to remember");
}

/// What bodies have in common is compiled once.
#[test]
fn equal_kernels_are_one() {
    let exe = Executable::compile(&parse(BODIES).unwrap(), &CompileOptions::default()).unwrap();
    let kernels = exe.plan().kernels.iter().filter(|(_, kernel)| kernel.name.ends_with(".one")).count();
    assert_eq!(kernels, 1, "five bodies have `%one`");
}

/// The op that makes the first NaN is named, with the calls that led there; without being asked, nobody looks.
#[test]
fn the_first_that_is_no_number_is_named() {
    let text = "dim s
dim m = 5
fn @inner(%x: f32[s, m]) -> f32[s, m] {
  %root = sqrt %x : f32[s, m]
  %rows = softmax %root : f32[s, m]
  %twice = scale %rows {by = 2.0} : f32[s, m]
  return %twice
}
fn @f(%x: f32[s, m]) -> f32[s, m] {
  %less = offset %x {by = -1.0} : f32[s, m]
  %once = call @inner %x : f32[s, m]
  %other = call @inner %less : f32[s, m]
  %y = add %once, %other : f32[s, m]
  return %y
}";
    let mut session = session(text, &Weights::new());
    let mut x = vec![2.0; 15];
    x[7] = 0.5;
    let x = Tensor::from_f32(&[3, 5], &x);
    session.run(&[("x", &x)], None, &[]).unwrap();
    session.check_finite(true);
    let Err(Error::NotFinite(found)) = session.run(&[("x", &x)], None, &[]) else { panic!("nobody noticed") };
    assert_eq!(found.calls, ["other"]);
    assert!(found.op.starts_with("@inner."), "{found}");
    assert_eq!((found.index[0], found.elements), (1, 15));
    let fine = Tensor::from_f32(&[3, 5], &[2.0; 15]);
    session.run(&[("x", &fine)], None, &[]).unwrap();
}

const SUM: &str = "dim r = 3
dim c
fn @f(%x: f32[r, c], state %sum: f32[r, c], state %calls: f32[]) -> f32[r, c], f32[], f32[r, c] {
  %more = add %sum, %x : f32[r, c]
  %s1 = assign %sum, %more : f32[r, c]
  %one = offset %calls {by = 1.0} : f32[]
  %n1 = assign %calls, %one : f32[]
  %mean = div %s1, %n1 : f32[r, c]
  return %s1, %n1, %mean
}";

#[test]
fn what_is_replaced_as_a_whole_is_kept_between_calls() {
    let mut session = session(SUM, &Weights::new());
    let mut states = session.whole_states(&[("c", 2)]).unwrap();
    assert_eq!((states.whole(), states.bytes()), (vec!["calls", "sum"], 4 * (6 + 1)));
    states.write("sum", &Tensor::from_f32(&[3, 2], &[10.0, 0.0, 0.0, 0.0, 0.0, 70.0])).unwrap();
    let mut mean = Vec::new();
    for step in 1..=2 {
        let x: Vec<f32> = (0..6).map(|i| (i * step) as f32).collect();
        let results = session.run(&[("x", &Tensor::from_f32(&[3, 2], &x))], Some(&mut states), &[]).unwrap();
        mean = results[0].1.to_f32();
    }
    let sum = states.get("sum").unwrap();
    assert_eq!((sum.shape(), sum.to_f32()), (&[3, 2][..], vec![10.0, 3.0, 6.0, 9.0, 12.0, 85.0]));
    assert_eq!(states.get("calls").unwrap().to_f32(), [2.0]);
    assert_eq!(mean, [5.0, 1.5, 3.0, 4.5, 6.0, 42.5]);
}

#[test]
fn what_does_not_fit_a_state_is_refused() {
    let mut one = session(SUM, &Weights::new());
    assert!(one.whole_states(&[]).is_err(), "`c` has no value");
    let mut states = one.whole_states(&[("c", 4)]).unwrap();
    for shape in [&[3, 2][..], &[3], &[4, 3]] {
        let error = states.write("sum", &Tensor::zeros(eva_ir::types::DType::F32, shape)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{shape:?}: {error}");
    }
    let x = Tensor::from_f32(&[3, 2], &[0.0; 6]);
    let error = one.run(&[("x", &x)], Some(&mut states), &[]).err().expect("the extents differ");
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let cached = "dim b
dim s
dim t
fn @f(%x: f32[b, s], %start: i32[b], state %k: f32[b, t]) -> f32[b, t] {
  %now = cache_write %k, %x, %start : f32[b, t]
  return %now
}";
    let error = session(cached, &Weights::new()).whole_states(&[]).err().expect("it has a cache");
    assert!(error.to_string().contains("`k` of @f is a cache"), "{error}");
}
