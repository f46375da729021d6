//! Evaluator = tile interpreter = lane interpreter = machine code, on random modules.

use eva_ir::testing::{Options, random_module};
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
        check_random(&random_module(seed, Options { ops, narrow: true, calls: false }), seed ^ 2);
    }
}
