//! How caches are laid out.

mod budget;
mod latent;
mod support;
