//! The demonstration.
mod histogram;
