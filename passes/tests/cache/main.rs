//! How caches are laid out.

mod budget;
mod latent;
mod paged;
mod support;
