//! The form of latent attention: what is chosen, that it is equal, and how wrong rules are stopped.

mod equal;
mod forms;
mod guards;
mod oracle;
mod rules;
mod sound;
mod spellings;
mod support;
mod why;
