//! The virtualization extension. The image is built for one vendor, so the exit path holds no dispatch on it.

pub mod vmx;
