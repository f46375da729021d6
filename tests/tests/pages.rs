//! Caches in pages: whatever the pages and their order, alone or shared, models compute the same.

use eva::engine::{LoadOptions, Model, Quiet};
use eva_passes::cache::Layout;
use eva_passes::{CacheOptions, Form};
use eva_runtime::sample::Sampling;
use eva_runtime::{Pages, Session, States, Tensor};
use eva_tests::Random;
use std::path::PathBuf;

fn load(name: &str, form: Form, layout: Layout, page: Option<usize>) -> Model {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    let options = LoadOptions {
        form,
        cache: CacheOptions { layout, page, ..CacheOptions::default() },
        expanded_cache: layout == Layout::AsWritten,
        entries: vec!["forward".into(), "main".into()],
        ..LoadOptions::default()
    };
    Model::load(&dir, &options, &Quiet).unwrap_or_else(|e| panic!("{e}"))
}

fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5, "{what}: {worst:e}");
}

/// Some tokens of the vocabulary, others for each seed.
fn tokens(seed: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| (seed * 31 + i * i * 7 + i * 13) % 288).collect()
}

/// The tokens after a prompt, and the last logits.
fn alone(model: &Model, prompt: &[u32], n: usize) -> (Vec<u32>, Vec<f32>) {
    let mut generator = model.generator(prompt, n, Sampling::default()).unwrap();
    generator.ignore_eos();
    let mut made = Vec::new();
    while let Some(token) = generator.step().unwrap() {
        made.push(token);
    }
    (made, generator.logits().to_vec())
}

#[test]
fn pages_make_the_tokens_that_one_piece_makes() {
    let prompt = tokens(1, 19);
    for (name, forms) in
        [("v3-tiny", &[Form::Auto, Form::Absorbed, Form::Expanded][..]), ("v2-lite-tiny", &[Form::Absorbed])]
    {
        for &form in forms {
            for layout in [Layout::Auto, Layout::AsWritten] {
                let (want, want_logits) = alone(&load(name, form, layout, None), &prompt, 9);
                for page in [7, 16, 64] {
                    let (have, logits) = alone(&load(name, form, layout, Some(page)), &prompt, 9);
                    let what = format!("{name}, {form:?}, {layout:?}, pages of {page}");
                    assert_eq!(have, want, "{what}");
                    close(&logits, &want_logits, &what);
                }
            }
        }
    }
}

#[test]
fn prompts_that_begin_alike_share_pages() {
    let n = 11;
    let begin = tokens(2, 21);
    let with = |seed: u32, n: u32| [begin.clone(), tokens(seed, n)].concat();
    // One goes on at once where the others have more; one is the beginning of all.
    let prompts = [with(3, 5), with(4, 1), with(5, 12), begin.clone()];
    let single = load("v3-tiny", Form::Auto, Layout::Auto, None);
    for page in [4, 7, 16, 64] {
        let model = load("v3-tiny", Form::Auto, Layout::Auto, Some(page));
        let mut batch = model.batch(&prompts, n, Sampling::default(), None).unwrap();
        batch.ignore_eos();
        let shared = 20;
        assert_eq!(batch.prefilled(), shared, "what is the same is run once");
        let mut made = vec![Vec::new(); prompts.len()];
        for step in 0..n {
            for (i, token) in batch.step().unwrap().into_iter().enumerate() {
                made[i].push(token.unwrap_or_else(|| panic!("sequence {i} ended at {step}")));
            }
        }
        assert_eq!(batch.step().unwrap(), [None; 4]);
        for (i, prompt) in prompts.iter().enumerate() {
            let (want, logits) = alone(&single, prompt, n);
            assert_eq!(made[i], want, "sequence {i}, pages of {page}");
            close(batch.logits(i), &logits, &format!("sequence {i}, pages of {page}"));
        }
        let apart: usize = prompts.iter().map(|prompt| (prompt.len() + n).div_ceil(page)).sum();
        assert_eq!(batch.pages().count(), apart - 3 * (shared / page));
        assert_eq!(batch.pages().free(), batch.pages().count(), "all are given back");
    }
}

#[test]
fn too_few_pages_are_an_error() {
    let model = load("v3-tiny", Form::Auto, Layout::Auto, Some(8));
    let prompts = [tokens(6, 17), tokens(7, 9)];
    let error = model.batch(&prompts, 4, Sampling::default(), Some(2)).err().map(|e| e.to_string());
    assert_eq!(error, None, "the prompts are run by the first step");
    let mut batch = model.batch(&prompts, 4, Sampling::default(), Some(4)).unwrap();
    let error = batch.step().unwrap_err().to_string();
    assert_eq!(error, "2 more pages are needed, but of 4 only 1 is free");
    let error = load("v3-tiny", Form::Auto, Layout::Auto, None).batch(&prompts, 4, Sampling::default(), None);
    let error = error.err().expect("there are no pages").to_string();
    assert_eq!(error, "several sequences at once need caches in pages: give a page size");
}

