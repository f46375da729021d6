//! Caches in pages.

use crate::support::{Step, argument, parse, run, states, steps};
use eva_ir::dim::Sym;
use eva_ir::eval::{Array, Sizes, eval_values};
use eva_ir::graph::{Module, ParamKind};
use eva_ir::kernel::Phase;
use eva_ir::{text, verify};
use eva_passes::cache::{CacheOptions, Layout, lay_out};
use eva_passes::interpret::{How, interpret};
use eva_passes::target::Target;
use eva_passes::{Form, Options};

const MLA: &str = include_str!("../../../tests/cases/run/mla.eva");
const NAIVE: &str = include_str!("../../../tests/cases/run/naive.eva");

fn in_pages(module: &Module, layout: Layout, page: usize) -> Module {
    let new = lay_out(module, &CacheOptions { layout, page: Some(page), ..CacheOptions::default() })
        .unwrap_or_else(|e| panic!("{e}"));
    verify::verify(&new).unwrap_or_else(|e| panic!("{e}\n{new}"));
    let printed = text::print(&new);
    assert_eq!(text::print(&parse(&printed)), printed);
    new
}

#[test]
fn states_become_pools_and_callers_give_a_table() {
    let naive = in_pages(&parse(NAIVE), Layout::Auto, 16);
    assert_eq!(states(&naive, "attention"), ["latent_cache f32[pool, 16, c]", "k_pe_cache f32[pool, 16, p]"]);
    let written = in_pages(&parse(NAIVE), Layout::AsWritten, 7);
    let have = ["keys f32[pool, 7, h, p+n]", "values f32[pool, 7, h, v]"];
    assert_eq!(states(&written, "attention"), have);
    let f = &written.funcs[written.func("attention").unwrap()];
    let inputs = f.params().filter(|(_, kind)| *kind == ParamKind::Input);
    let inputs: Vec<String> =
        inputs.map(|(v, _)| format!("{} {}", f.values[v].name, f.values[v].ty)).collect();
    assert_eq!(inputs.last().map(String::as_str), Some("page_table i32[b, pages]"));
    // What is in pages already stays.
    let again = in_pages(&written, Layout::Auto, 5);
    assert_eq!(text::print(&again).replace("dim pool_1\ndim pages_1\n", ""), text::print(&written));
}

/// Calls as [`run`] makes them, with each sequence's pages drawn from a pool, in this order.
fn run_in_pages(module: &Module, name: &str, order: &[i64], width: usize) -> Vec<Vec<(String, Array)>> {
    let func = module.func(name).unwrap();
    let f = &module.funcs[func];
    let table = &verify::state_results(module)[func];
    let mut pools: Vec<(String, Array)> = Vec::new();
    let mut all = Vec::new();
    for (call, Step { start, new }) in steps().iter().enumerate() {
        let t = start.iter().max().unwrap() + new;
        let b = start.len();
        let given =
            [("b", b as i64), ("s", *new), ("t", t), ("pool", order.len() as i64), ("pages", width as i64)];
        let fixed = module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
        let sizes = Sizes(given.map(|(name, n)| (Sym::from(name), n)).into_iter().chain(fixed).collect());
        let args: Vec<Array> = f
            .params()
            .map(|(param, kind)| {
                let name = f.values[param].name.as_str();
                let shape: Vec<usize> =
                    f.tensor(param).unwrap().shape.iter().map(|dim| sizes.of(dim)).collect();
                match (kind, name) {
                    (ParamKind::State, _) => {
                        let old = pools.iter().find(|(other, _)| other == name).map(|(_, pool)| pool.clone());
                        old.unwrap_or_else(|| {
                            Array::from_fn(&shape, |index| index.iter().sum::<usize>() as f64)
                        })
                    }
                    (_, "page_table") => {
                        Array::from_fn(&shape, |index| order[index[0] * width + index[1]] as f64)
                    }
                    _ => argument(name, kind, &shape, call, start),
                }
            })
            .collect();
        let values = eval_values(module, func, &sizes, &args);
        let mut results = Vec::new();
        for (i, result) in f.results.iter().enumerate() {
            let (name, array) = (f.values[*result].name.clone(), values[result][0].clone());
            match table.iter().find(|(_, at)| *at == Some(i)) {
                Some((state, _)) => {
                    let name = f.values[*state].name.clone();
                    pools.retain(|(other, _)| *other != name);
                    pools.push((name, array));
                }
                None => results.push((name, array)),
            }
        }
        all.push(results);
    }
    all
}

