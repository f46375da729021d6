//! `eva compile` and what it leaves: no GPU is needed, and no `ptxas`.

use super::support::{Ran, Sections, command, finish, fixture, output, path, refusal, without};
use eva_ir::text::parse;
use eva_passes::target::Target;
use eva_runtime::cuda::artifact::{Artifact, ArtifactError, MANIFEST, Parameter};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn case(name: &str) -> String {
    fixture("../cases/run").join(name).display().to_string()
}

/// The kernels of a case, compiled here.
fn plan(name: &str) -> eva_passes::plan::Plan {
    let module = parse(&fs::read_to_string(case(name)).unwrap()).unwrap();
    eva_passes::compile(&module, &Target::cuda(), &eva_passes::Options::default()).unwrap()
}

/// Runs `eva compile` where there is no `ptxas` but `ptxas`.
fn compile(args: &[&str], ptxas: Option<&Path>) -> Ran {
    let mut command = command();
    command.arg("compile").args(args).env("PATH", "");
    if let Some(ptxas) = ptxas {
        command.env("EVA_PTXAS", ptxas);
    }
    finish(command, "")
}

/// An artifact of a case in a folder of its own.
fn artifact(name: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("a/b");
    let ran = compile(&[&case(name), "-o", folder.to_str().unwrap()], None);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    (dir, folder)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn an_artifact_has_each_kernel_and_says_how_it_is_called() {
    let (_dir, folder) = artifact("mla.eva");
    let artifact = Artifact::open(&folder).unwrap();
    let manifest = artifact.manifest();
    assert_eq!((manifest.eva.as_str(), manifest.target.as_str()), (env!("CARGO_PKG_VERSION"), "sm_90a"));
    assert_eq!((manifest.assembler.as_deref(), manifest.notes["form"].as_str()), (None, "auto"));
    let listed: BTreeSet<String> = manifest.kernels.iter().map(|kernel| kernel.ptx.file.clone()).collect();
    assert_eq!(names(&folder), &listed | &BTreeSet::from([MANIFEST.to_string()]));
    let plan = plan("mla.eva");
    assert!(plan.kernels.len() > 5);
    for (_, kernel) in plan.kernels.iter() {
        let (ptx, code) = artifact.get(kernel).unwrap();
        assert_eq!((&ptx, &code), (&eva_ptx::compile(kernel, &Default::default()).unwrap(), &None));
        // Bodies of a function have kernels of the same name.
        let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        let entry = manifest.kernels.iter().find(|entry| text(&entry.ptx.file) == ptx.text).unwrap();
        assert_eq!(
            (entry.threads, entry.shared_bytes, &entry.entry),
            (ptx.threads, ptx.shared_bytes, &ptx.entry)
        );
        let count = |wanted: fn(&Parameter) -> bool| entry.parameters.iter().filter(|p| wanted(p)).count();
        let buffers = count(|p| matches!(p, Parameter::Buffer { .. }));
        let extents = count(|p| matches!(p, Parameter::Extent { .. }));
        let maps = count(|p| matches!(p, Parameter::TensorMap { .. }));
        let block = kernel.block.as_ref().unwrap();
        assert_eq!((buffers, extents, maps), (kernel.bufs.len(), kernel.syms().len(), block.maps.len()));
        assert_eq!(ptx.text.matches(&format!("{}_param_", ptx.entry)).next().is_some(), buffers > 0);
        assert_eq!(entry.programs.len(), kernel.grid.len());
    }
}

#[test]
fn other_texts_are_written_if_asked_for() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("out");
    let args = [&case("mla.eva"), "--emit", "kernel,llvm", "--json", "-o", folder.to_str().unwrap()];
    let ran = compile(&args, None);
    assert!(ran.err.starts_with("note: there is no `ptxas`"), "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let n = plan("mla.eva").kernels.len();
    assert_eq!((&report["kernels"], &report["assembler"]), (&json!(n), &Value::Null));
    let files: Vec<&str> =
        report["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    assert_eq!(files.len(), 3 * n + 1);
    assert!(files.iter().all(|file| Path::new(file).is_file()));
    let read = |ending: &str| {
        let file = files.iter().find(|file| file.ends_with(ending)).unwrap();
        fs::read_to_string(file).unwrap()
    };
    assert!(read(".kernel").starts_with("block kernel @mla."));
    assert!(read(".ll").contains("define ptx_kernel void @eva_mla_"));
}

/// A program that says it is `ptxas`, and then does what `does` says with its last argument, the PTX, and the one
/// before, the machine code's file.
#[cfg(unix)]
fn ptxas(dir: &TempDir, does: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let file = dir.path().join("ptxas");
    let version = "[ \"$1\" = --version ] && echo 'Cuda compilation tools, release 7.5, V7.5.3' && exit";
    fs::write(&file, format!("#!/bin/sh\n{version}\n{does}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[cfg(unix)]
#[test]
fn machine_code_is_what_ptxas_makes() {
    let dir = TempDir::new().unwrap();
    let ptxas =
        ptxas(&dir, "while [ \"$1\" != -o ]; do shift; done; echo \"code of $(/bin/cat \"$3\")\" > \"$2\"");
    let folder = dir.path().join("out");
    let ran = compile(&[&case("mla.eva"), "-o", folder.to_str().unwrap()], Some(&ptxas));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.contains("of machine code (ptxas 7.5.3)"), "{}", ran.out);
    let artifact = Artifact::open(&folder).unwrap();
    assert_eq!(artifact.manifest().assembler.as_deref(), Some("ptxas 7.5.3"));
    for (_, kernel) in plan("mla.eva").kernels.iter() {
        let (ptx, code) = artifact.get(kernel).unwrap();
        assert_eq!(
            String::from_utf8(code.unwrap()).unwrap().trim_end(),
            format!("code of {}", ptx.text.trim_end())
        );
    }
    assert!(names(&folder).iter().all(|name| !name.ends_with(".part")));
}

#[cfg(unix)]
#[test]
fn a_ptxas_that_fails_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let ptxas = ptxas(&dir, "echo 'ptxas fatal: no' >&2; exit 3");
    let folder = dir.path().join("out");
    let ran = compile(&[&case("mla.eva"), "-o", folder.to_str().unwrap()], Some(&ptxas));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(
        ran.err.contains("refuses the kernel `mla.") && ran.err.contains("ptxas fatal: no"),
        "{}",
        ran.err
    );
    assert!(names(&folder).is_empty());
    for (file, reason) in [(dir.path().join("none"), "cannot be run"), ("/bin/echo".into(), "its version")] {
        let ran = compile(&[&case("mla.eva"), "-o", folder.to_str().unwrap()], Some(&file));
        assert!(
            ran.code == Some(1) && ran.err.contains(reason) && ran.err.contains("EVA_PTXAS"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (dir, folder) = artifact("mla.eva");
    let plan = plan("mla.eva");
    let first = plan.kernels.iter().next().map(|(_, kernel)| kernel).unwrap();
    let manifest = folder.join(MANIFEST);
    let whole = fs::read_to_string(&manifest).unwrap();
    let ptx = folder.join(Artifact::open(&folder).unwrap().manifest().kernels[0].ptx.file.clone());
    let mut all = Sections::default();
    let mut add = |title: &str, error: ArtifactError| all.add(title, &without(&dir, &error.to_string()));

    // Another kernel by the same name.
    let mut other = first.clone();
    other.grid[0].tile += 1;
    add("another kernel", Artifact::open(&folder).unwrap().get(&other).unwrap_err());
    let text = fs::read_to_string(&ptx).unwrap();
    fs::write(&ptx, text.replace("ret;", "ret; ")).unwrap();
    add("changed", Artifact::open(&folder).unwrap().get(first).unwrap_err());
    fs::remove_file(&ptx).unwrap();
    add("a file is missing", Artifact::open(&folder).unwrap().get(first).unwrap_err());
    let version = format!("\"eva\": \"{}\"", env!("CARGO_PKG_VERSION"));
    for (title, from, to) in [
        ("another version", version.as_str(), "\"eva\": \"0.0.7\""),
        ("another target", "\"sm_90a\"", "\"sm_100a\""),
        ("a file elsewhere", "\"file\": \"000-", "\"file\": \"../000-"),
        ("no kernels", "\"kernels\"", "\"colonels\""),
        ("no JSON", "{", "["),
    ] {
        assert!(whole.contains(from), "{from}");
        fs::write(&manifest, whole.replacen(from, to, 1)).unwrap();
        add(title, Artifact::open(&folder).unwrap_err());
    }
    fs::remove_file(&manifest).unwrap();
    add("no manifest", Artifact::open(&folder).unwrap_err());
    let text = all.text().replace(env!("CARGO_PKG_VERSION"), "VERSION");
    insta::assert_snapshot!(text);
}

#[test]
fn mistakes_of_users() {
    let (dir, folder) = artifact("mla.eva");
    let (folder, model) = (folder.to_str().unwrap(), fixture("v3-tiny").display().to_string());
    let before = names(Path::new(folder));
    let mut all = Sections::default();
    let mut add =
        |title: &str, code: i32, args: &[&str]| all.add(title, &without(&dir, &refusal(code, args)));
    add("a folder that is not empty", 1, &["compile", &case("mla.eva"), "-o", folder]);
    let new = dir.path().join("new").display().to_string();
    add("a type for an IR file", 2, &["compile", &case("mla.eva"), "--dtype", "bf16", "-o", &new]);
    add("no model", 1, &["compile", path(&dir), "-o", &new]);
    assert!(!Path::new(&new).exists());
    let generate = |more: &[&str]| {
        [&["generate", &model, "--tokens", "1,2", "--max-new-tokens", "1", "--artifact"], more]
            .concat()
            .iter()
            .map(|&arg| arg.to_string())
            .collect::<Vec<String>>()
    };
    for (title, code, more) in [
        ("on the CPU", 2, &[folder, "--target", "cpu"][..]),
        ("another form", 2, &[folder, "--form", "absorbed"]),
        ("no artifact", 1, &[&new]),
    ] {
        let args = generate(more);
        add(title, code, &args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    insta::assert_snapshot!(all.text());
    assert_eq!(names(Path::new(folder)), before);
}

#[test]
fn a_model_is_compiled_as_it_is_run() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("out");
    let model = fixture("v2-lite-tiny").display().to_string();
    let args =
        [&model, "--dtype", "bf16", "--form", "absorbed", "--threads", "3", "-o", folder.to_str().unwrap()];
    let ran = compile(&args, None);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let artifact = Artifact::open(&folder).unwrap();
    assert_eq!(artifact.manifest().notes["dtype"], "bf16");
    let printed = output(&["print", &model, "--target", "cuda", "--dtype", "bf16", "--form", "absorbed"]);
    let heads = printed.lines().filter_map(|line| line.strip_prefix("block kernel @"));
    let printed: BTreeSet<&str> = heads.map(|head| head.trim_end_matches(" (")).collect();
    let listed: BTreeSet<&str> =
        artifact.manifest().kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    assert_eq!(listed, printed);
    assert!(listed.len() > 20);
}

/// A layer of DeepSeek-V3's size, and two of odd ones.
const SIZES: [&str; 3] = [
    r#"{"hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "n_group": 8, "topk_group": 4, "vocab_size": 129280}"#,
    r#"{"hidden_size": 328, "num_attention_heads": 7, "num_key_value_heads": 7, "q_lora_rank": 33, "kv_lora_rank": 288,
        "qk_nope_head_dim": 38, "qk_rope_head_dim": 6, "v_head_dim": 17, "intermediate_size": 67,
        "moe_intermediate_size": 56, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
        "vocab_size": 301}"#,
    r#"{"hidden_size": 203, "num_attention_heads": 1, "num_key_value_heads": 1, "q_lora_rank": 4, "kv_lora_rank": 45,
        "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 40, "intermediate_size": 9,
        "moe_intermediate_size": 264, "n_routed_experts": 9, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2,
        "vocab_size": 57}"#,
];

const REST: &str = r#"{"model_type": "deepseek_v3", "torch_dtype": "bfloat16", "hidden_act": "silu",
    "attention_bias": false, "num_hidden_layers": 1, "first_k_dense_replace": 0, "n_shared_experts": 1,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 4096, "tie_word_embeddings": false}"#;

/// `ptxas` has registers for everything, and no product waits for another.
#[test]
fn kernels_of_whole_layers_do_not_spill() {
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|file| file.is_file())
    };
    let named = std::env::var_os("EVA_PTXAS").filter(|name| !name.is_empty()).map(PathBuf::from);
    let Some(ptxas) = named.or_else(in_path) else {
        eprintln!("skipped: no ptxas");
        return;
    };
    let (dir, mut seen) = (TempDir::new().unwrap(), BTreeSet::new());
    for (i, sizes) in SIZES.iter().enumerate() {
        let mut config: Value = serde_json::from_str(REST).unwrap();
        let sizes: Value = serde_json::from_str(sizes).unwrap();
        config.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
        let file = dir.path().join(format!("{i}.json"));
        fs::write(&file, config.to_string()).unwrap();
        for (form, dtype) in [("expanded", "bf16"), ("absorbed", "bf16"), ("absorbed", "f32")] {
            let folder = dir.path().join(format!("{i}-{form}-{dtype}"));
            let text = |path: &Path| path.to_str().unwrap().to_string();
            let args = [&text(&file), "--form", form, "--dtype", dtype, "-o", &text(&folder)];
            let ran = compile(&args, None);
            assert_eq!(ran.code, Some(0), "{}", ran.err);
            for name in names(&folder).iter().filter(|name| name.ends_with(".ptx")) {
                let ptx = folder.join(name);
                if !seen.insert(fs::read_to_string(&ptx).unwrap()) {
                    continue;
                }
                let mut assemble = std::process::Command::new(&ptxas);
                assemble.args(["-arch=sm_90a", "-v", "-o"]).args([&dir.path().join("cubin"), &ptx]);
                let made = assemble.output().unwrap();
                let said = [made.stdout, made.stderr].concat();
                let said = String::from_utf8_lossy(&said);
                let clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
                assert!(made.status.success() && said.contains(clean), "{i} {form} {dtype} {name}: {said}");
                assert!(!said.contains("C75") && !said.contains("lmem"), "{i} {form} {dtype} {name}: {said}");
            }
        }
    }
    assert!(seen.len() > 200, "{}", seen.len());
}
