//! Machines as files, and what ops cost on them.

use crate::support::{V3, fix, last, mla, parse};
use eva_passes::cost::{
    AMORTIZED, Cost, CostOptions, Lengths, Machine, MachineError, Metric, representative,
};
use std::collections::BTreeMap;

#[test]
fn machines_are_files() {
    for machine in Machine::built_in() {
        assert_eq!(Machine::from_toml(&machine.to_toml()).unwrap(), machine);
        assert_eq!(Machine::by_name(&machine.name), Some(machine));
    }
    assert_eq!(Machine::by_name("abacus"), None);
    let text = "name = \"mine\"\nbytes = 1e11\nlaunch = 1e-6\nvector = 1e10\n[product]\nf32 = 1e12\nbf16 = 2e12\nf8 = 4e12\n";
    assert_eq!(Machine::from_toml(text).unwrap().product.bf16, 2e12);
    let wrong = Machine::from_toml(&text.replace("1e11", "-1e11")).unwrap_err();
    assert_eq!(wrong, MachineError::Rate { key: "bytes", value: "-100000000000".into() });
    for (from, to) in [("f8 = 4e12", "f9 = 4e12"), ("bytes", "bites"), ("1e-6", "soon"), ("[product]", "[")] {
        let wrong = Machine::from_toml(&text.replace(from, to)).unwrap_err();
        assert!(matches!(wrong, MachineError::Syntax(_)), "{wrong}");
    }
}

#[test]
fn lengths_are_known_by_what_they_do() {
    let names = |lengths: &Lengths| {
        let name = |sym: &Option<eva_ir::dim::Sym>| sym.as_ref().map_or("", |sym| sym.as_str()).to_string();
        [name(&lengths.batch), name(&lengths.new), name(&lengths.cached)]
    };
    assert_eq!(names(&Lengths::of(&mla())), ["b", "s", "t"]);
    let tokens = parse(
        "dim q\ndim n\ndim w = 9\nfn @f(%ids: i32[n, q], weight %e: f32[w, w]) -> f32[n, q, w] {\n  %x = embedding %e, %ids : f32[n, q, w]\n  return %x\n}",
    );
    assert_eq!(names(&Lengths::of(&tokens)), ["n", "q", ""]);
    let alone = parse(
        "dim b\ndim s\ndim h = 3\nfn @f(%x: f32[b, h, s, s], %at: i32[b]) -> f32[b, h, s, s] {\n  %y = causal_softmax %x, %at : f32[b, h, s, s]\n  return %y\n}",
    );
    assert_eq!(names(&Lengths::of(&alone)), ["b", "s", "s"]);
    assert_eq!(representative(&alone), BTreeMap::from([("b".into(), 1), ("s".into(), 4096)]));
}

/// The symbolic estimate is the sum of what ops cost, at any lengths.
#[test]
fn estimates_are_sums_of_ops() {
    let module = fix(mla(), V3);
    let (_, f) = last(&module);
    for metric in [Metric::Flops, Metric::Roofline] {
        let cost = Cost::new(&module, f, &CostOptions { metric, ..CostOptions::new(Machine::h100()) });
        let estimate = cost.estimate(f);
        for (b, s, t) in [(1, 1, 4096), (3, 70, 300), (64, 1, 20000)] {
            let sizes = Lengths::of(&module).sizes(b, s, t);
            let at = cost.at(&sizes);
            let ops = f.values.iter().filter_map(|(_, data)| match &data.def {
                eva_ir::graph::Def::Op(op, args) => {
                    let args: Vec<_> = args.iter().map(|&arg| f.tensor(arg).unwrap()).collect();
                    Some(at.of(op, &args, &data.ty))
                }
                _ => None,
            });
            let (have, want) = (estimate.eval(&|sym| sizes.get(sym).copied()).unwrap(), ops.sum::<f64>());
            assert!((have - want).abs() < 1e-9 * want, "{have} {want}");
        }
    }
}

