//! The loop, with a small model: what is learned, batches that are added up, runs that go on, and what goes wrong.

use eva::model::config::Config;
use eva::prelude::*;
use eva::train::RunConfig;
use eva::train::checkpoint::{Form, RunState, list};
use eva::train::config::{DataKind, OnError};
use eva::train::data::{Data, Fit, batch};
use eva::train::metrics;
use eva::train::model::Graphs;
use eva::train::params::{Group, Tensors, WIDTH};
use eva::train::run::{Begin, Ended, Observer, RunError, drive};
use eva::train::trainer::{StepReport, TrainError, Trainer};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// Tokens, and columns of the model.
const VOCAB: usize = 19;
const COLUMNS: usize = 24;

/// A table that a token's logits come from, by way of a norm and a matrix whose product with another is hoisted.
fn graphs() -> Graphs {
    let p = Program::new();
    let [b, s] = [p.dim("b"), p.dim("s")];
    let [w, m, k] = [("w", VOCAB), ("m", COLUMNS), ("k", 7)].map(|(name, n)| p.dim_fixed(name, n as i64));
    p.function("loss", |f| {
        let ids = f.input("ids", I64, [&b, &s]);
        let labels = f.input("labels", I64, [&b, &s]);
        let table = f.weight("table", F32, [&w, &m]);
        let head = f.weight("down", F32, [&w, &k]).linear(&f.weight("up", F32, [&m, &k]));
        let x = table.embedding(&ids).rms_norm(&f.weight("norm", F32, [&m]), 1e-6);
        let logits = x.reshape([&(&b * &s), &m]).linear(&head);
        vec![logits.cross_entropy(&labels.reshape([&(&b * &s)])).named("loss")]
    });
    let module = p.finish().unwrap_or_else(|diags| panic!("{diags}"));
    let module = eva_passes::grad::differentiate(&module, "loss", &Default::default());
    Graphs {
        module: module.unwrap_or_else(|diag| panic!("{diag:?}")),
        passes: Default::default(),
        whole: false,
    }
}

fn group(name: &str) -> Group {
    if name == "norm" { Group::Plain } else { Group::Decay }
}

fn config(out: &Path, more: &str) -> RunConfig {
    let text = format!(
        "out = \"out\"\nsteps = 12\nseed = 3\nthreads = 2\n[model]\nconfig = \"none\"\n[data]\nkind = \"copy\"\n\
         symbols = 9\nsequence = 15\nbatch = 4\n[optimizer]\nlr = 0.02\n[eval]\nevery = 5\nbatches = 2\n\
         [checkpoint]\nevery = 4\n{more}"
    );
    let path = out.join("run.toml");
    fs::write(&path, text).unwrap();
    RunConfig::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"))
}

fn data(run: &RunConfig) -> Data {
    let fit = Fit { vocab: VOCAB, eos: None, cache: &run.out, seed: run.data_seed() };
    Data::open(&run.data, &fit).unwrap()
}

/// Parameters to begin with.
fn fresh(trainer: &Trainer) -> Vec<f32> {
    let mut flat = vec![0.0; trainer.layout().all() * WIDTH];
    for (i, param) in trainer.layout().params.iter().enumerate() {
        for (j, x) in flat[param.range()].iter_mut().enumerate() {
            let hash =
                ((i * 7919 + j + 1) as u32).wrapping_mul(2_654_435_769).wrapping_mul(2_246_822_519 | 1);
            *x = match param.name.as_str() {
                "norm" => 1.0,
                _ => ((hash ^ hash >> 15) >> 8) as f32 / (1 << 24) as f32 - 0.5,
            };
        }
    }
    flat
}

fn trainer(run: &RunConfig) -> Trainer {
    Trainer::new(run, &graphs(), &group).unwrap_or_else(|e| panic!("{e}"))
}

fn form(run: &RunConfig) -> Form {
    let config = include_str!("../../../tests/fixtures/v2-lite-tiny/config.json");
    let config = Config::from_json(config).unwrap();
    let tensors = Tensors::new(&config, &eva::train::params::Layout::new([]));
    let folder = run.out.join("checkpoints");
    Form { folder, texts: Vec::new(), tensors, dtype: F32, copies: Vec::new(), keep: run.checkpoint.keep }
}

