//! Rows of tokens in 8 bits: a token is quantized once for all of its experts, and its rows are nowhere in more bits.

use eva_ir::dim::Sym;
use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::{Def, Module};
use eva_ir::kernel::run::round;
use eva_ir::ops::Op;
use eva_ir::testing::Rng;
use eva_ir::text;
use eva_ir::types::DType;
use eva_passes::fp8::{self, Recipe};
use eva_passes::grad::{self, differentiate};
use eva_passes::plan::{Base, Step};
use eva_passes::target::Target;
use eva_passes::{Options, run_pass};

fn parse(source: &str) -> Module {
    text::parse(source).unwrap_or_else(|diags| panic!("{diags}\n{source}"))
}

fn options(recipe: &str) -> Options {
    let fp8 = fp8::Options { recipe: Recipe::named(recipe), ..fp8::Options::default() };
    assert!(fp8.recipe.is_some());
    Options { fp8, ..Options::default() }
}

/// Experts, and one that all tokens go to, which sees them with another shape.
const LAYER: &str = "dim b = 2 dim s = 24 dim k = 3 dim e = 5 dim m = 144 dim f = 48
    fn @layer(
      %x: bf16[b, s, m], weight %up: bf16[e, f, m], weight %gate: bf16[e, f, m], weight %shared: bf16[f, m],
      %chosen: i32[b*s, k],
    ) -> bf16[b*s*k, f], bf16[b, s, f] {
      %sorted = sort_by_expert %chosen {experts = [e]} : (i32[b*s*k], i32[b*s, k], i32[e+1])
      %order = get %sorted {index = 0} : i32[b*s*k]
      %offsets = get %sorted {index = 2} : i32[e+1]
      %tokens = reshape %x {shape = [b*s, m]} : bf16[b*s, m]
      %rows = dispatch %tokens, %order {k = [k]} : bf16[b*s*k, m]
      %y = grouped \"gm,efm->gf\" %rows, %up, %offsets : bf16[b*s*k, f]
      %z = grouped \"gm,efm->gf\" %rows, %gate, %offsets : bf16[b*s*k, f]
      %p = mul %y, %z : bf16[b*s*k, f]
      %all = einsum \"bsm,fm->bsf\" %x, %shared : bf16[b, s, f]
      return %p, %all
    }";

/// Values of the module's only function, of whose operands all but the numbers of experts are random.
fn results(module: &Module, chosen: &[f64]) -> Vec<Array> {
    let func = module.funcs.keys().next().unwrap();
    let f = &module.funcs[func];
    let sizes = Sizes(module.dims.iter().filter_map(|(sym, n)| Some((Sym::clone(sym), (*n)?))).collect());
    let mut rng = Rng::new(11);
    let mut args = Vec::new();
    for (param, _) in f.params() {
        let ty = f.tensor(param).unwrap();
        let shape: Vec<usize> = ty.shape.iter().map(|dim| sizes.of(dim)).collect();
        let n = shape.iter().product::<usize>();
        let data = (0..n).map(|i| match ty.dtype.is_int() {
            true => chosen[i % chosen.len()],
            false => round((rng.unit() - 0.5) * 2f64.powi((i % 9) as i32), ty.dtype),
        });
        args.push(Array::new(&shape, data.collect()));
    }
    let values = eval_values(module, func, &sizes, &args);
    f.results.iter().map(|result| values[result][0].clone()).collect()
}

fn count(module: &Module, of: fn(&Op) -> bool) -> usize {
    let values = module.funcs.iter().flat_map(|(_, f)| f.values.iter());
    values.filter(|(_, data)| matches!(&data.def, Def::Op(op, _) if of(op))).count()
}

/// The numbers of rows that are quantized are those of quantized rows, however scales are written.
#[test]
fn rows_of_codes_are_codes_of_rows() {
    let chosen = [4.0, 0.0, 2.0, 2.0, 3.0, 0.0, 4.0];
    for (to, per, ty, scales) in [
        ("f8e4m3", "1, 16", "m/16", "single"),
        ("f8e4m3", "1, m", "m/*", "single"),
        ("f8e5m2", "1, 40", "m/40; pow2", "pow2"),
        ("f8e4m3", "1, 32", "m/32; e8m0", "e8m0"),
        ("f8e4m3", "1, 1", "m", "single"),
    ] {
        let text = |body: &str| {
            format!(
                "dim t = 19 dim k = 3 dim e = 5 dim m = 53
                fn @f(%x: f32[t, m], %chosen: i32[t, k]) -> {to}[t*k, {ty}] {{
                  %sorted = sort_by_expert %chosen {{experts = [e]}} : (i32[t*k], i32[t, k], i32[e+1])
                  %order = get %sorted {{index = 0}} : i32[t*k]
                  {body}
                  return %y
                }}"
            )
        };
        let how = format!("to = {to}, per = [{per}], scales = {scales}, least = 1e-4");
        let after = format!(
            "%q = quantize %x {{{how}}} : {to}[t, {ty}]
             %y = dispatch %q, %order {{k = [k]}} : {to}[t*k, {ty}]"
        );
        let before = format!(
            "%rows = dispatch %x, %order {{k = [k]}} : f32[t*k, m]
             %y = quantize %rows {{{how}}} : {to}[t*k, {ty}]"
        );
        let [after, before] = [after, before].map(|body| results(&parse(&text(&body)), &chosen));
        assert_eq!(after[0].data, before[0].data, "{per} {scales}");
    }
}

