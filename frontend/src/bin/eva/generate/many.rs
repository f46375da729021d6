//! Several prompts at once, with their caches in pages of one pool.

use super::{Args, load_options};
use crate::ui::{Bars, Usage, bytes, emit, say};
use eva::engine::{Model, pages_needed};
use eva::tokenizer::Tokenizer;
use eva_runtime::sample::Sampling;
use serde_json::json;
use std::time::Instant;

/// Loads, generates, and prints a line or a paragraph for each prompt when all are done.
pub fn run(
    args: &Args,
    prompts: &[Vec<u32>],
    tokenizer: Option<&Tokenizer>,
    sampling: Sampling,
    verbose: bool,
    bars: &Bars,
) -> anyhow::Result<bool> {
    let Some(rows) = args.page_size else {
        let message = "several prompts at once need caches in pages: give --page-size";
        return Err(Usage(message.into()).into());
    };
    let options = load_options(args)?;
    let model = Model::load(&args.model_dir, &options, bars)?;
    let started = Instant::now();
    let mut batch = model.batch(prompts, args.max_new_tokens, sampling, args.pages)?;
    if args.ignore_eos {
        batch.ignore_eos();
    }
    let mut all: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    loop {
        let tokens = batch.step()?;
        if tokens.iter().all(Option::is_none) {
            break;
        }
        all.iter_mut().zip(tokens).for_each(|(all, token)| all.extend(token));
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut sequences = Vec::new();
    for (prompt, tokens) in prompts.iter().zip(&all) {
        let text = match tokenizer {
            Some(tokenizer) => {
                let mut stream = tokenizer.stream();
                let mut text = String::new();
                for &token in tokens {
                    text += &stream.push(token)?;
                }
                Some(text + &stream.finish()?)
            }
            None => None,
        };
        let ended = !args.ignore_eos && tokens.last().is_some_and(|last| model.config.eos.contains(last));
        let words: Vec<String> = tokens.iter().map(u32::to_string).collect();
        if !args.json {
            emit(&format!("{}\n", text.clone().unwrap_or_else(|| words.join(","))))?;
        }
        let finish = if ended { "eos" } else { "length" };
        sequences.push(json!({"prompt": prompt, "tokens": tokens, "text": text, "finish": finish}));
    }
    let pages = batch.pages().count();
    let needed = pages_needed(prompts, args.max_new_tokens, rows);
    let new: usize = all.iter().map(Vec::len).sum();
    if args.json {
        let report = json!({
            "sequences": sequences,
            "target": options.device.to_string(),
            "compilations": model.compilations,
            "page_size": rows,
            "pages": pages,
            "prompt_tokens_run": batch.prefilled(),
            "cache_bytes": batch.cache_bytes(),
            "seconds": seconds,
        });
        emit(&format!("{report}\n"))?;
    }
    if verbose {
        let given: usize = prompts.iter().map(Vec::len).sum();
        say(&format!(
            "prompts       {} of {given} tokens, of which {} were run\n\
             pages         {pages} of {rows} tokens ({needed} needed), {}\n\
             made          {new} tokens in {seconds:.3} s, {:.1}/s",
            prompts.len(),
            batch.prefilled(),
            bytes(batch.cache_bytes()),
            new as f64 / seconds,
        ));
    }
    Ok(true)
}
