//! All codes of the 8-bit types, and what they stand for.

use eva_ir::codes::{decode, encode};
use eva_ir::kernel::run::round;
use eva_ir::types::DType;

#[test]
fn every_code_is_the_code_of_its_number() {
    for dtype in [DType::F8E4M3, DType::F8E5M2, DType::E8M0] {
        for code in 0..=255u8 {
            let x = decode(dtype, code);
            if x.is_nan() {
                assert!(decode(dtype, encode(dtype, x)).is_nan(), "{dtype} {code:#x}");
                continue;
            }
            assert_eq!(round(x, dtype), x, "{dtype} {code:#x}");
            assert_eq!(encode(dtype, x), code, "{dtype} {code:#x} is {x}");
        }
    }
}

#[test]
fn known_codes() {
    let cases = [
        (DType::F8E4M3, 0x7e, 448.0),
        (DType::F8E4M3, 0x01, 2f64.powi(-9)),
        (DType::F8E4M3, 0x08, 2f64.powi(-6)),
        (DType::F8E4M3, 0xb8, -1.0),
        (DType::F8E5M2, 0x7b, 57344.0),
        (DType::F8E5M2, 0x01, 2f64.powi(-16)),
        (DType::F8E5M2, 0xfc, f64::NEG_INFINITY),
        (DType::E8M0, 0, 2f64.powi(-127)),
        (DType::E8M0, 127, 1.0),
        (DType::E8M0, 254, 2f64.powi(127)),
    ];
    for (dtype, code, x) in cases {
        assert_eq!((decode(dtype, code), encode(dtype, x)), (x, code), "{dtype}");
    }
}

#[test]
fn scales_round_up_to_powers_of_two() {
    let cases = [
        (1.0, 1.0),
        (1.0000001, 2.0),
        (0.75, 1.0),
        (3.0, 4.0),
        (0.0, 2f64.powi(-127)),
        (1e39, 2f64.powi(127)),
    ];
    for (x, up) in cases {
        assert_eq!(round(x, DType::E8M0), up, "{x}");
    }
    assert!(round(f64::NAN, DType::E8M0).is_nan());
}
