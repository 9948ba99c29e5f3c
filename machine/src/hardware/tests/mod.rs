//! Each row on a machine where it is well and on one where it is not; whole tables; garbage everywhere.

mod collections;
mod garbage;
mod machines;
mod rows;
mod tables;