#[derive(Default)]
struct Seen {
    losses: Vec<f64>,
    said: Vec<String>,
    /// After which step the run is to end.
    until: Option<u64>,
    stop: AtomicBool,
}

struct Watching<'a>(&'a mut Seen);

impl Observer for Watching<'_> {
    fn begin(&mut self, _: &str) {}
    fn step(&mut self, report: &StepReport, _: &[(String, f64)], _: u64) {
        self.0.losses.push(report.loss);
        if self.0.until == Some(report.step) {
            self.0.stop.store(true, Ordering::Relaxed);
        }
    }
    fn say(&mut self, line: &str) {
        self.0.said.push(line.into());
    }
}

fn go(run: &RunConfig, resume: bool, until: Option<u64>) -> (Result<Ended, RunError>, Seen) {
    let mut trainer = trainer(run);
    let flat = fresh(&trainer);
    let mut seen = Seen { until, ..Seen::default() };
    // The observer ends the run, as a signal would.
    let stop = AtomicBool::new(false);
    struct Both<'a>(Watching<'a>, &'a AtomicBool);
    impl Observer for Both<'_> {
        fn begin(&mut self, what: &str) {
            self.0.begin(what);
        }
        fn step(&mut self, report: &StepReport, numbers: &[(String, f64)], steps: u64) {
            self.0.step(report, numbers, steps);
            self.1.store(self.0.0.stop.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        fn say(&mut self, line: &str) {
            self.0.say(line);
        }
    }
    let mut observer = Both(Watching(&mut seen), &stop);
    let ended =
        drive(run, Begin { resume }, &mut trainer, Some(flat), data(run), form(run), &stop, &mut observer);
    (ended, seen)
}

fn last(run: &RunConfig) -> Vec<u8> {
    let (_, path) = list(&run.out.join("checkpoints")).unwrap().pop().expect("there is a checkpoint");
    fs::read(path.join("optimizer.safetensors")).unwrap()
}

#[test]
fn a_run_learns_and_writes_down() {
    let dir = TempDir::new().unwrap();
    let run = config(dir.path(), "keep = 2\n");
    let (ended, seen) = go(&run, false, None);
    let ended = ended.unwrap();
    assert_eq!((ended.step, ended.interrupted, seen.losses.len()), (12, false, 12));
    assert!(seen.losses[11] < seen.losses[0] - 0.3, "{:?}", seen.losses);
    assert!((seen.losses[0] - (VOCAB as f64).ln()).abs() < 1.5, "{:?}", seen.losses);
    let kept: Vec<u64> = list(&run.out.join("checkpoints")).unwrap().iter().map(|(step, _)| *step).collect();
    assert_eq!(kept, [8, 12]);
    assert!(ended.checkpoint.unwrap().ends_with("step-00000012"));
    let lines = metrics::read(&run.out.join(metrics::METRICS_FILE)).unwrap();
    let with = |key: &str| -> Vec<u64> {
        let lines = lines.iter().filter(|line| line.contains_key(key));
        lines.map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(with("loss"), (1..=12).collect::<Vec<_>>());
    assert_eq!(with("eval_loss"), [5, 10, 12]);
    assert!(with("memory").len() == 12 && with("tokens_per_second").len() == 12);
    assert_eq!(lines[0]["tokens"], 60);
    assert_eq!(ended.eval_loss, lines.last().unwrap()["eval_loss"].as_f64());
    assert!(ended.eval_loss.unwrap() < seen.losses[0]);

    let (again, _) = go(&run, false, None);
    let message = again.unwrap_err().to_string();
    assert!(message.contains("a run is there already; go on with --resume"), "{message}");
}

#[test]
fn a_run_goes_on_as_if_it_had_not_ended() {
    let dir = TempDir::new().unwrap();
    let dynamic = "[precision]\ngradient_scale = \"dynamic\"\nscale_steps = 2\n";
    for more in ["", "keep = 1\n[precision]\ngradient_scale = 64.0\n", dynamic] {
        let folder = |name: &str| {
            let path = dir.path().join(format!("{name}{}", more.len()));
            fs::create_dir(&path).unwrap();
            path
        };
        let whole = config(&folder("whole"), more);
        let (ended, losses) = go(&whole, false, None);
        ended.unwrap();
        let parts = config(&folder("parts"), more);
        let mut seen = Vec::new();
        for (i, until) in [Some(3), Some(4), Some(9), None].into_iter().enumerate() {
            let (ended, some) = go(&parts, i > 0, until);
            assert_eq!(ended.unwrap().interrupted, until.is_some());
            seen.extend(some.losses);
        }
        assert_eq!(seen, losses.losses);
        assert_eq!(last(&parts), last(&whole));
        let steps = |run: &RunConfig| -> Vec<serde_json::Value> {
            let lines = metrics::read(&run.out.join(metrics::METRICS_FILE)).unwrap();
            lines
                .into_iter()
                .filter(|line| line.contains_key("loss"))
                .map(|line| line["loss"].clone())
                .collect()
        };
        assert_eq!(steps(&parts), steps(&whole));
    }
}

#[test]
fn threads_do_not_change_a_run() {
    let dir = TempDir::new().unwrap();
    let mut run = config(dir.path(), "");
    let mut bytes = |threads: usize| {
        run.threads = Some(threads);
        run.out = dir.path().join(threads.to_string());
        go(&run, false, None).0.unwrap();
        last(&run)
    };
    assert_eq!(bytes(1), bytes(3));
}

#[test]
fn what_a_run_begins_with_must_stay() {
    let dir = TempDir::new().unwrap();
    let run = config(dir.path(), "");
    go(&run, false, Some(4)).0.unwrap();
    let mut other = run.clone();
    other.data.batch = 5;
    let message = go(&other, true, None).0.unwrap_err().to_string();
    assert!(
        message.ends_with("the run would not go on as it began: data.batch was 4, and is 5"),
        "{message}"
    );
    let mut faster = run.clone();
    faster.optimizer.lr = 0.5;
    assert_eq!(go(&faster, true, None).0.unwrap().step, 12);
    let elsewhere = RunConfig { out: dir.path().join("none"), ..run };
    let message = go(&elsewhere, true, None).0.unwrap_err().to_string();
    assert!(message.ends_with("none/checkpoints: there is no checkpoint to go on from"), "{message}");
}

#[test]
fn batches_of_a_step_are_one_large_batch() {
    let dir = TempDir::new().unwrap();
    let one = config(dir.path(), "[balance]\ngamma = 0.0\n");
    let mut many = one.clone();
    many.data.accumulate = 3;
    let data = data(&one);
    // Sequences whose labels differ in number: synthetic ones, and one with few.
    let whole = || batch(&*data.train, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 15).unwrap();
    let parts = || -> Vec<_> {
        [&[0, 1, 2, 3][..], &[4], &[5, 6, 7, 8]].map(|n| batch(&*data.train, n, 15).unwrap()).into()
    };
    let mut trainers = [trainer(&one), trainer(&many)];
    let flat = fresh(&trainers[0]);
    let mut losses = Vec::new();
    for step in 1..=3 {
        for (i, trainer) in trainers.iter_mut().enumerate() {
            if step == 1 {
                trainer.set(&flat).unwrap();
            }
            let batches = if i == 0 { vec![whole()] } else { parts() };
            let report = trainer.step(step, &batches).unwrap();
            assert_eq!((report.tokens, report.lr), (135, 0.02));
            losses.push((report.loss, report.grad_norm));
        }
    }
    for pair in losses.chunks(2) {
        assert!((pair[0].0 - pair[1].0).abs() < 1e-5 && (pair[0].1 - pair[1].1).abs() < 1e-5, "{pair:?}");
    }
    assert!(losses[4].0 < losses[0].0);
}

#[test]
fn what_is_no_number_is_found() {
    let dir = TempDir::new().unwrap();
    let run = config(dir.path(), "");
    let mut trainer = trainer(&run);
    let mut flat = fresh(&trainer);
    let up = trainer.layout().get("up").unwrap().range();
    flat[up.start + 5] = f32::INFINITY;
    trainer.set(&flat).unwrap();
    let batches = [batch(&*data(&run).train, &[0, 1], 15).unwrap()];
    let error = trainer.step(7, &batches).unwrap_err();
    let TrainError::NotFinite { step: 7, what: "the loss", op, .. } = &error else { panic!("{error}") };
    assert!(op.contains("the first op to make one: `@loss"), "{error}");
    assert!(error.to_string().contains("as they were after step 6"), "{error}");
    assert_eq!(trainer.get().unwrap(), flat, "nothing changed");
}

/// Gradients that overflow change nothing but the factor; the first that do not make the step that a factor of 1 makes.
#[test]
fn a_factor_that_is_too_large_is_halved() {
    let dir = TempDir::new().unwrap();
    let run = config(dir.path(), "[precision]\ngradient_scale = \"dynamic\"\nscale_steps = 2\n");
    let batches = [batch(&*data(&run).train, &[0, 1, 2], 15).unwrap()];
    let mut scaled = trainer(&run);
    let flat = fresh(&scaled);
    scaled.set(&flat).unwrap();
    let mut snapshot = scaled.snapshot(&RunState::default()).unwrap();
    assert_eq!(snapshot.state.scaling.scale, 65536.0);
    // The squares of what it makes of gradients are no `f32`.
    snapshot.state.scaling.scale = 2f64.powi(68);
    scaled.restore(&snapshot).unwrap();
    let number = |report: &StepReport, key: &str| {
        report.more.iter().find(|(name, _)| name == key).map(|(_, x)| *x).unwrap()
    };
    let mut step = 1;
    while scaled.get().unwrap() == flat {
        let report = scaled.step(step, &batches).unwrap();
        assert_eq!(number(&report, "gradient_scale"), 2f64.powi(69 - step as i32));
        let skipped = number(&report, "skipped");
        assert_eq!(skipped as u64, if scaled.get().unwrap() == flat { step } else { step - 1 });
        assert_eq!(report.grad_norm.is_finite(), skipped as u64 == step - 1);
        step += 1;
        assert!(step < 20, "it never fits");
    }
    assert!(step > 3, "{step}");
    let mut plain = trainer(&config(dir.path(), ""));
    plain.set(&flat).unwrap();
    plain.step(1, &batches).unwrap();
    assert_eq!(scaled.get().unwrap(), plain.get().unwrap());
    // Two steps after the last that was skipped it is doubled.
    for (step, power) in [(step, 70 - step), (step + 1, 71 - step)] {
        let report = scaled.step(step, &batches).unwrap();
        assert_eq!(number(&report, "gradient_scale"), 2f64.powi(power as i32), "{step}");
    }
}

#[test]
fn a_spike_is_said_or_ends_the_run() {
    let dir = TempDir::new().unwrap();
    let mut run = config(dir.path(), "[schedule]\nkind = \"step\"\nmilestones = [0.92]\nfactor = 400.0\n");
    (run.steps, run.metrics.spike, run.checkpoint.every) = (33, 4.0, 10);
    let (ended, seen) = go(&run, false, None);
    assert_eq!(ended.unwrap().step, 33);
    assert!(seen.said.iter().any(|line| line.starts_with("warning: step 3") && line.contains("above those")));
    run.out = dir.path().join("stop");
    run.metrics.on_spike = OnError::Stop;
    let message = go(&run, false, None).0.unwrap_err().to_string();
    assert!(
        message.contains("the last good checkpoint is ") && message.ends_with("step-00000030"),
        "{message}"
    );
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last() {
    let dir = TempDir::new().unwrap();
    let run = config(dir.path(), "");
    assert_eq!(run.data.kind, DataKind::Copy);
    go(&run, false, Some(4)).0.unwrap();
    let before = last(&run);
    // A folder cannot be made where there is a file.
    let at = run.out.join("checkpoints/partial-step-00000008");
    let blocked = |on_error: OnError| {
        let mut run = run.clone();
        run.checkpoint.on_error = on_error;
        run.steps = 9;
        let mut trainer = trainer(&run);
        let mut seen = Seen::default();
        let mut form = form(&run);
        form.copies = vec![dir.path().join("is-not-there")];
        let stop = AtomicBool::new(false);
        let begin = Begin { resume: true };
        let ended = drive(&run, begin, &mut trainer, None, data(&run), form, &stop, &mut Watching(&mut seen));
        (ended, seen)
    };
    let (ended, _) = blocked(OnError::Stop);
    let message = ended.unwrap_err().to_string();
    assert!(message.contains("a checkpoint could not be written: "), "{message}");
    assert!(
        message.contains("; the last good checkpoint is ") && message.ends_with("step-00000004"),
        "{message}"
    );
    assert_eq!(last(&run), before);
    assert!(!at.exists(), "what was begun is gone");
    let (ended, seen) = blocked(OnError::Continue);
    assert_eq!(ended.unwrap().step, 9);
    assert!(seen.said.iter().any(|line| line.contains("the last good one: ")), "{:?}", seen.said);
    assert_eq!(last(&run), before);
}

/// With a recipe, gradients of weights are sums of 8-bit products too, experts' among them.
#[test]
fn recipes_reach_gradients() {
    use eva_passes::fp8::{Outcome, products};
    let folder = TempDir::new().unwrap();
    let run = config(folder.path(), "[precision]\nfp8 = \"deepseek-v3\"\n");
    let model = include_str!("../../../tests/fixtures/v3-tiny/config.json");
    let graphs = Graphs::of(&run, &Config::from_json(model).unwrap()).unwrap_or_else(|e| panic!("{e}"));
    let done = eva_passes::optimize(&graphs.module, &graphs.passes).unwrap_or_else(|e| panic!("{e}"));
    let mut eight = Vec::new();
    for (_, f) in done.funcs.iter().filter(|(_, f)| f.prepares.is_none()) {
        for product in products(&done, f, &graphs.passes.fp8) {
            match product.outcome {
                Outcome::Eight => eight.push(product.weight.unwrap_or_default()),
                Outcome::Fallback(why) => panic!("{}: {why}", product.name),
                Outcome::High(_) => {}
            }
        }
    }
    let gradients = eight.iter().filter(|name| name.ends_with(".grad")).count();
    let experts = eight.iter().filter(|name| name.contains(".experts.") && name.ends_with(".grad")).count();
    assert!(gradients >= 8 && experts == 3, "{eight:?}");
}

/// With `tf32`, all products of a training step on a GPU are tensor cores', but for attention's.
#[test]
fn rounded_products_are_tensor_cores() {
    let folder = TempDir::new().unwrap();
    let mut run = config(folder.path(), "");
    (run.target, run.precision.tf32) = (eva_runtime::Device::Cuda(0), true);
    let model = include_str!("../../../tests/fixtures/v3-tiny/config.json");
    let graphs = Graphs::of(&run, &Config::from_json(model).unwrap()).unwrap_or_else(|e| panic!("{e}"));
    let plan = eva_passes::compile(&graphs.module, &eva_passes::target::Target::cuda(), &graphs.passes);
    let plan = plan.unwrap_or_else(|e| panic!("{e}"));
    let (mut tensor, mut others) = (0, Vec::new());
    for ((_, tile), (_, block)) in plan.tiles.iter().zip(plan.kernels.iter()) {
        match (tile.to_string().contains(" = dot "), block.to_string().contains(" = mma ")) {
            (true, true) => tensor += 1,
            (true, false) => others.push(tile.name.clone()),
            _ => {}
        }
    }
    // Attention keeps the sums of its scores' powers, and is no product of the pass.
    let attention = others.iter().all(|name| name.contains("_and_sums"));
    assert!(tensor >= 40 && attention && others.len() == 3, "{tensor} {others:#?}");
}
