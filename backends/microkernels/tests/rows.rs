//! A row's product has the same bits whatever else is computed with it.

mod support;

use eva_microkernels::{Elem, dot};
use support::{Case, ELEMS, Matrix, Part, Random, kernels, layouts, some_blocks};

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Compares every row alone, every column alone, and some parts in between with the whole product.
fn check_parts(case: &Case, m: usize, n: usize, what: &str, random: &mut Random) {
    let whole_part = Part { i: 0, m, j: 0, n };
    for (level, kernel) in kernels(case.a.elem, case.b.elem) {
        for before in [None, Some(-1.5)] {
            let whole = case.run(kernel, whole_part, 0, before);
            let mut parts: Vec<Part> = (0..m).map(|i| Part { i, m: 1, j: 0, n }).collect();
            parts.extend((0..n).map(|j| Part { i: 0, m, j, n: 1 }));
            for _ in 0..12 {
                let (i, j) = (random.below(m), random.below(n));
                parts.push(Part { i, m: 1 + random.below(m - i), j, n: 1 + random.below(n - j) });
            }
            for part in parts {
                let got = case.run(kernel, part, 2, before);
                let same: Vec<f32> = (part.i..part.i + part.m)
                    .flat_map(|i| whole[i * n + part.j..][..part.n].iter().copied())
                    .collect();
                assert_eq!(
                    bits(&got),
                    bits(&same),
                    "{level}, {:?} x {:?}, {what}, {part:?} of {m}x{n}x{}",
                    case.a.elem,
                    case.b.elem,
                    case.k
                );
            }
        }
    }
}

#[test]
fn parts_have_the_bits_of_the_whole() {
    let mut random = Random(11);
    let mut blocks = some_blocks().into_iter().cycle();
    for a in ELEMS {
        for b in ELEMS {
            for (m, n, k) in [(29, 71, 37), (16, 69, 130), (8, 33, 515), (5, 140, 16), (3, 2, 1091)] {
                for (what, a_strides, b_strides) in layouts(m, n, k, 1) {
                    if what == "a one row, b along k" {
                        continue;
                    }
                    let (of_a, of_b) = (blocks.next().flatten(), blocks.next().flatten());
                    blocks.next();
                    let a = Matrix::random(a, m, k, a_strides, &mut random).scaled(of_a, &mut random);
                    let b = Matrix::random(b, n, k, b_strides, &mut random).scaled(of_b, &mut random);
                    check_parts(&Case { a, b, k }, m, n, what, &mut random);
                }
            }
        }
    }
}

#[test]
fn rows_beyond_one_panel_have_the_bits_of_the_row_alone() {
    // More rows than are handled together, and more of k than their panel holds.
    let (m, n, k) = (101, 9, 1600);
    let mut random = Random(13);
    for (what, a_strides, b_strides) in layouts(m, n, k, 0).into_iter().take(5) {
        let a = Matrix::random(Elem::Bf16, m, k, a_strides, &mut random);
        let b = Matrix::random(Elem::F16, n, k, b_strides, &mut random);
        let case = Case { a, b, k };
        let kernel = dot(Elem::Bf16, Elem::F16);
        let part = Part { i: 0, m, j: 0, n };
        let whole = case.run(kernel, part, 0, None);
        case.check(what, part, None, &whole);
        for i in [0, 1, 50, 95, 96, 100] {
            let row = case.run(kernel, Part { i, m: 1, j: 0, n }, 0, None);
            assert_eq!(bits(&row), bits(&whole[i * n..][..n]), "{what}, row {i}");
        }
    }
}

#[test]
fn element_types_matter_only_by_their_values() {
    let (m, n, k) = (14, 21, 150);
    let mut random = Random(17);
    for (what, a_strides, b_strides) in layouts(m, n, k, 2).into_iter().take(7) {
        for (elem, blocks) in ELEMS.into_iter().flat_map(|elem| some_blocks().map(|blocks| (elem, blocks))) {
            // Where both sides have scales of the same blocks, sums are scaled, not terms.
            let narrow_a = Matrix::random(elem, m, k, a_strides, &mut random);
            let narrow_b = Matrix::random(elem, n, k, b_strides, &mut random).scaled(blocks, &mut random);
            let narrow = Case { a: narrow_a, b: narrow_b, k };
            let wide = Case { a: narrow.a.widened(), b: narrow.b.widened(), k };
            for m in [m, 2, 1] {
                let part = Part { i: 0, m, j: 0, n };
                for ((level, narrowly), (_, widely)) in
                    kernels(elem, elem).into_iter().zip(kernels(Elem::F32, Elem::F32))
                {
                    let narrow = narrow.run(narrowly, part, 0, None);
                    let wide = wide.run(widely, part, 0, None);
                    assert_eq!(bits(&narrow), bits(&wide), "{level}, {elem:?}, {blocks:?}, {what}, {m} rows");
                }
            }
        }
    }
}
