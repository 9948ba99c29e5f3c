//! Every command against a made-up machine: its answers for people and for programs, its failures, its exit status.

pub mod fake;

mod cells;
mod configurations;
mod creating;
mod enabling;
mod hardware;
mod importing;
mod memory;
mod watching;
