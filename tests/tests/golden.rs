//! Single ops and small blocks as machine code, against what PyTorch and transformers computed.

use eva_ir::eval::Array;
use eva_ir::text::parse;
use eva_runtime::checkpoint::Checkpoint;
use eva_runtime::{CompileOptions, Executable, Session, Tensor, Weights};
use std::path::PathBuf;
use std::sync::Arc;

struct Golden(Checkpoint);

impl Golden {
    fn open(path: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path);
        Self(Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}")))
    }

    fn get(&self, name: &str) -> Array {
        let tensor = self.0.get(name).unwrap_or_else(|| panic!("{name} is not in the file"));
        let data = match tensor.to_i64() {
            Ok(ints) => ints.into_iter().map(|x| x as f64).collect(),
            Err(_) => tensor.to_f32().unwrap().into_iter().map(f64::from).collect(),
        };
        Array::new(tensor.shape, data)
    }
}

/// Runs the last function of a module on its inputs, in order, as machine code.
fn run(text: &str, inputs: &[&Array]) -> Vec<Array> {
    let module = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let name = module.funcs.iter().next_back().map(|(_, f)| f.name.clone()).expect("there is a function");
    let executable =
        Executable::compile(&module, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut session =
        Session::new(Arc::new(executable), &name, &Weights::new()).unwrap_or_else(|e| panic!("{e}"));
    let params: Vec<_> = session.plan().params.iter().map(|p| (p.name.clone(), p.ty.dtype)).collect();
    assert_eq!(params.len(), inputs.len(), "one input a parameter");
    let tensor = |((name, dtype), x): (&(String, _), &&Array)| {
        (name.clone(), Tensor::from_f64(*dtype, &x.shape, &x.data))
    };
    let tensors: Vec<(String, Tensor)> = params.iter().zip(inputs).map(tensor).collect();
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let results = session.run(&named, None, &[]).unwrap_or_else(|e| panic!("{e}"));
    results.into_iter().map(|(_, t)| Array::new(t.shape(), t.to_f64())).collect()
}

#[track_caller]
fn close(have: &Array, want: &Array, tolerance: f64) {
    assert_eq!(have.shape, want.shape);
    for (i, (a, b)) in have.data.iter().zip(&want.data).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "element {i} is {a}, not {b}");
    }
}

#[test]
fn rms_norm() {
    let golden = Golden::open("ops/rmsnorm.safetensors");
    let text = "dim b\ndim m = 160\nfn @f(%x: f32[b, m], %g: f32[m]) -> f32[b, m] {
        %y = rms_norm %x, %g {eps = 1e-6} : f32[b, m]\n return %y }";
    close(&run(text, &[&golden.get("x"), &golden.get("weight")])[0], &golden.get("y"), 1e-6);
    // In bf16: the statistics in f32, one rounding at the end, where transformers rounds twice.
    let text = text.replace("f32", "bf16");
    close(
        &run(&text, &[&golden.get("bf16.x"), &golden.get("bf16.weight")])[0],
        &golden.get("bf16.y"),
        1.0 / 128.0,
    );
}

#[test]
fn swiglu() {
    let golden = Golden::open("ops/swiglu.safetensors");
    let text = "dim b\ndim f = 40\nfn @f(%gate: f32[b, f], %up: f32[b, f]) -> f32[b, f] {
        %a = silu %gate : f32[b, f]\n %y = mul %a, %up : f32[b, f]\n return %y }";
    close(&run(text, &[&golden.get("gate"), &golden.get("up")])[0], &golden.get("y"), 1e-6);
}

#[test]
fn rope_of_every_case_in_both_pairings() {
    let golden = Golden::open("ops/rope.safetensors");
    let m = |mu: f64| 0.1 * mu * 8f64.ln() + 1.0;
    for (case, p, theta, factor, fast, slow, original, by) in [
        ("v3", 64, 1e4, 40.0, 32.0, 1.0, 4096, 1.0),
        ("v2lite", 64, 1e4, 40.0, 32.0, 1.0, 4096, 1.0),
        ("tiny", 16, 1e4, 40.0, 32.0, 1.0, 4096, 1.0),
        ("plain", 16, 1e4, 1.0, 32.0, 1.0, 4096, 1.0),
        ("ratio", 20, 5e4, 8.0, 16.0, 2.0, 512, m(1.0) / m(0.5)),
    ] {
        for (pairs, suffix) in [("interleaved", ""), ("halves", "_halfsplit")] {
            let text = format!(
                "dim b\ndim s\ndim p = {p}\nfn @f(%x: f32[b, s, p], %positions: i64[b, s]) -> f32[b, s, p] {{
                %freqs = rope_freqs {{width = [p], theta = {theta:?}, pairs = {pairs}, factor = {factor:?}, \
                beta_fast = {fast:?}, beta_slow = {slow:?}, original = {original}}} : f32[2, p]
                %table = rope_table %positions, %freqs {{factor = {by:?}}} : f32[b, s, 2, p]
                %y = rope %x, %table {{pairs = {pairs}}} : f32[b, s, p]\n return %y }}"
            );
            let positions = golden.get(&format!("{case}.positions"));
            for (name, b) in [("q", 2), ("k", 1)] {
                let x = golden.get(&format!("{case}.{name}"));
                let half = p / 2;
                let given = Array::from_fn(&x.shape, |i| {
                    let c = if pairs == "halves" { i[2] % half * 2 + i[2] / half } else { i[2] };
                    x.at(&[i[0], i[1], c])
                });
                let at = Array::from_fn(&[b, x.shape[1]], |i| positions.data[i[1]]);
                let want = golden.get(&format!("{case}.{name}_out{suffix}"));
                close(&run(&text, &[&given, &at])[0], &want, 2e-6);
            }
        }
    }
}

