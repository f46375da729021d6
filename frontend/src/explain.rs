//! What the compiler decides for a block at given lengths, and why: what `eva explain` prints.

use crate::prelude::Module;
use eva_ir::diag::{Diag, Loc};
use eva_ir::graph::{Def, Function};
use eva_ir::ops::Op;
use eva_passes::cache::{self, CacheBytes, StateReport};
use eva_passes::cost::{Cost, CostOptions, Lengths, Machine, Metric};
use eva_passes::form::crossover::crossover;
use eva_passes::form::pieces::Search;
use eva_passes::rebuild::without_dead;
use eva_passes::rewrite::rules::{self, Rule};
use eva_passes::rewrite::{Choose, Side, Sides, why};
use eva_passes::{Error, Options};
use serde::Serialize;
use std::fmt::Write;

/// The lengths that are explained, and what cost is.
#[derive(Clone, Debug)]
pub struct Question {
    /// Sequences.
    pub batch: i64,
    /// New tokens of each.
    pub new: i64,
    /// Tokens that each attends to, the new ones included.
    pub cached: i64,
    /// What is costed.
    pub machine: Machine,
    /// How.
    pub metric: Metric,
    /// A rule of which to say why it does not apply.
    pub why_not: Option<String>,
    /// The name and the text of the IR file, if the module was read from one.
    pub text: Option<(String, String)>,
}

/// What a form does in a call.
#[derive(Clone, Debug, Serialize)]
pub struct Work {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Kernels started.
    pub launches: f64,
    /// What decides: seconds, or floating-point operations.
    pub total: f64,
}

/// A form that was not chosen, or was.
#[derive(Clone, Debug, Serialize)]
pub struct Alternative {
    /// Its name.
    pub form: &'static str,
    /// How its keys are computed.
    pub key_form: Option<String>,
    /// How its values are computed.
    pub value_form: Option<String>,
    /// What it costs.
    pub cost: Work,
}

/// A rule that was used.
#[derive(Clone, Debug, Serialize)]
pub struct Fired {
    /// Its name.
    pub rule: &'static str,
    /// Why it holds.
    pub why: &'static str,
    /// How exact it is.
    pub exactness: String,
    /// The values it was used for.
    pub values: Vec<String>,
}

/// What became of a cache.
#[derive(Clone, Debug, Serialize)]
pub struct Cache {
    /// The states.
    pub states: Vec<String>,
    /// Those in their place, with their types.
    pub kept: Vec<(String, String)>,
    /// Bytes a token before and after.
    pub bytes: Option<(u64, u64)>,
    /// Why they stay, if they do.
    pub why: Option<String>,
}

/// Fewest new tokens with which keys or values are expanded.
#[derive(Clone, Debug, Serialize)]
pub struct Crossover {
    /// The keys; `null` if they never are.
    pub key: Option<i64>,
    /// The values; `null` if they never are.
    pub value: Option<i64>,
}

/// The e-graph that decided.
#[derive(Clone, Debug, Serialize)]
pub struct Graph {
    /// Terms after saturation.
    pub nodes: usize,
    /// Seconds that saturation took.
    pub seconds: f64,
    /// Whether rules ended because they found nothing more.
    pub saturated: bool,
}

/// Why a rule does nothing.
#[derive(Clone, Debug, Serialize)]
pub struct WhyNot {
    /// The rule.
    pub rule: String,
    /// What was found; empty if the rule is used.
    pub reasons: Vec<Reason>,
    /// The values that the rule is used for.
    pub used: Vec<String>,
    /// In how many places it could be.
    pub matched: usize,
}

/// One reason.
#[derive(Clone, Debug, Serialize)]
pub struct Reason {
    /// The value that could have been rewritten.
    pub value: String,
    /// What does not hold.
    pub guard: String,
    /// The value in the way, and its op.
    pub blocking: Option<(String, String)>,
    /// Its line: of the program, or of the `.eva` text.
    pub line: Option<String>,
}

/// The answer for one function.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The function.
    pub function: String,
    /// The machine.
    pub target: String,
    /// What is costed: `flops` or `roofline`.
    pub metric: &'static str,
    /// Sequences, new tokens, and tokens attended to.
    pub lengths: (i64, i64, i64),
    /// How keys are computed: `absorbed`, `expanded` or `folded`; `null` without attention over latents.
    pub key_form: Option<String>,
    /// How values are.
    pub value_form: Option<String>,
    /// The layout of the caches.
    pub cache_layout: Option<&'static str>,
    /// Their bytes.
    pub cache_bytes_per_token_per_layer: Option<u64>,
    /// Where the form changes.
    pub crossover_new_tokens: Crossover,
    /// What the chosen form costs.
    pub cost: Work,
    /// What each form costs.
    pub alternatives: Vec<Alternative>,
    /// The rules that were used.
    pub rules: Vec<Fired>,
    /// What became of caches.
    pub caches: Vec<Cache>,
    /// The e-graph.
    pub egraph: Graph,
    /// Why a rule does nothing, if that was asked.
    pub why_not: Option<WhyNot>,
}

