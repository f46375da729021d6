//! `run.toml`: what is right, and messages for what is not.

use eva::train::RunConfig;
use eva::train::config::{DataKind, GradientScale, Kind, ScheduleKind};
use eva_ir::types::DType;
use eva_runtime::Device;
use std::fs;
use std::path::Path;

const LEAST: &str = "out = \"runs/one\"
steps = 10

[model]
config = \"config.json\"

[data]
paths = [\"a.txt\"]
";

fn load(text: &str, set: &[&str]) -> Result<RunConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    fs::write(&path, text).unwrap();
    let set: Vec<String> = set.iter().map(|setting| setting.to_string()).collect();
    let loaded = RunConfig::load(&path, &set);
    loaded.map_err(|e| e.to_string().replace(dir.path().to_str().unwrap(), "DIR"))
}

#[test]
fn what_is_not_said_has_defaults() {
    let run = load(LEAST, &[]).unwrap();
    assert_eq!((run.steps, run.seed, run.target), (10, 0, Device::Cpu));
    assert_eq!((run.data.kind, run.data.sequence, run.data.batch), (DataKind::Text, 256, 8));
    assert_eq!((run.optimizer.betas, run.optimizer.moments), ([0.9, 0.95], DType::F32));
    assert_eq!(run.optimizer.no_decay, [Kind::Norm]);
    assert_eq!((run.model.init_std, run.init_seed(), run.data_seed()), (0.006, 0, 0));
    assert!(run.out.ends_with("runs/one") && run.data.paths[0].is_absolute());
}

#[test]
fn settings_go_over_the_file() {
    let set = [
        "seed=7",
        "data.batch=3",
        "schedule.kind=cosine",
        "optimizer.no_decay=[\"norm\", \"router\"]",
        "out=elsewhere",
        "target=cuda:1",
        "precision.compute=bf16",
    ];
    let run = load(LEAST, &set).unwrap();
    assert_eq!((run.seed, run.data.batch, run.data_seed()), (7, 3, 7));
    assert_eq!((run.schedule.kind, run.target), (ScheduleKind::Cosine, Device::Cuda(1)));
    assert_eq!(run.optimizer.no_decay, [Kind::Norm, Kind::Router]);
    assert_eq!(run.precision.compute, DType::Bf16);
    assert!(run.out.ends_with("elsewhere"));
}

#[test]
fn recipes_are_names_and_files() {
    let recipe = |set: &str| load(LEAST, &[set]).map(|run| run.recipe().unwrap().unwrap().name);
    assert_eq!(recipe("precision.fp8=deepseek-v3"), Ok("deepseek-v3".into()));
    assert_eq!(recipe("precision.fp8=tensorwise-delayed"), Ok("tensorwise-delayed".into()));
    let missing = recipe("precision.fp8=no-such").unwrap_err();
    assert!(missing.contains("is no recipe (dequant, ") && missing.contains("no-such` "), "{missing}");
}

#[test]
fn rounded_operands_are_for_gpus() {
    let rounded = |set: &[&str]| load(LEAST, set).map(|run| run.precision.tf32);
    assert_eq!(rounded(&[]), Ok(false));
    assert_eq!(rounded(&["precision.tf32=true", "target=cuda"]), Ok(true));
    let message = rounded(&["precision.tf32=true"]).unwrap_err();
    assert!(message.contains("precision.tf32: it is for GPUs"), "{message}");
}

#[test]
fn factors_of_gradients_are_numbers_or_dynamic() {
    let scale = |set: &str| load(LEAST, &[set]).map(|run| run.precision.gradient_scale);
    assert_eq!(load(LEAST, &[]).unwrap().precision.gradient_scale, GradientScale::Fixed(1.0));
    assert_eq!(scale("precision.gradient_scale=64"), Ok(GradientScale::Fixed(64.0)));
    assert_eq!(scale("precision.gradient_scale=dynamic"), Ok(GradientScale::Dynamic));
    for wrong in ["often", "[1]"] {
        let message = scale(&format!("precision.gradient_scale={wrong}")).unwrap_err();
        assert!(message.contains("there are powers of two and \"dynamic\""), "{message}");
    }
}

#[test]
fn examples_are_right() {
    let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/runs");
    let mut found = 0;
    for folder in fs::read_dir(runs).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            match path.extension().and_then(|end| end.to_str()) {
                Some("toml") => drop(RunConfig::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"))),
                _ => drop(eva::model::config::Config::load(&path).unwrap_or_else(|e| panic!("{e}"))),
            }
            found += 1;
        }
    }
    assert_eq!(found, 5);
}

#[test]
fn mistakes_name_line_and_key() {
    let mut all = String::new();
    let mut add = |title: &str, text: &str, set: &[&str]| {
        let message = load(text, set).unwrap_err();
        all += &format!("## {title}\n{message}\n\n");
    };
    add("an unknown key", &format!("{LEAST}batches = 3\n"), &[]);
    add("an unknown table", &format!("{LEAST}\n[optimiser]\nlr = 1\n"), &[]);
    add("an unknown word", &format!("{LEAST}\n[schedule]\nkind = \"linear\"\n"), &[]);
    add("another type", &format!("{LEAST}\n[optimizer]\nbetas = [0.9]\n"), &[]);
    add("an unknown device", &format!("target = \"gpu\"\n{LEAST}"), &[]);
    add("an unknown type", &format!("{LEAST}\n[precision]\ncompute = \"f16\"\n"), &[]);
    add("no syntax", "out = \n", &[]);
    add("nothing", "", &[]);
    add("settings: no value", LEAST, &["steps"]);
    add("settings: an unknown key", LEAST, &["data.batches=3"]);
    add("settings: another type", LEAST, &["steps=many"]);
    add("settings: no table", LEAST, &["steps.more=1"]);
    add(
        "much that cannot be",
        "out = \"x\"
steps = 5
threads = 0

[model]
config = \"a\"
checkpoint = \"b\"
init_std = -1.0

[data]
kind = \"copy\"
paths = [\"a\"]
sequence = 0
holdout = 1.5
symbols = 1

[optimizer]
name = \"sgd\"
moments = \"bf16\"
betas = [0.9, 1.0]
no_decay = [\"norm\", \"norm\"]
lr = inf

[schedule]
at = [0.5, 0.4, 0.9]

[precision]
gradient_scale = 3.0

[checkpoint]
keep = 0
",
        &[],
    );
    add("no model and no data", "out = \"x\"\nsteps = 5\n[eval]\nevery = 3\n", &[]);
    insta::assert_snapshot!(all.trim_end());
    let missing = RunConfig::load(Path::new("no/such.toml"), &[]).unwrap_err().to_string();
    assert!(missing.starts_with("no/such.toml: cannot read it: "), "{missing}");
}