#[test]
fn routers_of_every_case() {
    let golden = Golden::open("ops/gate.safetensors");
    for (case, e, k, groups, kept, normalize, scale) in [
        ("v3", 256, 8, 8, 4, true, 2.5),
        ("v3_large_bias", 256, 8, 8, 4, true, 2.5),
        ("v3_negative_bias", 24, 5, 3, 2, true, 2.5),
        ("v3_no_norm", 24, 5, 3, 2, false, 1.7),
        ("v3_one_group", 24, 5, 1, 1, true, 2.5),
        ("v2_greedy", 64, 6, 1, 1, false, 1.0),
        ("v2_group_limited", 160, 6, 8, 3, false, 16.0),
    ] {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let v3 = case.starts_with("v3");
        let route = match case {
            "v2_greedy" => format!("route_greedy %logits {{k = [k], scale = {scale:?}}}"),
            "v2_group_limited" => format!(
                "route_group_limited_greedy %logits {{k = [k], groups = {groups}, kept = {kept}, scale = {scale:?}}}"
            ),
            _ => format!(
                "route_noaux_tc %logits, %bias {{k = [k], groups = {groups}, kept = {kept}, normalize = {normalize}, scale = {scale:?}}}"
            ),
        };
        let bias = if v3 { ", %bias: f32[e]" } else { "" };
        let text = format!(
            "dim n\ndim x = 32\ndim e = {e}\ndim k = {k}\n
            fn @f(%x: f32[n, x], %w: f32[e, x]{bias}) -> f32[n, e], i32[n, k], f32[n, k] {{
            %logits = einsum \"nx,ex->ne\" %x, %w : f32[n, e]
            %chosen = {route} : (i32[n, k], f32[n, k])
            %idx = get %chosen {{index = 0}} : i32[n, k]
            %weight = get %chosen {{index = 1}} : f32[n, k]
            return %logits, %idx, %weight }}"
        );
        let (x, w) = (get("x"), get("weight"));
        let bias = if v3 { vec![get("bias")] } else { vec![] };
        let inputs: Vec<&Array> = [&x, &w].into_iter().chain(&bias).collect();
        let have = run(&text, &inputs);
        close(&have[0], &get("logits"), 1e-5);
        let (idx, weight) = (get("topk_idx"), get("topk_weight"));
        for t in 0..idx.shape[0] {
            let mut chosen: Vec<(i64, f64)> =
                (0..k).map(|j| (have[1].at(&[t, j]) as i64, have[2].at(&[t, j]))).collect();
            chosen.sort_by_key(|&(expert, _)| expert);
            for (j, (expert, have)) in chosen.into_iter().enumerate() {
                assert_eq!(expert as f64, idx.at(&[t, j]), "{case}, token {t}");
                let want = weight.at(&[t, j]);
                assert!(
                    (have - want).abs() <= 1e-5 * want.abs().max(1.0),
                    "{case}, token {t}: {have}, not {want}"
                );
            }
        }
    }
}