/// Feeds `rows` (one a sequence, all of one length) after `start` cached tokens each; the logits of every token.
fn feed(
    session: &mut Session,
    states: &mut States,
    table: Option<&Tensor>,
    rows: &[&[u32]],
    start: &[i32],
) -> Vec<f32> {
    let (b, s) = (rows.len(), rows[0].len());
    let ids: Vec<i64> = rows.concat().into_iter().map(i64::from).collect();
    let ids = Tensor::from_i64(&[b, s], &ids);
    let t = start.iter().max().map_or(0, |&n| n as usize) + s;
    let start = Tensor::from_i32(&[b], start);
    let mut inputs = vec![("ids", &ids), ("start", &start)];
    inputs.extend(table.map(|table| ("page_table", table)));
    let results = session.run(&inputs, Some(states), &[("t", t)]);
    results.unwrap_or_else(|e| panic!("{e}"))[0].1.to_f32()
}

/// A table in which each of `b` sequences has `width` pages of `pool`, in random order.
fn shuffled(b: usize, width: usize, pool: usize, seed: u64) -> Tensor {
    let mut random = Random(seed);
    let mut pages: Vec<i32> = (0..pool as i32).collect();
    for i in (1..pool).rev() {
        pages.swap(i, random.below(i + 1));
    }
    Tensor::from_i32(&[b, width], &pages[..b * width])
}

#[test]
fn any_pages_will_do() {
    let (long, short) = (tokens(8, 23), tokens(9, 23));
    for layout in [Layout::Auto, Layout::AsWritten] {
        let single = load("v3-tiny", Form::Auto, layout, None);
        let mut session = single.session("forward").unwrap();
        let mut states = session.new_states(2, 23).unwrap();
        let want_prefill = feed(&mut session, &mut states, None, &[&long[..14], &short[..14]], &[0, 0]);
        // The second sequence goes on from where fewer tokens count.
        let want = feed(&mut session, &mut states, None, &[&long[14..17], &short[9..12]], &[14, 9]);
        for (page, pool) in [(7, 9), (16, 5), (3, 20)] {
            let model = load("v3-tiny", Form::Auto, layout, Some(page));
            let mut session = model.session("forward").unwrap();
            let mut states = session.new_pages(pool).unwrap();
            // Pages are used again, with what others have left in them.
            for seed in 0..3 {
                let table = shuffled(2, 17usize.div_ceil(page), pool, seed);
                let what = format!("{layout:?}, pages of {page}, order {seed}");
                let rows: [&[u32]; 2] = [&long[..14], &short[..14]];
                let prefill = feed(&mut session, &mut states, Some(&table), &rows, &[0, 0]);
                close(&prefill, &want_prefill, &what);
                let rows: [&[u32]; 2] = [&long[14..17], &short[9..12]];
                let have = feed(&mut session, &mut states, Some(&table), &rows, &[14, 9]);
                close(&have, &want, &what);
            }
        }
    }
}

#[test]
fn a_sequence_that_is_forked_does_not_see_what_the_other_writes() {
    let model = load("v3-tiny", Form::Auto, Layout::Auto, Some(5));
    let mut session = model.session("forward").unwrap();
    let mut states = session.new_pages(12).unwrap();
    let mut pages = Pages::new(12, 5);
    let (ids, other) = (tokens(10, 18), tokens(11, 18));
    let mut one = pages.sequence();
    pages.reserve(&mut one, 18).unwrap();
    let table = pages.table(&[&one]);
    let want = feed(&mut session, &mut states, Some(&table), &[&ids], &[0]);
    // The other goes on differently after eight tokens, and then the first is computed again from there.
    let (mut two, copy) = pages.fork(&one, 8).unwrap();
    copy.unwrap().apply(&mut states).unwrap();
    pages.reserve(&mut two, 18).unwrap();
    let table_two = pages.table(&[&two]);
    let vocab = model.config.vocab;
    let mixed = [&ids[..8], &other[8..]].concat();
    let have = feed(&mut session, &mut states, Some(&table_two), &[&mixed[8..]], &[8]);
    let again = feed(&mut session, &mut states, Some(&table), &[&ids[12..]], &[12]);
    close(&again, &want[12 * vocab..], "the first");
    let mut fresh = session.new_pages(4).unwrap();
    let table = Tensor::from_i32(&[1, 4], &[2, 0, 3, 1]);
    let want = feed(&mut session, &mut fresh, Some(&table), &[&mixed], &[0]);
    close(&have, &want[8 * vocab..], "the second");
}

#[test]
fn pages_and_one_piece_are_not_mixed_up() {
    let model = load("v2-lite-tiny", Form::Auto, Layout::Auto, Some(16));
    let session = model.session("main").unwrap();
    assert_eq!(session.page_rows(), Some(16));
    let error = session.new_states(1, 8).err().unwrap().to_string();
    assert_eq!(error, "`model.layers.0.self_attn.ckv` of @main is in pages");
    let model = load("v2-lite-tiny", Form::Auto, Layout::Auto, None);
    let error = model.session("main").unwrap().new_pages(3).err().unwrap().to_string();
    assert_eq!(error, "`model.layers.0.self_attn.ckv` of @main is not in pages");
}
