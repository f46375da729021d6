//! What is computed of weights when a session is made: calls give the same bits with it and without.

use eva_ir::graph::ParamKind;
use eva_ir::testing::{Options as Contents, Sample, random_module};
use eva_ir::text::parse;
use eva_passes::Hoist;
use eva_runtime::checkpoint::{Checkpoint, CheckpointDType, TensorDecl, Writer};
use eva_runtime::{CompileOptions, Executable, Session, Tensor, Weights, weights};
use proptest::prelude::*;
use std::sync::Arc;

fn compile(module: &eva_ir::graph::Module, hoist: bool) -> Arc<Executable> {
    let mut options = CompileOptions { threads: Some(2), ..CompileOptions::default() };
    options.passes.hoist = if hoist { Hoist::AtLoad } else { Hoist::Never };
    // Rules that fold weights would leave nothing to compare.
    options.passes.form = eva_passes::Form::Written;
    Arc::new(Executable::compile(module, &options).unwrap_or_else(|e| panic!("{e}")))
}

/// The bits of the results of a sample's function, and the bytes of weights that the session keeps.
fn run(sample: &Sample, seed: u64, hoist: bool) -> (Vec<(String, Vec<u8>)>, usize) {
    let exe = compile(&sample.module, hoist);
    let f = &sample.module.funcs[sample.func];
    let (mut weights, mut inputs) = (Weights::new(), Vec::new());
    for ((param, kind), array) in f.params().zip(sample.args(seed)) {
        let ty = f.tensor(param).expect("parameters are tensors");
        let tensor = Tensor::from_f64(ty.dtype, &array.shape, &array.data);
        let name = f.values[param].name.clone();
        match kind {
            ParamKind::Weight => drop(weights.insert(name, Arc::new(tensor.into()))),
            _ => inputs.push((name, tensor)),
        }
    }
    let mut session = Session::new(exe, &f.name, &weights).unwrap_or_else(|e| panic!("{e}"));
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let sizes: Vec<(&str, usize)> =
        sample.sizes.0.iter().map(|(sym, &n)| (sym.as_str(), n as usize)).collect();
    let results = session.run(&inputs, None, &sizes).unwrap_or_else(|e| panic!("{e}"));
    let bits = results.into_iter().map(|(name, tensor)| (name, tensor.bytes().to_vec())).collect();
    (bits, session.weight_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn calls_give_the_same_bits(seed: u64, ops in 1usize..16, calls: bool) {
        let sample = random_module(seed, Contents { ops, narrow: false, calls });
        let ((have, _), (want, _)) = (run(&sample, seed ^ 5, true), run(&sample, seed ^ 5, false));
        prop_assert!(have == want, "{}", sample.module);
    }
}

const LAYERS: &str = "dim s
dim m = 48
dim r = 1500
dim h = 7
fn @layer(%x: f32[s, m], weight %u: f32[r, m], weight %v: f32[r, m], weight %o: bf16[m, m]) -> f32[s, m] {
  %uv = einsum \"rm,rn->mn\" %u, %v : f32[m, m]
  %y  = einsum \"sm,mn->sn\" %x, %uv : f32[s, m]
  %w  = cast %o {to = f32} : f32[m, m]
  %z  = einsum \"sm,nm->sn\" %y, %w : f32[s, m]
  return %z
}
fn @main(%x: f32[s, m], weight %0.u: f32[r, m], weight %0.v: f32[r, m], weight %0.o: bf16[m, m], weight %1.u: f32[r, m], weight %1.v: f32[r, m], weight %1.o: bf16[m, m]) -> f32[s, m] {
  %layers.0 = call @layer %x, %0.u, %0.v, %0.o : f32[s, m]
  %layers.1 = call @layer %layers.0, %1.u, %1.v, %1.o : f32[s, m]
  return %layers.1
}";

fn numbers(n: usize, seed: u64) -> Vec<u8> {
    let mut rng = eva_ir::testing::Rng::new(seed);
    (0..n).flat_map(|_| ((rng.unit() * 0.1) as f32).to_le_bytes()).collect()
}

/// A checkpoint of the weights of [`LAYERS`].
fn checkpoint(dir: &std::path::Path) -> Arc<Checkpoint> {
    let decls = ["0.u", "0.v", "0.o", "1.u", "1.v", "1.o"].map(|name| match name.ends_with('o') {
        true => TensorDecl { name: name.into(), dtype: CheckpointDType::Bf16, shape: vec![48, 48] },
        false => TensorDecl { name: name.into(), dtype: CheckpointDType::F32, shape: vec![1500, 48] },
    });
    let fill = |i: usize, out: &mut dyn std::io::Write| {
        let bytes: usize = decls[i].shape.iter().product::<usize>() * decls[i].dtype.bytes();
        out.write_all(&numbers(bytes / 4, i as u64))
    };
    Writer::new().write_dir(dir, &decls, fill).unwrap();
    Arc::new(Checkpoint::open(dir).unwrap())
}

#[test]
fn a_session_keeps_what_calls_use() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let module = parse(LAYERS).unwrap_or_else(|diags| panic!("{diags}"));
    let x = Tensor::from_f32(&[3, 48], &(0..3 * 48).map(|i| i as f32 / 64.0).collect::<Vec<_>>());
    let mut all = Vec::new();
    for hoist in [false, true] {
        let exe = compile(&module, hoist);
        let mut given = Weights::new();
        for name in checkpoint.names() {
            let weight = weights::load(&exe, &checkpoint, name).unwrap().unwrap();
            given.insert(name.to_string(), Arc::new(weight));
        }
        exe.prepare(&["main"], &mut given).unwrap();
        let mut names: Vec<&str> =
            given.keys().map(String::as_str).filter(|name| !name.starts_with('@')).collect();
        names.sort();
        let mut session = Session::new(exe.clone(), "main", &given).unwrap();
        let (kept, copies) = (48 * 48 * 2, 48 * 48 * 4);
        match hoist {
            true => {
                assert_eq!((names, given.len()), (vec!["0.o", "1.o"], 4));
                assert_eq!(session.weight_bytes(), 2 * (kept + copies));
            }
            false => assert_eq!(session.weight_bytes(), 2 * kept + 4 * 1500 * 48 * 4),
        }
        let arena = session.arena_bytes(&[("s", 3)]).unwrap();
        let results = session.run(&[("x", &x)], None, &[]).unwrap();
        all.push((results[0].1.bytes().to_vec(), arena));
    }
    assert!(all[0].0 == all[1].0, "the same bits");
    assert_eq!(all[0].1 - all[1].1, 48 * 48 * 4, "a call needs no memory for the product of weights");
}

#[test]
fn mapped_weights_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let weight = weights::mapped(&checkpoint, "1.u").unwrap();
    let before = weight.host().unwrap().to_vec();
    let released = weight.release();
    assert!(cfg!(not(unix)) || (released > 0 && released <= weight.bytes()), "{released}");
    assert_eq!(weight.host().unwrap(), before);
    assert_eq!(eva_runtime::Weight::from(Tensor::from_f32(&[1], &[3.0])).release(), 0);
}