#[test]
fn attention_fused_and_in_parts() {
    let golden = Golden::open("ops/attention.safetensors");
    let get = |name: &str| golden.get(name);
    let scale = get("scale").data[0];
    // With the probabilities as a result the attention is not fused; without, it is one kernel.
    for (results, types) in
        [("%out", "f32[b, h, s, v]"), ("%out, %probs", "f32[b, h, s, v], f32[b, h, s, s]")]
    {
        let text = format!(
            "dim b\ndim s\ndim h = 3\ndim n = 12\ndim p = 8\ndim v = 10\ndim c = 16\n
            fn @f(%q: f32[b, h, s, n], %q_pe: f32[b, h, s, p], %c: f32[b, s, c], %k_pe: f32[b, s, p],
                  %w: f32[h*n+h*v, c], %start: i32[b]) -> {types} {{
            %w3 = reshape %w {{shape = [h, n+v, c]}} : f32[h, n+v, c]
            %w_uk = slice %w3 {{axis = 1, range = 0..n}} : f32[h, n, c]
            %w_uv = slice %w3 {{axis = 1, range = n..n+v}} : f32[h, v, c]
            %k = einsum \"btc,hnc->bthn\" %c, %w_uk : f32[b, s, h, n]
            %val = einsum \"btc,hvc->bthv\" %c, %w_uv : f32[b, s, h, v]
            %qt = einsum \"bhsn->bshn\" %q : f32[b, s, h, n]
            %qpt = einsum \"bhsp->bshp\" %q_pe : f32[b, s, h, p]
            %s1 = einsum \"bshn,bthn->bhst\" %qt, %k : f32[b, h, s, s]
            %s2 = einsum \"bshp,btp->bhst\" %qpt, %k_pe : f32[b, h, s, s]
            %sum = add %s1, %s2 : f32[b, h, s, s]
            %scores = scale %sum {{by = {scale:?}}} : f32[b, h, s, s]
            %probs = causal_softmax %scores, %start : f32[b, h, s, s]
            %o = einsum \"bhst,bthv->bshv\" %probs, %val : f32[b, s, h, v]
            %out = einsum \"bshv->bhsv\" %o : f32[b, h, s, v]
            return {results} }}"
        );
        let start = Array::new(&[2], vec![0.0; 2]);
        let (q, q_pe, c) = (get("q_nope"), get("q_rope"), get("latent"));
        let have = run(&text, &[&q, &q_pe, &c, &get("k_rope"), &get("kv_b_proj"), &start]);
        close(&have[0], &get("out"), 3e-6);
    }
}

/// Forward, gradient of the input and gradient of the weight of a linear layer by DeepSeek-V3's recipe: 136 tokens, a tile and a
/// short one; sums of 144 and 132.
#[test]
fn gradients_of_a_linear_layer_in_eight_bits() {
    let golden = Golden::open("ops/fp8_linear.safetensors");
    let text = "dim t = 136 dim i = 144 dim o = 132
        fn @loss(%x: f32[t, i], weight %w: f32[o, i], %dy: f32[t, o]) -> f32[], f32[t, o] {
          %y = einsum \"ti,oi->to\" %x, %w : f32[t, o]
          %p = mul %y, %dy : f32[t, o]
          %all = einsum \"to->\" %p : f32[]
          return %all, %y
        }";
    let wrt = Some(vec!["x".to_string(), "w".to_string()]);
    let options = eva_passes::grad::Options { wrt, ..Default::default() };
    let module = eva_passes::grad::differentiate(&parse(text).unwrap(), "loss", &options).unwrap();
    for (case, recipe) in [("f32", "deepseek-v3"), ("ue8m0", "deepseek-v3-ue8m0")] {
        let mut compile = CompileOptions::default();
        compile.passes.fp8.recipe = eva_passes::fp8::Recipe::named(recipe);
        compile.passes.fp8.deny_fallback = true;
        let executable = Executable::compile(&module, &compile).unwrap_or_else(|e| panic!("{e}"));
        let tensor = |x: &Array| Tensor::from_f64(eva_ir::types::DType::F32, &x.shape, &x.data);
        let weights = Weights::from([("w".to_string(), Arc::new(tensor(&golden.get("weight")).into()))]);
        let mut session = Session::new(Arc::new(executable), "loss.grad", &weights).unwrap();
        let (x, dy, seed) =
            (tensor(&golden.get("x")), tensor(&golden.get("dy")), Tensor::from_f32(&[], &[1.0]));
        let results = session.run(&[("x", &x), ("dy", &dy), ("all.grad", &seed)], None, &[]).unwrap();
        for (name, result) in results.iter().skip(1) {
            let what = match name.as_str() {
                "x.grad" => "dx",
                "w.grad" => "dweight",
                name => name,
            };
            let want = golden.get(&format!("{case}.{what}"));
            let have = Array::new(result.shape(), result.to_f64());
            let norm = |x: &Array| x.data.iter().map(|x| x * x).sum::<f64>().sqrt();
            let off: f64 =
                have.data.iter().zip(&want.data).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
            println!("{case}.{what}: {:e}", off / norm(&want));
            assert!(off <= 1e-6 * norm(&want), "{case}.{what}: {:e}", off / norm(&want));
        }
        assert_eq!(results.len(), 4);
    }
}
