//! What compiling does, as data and as one self-contained page: `eva viz`.
//!
//! [`view`] runs the passes and the lowering and notes everything on the way: the graph before and after each pass, what
//! rules did, which ops share a kernel, where each buffer lies from which step to which. [`page`] puts that into a file of
//! HTML that loads nothing, [`dot`] into Graphviz's language.

mod graph;
mod kernels;
mod source;

use eva_ir::dim::{Dim, Sym};
use eva_ir::graph::Module;
use eva_passes::cost::{CostOptions, Machine};
use eva_passes::lower::lower;
use eva_passes::target::Target;
use eva_passes::{Options, form, order_of, run_pass};
pub use graph::{Graph, Kind, Node, dot};
pub use kernels::{Arena, Buffer, Kernel, Slot, Step};
use serde::Serialize;
use source::Sources;
pub use source::{File, Line, Place};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A module on its way through the compiler.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// What it is of.
    pub title: String,
    /// The machine that kernels are for.
    pub target: String,
    /// The values that extents have, or are taken to have where the module leaves them open.
    pub extents: Vec<Extent>,
    /// The module as it was given, then after each pass.
    pub stages: Vec<Stage>,
    /// The bodies of functions; a stage names those that it has.
    pub graphs: Vec<Graph>,
    /// What rules did, by function.
    pub rewrites: Vec<Rewrite>,
    /// The kernels, in the order of their numbers.
    pub kernels: Vec<Kernel>,
    /// Memory over time, one entry for each body of the last stage.
    pub arenas: Vec<Arena>,
    /// The lines that values come from.
    pub files: Vec<File>,
}

/// An extent of a module.
#[derive(Clone, Debug, Serialize)]
pub struct Extent {
    /// The name.
    pub name: String,
    /// The value.
    pub value: Option<i64>,
    /// Whether the module fixes it.
    pub fixed: bool,
}

/// The module at one point.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// The pass that it is after; nothing for the module as it was given.
    pub pass: Option<String>,
    /// Its bodies, by number.
    pub graphs: Vec<usize>,
    /// Those that are not in the stage before.
    pub changed: Vec<usize>,
}

/// What rules did to a body.
#[derive(Clone, Debug, Serialize)]
pub struct Rewrite {
    /// The function.
    pub function: String,
    /// What it takes as costs are reckoned, before and after.
    pub cost: (f64, f64),
    /// Terms in the e-graph, before the rules and after them.
    pub terms: (usize, usize),
    /// How often rules were applied.
    pub iterations: usize,
    /// Whether they found nothing more in the end.
    pub saturated: bool,
    /// The rules, those that were chosen first.
    pub rules: Vec<Rule>,
}

/// What a rule did.
#[derive(Clone, Debug, Serialize)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Why it holds.
    pub why: String,
    /// How far it may move a result: `exact`, `reassociates` or `rounds`.
    pub exactness: String,
    /// In how many places it applies.
    pub matched: usize,
    /// In how many of them it was chosen.
    pub chosen: usize,
    /// The values that it was chosen for.
    pub values: Vec<String>,
}

/// What is to be seen.
#[derive(Clone, Debug, Default)]
pub struct ViewOptions {
    /// What passes are told.
    pub passes: Options,
    /// Values of extents that the module leaves open; those of decoding one token if not given.
    pub sizes: BTreeMap<String, i64>,
    /// The IR text that the module was read from, and its name.
    pub text: Option<(String, String)>,
}

