//! Models make the same tokens whatever their caches hold, in every form of attention.

use eva::engine::{LoadOptions, Model, Quiet};
use eva_passes::cache::Layout;
use eva_passes::{CacheOptions, Form};
use eva_runtime::checkpoint::Checkpoint;
use eva_runtime::sample::Sampling;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn load(name: &str, options: LoadOptions) -> Model {
    Model::load(&fixture(name), &options, &Quiet).unwrap_or_else(|e| panic!("{e}"))
}

/// The recorded prompt, and the tokens recorded after it.
fn recorded(name: &str) -> (Vec<u32>, Vec<u32>) {
    let file = Checkpoint::open(&fixture(name).join("expected.safetensors")).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let (numbers, _) = file.get(name).unwrap().bytes.as_chunks::<8>();
        numbers.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect()
    };
    let (prompt, all) = (ids("gen.prompt"), ids("gen.tokens"));
    (prompt.clone(), all[prompt.len()..].to_vec())
}

const FORMS: [Form; 3] = [Form::Auto, Form::Absorbed, Form::Expanded];

#[test]
fn every_form_and_every_layout_makes_the_recorded_tokens() {
    for name in ["v3-tiny", "v2-lite-tiny"] {
        let (prompt, want) = recorded(name);
        for form in FORMS {
            // Written with latents; with keys and values, which become latents; and with those, left so.
            for (expanded_cache, layout) in
                [(false, Layout::Auto), (true, Layout::Auto), (true, Layout::AsWritten)]
            {
                let cache = CacheOptions { layout, ..CacheOptions::default() };
                let model = load(name, LoadOptions { form, cache, expanded_cache, ..LoadOptions::default() });
                let mut generator = model.generator(&prompt, want.len(), Sampling::default()).unwrap();
                let config = &model.config;
                let latent = 4 * (config.kv_lora + config.qk_rope);
                let head = config.qk_nope + config.qk_rope + config.v_head;
                let a_layer = if layout == Layout::Auto { latent } else { 4 * config.heads * head };
                assert_eq!(generator.cache_bytes_per_token_and_layer(), a_layer as u64, "{name}, {form:?}");
                assert_eq!(generator.cache_bytes_per_token(), a_layer * config.layers);
                let mut tokens = Vec::new();
                while let Some(token) = generator.step().unwrap() {
                    tokens.push(token);
                }
                assert_eq!(tokens, want, "{name}, {form:?}, {expanded_cache}, {layout:?}");
            }
        }
    }
}

#[test]
fn a_budget_that_a_model_does_not_meet_is_an_error() {
    let options = |kv_budget, layout| LoadOptions {
        kv_budget: Some(kv_budget),
        cache: CacheOptions { layout, ..CacheOptions::default() },
        expanded_cache: true,
        ..LoadOptions::default()
    };
    // 32 + 16 numbers of four bytes.
    load("v3-tiny", options(192, Layout::Auto));
    for (budget, layout) in [(191, Layout::Auto), (192, Layout::AsWritten)] {
        let error =
            Model::load(&fixture("v3-tiny"), &options(budget, layout), &Quiet).err().expect("it is too much");
        let text = error.to_string();
        assert!(
            text.contains(&format!("but the module allows {budget}: `%model.layers.0.self_attn.")),
            "{text}"
        );
    }
}
