//! How caches are laid out.

mod budget;
mod latent;
mod paged;
mod random;
mod support;
