//! The cell that measures timer latency.

fn main() {}
