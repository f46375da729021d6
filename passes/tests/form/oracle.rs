//! The general laws of products, commutation and reassociation, as a check that the targeted rules miss nothing.

use crate::support::{V3, fix, last, mla};
use egg::{Applier, Id, PatternAst, Rewrite, Subst, Symbol, Var, rewrite as rw};
use eva_ir::attr::{Attr, Axis, Spec};
use eva_ir::ops::OpKind;
use eva_passes::cost::{Cost, CostOptions};
use eva_passes::rewrite::facts::{EGraph, Fact, Named, Types, equate};
use eva_passes::rewrite::rules::{Exactness, Use, usable};
use eva_passes::rewrite::term::Term;
use eva_passes::rewrite::{Choose, rewrite, saturate};

fn laws() -> Vec<Rewrite<Term, Types>> {
    let var = |name: &str| -> Var { name.parse().unwrap() };
    let [s, x, t, y, z] = ["?s", "?x", "?t", "?y", "?z"].map(var);
    vec![
        // x·y = y·x
        rw!("commute"; "(einsum ?s ?x ?y)" => { Named(Commute { s, x, y }) }),
        // x·(y·z) = (x·y)·z = (x·z)·y
        rw!("reassociate"; "(einsum ?s ?x (einsum ?t ?y ?z))" => { Named(Reassociate { s, x, t, y, z }) }),
    ]
}

fn spec(egraph: &EGraph, id: Id) -> Spec {
    match &egraph[id].data {
        Fact::Attr(Attr::Spec(spec)) => spec.clone(),
        other => panic!("{other} is no spec"),
    }
}

fn einsum(egraph: &mut EGraph, inputs: [&[Axis]; 2], out: &[Axis], args: [Id; 2]) -> Id {
    let spec = egraph.add(Term::Attr(Spec::new(&inputs, out, |_| 'a').into()));
    egraph.add(Term::Op(OpKind::Einsum, [spec, args[0], args[1]].into()))
}

struct Commute {
    s: Var,
    x: Var,
    y: Var,
}

impl Applier<Term, Types> for Commute {
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        class: Id,
        subst: &Subst,
        _: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let s = spec(egraph, subst[self.s]);
        let new = einsum(egraph, [&s.inputs[1], &s.inputs[0]], &s.out, [subst[self.y], subst[self.x]]);
        equate(egraph, class, new, rule)
    }
}

/// Added to an inner spec's axis numbers, to keep them apart from the outer's.
const INNER: Axis = 64;

struct Reassociate {
    s: Var,
    x: Var,
    t: Var,
    y: Var,
    z: Var,
}

impl Applier<Term, Types> for Reassociate {
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        class: Id,
        subst: &Subst,
        _: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let (outer, inner) = (spec(egraph, subst[self.s]), spec(egraph, subst[self.t]));
        // The inner spec's axes are numbered as the outer does; its summed axes get numbers of their own.
        let number = |axis: &Axis| match inner.out.iter().position(|out| out == axis) {
            Some(i) => outer.inputs[1][i],
            None => INNER + axis,
        };
        let x = (outer.inputs[0].clone(), subst[self.x]);
        let y = (inner.inputs[0].iter().map(number).collect::<Vec<_>>(), subst[self.y]);
        let z = (inner.inputs[1].iter().map(number).collect::<Vec<_>>(), subst[self.z]);
        let mut changed = Vec::new();
        for (first, second, last) in [(&x, &y, &z), (&x, &z, &y)] {
            if !first.0.iter().any(|axis| second.0.contains(axis)) {
                continue; // An outer product is never worth making.
            }
            // The pair multiplied first keeps each axis that is still needed after it.
            let needed = |axis: &&Axis| last.0.contains(axis) || outer.out.contains(axis);
            let mut kept: Vec<Axis> = first.0.iter().filter(needed).copied().collect();
            kept.extend(second.0.iter().filter(needed).filter(|axis| !first.0.contains(axis)));
            let pair = einsum(egraph, [&first.0, &second.0], &kept, [first.1, second.1]);
            let whole = einsum(egraph, [&kept, &last.0], &outer.out, [pair, last.1]);
            changed.extend(equate(egraph, class, whole, rule));
        }
        changed
    }
}

#[test]
fn general_laws_find_nothing_cheaper_than_the_rules() {
    let sizes: [&[(&str, i64)]; 5] = [
        &[],
        &[("b", 32), ("t", 4096)],
        &[("s", 32), ("t", 4096)],
        &[("s", 600), ("t", 4096)],
        &[("s", 4096), ("t", 4096)],
    ];
    for sizes in sizes {
        let module = fix(fix(mla(), V3), sizes);
        let (_, f) = last(&module);
        let cost = Cost::new(&module, f, &CostOptions::default());
        let (_, mine) = rewrite(
            f,
            &usable(Use { most: Exactness::Reassociates, absorb: true, weights: false }).unwrap(),
            &cost,
            Choose::Cheapest,
        )
        .unwrap();
        let laws = saturate(f, &laws()).unwrap();
        let theirs = laws.cheapest(f, &cost, Choose::Cheapest).unwrap();
        let (mine, theirs) = (mine.cost.1, laws.total(&cost, &theirs));
        assert!(mine <= theirs * (1.0 + 1e-9), "{sizes:?}: {mine} s by the rules, {theirs} s by the laws");
        assert!(laws.egraph.total_size() > 200, "the laws do reach further: {}", laws.egraph.total_size());
    }
}