#[test]
fn weights_alone_are_paid_once() {
    let module = parse(
        "dim s\nfn @f(%x: f32[s, 300], weight %a: bf16[300, 70], weight %b: bf16[70, 500]) -> f32[s, 500] {\n  %c = einsum \"ab,bc->ac\" %a, %b : bf16[300, 500]\n  %d = cast %c {to = f32} : f32[300, 500]\n  %y = einsum \"sa,ac->sc\" %x, %d : f32[s, 500]\n  return %y\n}",
    );
    let (_, f) = last(&module);
    let machine = Machine::cpu();
    let cost = Cost::new(&module, f, &CostOptions::new(machine.clone()));
    let product = 2.0 * 7.0 * 300.0 * 500.0 / machine.product.f32;
    let bytes = 4.0 * (7.0 * 300.0 + 7.0 * 500.0 + 300.0 * 500.0) / machine.bytes;
    let once = 2.0 * (300.0 * 70.0 + 70.0 * 500.0 + 300.0 * 500.0) / machine.bytes / AMORTIZED;
    let want = machine.launch + product.max(bytes) + once;
    let have = cost.estimate(f).eval(&|_| Some(7)).unwrap();
    assert!((have - want).abs() < 1e-12, "{have} {want}");
    let sizes = BTreeMap::from([("s".into(), 7)]);
    let total = cost.at(&sizes).total(f);
    assert_eq!((total.flops, total.launches), (2.0 * 7.0 * 300.0 * 500.0, 1.0));
}

/// What attention's backward is given besides its factors, sums in f32, says nothing of how fast it multiplies.
#[test]
fn gradients_of_attention_are_products_of_their_operands_type() {
    use eva_ir::graph::Def;
    for (dtype, rate) in [("bf16", Machine::h100().product.bf16), ("f32", Machine::h100().product.f32)] {
        let module = parse(&format!(
            "dim b dim s dim h = 3 dim c = 24
            fn @f(%q: {dtype}[b, s, h, c], %k: {dtype}[b, s, c], %start: i32[b], %delta: f32[b, h, s], %do: {dtype}[b, s, h, c]
            ) -> {dtype}[b, s, h, c], {dtype}[b, s, h, c], {dtype}[b, s, c] {{
              %both = attend_lse \"bshc,btc,bta->bsha\" %q, %k, %k, %start {{scale = 0.3}} : ({dtype}[b, s, h, c], f32[b, h, s])
              %o = get %both {{index = 0}} : {dtype}[b, s, h, c]
              %lse = get %both {{index = 1}} : f32[b, h, s]
              %gq = attend_grad_queries \"bshc,btc,bta->bsha\" %q, %k, %k, %start, %lse, %delta, %do {{scale = 0.3}} : ({dtype}[b, s, h, c])
              %dq = get %gq {{index = 0}} : {dtype}[b, s, h, c]
              %gk = attend_grad_keys \"bshc,btc,bta->bsha\" %q, %k, %k, %start, %lse, %delta, %do {{scale = 0.3}} : ({dtype}[b, s, c], {dtype}[b, s, c])
              %dk = get %gk {{index = 0}} : {dtype}[b, s, c]
              return %o, %dq, %dk
            }}"
        ));
        let (_, f) = last(&module);
        let rates = f.values.iter().filter_map(|(_, data)| match &data.def {
            Def::Op(op, args) if args.len() > 1 => {
                let args: Vec<_> = args.iter().map(|&arg| f.tensor(arg).unwrap()).collect();
                Some(Machine::h100().flops(op, &args))
            }
            _ => None,
        });
        assert_eq!(rates.collect::<Vec<_>>(), [rate; 3]);
    }
}

/// As many keys as new tokens means that there are no others, so that half of the scores are masked.
#[test]
fn attention_over_the_new_tokens_alone_is_half() {
    let flops = |keys: &str| {
        let module = parse(&format!(
            "dim b dim s dim t dim h = 3 dim c = 24 dim v = 10
            fn @f(%q: f32[b, s, h, c], %k: f32[b, {keys}, c], %v: f32[b, {keys}, h, v], %start: i32[b]) -> f32[b, s, h, v] {{
              %o = attend \"bshc,btc,bthv->bshv\" %q, %k, %v, %start {{scale = 0.3}} : f32[b, s, h, v]
              return %o
            }}"
        ));
        let sizes = BTreeMap::from([("b".into(), 2), ("s".into(), 70), ("t".into(), 70)]);
        let options = CostOptions { metric: Metric::Flops, sizes, ..CostOptions::default() };
        let (_, f) = last(&module);
        Cost::new(&module, f, &options).total(f).flops
    };
    assert_eq!(flops("t"), 2.0 * (2 * 70 * 70 * 3 * (24 + 10)) as f64);
    assert_eq!(flops("s"), flops("t") / 2.0);
}
