//! What guests do: how an exit is understood and answered.

pub mod bitmaps;
