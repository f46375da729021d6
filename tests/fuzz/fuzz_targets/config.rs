//! `config.json` may hold anything; what is taken describes a model whose tensors can be listed and whose module
//! can be made, or is refused.
#![no_main]

use eva::model::config::Config;
use eva::model::{Options, causal_lm};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| match Config::from_json(text) {
    Ok(config) => {
        // Configurations may be large; these stay within what a run has time for.
        let experts = config.experts.as_ref().map_or(1, |moe| moe.routed);
        if config.layers.saturating_mul(experts) <= 256 && config.layers + config.mtp_layers <= 16 {
            let _ = config.weights().len();
            let _ = causal_lm(&config, &Options { mtp: true, taps: true, ..Options::default() });
        }
        let _ = (config.softmax_scale(), config.rope_attention_factor());
        if config.qk_rope <= 1 << 16 {
            let _ = config.inv_freq();
        }
    }
    Err(error) => assert!(!error.to_string().is_empty()),
});