/// A token is quantized once: for the rows of all its experts, and for whoever sees it in another shape.
#[test]
fn tokens_are_quantized_once() {
    for (recipe, quantized) in [("deepseek-v3", 4), ("deepseek-v3-ue8m0", 4), ("rowwise", 4), ("mxfp8", 4)] {
        let done =
            run_pass("fp8", &parse(LAYER), &options(recipe)).unwrap().unwrap_or_else(|e| panic!("{e}"));
        // The input, and three weights.
        assert_eq!(count(&done, |op| matches!(op, Op::Quantize(_))), quantized, "{recipe}");
        let f = &done.funcs[done.func("layer").unwrap()];
        for (value, data) in f.values.iter() {
            if matches!(data.def, Def::Op(Op::Dispatch(_), _)) {
                assert!(f.tensor(value).unwrap().scales.is_some(), "{recipe}");
            }
        }
        // The same numbers as with rows that are quantized by themselves.
        let text = text::print(&done);
        let line = |name: &str| text.lines().find(|line| line.trim().starts_with(name)).unwrap().to_string();
        let (codes, rows) = (line("%x_f8e4m3 "), line("%rows_f8e4m3 "));
        let ty = rows.rsplit(" : ").next().unwrap();
        let attributes = &codes[codes.find('{').unwrap()..=codes.find('}').unwrap()];
        let attributes = attributes.replace("per = [1, 1, ", "per = [1, ");
        let apart = format!(
            "  %tokens_apart = reshape %x {{shape = [b*s, m]}} : bf16[b*s, m]
               %rows_apart = dispatch %tokens_apart, %order {{k = [k]}} : bf16[b*k*s, m]
               %rows_f8e4m3 = quantize %rows_apart {attributes} : {ty}"
        );
        let apart = parse(&text.replace(&rows, &apart));
        let chosen = [4.0, 0.0, 2.0, 2.0, 3.0, 0.0, 4.0];
        let (one, other) = (results(&done, &chosen), results(&apart, &chosen));
        assert!(one.iter().zip(&other).all(|(one, other)| one.data == other.data), "{recipe}");
    }
    // A scale that tokens share says nothing of their rows.
    let done = run_pass("fp8", &parse(LAYER), &options("tensorwise-current")).unwrap();
    let done = done.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(count(&done, |op| matches!(op, Op::Quantize(_))), 5);
    let f = &done.funcs[done.func("layer").unwrap()];
    let rows = f.values.iter().find(|(_, data)| matches!(data.def, Def::Op(Op::Dispatch(_), _))).unwrap().0;
    assert_eq!(f.tensor(rows).unwrap().dtype, DType::Bf16);
}

/// In a training step no kernel writes rows of tokens but as codes; their statistics are the tokens'.
#[test]
fn rows_are_nowhere_in_more_bits() {
    let text = LAYER.replace("-> bf16[b*s*k, f], bf16[b, s, f]", "-> f32[]").replace(
        "return %p, %all",
        "%wide = cast %p {to = f32} : f32[b*s*k, f] %loss = einsum \"gf->\" %wide : f32[] return %loss",
    );
    let module =
        differentiate(&parse(&text), "layer", &grad::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = options("deepseek-v3");
    for target in [Target::cpu(), Target::cuda()] {
        let plan = eva_passes::compile(&module, &target, &options).unwrap_or_else(|e| panic!("{e}"));
        let (_, f) = plan.funcs.iter().find(|(_, f)| f.name == "layer.grad").unwrap();
        let temps = f.bases.iter().filter_map(|base| match base {
            Base::Temp(temp) if temp.name.starts_with("rows") => Some(temp.name.as_str()),
            _ => None,
        });
        let mut temps: Vec<&str> = temps.collect();
        temps.sort_unstable();
        temps.dedup();
        let codes = ["rows_f8e4m3", "rows_f8e4m3_1", "rows_f8e4m3_1_scale_inv", "rows_f8e4m3_scale_inv"];
        assert_eq!(temps, codes, "{}", target.name);
        // Codes and scales are moved by a kernel each.
        let launches = f.steps.iter().filter(
            |step| matches!(step, Step::Launch { name, .. } if name == "layer.grad.rows_f8e4m3" || name == "layer.grad.rows_f8e4m3_scale_inv"),
        );
        assert_eq!(launches.count(), 2, "{}", target.name);
    }
    let mut observed = self::options("deepseek-v3");
    observed.fp8.observe = true;
    let done = run_pass("fp8", &parse(LAYER), &observed).unwrap().unwrap_or_else(|e| panic!("{e}"));
    let sites = fp8::observe::sites(&done, done.func("layer").unwrap());
    let tokens = sites.iter().find(|site| site.value == "x").unwrap();
    assert_eq!(tokens.used_by, ["up", "gate", "shared"]);
}
