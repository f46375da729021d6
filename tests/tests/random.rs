//! Evaluator = tile interpreter = lane interpreter = machine code, on random modules.

use eva_ir::testing::{Options, Sample, random_module};
use eva_ir::types::DType;
use eva_runtime::{CompileOptions, Executable};
use eva_tests::check_random;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_say_the_same(seed: u64, ops in 1usize..16, calls: bool) {
        check_random(&random_module(seed, Options { ops, narrow: false, calls }), seed ^ 1);
    }

    #[test]
    fn all_say_the_same_of_narrow_types(seed: u64, ops in 1usize..10) {
        let sample = random_module(seed, Options { ops, narrow: true, calls: false });
        // Machine code has no f64, and says so; see `double_precision_is_refused`.
        prop_assume!(!has(&sample, DType::F64));
        check_random(&sample, seed ^ 2);
    }
}

/// Whether any value has elements of this type.
fn has(sample: &Sample, dtype: DType) -> bool {
    let values = sample.module.funcs.iter().flat_map(|(_, f)| f.values.iter());
    values.into_iter().any(|(_, data)| data.ty.parts().iter().any(|ty| ty.dtype == dtype))
}

#[test]
fn double_precision_is_refused() {
    let text = "dim n\nfn @f(%x: f64[n]) -> f64[n] { %y = exp %x : f64[n]\n return %y }";
    let module = eva_ir::text::parse(text).unwrap();
    let error = Executable::compile(&module, &CompileOptions::default()).err().unwrap();
    assert_eq!(error.to_string(), "`x` of @f: f64 is not compiled for cpu: only the evaluator has it");
}