/// The functions of `module` that attention is computed in, by name.
pub fn explainable(module: &Module) -> Vec<String> {
    let attends = |f: &Function| {
        let attention = |def: &Def| matches!(def, Def::Op(Op::CausalSoftmax(_) | Op::Attend(_), _));
        f.values.iter().any(|(_, data)| attention(&data.def))
    };
    module.funcs.iter().filter(|(_, f)| attends(f)).map(|(_, f)| f.name.clone()).collect()
}

/// The rule of this name; a list of all names if there is none.
pub fn rule(name: &str) -> Result<Rule, String> {
    let all = rules::all().map_err(|diag| diag.message)?;
    let names: Vec<&str> = all.iter().map(|rule| rule.name).collect();
    let unknown = format!("there is no rule `{name}`; rules are {}", names.join(", "));
    all.into_iter().find(|rule| rule.name == name).ok_or(unknown)
}

/// Explains what `options` make of the function `name` of a module.
pub fn explain(module: &Module, name: &str, options: &Options, question: &Question) -> Result<Answer, Error> {
    let invalid = |diag: Diag| Error::Invalid(diag.into());
    eva_ir::verify::verify(module).map_err(Error::Invalid)?;
    let (laid_out, reports) = cache::lay_out_and_report(module, &options.cache).map_err(invalid)?;
    let laid_out = eva_passes::fp8::convert(&laid_out, &options.fp8, false).map_err(invalid)?;
    let unknown = || invalid(Diag::new("eva::unknown", format!("there is no function @{name}")));
    let func = laid_out.func(name).ok_or_else(unknown)?;
    let f = &laid_out.funcs[func];
    let lengths = Lengths::of(&laid_out);
    let Question { batch, new, cached, machine, metric, .. } = question;
    let costs = CostOptions {
        machine: machine.clone(),
        metric: *metric,
        sizes: lengths.sizes(*batch, *new, *cached),
    };
    let cost = || Cost::new(&laid_out, f, &costs);

    let usable = eva_passes::form::rules(options).map_err(invalid)?;
    let started = std::time::Instant::now();
    let search = Search::new(f, &usable, cost()).map_err(invalid)?;
    let seconds = started.elapsed().as_secs_f64();
    let choose = match options.form {
        eva_passes::Form::Absorbed => Choose::Absorbed,
        _ => Choose::Cheapest,
    };
    let written = without_dead(f);
    let work = |function: &Option<Function>, total: f64| {
        let work = search.cost.total(function.as_ref().unwrap_or(&written));
        Work { flops: work.flops, bytes: work.bytes, launches: work.launches, total }
    };
    let taken = |search: &Search, choose| {
        let selection = search.s.cheapest(f, &search.cost, choose)?;
        search.s.take(f, search.rules, &search.cost, &selection)
    };
    let (function, rewriting) = taken(&search, choose).map_err(invalid)?;
    let at = crossover(&search, &lengths, *batch, *cached).map_err(invalid)?;

    let named = |form, sides: Sides, cost: Work| Alternative {
        form,
        key_form: sides.key.map(|side| side.to_string()),
        value_form: sides.value.map(|side| side.to_string()),
        cost,
    };
    let (absorbed, its) = taken(&search, Choose::Absorbed).map_err(invalid)?;
    let options = Options { form: eva_passes::Form::Expanded, ..options.clone() };
    let without = eva_passes::form::rules(&options).map_err(invalid)?;
    let plain = Search::new(f, &without, cost()).map_err(invalid)?;
    let (expanded, plains) = taken(&plain, Choose::Cheapest).map_err(invalid)?;
    let side = |side: Option<Side>| side.map(|_| Side::Expanded);
    let sides = Sides { key: side(rewriting.sides.key), value: side(rewriting.sides.value) };
    let alternatives = vec![
        named("absorbed", its.sides, work(&absorbed, its.cost.1)),
        named("expanded", sides, work(&expanded, plains.cost.1)),
        named("written", Sides::default(), work(&None, rewriting.cost.0)),
    ];

    let fired = rewriting.rules.iter().filter(|fired| !fired.chosen.is_empty()).map(|fired| Fired {
        rule: fired.rule,
        why: fired.why,
        exactness: fired.exactness.to_string(),
        values: fired.chosen.clone(),
    });
    let why_not = match &question.why_not {
        Some(name) => {
            let unknown = |message| invalid(Diag::new("eva::unknown", message));
            let rule = rule(name).map_err(unknown)?;
            let fired = rewriting.rules.iter().find(|fired| fired.rule == rule.name);
            let reason = |reason: why::Reason| Reason {
                value: reason.value,
                guard: reason.guard,
                blocking: reason.blocking,
                line: reason.loc.map(|loc| line_of(loc, question.text.as_ref())),
            };
            Some(WhyNot {
                rule: name.clone(),
                reasons: why::why_not(f, &search.s, &rule).into_iter().map(reason).collect(),
                used: fired.map(|fired| fired.chosen.clone()).unwrap_or_default(),
                matched: fired.map_or(0, |fired| fired.matched),
            })
        }
        None => None,
    };
    let bytes = CacheBytes::of(&laid_out, func).ok().filter(|bytes| !bytes.states.is_empty());
    let of_state = |report: &StateReport| Cache {
        states: report.states.clone(),
        kept: report.kept.iter().map(|(name, ty)| (name.clone(), ty.to_string())).collect(),
        bytes: report.bytes,
        why: report.why.clone(),
    };
    Ok(Answer {
        function: name.into(),
        target: machine.name.clone(),
        metric: if *metric == Metric::Flops { "flops" } else { "roofline" },
        lengths: (*batch, *new, *cached),
        key_form: rewriting.sides.key.map(|side| side.to_string()),
        value_form: rewriting.sides.value.map(|side| side.to_string()),
        cache_layout: cache::layout(&laid_out, func),
        cache_bytes_per_token_per_layer: bytes.map(|bytes| bytes.per_layer()),
        crossover_new_tokens: Crossover { key: at.key, value: at.value },
        cost: work(&function, rewriting.cost.1),
        alternatives,
        rules: fired.collect(),
        caches: reports.iter().filter(|report| report.function == name).map(of_state).collect(),
        egraph: Graph { nodes: search.s.nodes().1, seconds, saturated: rewriting.saturated },
        why_not,
    })
}

