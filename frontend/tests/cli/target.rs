//! `--target` of commands, and kernels as `eva print` shows them.

use super::support::{Sections, fixture, output, refusal};

fn model() -> String {
    fixture("v3-tiny").display().to_string()
}

fn reference() -> String {
    fixture("v3-tiny/expected.safetensors").display().to_string()
}

#[test]
fn targets_that_there_are_not() {
    let (model, reference) = (model(), reference());
    let generate = ["generate", &model, "--tokens", "1,2,3", "--max-new-tokens", "2"];
    let mut all = Sections::default();
    for target in ["gpu", "cuda:", "cuda:x", "sm_90a"] {
        let message = refusal(2, &[&generate[..], &["--target", target]].concat());
        assert_eq!(refusal(2, &["compare", &model, &reference, "--target", target]), message);
        all.add(target, &message);
    }
    for target in ["cpu", "cuda", "sm_80"] {
        let message = refusal(2, &["compile", &model, "-o", "nowhere", "--target", target]);
        all.add(&format!("compile for {target}"), &message);
    }
    insta::assert_snapshot!(all.text());
}

/// Without the feature every way to a GPU ends in the same words.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_make_one_with_it() {
    let (model, reference) = (model(), reference());
    let generate = ["generate", &model, "--tokens", "1,2,3", "--max-new-tokens", "2"];
    for args in [
        &[&generate[..], &["--target", "cuda"]].concat()[..],
        &[&generate[..], &["--target", "cuda:1"]].concat(),
        &[&generate[..], &["--artifact", "nowhere"]].concat(),
        &["compare", &model, &reference, "--target", "cuda"],
        &["compile", &model, "-o", "nowhere"],
        &["compile", &model, "-o", "nowhere", "--target", "sm_90a"],
        &["print", &model, "--emit", "ptx"],
        &["print", &model, "--target", "cuda", "--emit", "llvm"],
    ] {
        let message = refusal(2, args);
        assert!(message.contains("this eva was built without CUDA; build it with"), "{args:?}: {message}");
        assert!(message.contains("--features cuda"), "{args:?}: {message}");
    }
    assert!(!std::path::Path::new("nowhere").exists());
}

/// On a machine whose GPU will do, models run there; on others the message says what is missing.
#[cfg(feature = "cuda")]
#[test]
fn a_machine_without_a_gpu_says_what_is_missing() {
    use super::support::eva;
    let tokens = ["--tokens", "1,2,3", "--max-new-tokens", "5"];
    let ran = eva(&[&["generate", &model(), "--target", "cuda"], &tokens[..]].concat());
    match ran.code {
        Some(0) => assert_eq!(ran.out, output(&[&["generate", &model()], &tokens[..]].concat())),
        code => {
            assert_eq!((code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
            assert!(ran.err.starts_with("error: ") && !ran.err.contains("panicked"), "{}", ran.err);
            let words = ["driver", "GPU", "Hopper"];
            assert!(words.iter().any(|word| ran.err.contains(word)), "{}", ran.err);
        }
    }
}

/// A CPU has no use for `--tf32`; a GPU's kernels show it.
#[test]
fn operands_are_rounded_for_gpus() {
    let (model, reference) = (model(), reference());
    for args in [
        &["compare", &model, &reference, "--tf32"][..],
        &["generate", &model, "--tokens", "1,2,3", "--max-new-tokens", "2", "--tf32"],
        &["print", &model, "--target", "cpu", "--tf32"],
        &["explain", &model, "--tf32"],
        &["bench", "gemm", "--tf32", "--list"],
    ] {
        let message = refusal(2, args);
        assert!(message.contains("--tf32 is for GPUs (--target cuda)"), "{args:?}: {message}");
    }
    let mlp = |more: &[&str]| output(&[&["print", &model, "--block", "mlp"], more].concat());
    let rounded = mlp(&["--target", "cuda", "--tf32"]);
    assert!(rounded.contains(": tf32[") && rounded.contains(" = mma "), "{rounded}");
    assert!(!mlp(&["--target", "cuda"]).contains("tf32"));
    assert!(mlp(&["--after", "tf32"]).contains("{to = tf32}"));
}

/// What is measured with `--tf32` is products of `f32`.
#[cfg(feature = "cuda")]
#[test]
fn only_f32_is_rounded_to_tf32() {
    let listed = ["bench", "gemm", "--target", "cuda", "--tf32", "--list"];
    let message = refusal(2, &[&listed[..], &["--dtype", "bf16"]].concat());
    assert!(
        message.contains("--tf32 rounds operands that are f32; with --dtype bf16 there are none"),
        "{message}"
    );
    for more in [&[][..], &["--dtype", "f32"]] {
        assert!(output(&[&listed[..], more].concat()).contains("dtype=tf32"));
    }
}

#[test]
fn kernels_are_printed_in_each_phase() {
    let model = model();
    let kernels = |more: &[&str]| output(&[&["print", &model, "--block", "router"], more].concat());
    for (phase, more) in [
        ("lane", &["--target", "cpu"][..]),
        ("block", &["--target", "cuda"]),
        ("block", &["--target", "cuda", "--emit", "kernel"]),
        ("tile", &["--target", "cuda", "--emit", "tile"]),
    ] {
        let text = kernels(more);
        let heads: Vec<&str> = text.lines().filter(|line| line.contains(" kernel @")).collect();
        assert!(heads.len() >= 2, "{text}");
        assert!(heads.iter().all(|head| head.starts_with(&format!("{phase} kernel @router."))), "{heads:?}");
    }
    // Every function of a whole model has kernels.
    let text = output(&["print", &model, "--target", "cuda"]);
    for func in ["dense_layer", "moe_layer", "forward", "main"] {
        assert!(text.contains(&format!("block kernel @{func}.")), "{func}");
    }
    let case = fixture("../cases/run/mla.eva").display().to_string();
    let [absorbed, expanded] = ["absorbed", "expanded"]
        .map(|form| output(&["print", &case, "--target", "cuda", "--form", form, "--emit", "tile"]));
    assert_ne!(absorbed, expanded);
}

#[cfg(feature = "cuda")]
#[test]
fn ptx_and_llvm_ir_are_printed() {
    let model = model();
    let kernels = output(&["print", &model, "--block", "router", "--target", "cuda"]);
    let n = kernels.matches("block kernel @").count();
    let ptx = output(&["print", &model, "--block", "router", "--emit", "ptx"]);
    assert_eq!(
        (ptx.matches("\n.target sm_90a").count(), ptx.matches("\n.visible .entry eva_router_").count()),
        (n, n)
    );
    let llvm = output(&["print", &model, "--block", "router", "--emit", "llvm"]);
    assert_eq!(llvm.matches("\ndefine ptx_kernel void @eva_router_").count(), n, "{llvm}");
}

#[test]
fn options_of_kernels_that_make_no_sense() {
    let model = model();
    let mut all = Sections::default();
    for more in [
        &["--emit", "tile"][..],
        &["--target", "cpu", "--emit", "ptx"],
        &["--target", "cuda", "--after", "attend"],
        &["--target", "cuda:1"],
    ] {
        all.add(&more.join(" "), &refusal(2, &[&["print", &model], more].concat()));
    }
    insta::assert_snapshot!(all.text());
}
