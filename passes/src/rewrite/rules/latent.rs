//! Latent attention: up-projections multiplied into queries and outputs, and into each other.
//!
//! Axes: batch `B`, new tokens `S`, cached tokens `T`, latent `C`, heads `H`, a head's key `N`, its value `V`.

use super::super::contraction::Match;
use super::product_rules;
use egg::Id;

product_rules! {
    /// Multiply the up-projections of keys and values into the queries and the outputs (DeepSeek-V2,
    /// arXiv:2405.04434, section 2.1.2).
    pub fn absorption;

    /// q·(c·W_UK) = (q·W_UK)·c: score against the latents, not against the keys.
    mla_absorb_key: Reassociates, adds "q_latent",
        "(einsum BSHN,BTHN->BHST ?q (einsum BTC,HNC->BTHN ?c ?w_uk))" =>
        "(einsum BSHC,BTC->BHST (einsum BSHN,HNC->BSHC ?q ?w_uk) ?c)"
        if Some('N'), Some('C'), Last('T'), Weight("?w_uk"), Data("?c"), Data("?q"), OnlyAttended(());

    /// p·(c·W_UV) = (p·c)·W_UV: average the latents, then project once a query.
    mla_absorb_value: Reassociates, adds "o_latent",
        "(einsum BHST,BTHV->BSHV ?p (einsum BTC,HVC->BTHV ?c ?w_uv))" =>
        "(einsum BSHC,HVC->BSHV (einsum BHST,BTC->BSHC ?p ?c) ?w_uv)"
        if Some('T'), Some('C'), Weight("?w_uv"), Data("?c"), Data("?p"), OnlyAttended(());
}

product_rules! {
    /// Multiply two weights into one before the first call: worth it only where the product is smaller than the two.
    pub fn folding;

    /// (x·W)·U = x·(W·U): one product with W·U, which is computed when the weights are loaded.
    fold_weights: Reassociates, adds "w_folded",
        "(einsum XGHJ,GHJK->XHK (einsum XGI,HGJI->XGHJ ?x ?w) ?u)" =>
        "(einsum XGI,HGIK->XHK ?x (einsum HGJI,GHJK->HGIK ?w ?u))"
        if Some('I'), Weight("?w"), Weight("?u"), Data("?x");
}

/// What a rule of [`absorption`] does without where it matched: the keys or values of each head, and their projection.
pub(super) fn absorbed(rule: &str, found: &Match) -> Option<(Id, Id)> {
    match rule {
        "mla_absorb_key" => Some((found.inner()?, found.factor("?w_uk")?)),
        "mla_absorb_value" => Some((found.inner()?, found.factor("?w_uv")?)),
        _ => None,
    }
}
