//! Sessions whose weights change between calls, and results that go to given memory.

use eva_ir::text::parse;
use eva_ir::types::DType;
use eva_runtime::{CompileOptions, Executable, Session, Shared, States, Tensor, Weight, Weights};
use std::sync::Arc;

/// `@f` has a product of two weights that is hoisted, and one weight that it reads itself.
const TEXT: &str = "dim s
dim m = 3
fn @f(%x: f32[s, m], weight %g: f32[m], weight %w: f32[m]) -> f32[s, m], f32[s, m] {
  %gw = mul %g, %w : f32[m]
  %y = mul %x, %gw : f32[s, m]
  %z = add %x, %w : f32[s, m]
  return %y, %z
}";

fn executable() -> Arc<Executable> {
    let module = parse(TEXT).unwrap_or_else(|diags| panic!("{diags}"));
    Arc::new(Executable::compile(&module, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")))
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// 32 numbers of memory with `g` at 4 and `w` at 16, and both as weights.
fn live(exe: &Executable) -> (Arc<Shared>, Weights) {
    let memory = Shared::zeroed(exe, 32 * 4, "the weights").unwrap();
    let weight = |at: usize| Arc::new(Weight::of_part(&memory.part(at * 4, DType::F32, &[3]).unwrap()));
    let weights = [("g".to_string(), weight(4)), ("w".to_string(), weight(16))].into();
    (memory, weights)
}

#[test]
fn a_session_follows_its_weights() {
    let exe = executable();
    let (memory, weights) = live(&exe);
    memory.write(4 * 4, &bytes(&[1.0, 2.0, 4.0])).unwrap();
    memory.write(16 * 4, &bytes(&[0.5, 3.0, -1.0])).unwrap();
    let mut session = Session::new(exe.clone(), "f", &weights).unwrap();
    let x = Tensor::from_f32(&[2, 3], &[1.0, 10.0, 100.0, 2.0, 20.0, 200.0]);
    let both = |session: &mut Session| -> Vec<Vec<f32>> {
        session.run(&[("x", &x)], None, &[]).unwrap().iter().map(|(_, t)| t.to_f32()).collect()
    };
    let y = vec![0.5, 60.0, -400.0, 1.0, 120.0, -800.0];
    assert_eq!(both(&mut session), [y.clone(), vec![1.5, 13.0, 99.0, 2.5, 23.0, 199.0]]);
    memory.write(16 * 4, &bytes(&[7.0, 0.0, 1.0])).unwrap();
    // What is read directly is new, what was computed before is not.
    let z = vec![8.0, 10.0, 101.0, 9.0, 20.0, 201.0];
    assert_eq!(both(&mut session), [y, z.clone()]);
    for g in [1.0f32, 3.0] {
        memory.write(4 * 4, &bytes(&[g, 2.0, 4.0])).unwrap();
        session.refresh(&weights).unwrap();
        assert_eq!(both(&mut session), [vec![7.0 * g, 0.0, 400.0, 14.0 * g, 0.0, 800.0], z.clone()]);
    }
    // Another session of the same weights computes its own.
    let mut other = Session::new(exe, "f", &weights).unwrap();
    assert_eq!(both(&mut other)[0][0], 21.0);
    memory.write(4 * 4, &bytes(&[5.0])).unwrap();
    let mut third = Session::new(other.executable().clone(), "f", &weights).unwrap();
    assert_eq!((both(&mut third)[0][0], both(&mut other)[0][0]), (35.0, 21.0));
}

#[test]
fn results_go_where_they_are_wanted() {
    let exe = executable();
    let (memory, weights) = live(&exe);
    memory.write(16 * 4, &bytes(&[0.5, 3.0, -1.0])).unwrap();
    let mut session = Session::new(exe.clone(), "f", &weights).unwrap();
    let x = Tensor::from_f32(&[1, 3], &[1.0, 10.0, 100.0]);
    let out = Shared::zeroed(&exe, 5 * 4, "the result").unwrap();
    let part = out.part(4, DType::F32, &[1, 3]).unwrap();
    session.start_into(&[("x", &x)], None, &[], &[("z", &part)]).unwrap();
    assert_eq!(part.read().unwrap().to_f32(), [1.5, 13.0, 99.0]);
    let mut all = [0; 20];
    out.read(0, &mut all).unwrap();
    assert_eq!((&all[..4], &all[16..]), (&[0; 4][..], &[0; 4][..]), "nothing else is written");
    assert!(session.take("z").is_err(), "it is there already");
    assert_eq!(session.take("y").unwrap().to_f32(), [0.0; 3]);

    let refused = |session: &mut Session, name: &str, part: &eva_runtime::Part| {
        session.start_into(&[("x", &x)], None, &[], &[(name, part)]).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&mut session, "y", &out.part(0, DType::F32, &[3]).unwrap()),
        "`y` is f32[1, 3], but it was given f32[3]"
    );
    assert_eq!(refused(&mut session, "q", &part), "the last call of @f has no result `q`, or it was taken");
    let over = memory.part(17 * 4, DType::F32, &[1, 3]).unwrap();
    assert!(refused(&mut session, "y", &over).contains("are in the same memory"));
    let half = out.part(8, DType::F32, &[1, 3]).unwrap();
    let error = session.start_into(&[("x", &x)], None, &[], &[("y", &part), ("z", &half)]).unwrap_err();
    assert!(error.to_string().contains("`z` and `y` are in the same memory"), "{error}");
    assert!(out.part(12, DType::F32, &[1, 3]).is_err(), "it reaches beyond the memory");
    assert!(out.part(2, DType::F32, &[1]).is_err(), "it is not aligned");
}

#[test]
fn states_are_replaced_in_shared_memory() {
    let text = "dim r
fn @f(weight %g: f32[r, 3], %by: f32[], state %p: f32[r, 3]) -> f32[r, 3] {
  %step = mul %g, %by : f32[r, 3]
  %new = sub %p, %step : f32[r, 3]
  %p1 = assign %p, %new : f32[r, 3]
  return %p1
}";
    let module = parse(text).unwrap_or_else(|diags| panic!("{diags}"));
    let exe = Arc::new(Executable::compile(&module, &CompileOptions::default()).unwrap());
    let memory = Shared::zeroed(&exe, 20 * 4, "all").unwrap();
    let numbers: Vec<f32> = (0..20).map(|i| i as f32).collect();
    memory.write(0, &bytes(&numbers)).unwrap();
    let part = |at: usize, rows: usize| memory.part(at * 4, DType::F32, &[rows, 3]).unwrap();
    let weights = Weights::from([("g".to_string(), Arc::new(Weight::of_part(&part(1, 2))))]);
    let mut session = Session::new(exe, "f", &weights).unwrap();
    let mut states = States::of_parts(&[("p", part(10, 2))]);
    let by = Tensor::from_f32(&[], &[2.0]);
    for _ in 0..2 {
        session.start(&[("by", &by)], Some(&mut states), &[]).unwrap();
    }
    let mut all = vec![0; 20 * 4];
    memory.read(0, &mut all).unwrap();
    let mut expected = numbers;
    (0..6).for_each(|i| expected[10 + i] -= 4.0 * (1 + i) as f32);
    assert_eq!(all, bytes(&expected));
    assert_eq!(states.get("p").unwrap().to_f32(), expected[10..16]);
    states.write("p", &Tensor::from_f32(&[2, 3], &[1.0; 6])).unwrap();
    assert_eq!(part(9, 2).read().unwrap().to_f32(), [9.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let mut over = States::of_parts(&[("p", part(6, 2))]);
    let error = session.start(&[("by", &by)], Some(&mut over), &[]).unwrap_err();
    assert!(error.to_string().contains("are in the same memory"), "{error}");
}