/// A line as people say it: `file:line`; `text` is the name and the text of the IR file, if there is one.
pub(crate) fn line_of(loc: Loc, text: Option<&(String, String)>) -> String {
    match (loc, text) {
        (Loc::Rust(at), _) => format!("{}:{}", at.file(), at.line()),
        (Loc::Text { start, .. }, Some((name, text))) => {
            format!("{name}:{}", text.bytes().take(start).filter(|&byte| byte == b'\n').count() + 1)
        }
        (Loc::Text { start, .. }, None) => format!("byte {start}"),
    }
}

/// An answer for people.
pub fn text(answer: &Answer) -> String {
    let mut s = String::new();
    let (batch, new, cached) = answer.lengths;
    let total = |work: &Work| match answer.metric {
        "flops" => format!("{:.3e} operations", work.total),
        _ => format!("{:.3} ms", work.total * 1e3),
    };
    let form = |form: &Option<String>| form.clone().unwrap_or_else(|| "as written".into());
    let mut line = |text: String| writeln!(s, "{text}").expect("a string takes what is written");
    line(format!(
        "@{}: {batch} × {new} new tokens, {cached} attended to, on {}",
        answer.function, answer.target
    ));
    line(format!(
        "  keys {}, values {}: {}",
        form(&answer.key_form),
        form(&answer.value_form),
        total(&answer.cost)
    ));
    let Crossover { key, value } = &answer.crossover_new_tokens;
    let from = |n: &Option<i64>| n.map_or("never".into(), |n| format!("from {n} new tokens"));
    line(format!("  expanded: keys {}, values {}", from(key), from(value)));
    let bytes = answer.cache_bytes_per_token_per_layer;
    let bytes = bytes.map_or("no bytes known".into(), |n| format!("{n} bytes a token and layer"));
    line(format!("  cache: {}, {bytes}", answer.cache_layout.unwrap_or("none")));
    for cache in &answer.caches {
        let kept: Vec<String> = cache.kept.iter().map(|(name, ty)| format!("%{name} {ty}")).collect();
        let why = cache.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        line(format!("    {} -> {}{why}", cache.states.join(", "), kept.join(", ")));
    }
    line("\n  form        flops      bytes      launches  cost".into());
    for other in &answer.alternatives {
        let Work { flops, bytes, launches, .. } = other.cost;
        line(format!(
            "  {:<10}  {flops:.3e}  {bytes:.3e}  {launches:<8}  {}",
            other.form,
            total(&other.cost)
        ));
    }
    if !answer.rules.is_empty() {
        line("\n  rules used".into());
    }
    for rule in &answer.rules {
        line(format!("    {} ({}) for %{}", rule.rule, rule.exactness, rule.values.join(", %")));
        line(format!("      {}", rule.why));
    }
    if let Some(why) = &answer.why_not {
        line(format!("\n  why not {}", why.rule));
        if !why.used.is_empty() {
            line(format!("    it is used, for %{}", why.used.join(", %")));
        } else if why.matched > 0 && why.reasons.is_empty() {
            line(format!("    it applies in {} places, and what it gives costs more here", why.matched));
        } else if why.reasons.is_empty() {
            line("    nothing here has its shape".into());
        }
        for reason in &why.reasons {
            let blocking =
                reason.blocking.as_ref().map_or(String::new(), |(value, op)| format!(": %{value} ({op})"));
            let at = reason.line.as_ref().map_or(String::new(), |line| format!(", {line}"));
            line(format!("    %{}: {}{blocking}{at}", reason.value, reason.guard));
        }
    }
    let Graph { nodes, seconds, saturated } = answer.egraph;
    let how = if saturated { "saturated" } else { "stopped at a limit" };
    line(format!("\n  e-graph: {nodes} terms, {how} in {:.1} ms", seconds * 1e3));
    s
}