#[test]
fn any_order_of_pages_does_the_same() {
    let module = parse(NAIVE);
    let want = run(&module, module.func("attention").unwrap(), &steps(), &[]);
    for (rows, order) in [
        (3, vec![9, 0, 4, 2, 7, 1, 3, 8, 5, 6]),
        (4, vec![5, 1, 3, 0, 2, 4]),
        (64, vec![1, 0]),
        (1, (0..22).rev().collect()),
    ] {
        for layout in [Layout::Auto, Layout::AsWritten] {
            let paged = in_pages(&module, layout, rows);
            let width = order.len() / 2;
            let have = run_in_pages(&paged, "attention", &order, width);
            for (want, have) in want.iter().zip(have) {
                for (name, have) in have {
                    assert_eq!(want[&name], have, "{rows} rows, {layout:?}\n{paged}");
                }
            }
        }
    }
}

/// The elements that kernels load of buffers with a name that has `pool` in it.
fn loaded(form: Form, page: usize, pool: i64, t: i64, target: &Target, phase: Phase) -> u64 {
    let cache = CacheOptions { page: Some(page), ..CacheOptions::default() };
    let module = parse(MLA);
    let name = module.funcs.iter().last().unwrap().1.name.clone();
    let plan = eva_passes::compile(&module, target, &Options { form, cache, ..Options::default() }).unwrap();
    let (func, f) = plan.funcs.iter().find(|(_, f)| f.name == name).unwrap();
    let pages = (t as usize).div_ceil(page);
    let given = [("b", 2), ("s", 1), ("t", t), ("pool", pool), ("pages", pages as i64)];
    let fixed = plan.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?)));
    let sizes = Sizes(given.map(|(name, n)| (Sym::from(name), n)).into_iter().chain(fixed).collect());
    let args: Vec<Array> = f
        .params
        .iter()
        .map(|param| {
            let shape: Vec<usize> = param.ty.shape.iter().map(|dim| sizes.of(dim)).collect();
            match param.name.as_str() {
                "start" => Array::from_fn(&shape, |_| (t - 1) as f64),
                "positions" => Array::from_fn(&shape, |_| (t - 1) as f64),
                // Every other page of the pool, from its end.
                "page_table" => {
                    Array::from_fn(&shape, |at| (pool - 1 - 2 * (at[0] * pages + at[1]) as i64) as f64)
                }
                _ => Array::from_fn(&shape, |at| (at.iter().sum::<usize>() % 7) as f64 / 9.0 - 0.3),
            }
        })
        .collect();
    let how = How { phase, slack: 0, options: eva_ir::kernel::run::Options::default() };
    let (_, traffic) = interpret(&plan, func, &sizes, &args, &how).unwrap_or_else(|e| panic!("{e}"));
    let buffers = traffic.launches.iter().flat_map(|launch| &launch.loaded);
    buffers.filter(|(name, _)| name == "ckv" || name == "kpe").map(|(_, n)| n).sum()
}

#[test]
fn a_decode_step_reads_the_context_and_not_the_pool() {
    let (c, p, b) = (11, 6, 2);
    for (page, t) in [(7, 20), (4, 13), (16, 16)] {
        for (target, phases) in
            [(Target::cpu(), [Phase::Tile, Phase::Lane]), (Target::cuda(), [Phase::Tile, Phase::Block])]
        {
            for phase in phases {
                for form in [Form::Absorbed, Form::Expanded] {
                    let few = loaded(form, page, 17, t, &target, phase);
                    let many = loaded(form, page, 97, t, &target, phase);
                    assert_eq!(few, many, "a larger pool is no more to read");
                    let rows = (t as u64).next_multiple_of(page as u64);
                    // Latents are read for the keys and for the values, once for all heads; to expand them, they are
                    // read for each tile of heads' columns.
                    let uses = if form == Form::Absorbed { 4 } else { 24 };
                    assert!(few <= b * rows * (uses * c + p * 5), "{form:?}, {phase:?}: {few}");
                    assert!(few >= b * t as u64 * (c + p), "{form:?}, {phase:?}: {few}");
                }
            }
        }
    }
}
