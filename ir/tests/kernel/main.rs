//! The kernel IR: its text, its meaning, what is well-formed.

mod block_pipe;
mod block_product;
mod block_random;
mod block_stage;
mod block_support;
mod block_threads;
mod chains;
mod examples;
mod lane;
mod scaled;
mod support;
mod tile;
mod verify_any;
mod verify_block;
mod verify_lane;
mod verify_product;
mod verify_tile;
