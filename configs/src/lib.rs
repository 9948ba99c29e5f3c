//! Configuration schema, checks and compiler.
