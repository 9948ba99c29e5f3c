//! The command that people use.

fn main() {}