/// Compiles `module` for `target`, and notes how.
pub fn view(
    title: &str,
    module: &Module,
    target: &Target,
    options: &ViewOptions,
) -> Result<View, eva_passes::Error> {
    let machine = options.passes.machine.clone().unwrap_or_else(|| target.costs.clone());
    let passes = Options { machine: Some(machine.clone()), ..options.passes.clone() };
    let sizes = sizes(module, &options.sizes);
    let mut costs = CostOptions::new(machine);
    costs.sizes.extend(sizes.clone());
    let mut sources = Sources::new(options.text.as_ref());
    let (mut graphs, mut stages) = (Vec::new(), Vec::new());
    let mut rewrites = Vec::new();
    let mut now = module.clone();
    let mut known: HashMap<*const eva_ir::graph::Function, Vec<usize>> = HashMap::new();
    // Functions that are compared by address stay alive.
    let mut modules = Vec::new();
    for pass in std::iter::once(None).chain(order_of(&passes).into_iter().map(Some)) {
        if let Some(name) = pass {
            if name == "form" {
                rewrites = rewritten(&now, &passes)?;
            }
            if let Some(next) = run_pass(name, &now, &passes) {
                modules.push(std::mem::replace(&mut now, next?));
            }
        }
        let before = stages.last().map_or(Vec::new(), |stage: &Stage| stage.graphs.clone());
        let mut stage = Stage { pass: pass.map(String::from), graphs: Vec::new(), changed: Vec::new() };
        for (_, f) in now.funcs.iter() {
            let numbers = match known.get(&Arc::as_ptr(f)) {
                Some(numbers) => numbers.clone(),
                None => {
                    let made = graph::of_function(&now, f, &costs, &mut sources, &before, &graphs);
                    let numbers: Vec<usize> = made
                        .into_iter()
                        .map(|body| match body {
                            graph::Made::Same(number) => number,
                            graph::Made::New(graph) => {
                                graphs.push(graph);
                                graphs.len() - 1
                            }
                        })
                        .collect();
                    known.insert(Arc::as_ptr(f), numbers.clone());
                    numbers
                }
            };
            stage.changed.extend(numbers.iter().filter(|number| pass.is_some() && !before.contains(number)));
            stage.graphs.extend(numbers);
        }
        stages.push(stage);
    }
    let plan = lower(&now, target)?;
    let last = stages.last().map_or(Vec::new(), |stage| stage.graphs.clone());
    let (kernels, arenas) = kernels::of_plan(&now, &plan, &target.machine, &sizes, &last, &mut graphs);
    let extents = module.dims.iter().map(|(sym, value)| Extent {
        name: sym.to_string(),
        value: sizes.get(sym).copied(),
        fixed: value.is_some(),
    });
    Ok(View {
        title: title.into(),
        target: target.name.to_string(),
        extents: extents.collect(),
        stages,
        graphs,
        rewrites,
        kernels,
        arenas,
        files: sources.finish(),
    })
}

/// What rules do to `module`.
fn rewritten(module: &Module, options: &Options) -> Result<Vec<Rewrite>, eva_passes::Error> {
    let costs = CostOptions::new(options.machine.clone().unwrap_or_else(Machine::cpu));
    let (_, report) = form::choose_with(module, options.form, &costs, form::usable(options), &options.rules)
        .map_err(|diag| eva_passes::Error::Invalid(diag.into()))?;
    let rewrite = |r: eva_passes::rewrite::Rewriting| {
        let rule = |fired: &eva_passes::rewrite::Fired| Rule {
            name: fired.rule.into(),
            why: fired.why.into(),
            exactness: fired.exactness.to_string(),
            matched: fired.matched,
            chosen: fired.chosen.len(),
            values: fired.chosen.clone(),
        };
        let mut rules: Vec<Rule> = r.rules.iter().map(rule).collect();
        rules.sort_by_key(|rule| std::cmp::Reverse((rule.chosen, rule.matched)));
        Rewrite {
            function: r.function,
            cost: r.cost,
            terms: r.nodes,
            iterations: r.iterations,
            saturated: r.saturated,
            rules,
        }
    };
    Ok(report.functions.into_iter().map(rewrite).collect())
}

/// A value for every extent: the module's, those given, and those of decoding otherwise.
fn sizes(module: &Module, given: &BTreeMap<String, i64>) -> BTreeMap<Sym, i64> {
    let mut sizes = eva_passes::cost::representative(module);
    sizes.extend(given.iter().map(|(name, n)| (Sym::from(name.as_str()), *n)));
    sizes.extend(module.dims.iter().filter_map(|(sym, n)| Some((sym.clone(), (*n)?))));
    let cached = module.funcs.iter().flat_map(|(_, f)| f.params().map(move |(param, kind)| (f, param, kind)));
    let cached = cached.filter(|(_, _, kind)| *kind == eva_ir::graph::ParamKind::State);
    let cached = cached.filter_map(|(f, param, _)| value(f.tensor(param)?.shape.get(1)?, &sizes)).max();
    sizes.insert(eva_passes::plan::CAPACITY.into(), cached.unwrap_or(1));
    sizes
}

/// The value of an extent.
fn value(dim: &Dim, sizes: &BTreeMap<Sym, i64>) -> Option<i64> {
    dim.eval(&|sym| sizes.get(sym).copied())
}

const TEMPLATE: &str = include_str!("page.html");

/// The page: one file of HTML, which loads nothing.
pub fn page(view: &View) -> String {
    // A script element ends where its end tag is written, whatever is around it.
    let json = serde_json::to_string(view).unwrap_or_default();
    let json = json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
    let escaped = view.title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let (head, rest) = TEMPLATE.split_once("{{title}}").unwrap_or((TEMPLATE, ""));
    let (middle, tail) = rest.split_once("{{data}}").unwrap_or((rest, ""));
    [head, &escaped, middle, &json, tail].concat()
}
