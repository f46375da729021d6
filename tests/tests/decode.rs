//! The latent cache: token by token is as good as at once, alone as good as in company, and one compile serves all.

use eva::engine::{LoadOptions, Model, Quiet};
use eva_passes::Form;
use eva_runtime::{Session, States, Tensor};
use std::path::PathBuf;

fn model(name: &str, form: Form) -> Model {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    let entries = vec!["forward".into(), "main".into()];
    Model::load(&dir, &LoadOptions { form, entries, ..LoadOptions::default() }, &Quiet)
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Feeds `rows` (one a sequence, all of one length) after `start` cached tokens each; the logits of every token.
fn feed(session: &mut Session, states: &mut States, rows: &[&[i64]], start: &[i32]) -> Vec<f32> {
    let (b, s) = (rows.len(), rows[0].len());
    let ids = Tensor::from_i64(&[b, s], &rows.concat());
    let t = start.iter().max().map_or(0, |&n| n as usize) + s;
    let start = Tensor::from_i32(&[b], start);
    let results = session.run(&[("ids", &ids), ("start", &start)], Some(states), &[("t", t)]);
    results.unwrap_or_else(|e| panic!("{e}"))[0].1.to_f32()
}

fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5, "{what}: {worst:e}");
}

/// Twenty-three tokens of the vocabulary, another run of them for each seed.
fn tokens(seed: i64) -> Vec<i64> {
    (0..23).map(|i| (seed * 31 + i * i * 7 + i * 13) % 288).collect()
}

#[test]
fn token_by_token_is_prefill_at_once() {
    for (name, form) in
        [("v3-tiny", Form::Auto), ("v3-tiny", Form::Expanded), ("v2-lite-tiny", Form::Absorbed)]
    {
        let model = model(name, form);
        let mut session = model.session("forward").unwrap();
        let ids = tokens(1);
        let at_once = fresh(&mut session, 23, &[&ids]);
        let mut states = new_states(&session, 1, 40);
        let mut one_by_one = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            one_by_one.extend(feed(&mut session, &mut states, &[&[id]], &[i as i32]));
        }
        close(&one_by_one, &at_once, name);
        // And in pieces of other lengths.
        let mut states = new_states(&session, 1, 23);
        let mut pieces = Vec::new();
        for (from, to) in [(0, 5), (5, 6), (6, 19), (19, 23)] {
            pieces.extend(feed(&mut session, &mut states, &[&ids[from..to]], &[from as i32]));
        }
        close(&pieces, &at_once, name);
    }
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    for name in ["v3-tiny", "v2-lite-tiny"] {
        let model = model(name, Form::Auto);
        let mut session = model.session("forward").unwrap();
        let (a, b, c) = (tokens(2), tokens(3), tokens(4));
        let vocab = model.config.vocab;
        let together = fresh(&mut session, 23, &[&a, &b, &c]);
        for (i, ids) in [&a, &b, &c].into_iter().enumerate() {
            let alone = fresh(&mut session, 23, &[ids]);
            close(&alone, &together[i * 23 * vocab..][..23 * vocab], name);
        }
    }
}

#[test]
fn sequences_of_different_lengths_share_a_batch() {
    let model = model("v3-tiny", Form::Auto);
    let mut session = model.session("forward").unwrap();
    let vocab = model.config.vocab;
    let (long, short) = (tokens(5), tokens(6));
    // The short sequence is padded; then both go on from where they are.
    let mut states = new_states(&session, 2, 30);
    let padded: Vec<i64> = short[..9].iter().copied().chain([7; 5]).collect();
    let prefill = feed(&mut session, &mut states, &[&long[..14], &padded], &[0, 0]);
    let decode = feed(&mut session, &mut states, &[&long[14..16], &short[9..11]], &[14, 9]);

    let mut alone = new_states(&session, 1, 11);
    let first = feed(&mut session, &mut alone, &[&short[..9]], &[0]);
    let next = feed(&mut session, &mut alone, &[&short[9..11]], &[9]);
    close(&prefill[14 * vocab..][..9 * vocab], &first, "prefill of the short sequence");
    close(&decode[2 * vocab..], &next, "decode of the short sequence");
    let mut alone = new_states(&session, 1, 16);
    let whole = feed(&mut session, &mut alone, &[&long[..16]], &[0]);
    close(&decode[..2 * vocab], &whole[14 * vocab..], "decode of the long sequence");
}

#[test]
fn threads_do_not_change_a_bit() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/v3-tiny");
    let run = |threads| {
        let options =
            LoadOptions { threads: Some(threads), entries: vec!["forward".into()], ..LoadOptions::default() };
        let model = Model::load(&dir, &options, &Quiet).unwrap_or_else(|e| panic!("{e}"));
        let mut session = model.session("forward").unwrap();
        let (a, b) = (tokens(8), tokens(9));
        fresh(&mut session, 23, &[&a, &b])
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert!(run(threads).iter().zip(&one).all(|(x, y)| x.to_bits() == y.to_bits()), "{threads} threads");
    }
}

#[test]
fn a_full_cache_is_an_error() {
    let model = model("v2-lite-tiny", Form::Auto);
    let mut session = model.session("forward").unwrap();
    let mut states = new_states(&session, 1, 4);
    let ids = Tensor::from_i64(&[1, 5], &[1, 2, 3, 4, 5]);
    let start = Tensor::from_i32(&[1], &[0]);
    let error =
        session.run(&[("ids", &ids), ("start", &start)], Some(&mut states), &[("t", 5)]).err().unwrap();
    assert_eq!(error.to_string(), "the cache has room for 4 tokens, but 5 are needed");
}

/// Feeds `rows` with an empty cache of their own.
fn fresh(session: &mut Session, capacity: usize, rows: &[&[i64]]) -> Vec<f32> {
    let mut states = new_states(session, rows.len(), capacity);
    feed(session, &mut states, rows, &vec![0; rows.len()])
}

fn new_states(session: &Session, batch: usize, capacity: usize) -> States {
    session.new_states(batch, capacity).unwrap_or_else(|e| panic!("{e}"))
}
