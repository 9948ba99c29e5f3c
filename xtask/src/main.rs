//! Builds, tests, demonstrates and measures Gaol.

fn main() {}
