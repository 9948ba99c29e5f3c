//! The cell that says hello.

fn main() {}
